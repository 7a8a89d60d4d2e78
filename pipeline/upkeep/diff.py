"""What differs between two datasets: samples, decisions and why, scores, shards, stages and settings.

It reads the manifests column by column, and run.json. No picture is opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from data_schemas.tables import MANIFEST
from pipeline.dataset.opened import Dataset
from pipeline.dataset.versions import TELLING, step
from pipeline.remembered import differences

EXAMPLES = 10
"""Most examples of each kind of difference."""

Masks = dict[str, np.ndarray]
"""Reason -> for each sample whether it has that reason."""


def diff(old: Dataset, new: Dataset) -> dict[str, Any]:
    """The differences as plain values: counts, and up to EXAMPLES sample ids of each kind. UserError if a manifest
    cannot be read."""
    rules = {"old": old.rules, "new": new.rules}
    columns = _compared(old, new)
    tables = [dataset.table([*TELLING, "reasons", *columns]) for dataset in (old, new)]
    before, after = _in_both(*tables)
    changes = _Changes(before, after, rules["old"], rules["new"])
    held = _held(before) & _held(after)
    alone = [t.filter(pc.invert(pc.is_in(t["sample_id"], value_set=before["sample_id"]))) for t in tables]
    contents = all(_has_contents(table) for table in tables)
    return {
        "old": _described(old, tables[0]),
        "new": _described(new, tables[1]),
        "step": _step(*tables),
        "added": _set(alone[1]),
        "dropped": _set(alone[0]),
        "decided": changes.told(),
        "split": _named(before, _unequal(before["split"], after["split"])),
        "shard": _named(before, held & _unequal(before["shard"], after["shard"])),
        "content": _named(before, held & _unequal(before["content"], after["content"])) if contents else None,
        "scores": {
            column: count
            for column in columns
            if (count := int(_unequal(before[column], after[column]).sum()))
        },
        "thresholds": _thresholds(rules["old"], rules["new"]),
        "stages": _stages(old.facts, new.facts),
        "settings": _settings(old.facts, new.facts),
    }  # fmt: skip


Rules = Mapping[tuple[str, str], Mapping[str, Any]]
"""(reason, column) -> the rule as run.json holds it."""


def _compared(old: Dataset, new: Dataset) -> list[str]:
    """The score columns that both manifests have."""
    ours = {column.name for column in MANIFEST.columns}
    there = set(new.schema.names)
    return [name for name in old.schema.names if name in there and name not in ours]


def _in_both(old: pa.Table, new: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows of the samples that both have, in the old one's order."""
    found = pc.index_in(old["sample_id"].combine_chunks(), value_set=new["sample_id"].combine_chunks())
    return old.filter(pc.is_valid(found)), new.take(found.drop_null())


def _held(table: pa.Table) -> np.ndarray:
    return table["shard"].is_valid().to_numpy()


def _has_contents(table: pa.Table) -> bool:
    return bool((table["content"].is_valid().to_numpy() == _held(table)).all())


def _unequal(old: pa.ChunkedArray, new: pa.ChunkedArray) -> np.ndarray:
    """For each row whether the two values differ; two nulls do not."""
    if old.type != new.type or pa.types.is_nested(old.type):
        return np.array([a != b for a, b in zip(old.to_pylist(), new.to_pylist(), strict=True)], dtype=bool)
    one_null = pc.xor(pc.is_null(old), pc.is_null(new))
    return pc.or_(one_null, pc.fill_null(pc.not_equal(old, new), False)).to_numpy()


def _named(table: pa.Table, chosen: np.ndarray) -> dict[str, Any]:
    rows = np.flatnonzero(chosen)
    return {"count": len(rows), "examples": table["sample_id"].take(rows[:EXAMPLES]).to_pylist()}


def _set(table: pa.Table) -> dict[str, Any]:
    kept = int(pc.sum(pc.equal(table["decision"], "kept")).as_py() or 0)
    return {"count": len(table), "kept": kept, "examples": table["sample_id"][:EXAMPLES].to_pylist()}


def _described(dataset: Dataset, table: pa.Table) -> dict[str, Any]:
    return {
        "dataset": dataset.url,
        "version": dataset.version,
        "planned": len(table),
        "kept": int(pc.sum(pc.equal(table["decision"], "kept")).as_py() or 0),
        "in_shards": int(_held(table).sum()),
    }


