"""Caption cleaning against the published routine's results."""

import warnings

import golden
import pytest

from tokenar.encoders.caption_cleaning import clean, clean_once


def captions():
    """Every caption of every case as its own test."""
    found = []
    for case in golden.cases("tokenar/text", "text_cleaning"):
        if case.values[0] is None:
            return [case]
        pairs = golden.read(case.values[0])["captions"]
        found += [pytest.param(pair, id=f"{case.id}-{number}") for number, pair in enumerate(pairs)]
    return found


def test_golden_data_is_there():
    golden.check_present("tokenar/text", "text_cleaning")


@pytest.mark.parametrize("pair", captions())
def test_cleaning(pair):
    assert clean_once(pair["input"]) == pair["clean_caption_once"]
    assert clean(pair["input"]) == pair["text_preprocessing"]


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("", ""),
        ("A dog.png", "a"),
        (".png", "."),
        ("seen at 3:15 @jane", "seen at"),
        ("a cat <![x and a dog", "a cat <! x and a dog"),  # no parser reads this as markup
    ],
)
def test_odd_captions(caption, cleaned):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clean(caption) == cleaned
