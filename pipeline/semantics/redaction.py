"""Removing secrets from stored texts: a server's words may contain the keys that it was sent.

A server may repeat its request, headers included, and escape it in any way. So texts are compared with their escapes
undone, without spaces and in lower case, and PIECE characters of a long key are enough to find it.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

HIDDEN = "***"
LONG, SHORTEST, PIECE = 8, 4, 12
"""Keys of at least LONG characters are found in any spelling, shorter ones only as whole words.

Keys of fewer than SHORTEST characters are ignored, because they would be found in every text.
"""

_ESCAPE = re.compile(
    r"""\\u(?P<u>[0-9a-fA-F]{4}) | \\x(?P<x>[0-9a-fA-F]{2}) | %(?P<p>[0-9a-fA-F]{2}) | \\(?P<s>["'/\\])
    | &\#x(?P<h>[0-9a-fA-F]{1,5}); | &\#(?P<d>\d{1,6});""",
    re.VERBOSE,
)
_UNSEEN = re.compile(r"[\s\u200b-\u200f\u2060\ufeff]")


class Redactor:
    """Replaces secrets in a text by ``***``."""

    def __init__(self, secrets: Iterable[str]):
        known = {secret.strip() for secret in secrets}
        self._pieces: dict[int, set[str]] = {}
        for form in (f.lower() for secret in known if len(secret) >= LONG for f in spellings(secret)):
            size = min(len(form), PIECE)
            self._pieces.setdefault(size, set()).update(form[i : i + size] for i in range(len(form) - size + 1))
        words = {w for s in known if SHORTEST <= len(s) < LONG for w in (s, json.dumps(s)[1:-1], quote(s, safe=""))}
        alternatives = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        self._words = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)") if words else None

    def __call__(self, text: str) -> str:
        if self._words is not None:
            text = self._words.sub(HIDDEN, text)
        parts, end = [], 0
        for start, stop in self._spans(text):
            parts += [text[end:start], HIDDEN]
            end = stop
        return "".join([*parts, text[end:]])

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """The (start, stop) of each secret in the text, in order; spans that touch are joined."""
        merged: list[tuple[int, int]] = []
        if not self._pieces:
            return merged
        plain, spans = readable(text)
        hits = [
            (spans[i][0], spans[i + size - 1][1])
            for size, pieces in self._pieces.items()
            for i in range(len(plain) - size + 1)
            if plain[i : i + size] in pieces
        ]
        for start, stop in sorted(hits):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return merged


TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def of_environment(*names: str) -> Redactor:
    """A Redactor for the secrets in these environment variables and for the Hugging Face token."""
    return _redactor(frozenset(os.environ.get(name, "") for name in (*names, *TOKENS)))


@functools.lru_cache(maxsize=8)
def _redactor(secrets: frozenset[str]) -> Redactor:
    return Redactor(secrets)


def spellings(secret: str) -> set[str]:
    """A secret as it is, in hexadecimal, and in base64 at each of the three possible offsets."""
    data, forms = secret.encode(), {secret, secret.encode().hex()}
    for before, partial in ((0, 0), (1, 2), (2, 3)):  # bytes before the secret, and letters that depend on them
        whole = (before + len(data)) * 8 // 6  # letters that do not depend on the bytes after it
        letters = base64.b64encode(b"\0" * before + data).decode()[partial:whole]
        forms |= {letters, letters.translate(str.maketrans("+/", "-_"))}
    return forms


def readable(text: str) -> tuple[str, Sequence[tuple[int, int]]]:
    """(text, spans): the text with escapes undone, repeatedly, without spaces and in lower case.

    ``spans`` has the (start, stop) of each of its letters in the original text.
    """
    spans = [(i, i + 1) for i in range(len(text))]
    for _ in range(3):
        letters, merged, end = [], [], 0
        for escape in _ESCAPE.finditer(text):
            letters.append(text[end : escape.start()])
            merged += spans[end : escape.start()]
            letters.append(_letter(escape))
            merged.append((spans[escape.start()][0], spans[escape.end() - 1][1]))
            end = escape.end()
        if not end:
            break
        text, spans = "".join([*letters, text[end:]]), [*merged, *spans[end:]]
    visible = [i for i, letter in enumerate(text) if not _UNSEEN.match(letter)]
    lower = "".join(low if len(low := text[i].lower()) == 1 else text[i] for i in visible)
    return lower, [spans[i] for i in visible]


def _letter(escape: re.Match[str]) -> str:
    if escape["s"]:
        return escape["s"]
    code = int(escape["d"]) if escape["d"] else int(next(filter(None, escape.group("u", "x", "p", "h"))), 16)
    return chr(code)
