"""What a run of a profile will take, from figures that were measured on known machines: figures.yaml.

That file is made from benchmarks/results by ``python benchmarks/costs/figures.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from data_schemas.errors import UserError
from data_schemas.io.documents import read_yaml
from data_schemas.settings import suggest
from pipeline.backends import build_stages
from pipeline.config import CurationConfig
from pipeline.core.stage import Stage
from pipeline.estimate.timing import Measured, part_sizes, whole


@dataclass(frozen=True)
class Figure:
    """A stage's figure: seconds and bytes a sample, seconds to ``load`` its model, and the ``settings`` it holds for.

    Either it was ``measured`` (on which device, in which file) or it is ``assumed`` (why).
    """

    seconds: float
    bytes: float = 0.0
    load: float = 0.0
    gpu: bool = False
    alone: bool = False
    measured: str | None = None
    assumed: str | None = None
    settings: Mapping[str, Any] | None = None

    def source(self) -> str:
        return f"measured: {self.measured}" if self.assumed is None else f"ASSUMED: {self.assumed}"


def known() -> dict[str, Any]:
    """The figures by profile."""
    return read_yaml(str(files("pipeline.estimate") / "figures.yaml"), "install the package again")


def given_seconds(texts: Sequence[str]) -> dict[str, float]:
    """Seconds a sample by stage, from texts like semantics=1.2. Raises UserError for others."""
    found = {}
    for text in texts:
        stage, _, number = text.partition("=")
        try:
            found[stage] = float(number)
        except ValueError:
            found[stage] = math.nan
        if not 0 <= found[stage] < math.inf:
            raise UserError(f"--seconds {text}: expected stage=seconds a sample, such as semantics=1.2")
    return found


def estimate_profile(
    profile: str, config: CurationConfig, samples: int, places: int, price: float | None, given: Mapping[str, float]
) -> dict[str, Any]:
    """What ``timing.whole`` tells, with ``files`` and ``notes``. ``given`` are seconds a sample by stage that replace
    known ones.

    Raises UserError for stages of which nothing is known.
    """
    facts = known().get(profile, {})
    figures = {name: Figure(**figure) for name, figure in facts.get("stages", {}).items()}
    stages = build_stages(config)
    names = [stage.name for stage in stages]
    for name in given:
        if name not in names:
            raise UserError(f"--seconds {name}: no such stage; {suggest(name, names)}")
    notes, chosen = [], {}
    for name in ("plan", *names, "coordination", "shards"):
        stage = next((stage for stage in stages if stage.name == name), None)
        figure = figures.get(name)
        if stage is not None and figure is not None and (differs := _differs(stage, figure)):
            if "backend" in differs:
                figure = None
            else:
                notes.append(f"{name}: the figure is for {_listed(figure.settings)}, and not for {_listed(differs)}")
        if name in given:
            figure = replace(figure or Figure(0.0), seconds=given[name], assumed="as given with --seconds")
        if figure is not None:
            chosen[name] = figure
    if missing := [name for name in names if name not in chosen]:
        raise UserError(
            f"no figure is known for {', '.join(missing)} of these settings; give it, as --seconds {missing[0]}=1.5, "
            "or curate some samples and estimate from that run"
        )
    kept = facts.get("kept", {"share": 1.0, "why": "nothing is known of what it keeps"})
    rows = [_row(name, figure, kept["share"]) for name, figure in chosen.items()]
    found = whole(rows, samples, config.part_size, places, config.seed, kept["share"], price)
    notes.append(f"kept: {kept['why']}; not counted: the pool's cut-outs, {facts.get('pool', 'once a picture')}")
    if found["stages"] and (refused := _refused(config, samples)):
        notes.append(f"no single run is that large ({refused}): divide it into several")
    return {"profile": profile, **found, "files": _files(stages, config, samples, found["kept"]), "notes": notes}


def _row(name: str, figure: Figure, share: float) -> Measured:
    per_planned = share if name == "shards" else 1.0  # a shard's figures are those of a kept sample
    seconds, size = figure.seconds * per_planned, figure.bytes * per_planned
    return Measured(name, [seconds], 0.0, figure.load, size, figure.gpu, figure.alone, figure.source())


def _differs(stage: Stage, figure: Figure) -> dict[str, Any]:
    """The stage's settings that are others than those that the figure holds for."""
    return {
        key: getattr(stage.config, key, None)
        for key, value in (figure.settings or {}).items()
        if getattr(stage.config, key, None) != value
    }


def _listed(settings: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (settings or {}).items())


def _refused(config: CurationConfig, samples: int) -> str | None:
    """Why a run cannot have so many samples, or None."""
    try:
        CurationConfig.parse({**config.model_dump(mode="json"), "samples": samples}, "a run")
    except UserError as error:
        return str(error)
    return None


def _files(stages: Sequence[Stage], config: CurationConfig, samples: int, kept: int) -> int:
    """Files of all parts and shards: a table each, notes, and a tar where there are pictures."""
    parts = len(part_sizes(samples, config.part_size))
    of_a_part = 2 + sum(3 if stage.saves_pictures else 2 for stage in stages)  # plan and decide have no notes
    return parts * of_a_part + 4 * math.ceil(
        kept / config.shards.samples_per_shard
    )  # a shard's tar is linked once more