def _step(old: pa.Table, new: pa.Table) -> str:
    """What the new dataset is to the old one: "same", "patch", "minor" or "major"."""
    return "same" if old.equals(new) else step(old.select(TELLING).to_pandas(), new.select(TELLING).to_pandas())


class _Changes:
    """The samples of both datasets that were decided otherwise, or for other reasons. Rows are those of the tables."""

    def __init__(self, old: pa.Table, new: pa.Table, old_rules: Rules, new_rules: Rules):
        self.old, self.new, self.rules = old, new, (old_rules, new_rules)
        self.was, self.now = _masks(old), _masks(new)
        nothing = np.zeros(len(old), dtype=bool)
        names = sorted(self.was.keys() | self.now.keys())
        self.appeared = {n: self.now.get(n, nothing) & ~self.was.get(n, nothing) for n in names}
        self.went = {n: self.was.get(n, nothing) & ~self.now.get(n, nothing) for n in names}
        self.decided = _unequal(old["decision"], new["decision"])
        self.changed = self.decided.copy()
        for name in names:
            self.changed |= self.appeared[name] | self.went[name]

    def told(self) -> dict[str, Any]:
        rows = np.flatnonzero(self.changed)
        was, now = (table["decision"].take(rows).to_pylist() for table in (self.old, self.new))
        return {
            "count": len(rows),
            "changes": dict(Counter(_change(a, b) for a, b in zip(was, now, strict=True)).most_common()),
            "reasons": {
                name: self._reason(name)
                for name in self.appeared
                if self.appeared[name].any() or self.went[name].any()
            },
            "examples": [self._example(int(row)) for row in rows[:EXAMPLES]],
        }  # fmt: skip

    def _reason(self, name: str) -> dict[str, Any]:
        """How often a reason appeared and went, and what alone explains it: the other score, or the other threshold."""
        moved = self.appeared[name] | self.went[name]
        told = Counter(appeared=int(self.appeared[name].sum()), went=int(self.went[name].sum()))
        for key in sorted(self.rules[0].keys() & self.rules[1].keys()):
            if key[0] == name and key[1] in self.old.column_names:
                was, now = (_numbers(table[key[1]]) for table in (self.old, self.new))
                breaks_was, breaks_now = (_breaks(rules[key]) for rules in self.rules)
                told["by_score"] += int((moved & (breaks_was(now) != breaks_was(was))).sum())
                told["by_threshold"] += int((moved & (breaks_now(was) != breaks_was(was))).sum())
        return dict(told)

    def _example(self, row: int) -> dict[str, Any]:
        appeared = [name for name, mask in self.appeared.items() if mask[row]]
        went = [name for name, mask in self.went.items() if mask[row]]
        columns = {c for rules in self.rules for reason, c in rules if reason in {*appeared, *went}}
        return {
            "sample_id": self.old["sample_id"][row].as_py(),
            "was": self.old["decision"][row].as_py(),
            "is": self.new["decision"][row].as_py(),
            "appeared": appeared,
            "went": went,
            "scores": {
                c: [self.old[c][row].as_py(), self.new[c][row].as_py()]
                for c in sorted(columns)
                if c in self.old.column_names
            },
        }  # fmt: skip


def _change(was: str, now: str) -> str:
    return f"{was} -> {now}" if was != now else f"{now} for other reasons"


def _masks(table: pa.Table) -> Masks:
    lists = table["reasons"].combine_chunks()
    rows, reasons = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists).dictionary_encode()
    masks = {name: np.zeros(len(table), dtype=bool) for name in reasons.dictionary.to_pylist()}
    codes = reasons.indices.to_numpy()
    for code, mask in enumerate(masks.values()):
        mask[rows[codes == code]] = True
    return masks


def _numbers(values: pa.ChunkedArray) -> np.ndarray:
    return pd.to_numeric(values.to_pandas(), errors="coerce").to_numpy(dtype=float)


