"""The pages of the site that are made from the code: settings, tables, stages with their scores, and public names."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import pipeline
import tokenar
from data_schemas import tables
from data_schemas.schema import Column, TableSchema
from data_schemas.shards import ShardSample
from pipeline.backends import build_stages
from pipeline.config import CurationConfig
from pipeline.core.stage import Stage
from tokenar.config import SampleConfig, TrainConfig
from tokenar.encoders.config import EncodeConfig
from tokenar.evaluate.config import EvalConfig

COMMANDS = {
    CurationConfig: "`instructar`: a YAML file for `--config`, or `--set key=value`",
    TrainConfig: "`tokenar-train`: a JSON file for `--config`, or `--set key=value`",
    EncodeConfig: "`tokenar-encode`",
    SampleConfig: "`tokenar-sample`",
    EvalConfig: "`tokenar-eval`",
}
PROFILES = ("embedded", "paper")
"""The profiles whose stages are described."""


def configuration() -> str:
    """Every setting of every command, with type, bounds, default and meaning."""
    parts = _head("Configuration", "Every key is checked before any work; an unknown one is refused.")
    for model in settings():
        parts += [f"## {model.__name__}", "", _text(model)]
        if model in COMMANDS:
            parts += ["", f"Of {COMMANDS[model]}."]
        rows = [_setting(name, field) for name, field in model.model_fields.items()]
        parts += ["", *_table(("key", "type", "default", "meaning"), rows), ""]
    return "\n".join(parts)


def settings() -> list[type[BaseModel]]:
    """Every settings class of every command, each before those that it holds."""
    return list(dict.fromkeys(model for root in COMMANDS for model in _models(root)))


def data() -> str:
    """Every table that is written, with type, unit and meaning of each column, and what a shard holds of a sample."""
    parts = _head("Tables and shards", "The same meanings stand in the Parquet files, in the metadata of each column.")
    schemas = [s for s in vars(tables).values() if isinstance(s, TableSchema)]
    tuples = {name.lower(): value for name, value in vars(tables).items() if isinstance(value, tuple) and value}
    groups = {name: columns for name, columns in tuples.items() if isinstance(columns[0], Column)}
    for name, columns in [*((s.name, s.columns) for s in schemas), *groups.items()]:
        rows = [(f"`{c.name}`", f"{c.type}", c.unit, c.meaning + _bounds(c)) for c in columns]
        parts += [f"## {name}", "", *_table(("column", "type", "unit", "meaning"), rows), ""]
    return "\n".join([*parts, "## A sample in a shard", "", _text(ShardSample), ""])


def stages() -> str:
    """Every stage of the profiles: the model, what each score means, and the rules by which a sample is rejected."""
    parts = _head("Stages and scores", "The configuration chooses a backend for each stage.")
    for profile in PROFILES:
        parts += [f"## Profile `{profile}`", ""]
        for stage in build_stages(CurationConfig.load(profile)):
            parts += _stage(stage)
    return "\n".join(parts)


def names() -> str:
    """Every public name of the two packages, with its signature and what it says of itself."""
    lead = "What `pipeline` and `tokenar` offer; everything else may change. [In a notebook](notebook.md)."
    parts = _head("Public names", lead)
    for package in (pipeline, tokenar):
        for name in sorted(package.__all__):
            thing = getattr(package, name)
            shown = f"{package.__name__}.{name}"
            parts += [f"### {shown}", "", "```python", f"{shown}{_signature(thing)}", "```", "", _text(thing), ""]
            parts += [line for member in _members(thing) for line in member]
    return "\n".join(parts)


def _members(thing: Any) -> Iterator[list[str]]:
    """The public methods of a class that are its own."""
    if not inspect.isclass(thing) or issubclass(thing, BaseModel):
        return
    for name, member in vars(thing).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            bound = not isinstance(member, staticmethod)
            yield [f"**`{name}{_signature(function, bound=bound)}`**", "", _text(function), ""]


def _stage(stage: Stage) -> list[str]:
    lines = [f"### {stage.name}: {type(stage).__name__}", "", _text(type(stage)), ""]
    lines += [f"Model: {', '.join(w.name for w in stage.weights()) or stage.model}.", ""]
    scores = [(f"`{c.name}`", c.unit, c.meaning + _bounds(c)) for c in stage.columns]
    lines += [*_table(("score", "unit", "meaning"), scores), ""]
    if stage.rules:
        sign = {"min": "at least", "max": "at most"}
        rows = [(f"`{r.reason}`", f"`{r.column}` {sign[r.bound]} {r.threshold:g}", r.meaning) for r in stage.rules]
        lines += [*_table(("reason", "kept if", "meaning of a rejection"), rows), ""]
    return lines


def _models(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A settings class and all that its fields may hold, each before those that it holds."""
    yield root
    for field in root.model_fields.values():
        for kind in _kinds(field.annotation):
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                yield from _models(kind)


def _kinds(annotation: Any) -> Iterator[Any]:
    arguments = [a for a in typing.get_args(annotation) if typing.get_origin(annotation) is not typing.Literal]
    yield from (kind for argument in arguments for kind in _kinds(argument))
    if not arguments:
        yield annotation


def _setting(name: str, field: Any) -> tuple[str, ...]:
    default = field.default_factory() if field.default_factory else field.default
    if default is PydanticUndefined:
        shown = "needed"
    elif isinstance(default, BaseModel):
        shown = f"{type(default).__name__}'s"
    else:
        shown = f"`{default!r}`"
    bounds = [f"{sign} {value:,}" for sign, key in (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt"))
              for m in field.metadata if (value := getattr(m, key, None)) is not None]  # fmt: skip
    return f"`{name}`", ", ".join([_type(field.annotation), *bounds]), shown, field.description or ""


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(a) for a in arguments if a is not type(None))
    if origin is not None:
        return f"{origin.__name__} of {', '.join(_type(a) for a in arguments if a is not ...)}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return getattr(annotation, "__name__", str(annotation))


def _bounds(column: Column) -> str:
    if column.one_of:
        return f" One of {', '.join(column.one_of)}."
    if column.low is None and column.high is None:
        return ""
    low, high = ("" if v is None else f"{v:g}" for v in (column.low, column.high))
    return f" {low} to {high}." if low and high else f" At least {low}." if low else f" At most {high}."


def _signature(thing: Any, bound: bool = False) -> str:
    """Its arguments, of a ``bound`` method without the first; nothing for settings, whose fields stand on the page of
    the configuration."""
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        return ""
    signature = inspect.signature(thing)
    own = list(signature.parameters.values())[int(bound) :]
    parameters = [p.replace(annotation=_as_written(p.annotation), default=_default(p)) for p in own]
    made = signature.empty if inspect.isclass(thing) else _as_written(signature.return_annotation)
    return str(signature.replace(parameters=parameters, return_annotation=made))


def _default(parameter: inspect.Parameter) -> Any:
    """Its default, and of a function no address, which another build would not have."""
    return _AsWritten("...") if inspect.isfunction(parameter.default) else parameter.default


def _as_written(annotation: Any) -> Any:
    return _AsWritten(annotation) if isinstance(annotation, str) else annotation


class _AsWritten(str):
    """An annotation that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _text(thing: Any) -> str:
    return inspect.getdoc(thing) or ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return [f"| {' | '.join(line)} |" for line in cells]


def _head(title: str, lead: str) -> list[str]:
    return [f"# {title}", "", lead, ""]


PAGES = {"configuration.md": configuration, "data.md": data, "stages.md": stages, "names.md": names}
