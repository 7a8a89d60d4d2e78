"""The base class of all settings, and error messages that name the wrong setting in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Tag, ValidationError, field_validator

from data_schemas.errors import UserError
from data_schemas.io.text import one_line

MAX_SEED = 2**32 - 1
"""Largest seed that numpy and torch both accept; other seeds are derived from it."""
SHOWN = 80
"""Most characters of a wrong value that an error message repeats."""
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_PASSWORD = re.compile(r"(://)[^\s'\"]*@")
_QUERY = re.compile(r"([?&][^=&\s'\"]*(?:key|token|secret|passw|sig)[^=&\s'\"]*=)[^&\s'\"]+", re.IGNORECASE)
_CHECKED = re.compile(r"(?:function-\w+\[\w+\(\), )+(\w+)\]+")
"""How pydantic names a union's member whose class has validators of its own; the group is the class."""
_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)


class Settings(BaseModel):
    """Base of all settings: validated when created and immutable afterwards.

    Unknown keys, infinite numbers and text with control characters are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_plain(cls, value: Any) -> Any:
        _check_text(value)
        return value

    @classmethod
    def parse(cls, values: Any, source: str) -> Self:
        """Settings made from plain values. Raises UserError that names ``source`` and the first mistake."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{source}: {first_mistake(error, cls)}") from error


def _check_text(value: Any) -> None:
    if isinstance(value, str) and _NOT_TEXT.search(value):
        raise ValueError("holds control characters or is not UTF-8; write plain text")
    if isinstance(value, list | tuple | dict):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_text(item)


def suggest(word: str, known: Iterable[str]) -> str:
    """Advice after an unknown word: the most similar known word, if there is one, and all known words."""
    names = list(dict.fromkeys(known))
    close = get_close_matches(word, names, 1, cutoff=0.75)
    existing = f"there is: {', '.join(names)}" if names else "there is none"
    return f"did you mean {close[0]}? {existing.capitalize()}" if close else existing


def redacted(text: str) -> str:
    """The text with the passwords and keys in its URLs replaced by ``***``."""
    return _QUERY.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


def first_mistake(error: ValidationError, kind: type[BaseModel] | None = None) -> str:
    """The first complaint of a validation error as ``key: what is wrong``, without secrets.

    ``kind`` is the model that was validated. If it is given, names of union members, which no user wrote, are left out
    of the key, and the message for an unknown key suggests the most similar one.
    """
    mistake = error.errors(include_url=False)[0]
    keys, fields = _place(kind, mistake["loc"])
    key, value = ".".join(keys) or "settings", mistake["input"]
    if mistake["type"] == "extra_forbidden":
        return f"{key}: no such setting; {suggest(keys[-1], fields) if fields else 'check its spelling'}"
    if mistake["type"] == "union_tag_invalid":
        known = [tag.strip(" '") for tag in mistake["ctx"]["expected_tags"].split(",")]
        return f"{key}.backend: {str(mistake['ctx']['tag'])!r} does not exist; {suggest(mistake['ctx']['tag'], known)}"
    if mistake["type"] == "union_tag_not_found":
        return f"{key}.backend: which one is not said; expected keys with values, backend among them"
    message = f"{key}: " * bool(keys) + mistake["msg"].removeprefix("Value error, ")
    if isinstance(value, dict | BaseModel) or mistake["type"] == "missing":
        return redacted(message)
    secret = isinstance(value, str) and _SECRET.search(keys[-1] if keys else "")
    return redacted(f"{message} (given: {'not shown' if secret else one_line(redacted(repr(value)), SHOWN)})")


def _place(kind: Any, location: Sequence[str | int]) -> tuple[list[str], list[str]]:
    """The keys that a user wrote to reach an error's location, and the field names where the last one was looked up."""
    keys: list[str] = []
    fields: list[str] = []
    for part in location:
        kind = _bare(kind)
        fields = list(kind.model_fields) if _is_model(kind) else []
        written, kind = _step(kind, part)
        if written:
            keys.append(str(part))
    return keys, fields


def _step(kind: Any, part: str | int) -> tuple[bool, Any]:
    """Follow one part of an error's location into the type ``kind``.

    Returns whether a user wrote this part, and the type below it (None if unknown).
    """
    if _is_model(kind):
        field = kind.model_fields.get(part)
        return True, field.annotation if field is not None else None
    members = [member for member in get_args(kind) if member is not type(None)]
    if get_origin(kind) in (list, tuple):
        return True, members[0]
    if get_origin(kind) is dict:
        return True, members[-1]
    checked = _CHECKED.fullmatch(part) if isinstance(part, str) else None
    name = checked[1] if checked else part
    named = next((member for member in members if name in _names(member)), None)
    return (True, None) if named is None else (False, named)


def _bare(kind: Any) -> Any:
    """The type without its annotations and without the None of an optional."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    members = [member for member in get_args(kind) if member is not type(None)]
    one = get_origin(kind) in (Union, UnionType) and len(members) == 1
    return _bare(members[0]) if one else kind


def _names(member: Any) -> set[str]:
    """The names that pydantic may use for a member of a union: its tag, class name or the values of its literals."""
    names = {extra.tag for extra in get_args(member)[1:] if isinstance(extra, Tag)}
    bare = _bare(member)
    names.add(getattr(bare, "__name__", ""))
    if _is_model(bare):
        names.update(v for f in bare.model_fields.values() for v in get_args(f.annotation) if isinstance(v, str))
    return names


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
