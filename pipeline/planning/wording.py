"""How prompts name subjects: articles and number, by rules that hold for usual English names."""

from __future__ import annotations

import re

ARTICLE = re.compile(r"^(a|an|the|some|my|your|his|her|its|our|their|this|these|those|two|three|four|five)\s", re.I)
HEAD = re.compile(r"\s(?:of|with|in|on|at|from|for|without|by)\s|,")
VOWEL_BUT_CONSONANT = re.compile(r"(uni(?!n|m)|use|usu|uti|ura|euro|eu|ewe|one\b|once|ufo\b)", re.I)
SILENT_H = re.compile(r"(hour|honest|honou?r|heir)", re.I)
SPELLED_WITH_A_VOWEL = re.compile(r"[AEFHILMNORSX](?=[A-Z0-9]|\b(?![a-z]))")
SINGULAR_IN_S = re.compile(
    r"(ss|us|is|canvas|atlas|christmas|pancreas|chaos|cosmos|thermos|rhinoceros|lens|news|series|species)$", re.I
)
PLURALS = {"people", "men", "women", "children", "feet", "teeth", "geese", "mice", "oxen", "police", "dice"}


def is_plural(name: str) -> bool:
    """Whether a name is a plural, such as "scissors", "pair of glasses" not: the word before "of" or "with" decides."""
    head = HEAD.split(name.strip())[0].split()
    word = head[-1].lower() if head else ""
    return word in PLURALS or (len(word) > 3 and word.endswith("s") and not SINGULAR_IN_S.search(word))


def is_proper(name: str) -> bool:
    """Whether a name is that of one thing, such as "Eiffel Tower": several words, all with a capital."""
    words = name.split()
    return len(words) > 1 and all(word[:1].isupper() for word in words)


def with_article(name: str) -> str:
    """The name as a prompt mentions it first: "a cat", "an orange cup", "an hourglass", "scissors"."""
    name = name.strip()
    if ARTICLE.match(name):
        return name[0].lower() + name[1:]
    if is_proper(name):
        return f"the {name}"
    return name if is_plural(name) else f"{_indefinite(name)} {name}"


def _indefinite(name: str) -> str:
    """ "an" before a vowel's sound, else "a"."""
    if name[:1].isdigit():
        return "an" if re.match(r"8|11\b|18\b", name) else "a"
    if re.match(r"[A-Z]{2}|[A-Z]\b", name):  # letters that are spelled out
        return "an" if SPELLED_WITH_A_VOWEL.match(name) and not VOWEL_BUT_CONSONANT.match(name) else "a"
    if SILENT_H.match(name):
        return "an"
    return "an" if name[:1].lower() in "aeiou" and not VOWEL_BUT_CONSONANT.match(name) else "a"


def sentence(template: str, first: str, second: str) -> str:
    """A relation's template about two subjects: {a} and {b} with their articles, {is} as the first one needs it."""
    text = template.format(
        a=with_article(first), b=with_article(second), **{"is": "are" if is_plural(first) else "is"}
    )  # fmt: skip
    return text[0].upper() + text[1:]