def _breaks(rule: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    threshold = rule["threshold"]
    return (lambda scores: scores < threshold) if rule["bound"] == "min" else (lambda scores: scores > threshold)


def _thresholds(old: Rules, new: Rules) -> list[dict[str, Any]]:
    """The rules that are new, gone, or have another threshold or bound."""
    lines = []
    for reason, column in sorted(old.keys() | new.keys()):
        was, now = old.get((reason, column)), new.get((reason, column))
        sides = [None if rule is None else [rule["bound"], rule["threshold"]] for rule in (was, now)]
        if sides[0] != sides[1]:
            stage = (now or was or {})["stage"]
            lines.append({"stage": stage, "reason": reason, "column": column, "old": sides[0], "new": sides[1]})
    return lines


def _stages(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for each stage whose model or version differs. Of datasets that do not tell them, the fingerprints."""
    if not _dict(old, "stages") or not _dict(new, "stages"):
        was, now = _dict(old, "fingerprints"), _dict(new, "fingerprints")
    else:
        was, now = ({k: _stage(own) for k, own in _dict(facts, "stages").items()} for facts in (old, new))
    names = sorted(was.keys() | now.keys())
    return [f"{n}: {now.get(n, 'left out')} (was {was.get(n, 'left out')})" for n in names if was.get(n) != now.get(n)]


def _stage(facts: Mapping[str, Any]) -> str:
    model = facts.get("model")
    return f"version {facts.get('version')}" + (f", {model}" if model else "")


def _settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings that differ, as remembered.differences tells them; a merged dataset has none of its own."""
    was, now = ({k: v for k, v in _dict(facts, "config").items() if k != "name"} for facts in (old, new))
    return differences(was, now) if was and now else []


def _dict(facts: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = facts.get(key)
    return found if isinstance(found, dict) else {}


def told(found: Mapping[str, Any]) -> str:
    """A diff as lines of text."""
    lines = [
        f"{side}  {own['dataset']}  version {own['version'] or 'none'}, kept {own['kept']} of {own['planned']}, "
        f"{own['in_shards']} in shards"
        for side, own in (("old", found["old"]), ("new", found["new"]))
    ]
    lines.append(f"step: {found['step']}")
    for name in ("added", "dropped"):
        lines += _shown(name, found[name], f" ({found[name]['kept']} kept)")
    lines += _decided(found["decided"])
    for name, what in (("split", "changed split"), ("shard", "changed shard"), ("content", "changed in the shards")):
        if found[name] is None:
            lines.append(f"{what}: unknown, one of them was published by a program that stored no digests")
        else:
            lines += _shown(what, found[name])
    if found["scores"]:
        lines.append("scores that differ: " + ", ".join(f"{name} {count}" for name, count in found["scores"].items()))
    for rule in found["thresholds"]:
        lines.append(
            f"rule {rule['reason']}: {rule['column']} {_bound(rule['new'])} (was {_bound(rule['old'])})"
        )  # fmt: skip
    lines += [f"stage {line}" for line in found["stages"]]
    return "\n".join(lines + [f"setting {line}" for line in found["settings"]])


def _shown(what: str, samples: Mapping[str, Any], more: str = "") -> list[str]:
    if not samples["count"]:
        return []
    return [f"{what}: {samples['count']}{more}", *_ids(samples["examples"], samples["count"])]


def _ids(examples: Sequence[str], count: int) -> list[str]:
    return [f"  {' '.join(examples)}{' ...' if count > len(examples) else ''}"]


def _decided(decided: Mapping[str, Any]) -> list[str]:
    if not decided["count"]:
        return []
    lines = ["decided anew: " + ", ".join(f"{change} {count}" for change, count in decided["changes"].items())]
    for reason, own in decided["reasons"].items():
        line = ", ".join(f"{what} {own[what]}" for what in ("appeared", "went") if own[what])
        if "by_score" in own:
            line += f" (explained by the score alone {own['by_score']}, by the threshold alone {own['by_threshold']})"
        lines.append(f"  {reason}: {line}")
    for own in decided["examples"]:
        reasons = [f"+{name}" for name in own["appeared"]] + [f"-{name}" for name in own["went"]]
        scores = [f"{c} {_number(a)}" + f" -> {_number(b)}" * (a != b) for c, (a, b) in own["scores"].items()]
        lines.append(f"  {own['sample_id']}: {', '.join([_change(own['was'], own['is']), *reasons, *scores])}")
    return lines


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bound(side: Sequence[Any] | None) -> str:
    return "no rule" if side is None else f"{'>=' if side[0] == 'min' else '<='} {side[1]:g}"
