"""The dataset card: the README.md beside the shards, in the form that the Hugging Face hub reads.

It is Markdown made from plain values; the same values give the same text. It names the sources of pictures but contains
no paths of the machine that made the data set.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

import jinja2
import yaml

from data_schemas.errors import UserError
from data_schemas.io.documents import parse_yaml
from data_schemas.io.text import decoded, label
from data_schemas.tables import SPLITS
from pipeline.core.stage import Rule
from pipeline.dataset.facts import bare
from pipeline.references.cutouts import ReferencesConfig
from pipeline.references.files import census
from pipeline.references.layouts import skipped
from pipeline.references.packaged import packaged
from pipeline.references.places import Place, read_place
from pipeline.references.pools import PoolConfig, list_pool, pool_folder, presets, take, tell_apart

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
NOTE_BYTES = 20_000
"""Bytes of a pool's own README.md or LICENSE that are searched for its licence."""
MAX_NOTE = 1_000_000
"""Such a file is not opened if it has more bytes than this."""


@dataclass(frozen=True)
class Licence:
    """One licence of a pool's pictures.

    ``licence`` is its name as stated by the pool, or "unknown". ``of`` says which pictures it covers and whom to
    credit.
    """

    licence: str
    of: str


@dataclass(frozen=True)
class PoolFacts:
    """What the card says about a pool.

    ``found`` pictures exist in it (None for pictures that are not references), ``used`` of them were taken, ``usable``
    became cut-outs, and ``failed`` counts the others by error code. ``published`` is the number its makers state.
    ``skipped`` is text that counts files of other kinds in its folder.
    """

    name: str
    licences: tuple[Licence, ...]
    found: int | None = None
    used: int = 0
    usable: int = 0
    categories: int = 0
    failed: tuple[tuple[str, int], ...] = ()
    published: int | None = None
    homepage: str = ""
    citation: str = ""
    skipped: str = ""

    @property
    def failed_text(self) -> str:
        """The failures by error code as text, or "none"."""
        return ", ".join(f"{code} {n}" for code, n in self.failed) or "none"


def pool_facts(config: ReferencesConfig, rows: Iterable[Mapping[str, Any]], backgrounds: bool) -> list[PoolFacts]:
    """The facts of every pool, given the rows of the references table. ``backgrounds`` adds the packaged backgrounds.

    Raises UserError if the pictures have changed since the run.
    """
    by_id = {row["reference_id"]: row for row in rows}
    listed = [list_pool(pool) for pool in config.pools()]
    taken = [take(found, pool.limit) for pool, found in zip(config.pools(), listed, strict=True)]
    distinct = tell_apart([source for used in taken for source in used])
    if any(source.reference_id not in by_id for source in distinct):
        raise UserError("references.pool: its pictures have changed since the run; run the curation again")
    facts = []
    for pool, found, chosen in zip(config.pools(), listed, taken, strict=True):
        used, distinct = distinct[: len(chosen)], distinct[len(chosen) :]
        rows_of_pool = [by_id[source.reference_id] for source in used]
        preset = _preset_of(pool)
        facts.append(PoolFacts(
            name=preset.get("title") or _title(pool),
            licences=_licences(pool, preset, [source.source for source in used]),
            found=len(found),
            used=len(used),
            usable=sum(row["status"] == "ok" for row in rows_of_pool),
            categories=len({row["category"] for row in rows_of_pool if row["status"] == "ok"}),
            failed=tuple(sorted(Counter(row["error_code"] for row in rows_of_pool if row["status"] != "ok").items())),
            published=preset.get("pictures"),
            homepage=preset.get("homepage", ""),
            citation=preset.get("citation", ""),
            skipped=census(others) if (others := skipped(pool)) else "",
        ))  # fmt: skip
    if backgrounds:
        pictures = [f"{entry['package']}/{entry['file']}" for entry in packaged()["backgrounds"]]
        facts.append(PoolFacts("packaged backgrounds", _packaged_licences(pictures)))
    return facts


def dataset_card(
    *,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    models: Mapping[str, str],
    licences: Sequence[tuple[str, str, str]],
    rules: Sequence[tuple[str, Rule]],
    pools: Sequence[PoolFacts],
    relations: Mapping[str, int],
    version: str,
) -> str:
    """The README.md of a data set: YAML front matter for the hub, then Markdown.

    ``metrics`` is the result of results.metrics_of and ``config`` the dump of a CurationConfig. ``fingerprints`` and
    ``models`` (Stage.model_name) are by stage, and ``licences`` what facts.licences says of them. ``rules`` have the
    thresholds that were used. ``relations`` counts the kept samples of each relation. ``version`` is the dataset's, as
    its run.json names it.
    """
    funnel, splits = metrics["funnel"], metrics["splits"]
    present = [split for split in SPLITS if splits.get(split)]
    return _front_matter(metrics["name"], funnel["kept"], present, pools) + _template().render(
        name=metrics["name"],
        version=version,
        seed=config["seed"],
        kept=funnel["kept"],
        funnel=funnel,
        counts=[
            *((what, funnel[what]) for what in ("planned", "made", "kept")),
            *((f"kept for {split}", splits.get(split, 0)) for split in SPLITS),
            *((what, funnel[what]) for what in ("rejected", "undecided", "errors")),
        ],
        reasons=sorted(funnel["rejected_by_reason"].items(), key=lambda item: (-item[1], item[0])),
        planted=metrics.get("planted"),
        apart=metrics.get("apart"),
        stages=[
            {
                "name": stage,
                "backend": _backend(config.get(stage)),
                "model": bare(models.get(stage, "none")),
                "fingerprint": fingerprint,
            }
            for stage, fingerprint in fingerprints.items()
        ],
        licences=licences,
        rules=[
            {"stage": stage, "column": r.column, "sign": ">=" if r.bound == "min" else "<=",
             "threshold": f"{r.threshold:g}", "reason": r.reason, "meaning": r.meaning}
            for stage, r in rules
        ],
        pools=pools,
        relations=sorted(relations.items(), key=lambda item: (-item[1], item[0])),
        first_split=present[0] if present else "train",
        limits=_limits(metrics, config, pools),
    )  # fmt: skip


