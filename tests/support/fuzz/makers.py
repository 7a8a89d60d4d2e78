"""Small makers of bad files; each takes the case's folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

Make = Callable[[Path], None]


def written(name: str, content: str | bytes) -> Make:
    """A file with this content."""

    def make(here: Path) -> None:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode(errors="surrogatepass") if isinstance(content, str) else content)

    return make


def fifo(name: str) -> Make:
    """A pipe that nobody writes to."""

    def make(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(here / name)

    return make


def link(name: str, target: str) -> Make:
    def make(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).symlink_to(target)

    return make


def folder(name: str) -> Make:
    return lambda here: (here / name).mkdir(parents=True)


def literal(text: str) -> str:
    """Text in which braces stand for themselves."""
    return text.replace("{", "{{").replace("}", "}}")


def both(*makes: Make) -> Make:
    def make(here: Path) -> None:
        for each in makes:
            each(here)

    return make


DEEP = "[" * 100_000
DEEP_MAPPING = "{a: " * 2000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(12)
)
CIRCLE = "a: &a\n  b: *a\n"
DIGITS = "9" * 5000
LONG = "x" * 5000

BAD_YAML: dict[str, tuple[str | bytes, str]] = {
    "deep list": (DEEP, "nested too deeply|nested more than|not YAML"),
    "deep mapping": (DEEP_MAPPING, "nested"),
    "alias bomb": (BOMB, "aliases"),
    "alias circle": (CIRCLE, "circle"),
    "date": ("samples: 2024-01-01\n", "samples"),
    "impossible date": ("samples: 2024-02-31\n", "samples"),
    "python tag": ("samples: !!python/object/apply:os.system ['touch executed']\n", "samples"),
    "own tag": ("samples: !thing 3\n", "samples"),
    "set": ("samples: !!set {a, b}\n", "samples"),
    "binary": ("samples: !!binary aGVsbG8=\n", "samples"),
    "many digits": (f"samples: {DIGITS}\n", "samples"),
    "infinity": ("synthesis: {fault_share: .inf}\n", "synthesis.fault_share"),
    "not a number": ("synthesis: {fault_share: .nan}\n", "synthesis.fault_share"),
    "a list": ("- samples\n", "expected keys with values"),
    "a word": ("samples\n", "expected keys with values"),
    "a key twice": ("samples: 3\nsamples: 4\n", "samples: stands there twice"),
    "a key that is no text": ("[a, b]: 4\n", "a key is not text"),
    "not UTF-8": (b"name: \xff\xfe\xfa\n", "not UTF-8"),
    "control characters": ("name: a\x07b\n", "control characters"),
    "NUL in a string": ('references: {pool: "a\\0b"}\n', "references.pool"),
    "half a surrogate": ('references: {pool: "a\\ud800b"}\n', "references.pool"),
    "unclosed": ("samples: [1, 2\n", "not YAML"),
    "tabs": ("a:\n\t- b\n", "not YAML"),
    "unknown key": ("sampels: 3\n", "did you mean samples"),
    "wrong type": ("samples: {a: 3}\n", "samples"),
    "null": ("samples: null\n", "samples"),
    "huge": (b"a: " + b"x" * 2_000_000, "more than the limit"),
    "a number as a section": ("synthesis: 3\n", "synthesis"),
    "unknown backend": ("synthesis: {backend: collag}\n", "did you mean collage"),
    "merge key of itself": ("a: &a\n  <<: *a\n", "a"),
}

BAD_JSON: dict[str, tuple[str | bytes, str]] = {
    "deep": (DEEP, "nested too deeply"),
    "deep object": ('{"a":' * 50_000, "nested too deeply"),
    "many digits": ('{"shards": "x", "steps": ' + DIGITS + "}", "digits"),
    "infinity": ('{"shards": "x", "lr": Infinity}', "Infinity"),
    "large number": ('{"shards": "x", "lr": 1e999}', "too large"),
    "not a number": ('{"shards": "x", "lr": NaN}', "NaN"),
    "a list": ("[1]", "valid dictionary"),
    "cut short": ('{"shards": "x", ', "not JSON"),
    "empty": ("", "not JSON"),
    "not UTF-8": (b'{"shards": "\xff"}', "UTF-8"),
    "NUL in a string": ('{"shards": "a\\u0000b"}', "shards"),
    "half a surrogate": ('{"shards": "a\\ud800b"}', "shards"),
    "unknown key": ('{"shard": "x"}', "did you mean shards|Field required"),
    "wrong type": ('{"shards": 3}', "shards"),
}


NO_OUT = {
    "below a device": ("/dev/null/x", "/dev/null"),
    "where nobody may write": ("/proc/x/y", "/proc/x"),
    "over-long": ("{here}/" + "x" * 300, "--out"),
    "in a bucket": ("s3://bucket/x", "this machine"),
    "of nothing": ("", "--out"),
}
"""What no new folder can be, with a word of the line that says so."""
