"""YAML and JSON files from users, read as plain values: no tags, dates or cycles, and bounded in size and depth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data_schemas.errors import UserError
from data_schemas.io.files import read_file
from data_schemas.io.text import one_line

MAX_BYTES = 10_000_000
"""Largest settings file that is read, in bytes."""
MAX_YAML = 1_000_000
"""Most characters of a YAML document; parsing that many takes about 10 seconds."""
MAX_DEPTH = 64
MAX_VALUES = 200_000
"""Most values of a YAML document with its aliases expanded. Nested aliases can double the count on every line."""
MAX_DIGITS = 40
_SCALARS = ("null", "bool", "int", "float", "str")


def read_yaml(path: str | Path, advice: str = "give a YAML file") -> Any:
    """The plain values in a YAML file. Raises UserError that names the file and the key."""
    return parse_yaml(_decoded(read_file(path, advice, MAX_YAML), str(path)), str(path))


def read_json(path: str | Path, advice: str = "give a JSON file", limit: int = MAX_BYTES) -> Any:
    """The plain values in a JSON file. Raises UserError that names the file."""
    return parse_json(_decoded(read_file(path, advice, limit), str(path)), str(path))


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def parse_json(text: str, source: str) -> Any:
    """The values of JSON text.

    Raises UserError that names ``source``, also for NaN and for numbers with too many digits.
    """
    try:
        return json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_no_constant)
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply; write it flatter") from error
    except ValueError as error:
        raise UserError(f"{source}: not JSON that can be used ({one_line(error, 200)}); mend it") from error


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    if len(digits) > 10 * MAX_DIGITS or not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def parse_yaml(text: str, source: str) -> Any:
    """The values of YAML text: mappings with text keys, lists, text, finite numbers, true, false and null.

    Raises UserError that names ``source`` and the key for anything else: tags, dates, repeated keys, aliases that form
    a cycle or expand too far, deep nesting and numbers with too many digits.
    """
    if len(text) > MAX_YAML:
        raise UserError(f"{source}: {len(text)} characters, more than {MAX_YAML}; make it smaller")
    loader = yaml.SafeLoader(text) if not _has_controls(text) else None
    if loader is None:
        raise UserError(f"{source}: holds control characters; save it as plain text")
    try:
        root = loader.get_single_node()
        return None if root is None else _Plain(loader, source).value(root, ())
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply; write it flatter") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: not YAML ({one_line(error, 200)}); mend it") from error
    finally:
        loader.dispose()


def _has_controls(text: str) -> bool:
    return yaml.reader.Reader.NON_PRINTABLE.search(text) is not None


class _Plain:
    """Converts the nodes of one YAML document to values and counts them; an alias counts every time it is used."""

    def __init__(self, loader: yaml.SafeLoader, source: str):
        self.loader, self.source, self.count = loader, source, 0

    def value(self, node: yaml.Node, keys: Sequence[str]) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise self._refused(keys[:1], f"holds more than {MAX_VALUES} values with its aliases written out")
        if len(keys) > MAX_DEPTH:
            raise self._refused(keys[:1], f"nested more than {MAX_DEPTH} deep, or in a circle")
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            return [self.value(item, (*keys, str(k))) for k, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
            return self._mapping(node, keys)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        raise self._refused(keys, f"{node.tag} is not a plain value")

    def _mapping(self, node: yaml.MappingNode, keys: Sequence[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, item in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refused(keys, "a key is not text")
            key = str(key_node.value)
            if key in values:
                raise self._refused((*keys, key), "stands there twice")
            values[key] = self.value(item, (*keys, key))
        return values

    def _scalar(self, node: yaml.ScalarNode, keys: Sequence[str]) -> Any:
        kind = node.tag.rpartition(":")[2]
        if kind not in _SCALARS or not node.tag.startswith("tag:yaml.org,2002:"):
            what = f"{one_line(node.value, 40)!r} is a date" if kind == "timestamp" else f"the tag {node.tag}"
            raise self._refused(keys, f"{what}, not text or a number; put it in quotes")
        if kind == "int" and len(node.value) > MAX_DIGITS:
            raise self._refused(keys, f"a number of {len(node.value)} digits")
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError) as error:  # a tag that its text does not fit
            raise self._refused(keys, f"{one_line(node.value, 40)!r} is no {kind}; mend it") from error
        if isinstance(value, float) and not math.isfinite(value):
            raise self._refused(keys, f"{node.value} is not a finite number")
        return value

    def _refused(self, keys: Sequence[str], why: str) -> UserError:
        where = f" {'.'.join(keys)}:" if keys else ""
        return UserError(f"{self.source}:{where} {why}")