def _front_matter(name: str, kept: int, splits: Sequence[str], pools: Sequence[PoolFacts]) -> str:
    stated = {licence.licence.lower() for pool in pools for licence in pool.licences}
    one = stated.pop() if len(stated) == 1 else ""
    values: dict[str, Any] = {"pretty_name": name, "language": ["en"]}
    values |= {"license": one} if re.fullmatch(r"[a-z0-9.-]+", one) else {"license": "other", "license_name": "mixed"}
    values["task_categories"] = ["text-to-image"]
    values["size_categories"] = [next((size for limit, size in SIZES if kept < limit), "n>1M")]
    values["tags"] = ["webdataset", "multi-subject", "instructar"]
    files_of = [{"split": split, "path": f"{split}-*.tar"} for split in splits]
    if files_of:  # the hub refuses a config without files
        values["configs"] = [{"config_name": "default", "data_files": files_of}]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---\n\n"


def _limits(metrics: Mapping[str, Any], config: Mapping[str, Any], pools: Sequence[PoolFacts]) -> list[str]:
    limits = ["Samples were judged by models and thresholds; what these cannot see is still in it."]
    if _backend(config.get("synthesis")) == "collage":
        limits.append(
            "Targets are collages of the references on photographs: a relation shows in where the subjects stand and "
            "how they are turned, not in what their limbs do."
        )
    planted = metrics.get("planted")
    if planted and planted["planted"] > planted["caught"]:
        where = "are in the shards" if (config.get("shards") or {}).get("unfiltered") else "were left out of the shards"
        limits.append(
            f"{planted['planted'] - planted['caught']} samples with a planted fault passed the filters and {where}; "
            "`planted_fault` in the manifest names them."
        )
    if metrics["funnel"]["undecided"]:
        limits.append(f"{metrics['funnel']['undecided']} samples were left undecided and are not in the shards.")
    if any(licence.licence == "unknown" for pool in pools for licence in pool.licences):
        limits.append("Some pictures come without a stated licence.")
    limits.append("No subject is in train and in test; a background can be in both.")
    return limits


def _backend(settings: object) -> str:
    """The name of the backend in a stage's settings, or ``use`` of a user's own stage."""
    if not isinstance(settings, Mapping):
        return ""
    return str(settings.get("backend") or settings.get("use") or "")


def _title(pool: PoolConfig) -> str:
    if pool.source == "packaged":
        return "packaged photographs"
    if pool.source == "generated":
        return "generated subjects"
    return pool.hub_id or Path(pool.source).expanduser().resolve().name


def _preset_of(pool: PoolConfig) -> dict[str, Any]:
    """The entry of pools.yaml for this pool, found by its preset or its id on the hub; empty for other pools."""
    if pool.preset is not None:
        return presets()[pool.preset]
    return next((p for p in presets().values() if p["read"]["source"] == pool.source), {})


def _licences(pool: PoolConfig, preset: Mapping[str, Any], used: Sequence[str]) -> tuple[Licence, ...]:
    if pool.source == "packaged":
        return _packaged_licences(used)
    if pool.source == "generated":
        textures = [f"{e['package']}/{e['file']}" for e in packaged()["backgrounds"] if "texture" in e]
        return (Licence("MIT", "drawings by this program"), *_packaged_licences(textures))
    return (Licence(_stated_licence(pool_folder(pool)) or preset.get("licence", "unknown"), "all pictures"),)


def _packaged_licences(used: Iterable[str]) -> tuple[Licence, ...]:
    """Each licence once, with the photographs under it and whom to credit."""
    stated = packaged()["licences"]
    of: dict[str, list[str]] = {}
    for file in sorted(set(used)):
        of.setdefault(stated[file]["licence"], []).append(f"{PurePath(file).name}: {stated[file]['credit']}")
    return tuple(Licence(licence, "; ".join(of[licence])) for licence in sorted(of))


def _stated_licence(source: Place) -> str:
    """The licence that a pool states: ``license`` in the front matter of its README.md, or its LICENSE's first line."""
    folder = source if source.is_dir() else source.parent
    front_matter = re.match(r"---\n(.*?)\n---", _start_of(folder / "README.md"), re.DOTALL)
    if front_matter:
        try:
            values = parse_yaml(front_matter[1], "README.md")
        except UserError:  # a mistake in a pool's README must not stop the report
            values = None
        if isinstance(values, dict) and isinstance(values.get("license"), str) and label(values["license"]):
            return label(values["license"])
    texts = (_start_of(folder / name) for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"))
    lines = (label(line.strip("# \t")) for text in texts for line in text.splitlines())
    return next((line for line in lines if line), "")


def _start_of(path: Place) -> str:
    try:
        return decoded(read_place(path, "", MAX_NOTE)[:NOTE_BYTES]).replace("\r\n", "\n")
    except UserError:  # missing, not a file, or no permission
        return ""


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=False, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["text"] = _text
    return environment.from_string((files("pipeline.report") / "card.md.jinja").read_text())


def _text(value: object) -> str:
    """A value as one line of Markdown that cannot end a table cell or start a tag."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\|`*\[\]])", r"\\\1", html.escape(line, quote=False))
