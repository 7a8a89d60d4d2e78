"""The dataset of a run. Shards are first made in the part store. Then a folder is filled with those that the current
decisions need.

    <run>/shards/<fingerprint>/       the part store, with the shards of all decisions so far
    <run>/datasets/<content>/         a dataset: shards, manifest.parquet, run.json, README.md
    <run>/dataset -> datasets/<content>

A dataset's folder is named after a digest of its manifest and shards. README.md is written by
pipeline/report/results.py.

On a disk the folder gets its name when it is complete, and its shards and manifest are never changed afterwards. Then
the link is switched to it in one step. A reader of the link never sees an incomplete dataset or a mixture of two.
In a bucket there is no link, and the folder is built in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from data_schemas.io import files, pictures
from data_schemas.io.storage import file_sha256, write_file
from pipeline.config import HOW
from pipeline.core.parts import Part, PartPictures, PartStore, content_digest, join_digests
from pipeline.dataset.sharding import assign, manifest_bytes, sample_info, score_columns, shard_members
from pipeline.jobs import PartJob, cutout_reader, need_part, pool_digest, read_all
from pipeline.run import Run


class Tables:
    """The tables of a run's stages, each read when it is first asked for, and which samples each shard holds."""

    def __init__(self, run: Run):
        self.run = run
        self._read: dict[str, pa.Table] = {}

    def __getitem__(self, stage: str) -> pa.Table:
        """All rows of a stage, in plan order."""
        if stage not in self._read:
            self._read[stage] = read_all(self.run, stage)
        return self._read[stage]

    @cached_property
    def ids(self) -> list[str]:
        """The ids of all samples, in plan order."""
        return self["plan"]["sample_id"].to_pylist()

    @cached_property
    def shards(self) -> dict[str, list[int]]:
        """Shard name -> numbers of the samples that it holds: those that were kept and carry no planted fault.

        With ``shards.unfiltered`` the training shards also hold all others but those without pictures.
        """
        settings, splits = self.run.config.shards, self["plan"]["split"].to_pylist()
        held = []
        for number, (split, decision, fault) in enumerate(
            zip(splits, self["decide"]["decision"].to_pylist(), self._planted_faults(), strict=True)
        ):
            good = decision == "kept" and fault in (None, "none")
            if good or (settings.unfiltered and split == "train" and decision != "error"):
                held.append(number)
        return assign(held, splits, settings.samples_per_shard)

    def _planted_faults(self) -> list[str | None]:
        """The planted fault of every sample in plan order. A user's own synthesis may know of none."""
        table = self["synthesis"]
        return table["planted_fault"].to_pylist() if "planted_fault" in table.column_names else [None] * len(table)

    def scores(self) -> dict[str, pa.ChunkedArray]:
        """Every stage's own columns by name, for the manifest and the shards."""
        stages = self.run.stages()
        return score_columns({s.name: self[s.name] for s in stages}, {s.name: s.columns for s in stages})


def shard_inputs(tables: Tables, digests: Mapping[tuple[str, str], str], pool: str) -> dict[str, str]:
    """Shard name -> digest of its input: which samples it holds, and the parts they come from.

    The keys of ``digests`` are (stage, part). ``pool`` is the digest of the reference pool.
    """
    run, ids = tables.run, tables.ids
    # "references" is covered by the pool's digest, "decide" by the ids of the kept samples, and "shards" is the output.
    reads = [stage for stage in run.order() if stage not in ("references", "decide", "shards")]
    part_of = [part for part, (begin, end) in run.bounds().items() for _ in range(begin, end)]
    of_part = {part: [digests[stage, part] for stage in reads] for part in run.parts()}
    return {
        name: join_digests([pool, *(ids[k] for k in numbers), *chain(*(of_part[part_of[k]] for k in numbers))])
        for name, numbers in tables.shards.items()
    }


@dataclass(frozen=True)
class _SharedData:
    """What all shards of a run share, read once in each process. ``scores`` has a row for every sample."""

    tables: Tables
    scores: pa.Table
    pictures: PictureReader


@lru_cache(maxsize=1)
def _shared_data(run: Run, shared: str) -> _SharedData:
    """``shared`` is the digest of all parts before the shards. It only distinguishes cache entries."""
    tables = Tables(run)
    return _SharedData(
        tables,
        pa.table({"sample_id": tables["plan"]["sample_id"], **tables.scores()}),
        PictureReader(run, pool_digest(run)),
    )


