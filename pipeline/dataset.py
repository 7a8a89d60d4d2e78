"""The dataset a run ends in: shards made part by part, the manifest over all samples, and a stable place for both."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from data_schemas import pictures
from pipeline.parts import Part, PartStore, content_digest, join_digests, write_atomically
from pipeline.run import PartJob, Run, cutout_reader, need_part, read_all
from pipeline.sharding import assign, manifest_bytes, sample_info, score_columns, shard_members


def shard_plan(run: Run) -> dict[str, list[dict]]:
    """Shard name -> plan rows of the kept samples it will hold."""
    plan = read_all(run, "plan").to_pylist()
    decisions = read_all(run, "decide")
    by_id = dict(zip(decisions["sample_id"].to_pylist(), decisions["decision"].to_pylist(), strict=True))
    return assign(plan, by_id, run.config.shards.samples_per_shard)


def shard_inputs(run: Run, digests: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """Shard name -> digest of what goes in: the parts its samples come from, and which samples they are."""
    reads = [stage for stage in run.order() if stage not in ("references", "shards")]
    pool = digests["references", "pool"]
    part_of = PictureReader(run, pool).part_of
    return {
        name: join_digests([pool, *(r["sample_id"] for r in rows),
                            *(digests[stage, part_of[r["sample_id"]]] for r in rows for stage in reads)])
        for name, rows in shard_plan(run).items()
    }  # fmt: skip


@dataclass(frozen=True)
class _Kept:
    """What all shards of a run share; read once a process."""

    shards: dict[str, list[dict]]
    scores: dict[str, dict]
    reader: PictureReader


@lru_cache(maxsize=1)
def _kept(run: Run, shared: str) -> _Kept:
    tables = {s.name: read_all(run, s.name) for s in run.stages()}
    columns = score_columns(tables, {s.name: s.columns for s in run.stages()})
    ids = read_all(run, "plan").column("sample_id")
    scores = {row.pop("sample_id"): row for row in pa.table({"sample_id": ids, **columns}).to_pylist()}
    return _Kept(shard_plan(run), scores, PictureReader(run, need_part(run, "references", "pool").digest))


def make_shard(job: PartJob, store: PartStore) -> Part:
    """Write one shard (the part's tar) and its index rows (the part's Parquet file)."""
    kept, split = _kept(job.run, job.shared), job.part.rpartition("-")[0]
    plan_rows = kept.shards[job.part]
    members = {}
    for plan in plan_rows:
        sample_id = plan["sample_id"]
        members[sample_id] = shard_members(
            plan,
            sample_info(plan, {k: v for k, v in kept.scores[sample_id].items() if v is not None}),
            kept.reader.files("synthesis", sample_id),
            kept.reader.files("matting", sample_id),
            [kept.reader.cutout(plan[f"reference_{i}_id"]) for i in range(2)],
        )
    rows = [{"sample_id": p["sample_id"], "shard": f"{job.part}.tar", "split": split} for p in plan_rows]
    return store.commit(job.part, rows, members, job.made_from)


def write_manifest(run: Run) -> str:
    """Write manifest.parquet and run.json (config, fingerprints) beside the shards; returns the manifest's URL."""
    store = run.store("shards")
    tables = {s.name: read_all(run, s.name) for s in run.stages()}
    scores = score_columns(tables, {s.name: s.columns for s in run.stages()})
    fields = {c.name: s.schema().arrow().field(c.name) for s in run.stages() for c in s.columns}
    shard_of = {row["sample_id"]: f"{name}.tar" for name, rows in shard_plan(run).items() for row in rows}
    data = manifest_bytes(read_all(run, "plan"), read_all(run, "decide"), shard_of, scores, fields)
    write_atomically(store.fs, f"{store.root}/manifest.parquet", data)
    facts = {
        "config": run.config.model_dump(mode="json"),
        "fingerprints": dict(run.fingerprints),
        "manifest_sha256": content_digest(data),
    }
    write_atomically(store.fs, f"{store.root}/run.json", json.dumps(facts, indent=2, sort_keys=True).encode())
    return f"{dataset_url(run)}/manifest.parquet"


def dataset_url(run: Run) -> str:
    """``<run>/dataset`` on a disk (a link to the newest shards), the shards' own folder on a bucket."""
    store = run.store("shards")
    if isinstance(store.fs, LocalFileSystem):
        return f"{run.config.run_url}/dataset"
    return store.fs.unstrip_protocol(store.root)


def publish(run: Run) -> str:
    """Point ``<run>/dataset`` at the shards of this run; older ones stay where they are. Returns its URL."""
    store = run.store("shards")
    if isinstance(store.fs, LocalFileSystem):
        link = dataset_url(run)
        temporary = f"{link}.{os.getpid()}.tmp"
        os.symlink(os.path.relpath(store.root, os.path.dirname(os.path.abspath(link))), temporary)
        os.replace(temporary, link)
    return dataset_url(run)


class PictureReader:
    """Pictures of any sample by stage; keeps the members of the last few parts."""

    def __init__(self, run: Run, pool_digest: str):
        self.run, self.pool_digest = run, pool_digest
        rows = {part: need_part(run, "plan", part).rows() for part in run.parts()}
        self.part_of = {row["sample_id"]: part for part in rows for row in rows[part]}
        self.plan = {row["sample_id"]: row for part in rows for row in rows[part]}
        self._members = lru_cache(maxsize=8)(lambda stage, part: run.store(stage).members(part))

    def files(self, stage: str, sample_id: str) -> dict[str, bytes]:
        return self._members(stage, self.part_of[sample_id]).get(sample_id, {})

    def cutout(self, reference_id: str) -> bytes:
        return cutout_reader(self.run, self.pool_digest)(reference_id)

    def picture(self, sample_id: str, name: str) -> Image.Image | None:
        """A sample's target, foreground, background, alpha, reference_0 or reference_1; None if never made."""
        if name.startswith("reference_"):
            data: bytes | None = self.cutout(self.plan[sample_id][f"{name}_id"])
        else:
            data = self.files("synthesis" if name == "target" else "matting", sample_id).get(f"{name}.png")
        return None if data is None else pictures.decode(data, name)
