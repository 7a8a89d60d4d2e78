"""Prompts: articles, number and capitals of usual names."""

import pytest

from pipeline.planning.wording import is_plural, sentence, with_article


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "a cat"), ("orange cup", "an orange cup"), ("hourglass", "an hourglass"), ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"), ("uniform", "a uniform"), ("one-eyed cat", "a one-eyed cat"), ("house", "a house"),
        ("scissors", "scissors"), ("pair of scissors", "a pair of scissors"), ("two dogs", "two dogs"),
        ("Eiffel Tower", "the Eiffel Tower"), ("The old man", "the old man"), ("UFO", "a UFO"),
        ("LED lamp", "an LED lamp"),
        ("8-bit hero", "an 8-bit hero"), ("mossy blob", "a mossy blob"), ("unusual hat", "an unusual hat"),
        ("Mug", "a Mug"), ("european flag", "a european flag"), ("X-ray", "an X-ray"), ("glass", "a glass"),
    ],
)  # fmt: skip
def test_articles(name, expected):
    assert with_article(name) == expected


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("scissors", True), ("red shoes", True), ("children", True), ("bus", False), ("dress", False),
        ("cactus", False), ("flowers in a vase", True), ("vase of flowers", False), ("canvas", False), ("lens", False),
        ("", False),
    ],
)  # fmt: skip
def test_number(name, plural):
    assert is_plural(name) == plural


def test_sentences():
    assert sentence("{a} {is} lying on {b}.", "scissors", "orange cup") == "Scissors are lying on an orange cup."
    assert sentence("A photo of {a} beside {b}.", "cat", "apple") == "A photo of a cat beside an apple."
    assert sentence("{b} carried by {a}.", "astronaut", "old car") == "An old car carried by an astronaut."