def make_shard(job: PartJob, store: PartStore) -> Part:
    """Write one part. Its tar is the shard, and its Parquet file lists the shard's samples."""
    data = _shared_data(job.run, job.shared)
    split = job.part.rpartition("-")[0]  # the part train-00000 is of the split "train"
    numbers = data.tables.shards[job.part]
    plan_rows = data.tables["plan"].take(numbers).to_pylist()
    scores = data.scores.take(numbers).to_pylist()
    members = _ShardMembers(data, {p["sample_id"]: (p, own) for p, own in zip(plan_rows, scores, strict=True)})
    rows = [{"sample_id": p["sample_id"], "shard": f"{job.part}.tar", "split": split} for p in plan_rows]
    return store.commit(job.part, rows, members, job.made_from)


class _ShardMembers(Mapping[str, dict[str, bytes]]):
    """The members of a shard's samples, each read when it is written: a shard may be larger than the memory.

    ``rows`` has the plan and the scores of each sample, in plan order.
    """

    def __init__(self, data: _SharedData, rows: Mapping[str, tuple[dict, dict]]):
        self._data, self._rows = data, rows
        self._fetched = lru_cache(maxsize=2)(self._fetch)  # a part's pictures of two stages are read at a time

    def _fetch(self, stage: str, part: str) -> PartPictures:
        pictures = self._data.pictures.of_part(stage, part)
        pictures.fetch()
        return pictures

    def _files(self, stage: str, sample_id: str) -> Mapping[str, bytes]:
        return self._fetched(stage, self._data.pictures.part_of[sample_id]).of(sample_id)

    def __getitem__(self, sample_id: str) -> dict[str, bytes]:
        plan, scores = self._rows[sample_id]
        given = {column: score for column, score in scores.items() if score is not None and column != "sample_id"}
        made = self._files("synthesis", sample_id)
        return shard_members(
            plan,
            sample_info(plan, given),
            made,
            self._files("matting", sample_id),
            lambda i, name: self._data.pictures.shown(sample_id, i, name, made),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def make_manifest(tables: Tables) -> bytes:
    """The bytes of manifest.parquet, with one row for every planned sample."""
    fields = {c.name: s.schema().arrow().field(c.name) for s in tables.run.stages() for c in s.columns}
    shard_of: list[str | None] = [None] * len(tables.ids)
    for name, numbers in tables.shards.items():
        for number in numbers:
            shard_of[number] = f"{name}.tar"
    return manifest_bytes(tables["plan"], tables["decide"], shard_of, tables.scores(), fields)


def shard_digests(tables: Tables) -> dict[str, str | None]:
    """File name -> SHA-256 of each shard of the run's dataset."""
    return {f"{name}.tar": need_part(tables.run, "shards", name).tar_sha256 for name in tables.shards}


def publish(tables: Tables) -> str:
    """Make sure the dataset exists and is undamaged, then point ``<run>/dataset`` at it. Earlier datasets are kept.

    Returns its URL: ``<run>/dataset`` on a disk, the dataset's own folder in a bucket, which has no link.
    """
    run = tables.run
    store = run.store("shards")
    shards = {name: need_part(run, "shards", name) for name in tables.shards}
    digests = {f"{name}.tar": part.tar_sha256 for name, part in shards.items()}
    data = make_manifest(tables)
    facts = {
        "config": run.config.model_dump(mode="json", exclude={"root", *HOW}),
        "fingerprints": dict(run.fingerprints),
        "manifest_sha256": hashlib.sha256(data).hexdigest(),
        "shards": digests,
    }
    fs, dataset_folder = store.fs, _dataset_folder(run, data, digests)
    if not _is_whole(store, dataset_folder, shards, data):
        temporary_folder = dataset_folder
        if isinstance(fs, LocalFileSystem):
            temporary_folder = f"{dataset_folder.rpartition('/')[0]}/.{uuid.uuid4().hex}.tmp"
        fs.makedirs(temporary_folder, exist_ok=True)
        for name in shards:
            _share(fs, store.path(name, "tar"), f"{temporary_folder}/{name}.tar")
        write_file(fs, f"{temporary_folder}/manifest.parquet", data)
        if temporary_folder != dataset_folder:
            _take_name(temporary_folder, dataset_folder)
    write_file(fs, f"{dataset_folder}/run.json", json.dumps(facts, indent=2, sort_keys=True).encode())
    if not isinstance(fs, LocalFileSystem):
        return fs.unstrip_protocol(dataset_folder)
    link = f"{run.config.run_url}/dataset"
    with files.replacing(link) as temporary:
        os.symlink(os.path.relpath(dataset_folder, os.path.dirname(os.path.abspath(link))), temporary)
    return link


def dataset_url(run: Run) -> str:
    """Where ``publish`` puts the run's dataset: ``<run>/dataset`` on a disk, the dataset's own folder in a bucket."""
    fs = run.store("shards").fs
    if isinstance(fs, LocalFileSystem):
        return f"{run.config.run_url}/dataset"
    tables = Tables(run)
    return fs.unstrip_protocol(_dataset_folder(run, make_manifest(tables), shard_digests(tables)))


def _dataset_folder(run: Run, manifest: bytes, digests: Mapping[str, str | None]) -> str:
    """The folder of the dataset with this manifest and these shards, named after a digest of them."""
    content = content_digest(manifest, *(str(digest).encode() for digest in digests.values()))
    return f"{run.store('shards').root.rsplit('/', 2)[0]}/datasets/{content[:16]}"


def _share(fs: fsspec.AbstractFileSystem, source: str, target: str) -> None:
    """Hard-link a file, or copy it where links are impossible.

    A link is safe because the source is never modified in place: a new tar is written elsewhere and renamed over it.
    """
    if isinstance(fs, LocalFileSystem):
        try:
            os.link(source, target)
            return
        except OSError:
            pass
    fs.copy(source, target)


def _take_name(temporary_folder: str, dataset_folder: str) -> None:
    """Give a finished dataset its name. A damaged dataset with that name is renamed first, then deleted."""
    old_folder = f"{temporary_folder}.old.tmp"
    if os.path.lexists(dataset_folder):
        os.rename(dataset_folder, old_folder)
    os.rename(temporary_folder, dataset_folder)
    shutil.rmtree(old_folder, ignore_errors=True)


def _is_whole(store: PartStore, dataset_folder: str, shards: Mapping[str, Part], manifest: bytes) -> bool:
    """Whether a dataset's folder holds exactly these shards, unchanged, and this manifest.

    In a bucket only the sizes of the shards are compared.
    """
    fs = store.fs
    try:
        if fs.cat_file(f"{dataset_folder}/manifest.parquet") != manifest:
            return False
        names = {path.rpartition("/")[2] for path in fs.ls(dataset_folder, detail=False)}
        if {name for name in names if name.endswith(".tar")} != {f"{name}.tar" for name in shards}:
            return False
        return all(_same(store, name, part, f"{dataset_folder}/{name}.tar") for name, part in shards.items())
    except FileNotFoundError:
        return False


def _same(store: PartStore, name: str, part: Part, shared: str) -> bool:
    """Whether a shard in a dataset equals the one in the part store.

    In a bucket only their sizes are compared, to save a transfer.
    """
    fs, own = store.fs, store.path(name, "tar")
    if isinstance(fs, LocalFileSystem):
        return os.path.samefile(own, shared) or file_sha256(fs, shared) == part.tar_sha256
    return fs.size(own) == fs.size(shared)


class PictureReader:
    """Reads pictures of any sample by stage.

    It caches where the pictures lie in the tars of the eight parts used last. ``pool`` is the digest of the reference
    pool.
    """

    def __init__(self, run: Run, pool: str):
        self.run, self.pool = run, pool
        rows = {part: need_part(run, "plan", part).rows() for part in run.parts()}
        self.part_of = {row["sample_id"]: part for part in rows for row in rows[part]}
        self.plan = {row["sample_id"]: row for part in rows for row in rows[part]}
        self._pictures = lru_cache(maxsize=8)(self.of_part)

    def of_part(self, stage: str, part: str) -> PartPictures:
        """The pictures that a stage saved for a part."""
        return self.run.store(stage).pictures(part, need_part(self.run, stage, part))

    def files(self, stage: str, sample_id: str) -> Mapping[str, bytes]:
        """The pictures that a stage saved for a sample, by name; empty if it saved none."""
        return self._pictures(stage, self.part_of[sample_id]).of(sample_id)

    def reference(self, reference_id: str, name: str) -> bytes:
        """The bytes of a picture of a reference: "cutout.png", or "white.png", the cut-out on white."""
        return cutout_reader(self.run, self.pool)(reference_id, name)

    def shown(self, sample_id: str, index: int, name: str, made: Mapping[str, bytes]) -> bytes:
        """The same of a sample's reference 0 or 1 as its shard shows it: as pasted, if that is among what the synthesis
        ``made``."""
        pasted = f"reference_{index}.png" if name == "cutout.png" else f"reference_{index}_white.png"
        found = made.get(pasted)
        return found or self.reference(self.plan[sample_id][f"reference_{index}_id"], name)

    def picture(self, sample_id: str, name: str) -> Image.Image | None:
        """A sample's target, foreground, background, alpha, reference_0 or reference_1; None if it was never made."""
        if name.startswith("reference_"):
            made = self.files("synthesis", sample_id)
            data: bytes | None = self.shown(sample_id, int(name[-1]), "cutout.png", made)
        else:
            data = self.files("synthesis" if name == "target" else "matting", sample_id).get(f"{name}.png")
        return None if data is None else pictures.decode(data, name)
