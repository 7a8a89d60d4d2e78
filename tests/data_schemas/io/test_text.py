"""Words from files nobody here wrote: decoded, on one line, and short."""

import pytest

from data_schemas.io.text import CUT, decoded, from_path, is_plain, label


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_decoded_as_its_mark_says(encoding):
    assert decoded("naïve 猫".encode(encoding)) == "naïve 猫"


def test_text_without_a_mark_is_utf_8_or_else_latin_1():
    assert decoded("café".encode("latin-1")) == "café"
    assert decoded(b"\xfe\xff" + "cat".encode("utf-16-be")) == "cat"
    assert decoded(("é" * CUT).encode()[: CUT + 1])[:5] == "ééééé", "cut within a letter"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kiwifruit.\nde.utf8=Eine Kiwi.\n", "Kiwifruit"),
        ("\n \n  a  shiny\tball \nred", "a shiny ball"),
        ("ta\u200bb\u202eby\x00 cat\ufeff", "tabby cat"),
        ("an old cup", "an old cup"),
        ("x" * 200, "x" * 80),
        ("a" * 79 + " b", "a" * 79),
        ("\u2028\u2029\x1b", ""),
        (7, "7"),
        ("one\rtwo", "one"),
    ],
)
def test_a_label_is_the_first_line_without_what_is_not_seen(text, expected):
    assert label(text) == expected


def test_paths_of_any_bytes_become_text():
    assert from_path("caf\udce9") == "caf\\xe9"
    assert from_path("café") == "café"
    assert [is_plain(text) for text in ("x/0001 é", "a\nb", "a\u202eb", "\udcff")] == [True, False, False, False]
