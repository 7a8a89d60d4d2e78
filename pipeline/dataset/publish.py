"""The dataset of a run. Shards are first made in the part store. Then a folder is filled with those that the current
decisions need.

    <run>/shards/<fingerprint>/       the part store, with the shards of all decisions so far
    <run>/datasets/<content>/         a dataset: shards, manifest.parquet, run.json, README.md
    <run>/dataset -> datasets/<content>     a link on a disk, the object dataset.json in a bucket

A dataset's folder is named after a digest of its manifest and shards. README.md is written by
pipeline/report/results.py. run.json names the dataset's version (pipeline/dataset/versions.py).

On a disk the folder gets its name when it is complete, and its shards and manifest are never changed afterwards. Then
the link is switched to it in one step. A reader of the link never sees an incomplete dataset or a mixture of two.
In a bucket the folder is built in place, and <run>/dataset.json is written when it is complete; see
data_schemas/io/pointers.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from data_schemas.io import files, pointers
from data_schemas.io.storage import file_sha256, patiently, write_file
from pipeline.config import HOW
from pipeline.core.parts import Part, PartPictures, PartStore, content_digest, join_digests
from pipeline.core.tar_writer import Entries
from pipeline.dataset import versions
from pipeline.dataset.facts import stated
from pipeline.dataset.leaks import check_leaks
from pipeline.dataset.picture_reader import PictureReader, part_pictures
from pipeline.dataset.sharding import assign, manifest_bytes, may_be_held, sample_info, score_columns, shard_members
from pipeline.jobs import PartJob, need_part, pool_digest, pool_rows, read_all
from pipeline.run import Run


class MadeShard(NamedTuple):
    """A shard in the part store: the SHA-256 of its file, and a digest of each sample's files by sample id."""

    sha256: str
    contents: dict[str, str]


def contents_of(entries: Entries) -> dict[str, str]:
    """A digest of each sample's files in a shard, by sample id."""
    # Sizes and checksums of the files are known from the writing, so that nothing has to be read again.
    return {
        sample_id: content_digest(
            "\n".join(f"{name} {file.size} {file.checksum}" for name, file in sorted(files.items())).encode()
        )[:16]
        for sample_id, files in entries.items()
    }


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
        decisions = self["decide"]["decision"].to_pylist()
        may = may_be_held(splits, self["synthesis"], settings.unfiltered)
        held = [
            number for number, (split, decision) in enumerate(zip(splits, decisions, strict=True))
            if may[number]
            and (decision == "kept" or (settings.unfiltered and split == "train" and decision != "error"))
        ]  # fmt: skip
        return assign(held, splits, settings.samples_per_shard)

    @cached_property
    def made_shards(self) -> dict[str, MadeShard]:
        """Shard name -> what was made. Raises UserError if a shard is missing or damaged."""
        parts = {name: need_part(self.run, "shards", name) for name in self.shards}
        return {name: MadeShard(str(part.tar_sha256), contents_of(part.entries)) for name, part in parts.items()}

    @cached_property
    def apart(self) -> dict[str, Any]:
        """How far train and test are apart. Raises RunFailed if they have a subject or a near-copy in common."""
        held, made = sorted(chain(*self.shards.values())), self["synthesis"]
        hashed = "target_phash" in made.column_names  # a user's own synthesis need not hash its targets
        targets = made["target_phash"].to_pylist() if hashed else [None] * len(made)
        return check_leaks(self["plan"], held, pool_rows(self.run), targets)

    def scores(self) -> dict[str, pa.ChunkedArray]:
        """Every stage's own columns by name, for the manifest and the shards."""
        stages = self.run.stages()
        return score_columns({s.name: self[s.name] for s in stages}, {s.name: s.columns for s in stages})


def shard_inputs(tables: Tables, digests: Mapping[tuple[str, str], str]) -> dict[str, str]:
    """Shard name -> digest of its input: which samples it holds, and the parts they come from.

    The keys of ``digests`` are (stage, part).
    """
    run, ids = tables.run, tables.ids
    # the plan stands for "references", the ids of the kept samples for "decide", and "shards" is the output
    reads = [stage for stage in run.order() if stage not in ("references", "decide", "shards")]
    part_of = [part for part, (begin, end) in run.bounds().items() for _ in range(begin, end)]
    of_part = {part: [digests[stage, part] for stage in reads] for part in run.parts()}
    return {
        name: join_digests([*(ids[k] for k in numbers), *chain(*(of_part[part_of[k]] for k in numbers))])
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
    members = ShardMembers(data.pictures, {p["sample_id"]: (p, own) for p, own in zip(plan_rows, scores, strict=True)})
    rows = [{"sample_id": p["sample_id"], "shard": f"{job.part}.tar", "split": split} for p in plan_rows]
    return store.commit(job.part, rows, members, job.made_from)


class ShardMembers(Mapping[str, dict[str, bytes]]):
    """The members of a shard's samples, each read when it is written: a shard may be larger than the memory.

    ``rows`` has the plan and the scores of each sample, in plan order.
    """

    def __init__(self, pictures: PictureReader, rows: Mapping[str, tuple[dict, dict]]):
        self._pictures, self._rows = pictures, rows
        # A part's pictures of two stages are read at a time. The cache is not of a method: its files would outlive it
        # until the garbage collector comes.
        self._fetched = lru_cache(maxsize=2)(partial(_fetched, pictures.run))

    def _files(self, stage: str, sample_id: str) -> Mapping[str, bytes]:
        return self._fetched(stage, self._pictures.part_of[sample_id]).of(sample_id)

    def __getitem__(self, sample_id: str) -> dict[str, bytes]:
        plan, scores = self._rows[sample_id]
        given = {column: score for column, score in scores.items() if score is not None and column != "sample_id"}
        made = self._files("synthesis", sample_id)
        return shard_members(
            plan,
            sample_info(plan, given),
            made,
            self._files("matting", sample_id),
            lambda i, name: self._pictures.shown(sample_id, i, name, made),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _fetched(run: Run, stage: str, part: str) -> PartPictures:
    """The pictures that a stage saved for a part, all of them on this machine."""
    pictures = part_pictures(run, stage, part)
    pictures.fetch()
    return pictures


def make_manifest(tables: Tables) -> bytes:
    """The bytes of manifest.parquet, with one row for every planned sample."""
    fields = {c.name: s.schema().arrow().field(c.name) for s in tables.run.stages() for c in s.columns}
    shard_of: list[str | None] = [None] * len(tables.ids)
    content_of: list[str | None] = [None] * len(tables.ids)
    for name, numbers in tables.shards.items():
        for number in numbers:
            shard_of[number] = f"{name}.tar"
            content_of[number] = tables.made_shards[name].contents[tables.ids[number]]
    held = {"shard": shard_of, "content": content_of}
    return manifest_bytes(tables["plan"], tables["decide"], held, tables.scores(), fields)


def shard_digests(tables: Tables) -> dict[str, str]:
    """File name -> SHA-256 of each shard of the run's dataset."""
    return {f"{name}.tar": made.sha256 for name, made in tables.made_shards.items()}


def publish(tables: Tables) -> str:
    """Make sure the dataset exists and is undamaged, then point ``<run>/dataset`` at it. Earlier datasets are kept.

    Returns its URL: ``<run>/dataset`` on a disk, the dataset's own folder in a bucket, which any tool can read.
    """
    run = tables.run
    store, digests = run.store("shards"), shard_digests(tables)
    data = make_manifest(tables)
    manifest_sha256 = hashlib.sha256(data).hexdigest()
    facts: dict[str, Any] = {
        "config": run.config.model_dump(mode="json", exclude={"root", *HOW}),
        "fingerprints": dict(run.fingerprints),
        "manifest_sha256": manifest_sha256,
        "shards": digests,
        "apart": tables.apart,
        **stated(run),
    }
    fs, dataset_folder = store.fs, _dataset_folder(run, data, digests)
    if not _is_whole(store, dataset_folder, digests, data):
        temporary_folder = dataset_folder
        if isinstance(fs, LocalFileSystem):
            temporary_folder = f"{dataset_folder.rpartition('/')[0]}/.{uuid.uuid4().hex}.tmp"
            fs.makedirs(temporary_folder, exist_ok=True)
        for name in tables.shards:
            _share(fs, store.path(name, "tar"), f"{temporary_folder}/{name}.tar")
        write_file(fs, f"{temporary_folder}/manifest.parquet", data)
        if temporary_folder != dataset_folder:
            _take_name(temporary_folder, dataset_folder)
    datasets, _, name = dataset_folder.rpartition("/")
    facts["version"] = versions.version_of(fs, datasets, name, data)
    versions.record(fs, datasets, name, facts["version"])  # first, so that no other dataset can get it
    write_file(fs, f"{dataset_folder}/run.json", json.dumps(facts, indent=2, sort_keys=True).encode())
    link = f"{run.config.run_url}/dataset"
    if not isinstance(fs, LocalFileSystem):
        pointers.point(link, "/".join(dataset_folder.rsplit("/", 2)[1:]), manifest_sha256)
        return fs.unstrip_protocol(dataset_folder)
    with files.replacing(link) as temporary:
        os.symlink(os.path.relpath(dataset_folder, os.path.dirname(os.path.abspath(link))), temporary)
    return link


def dataset_url(run: Run) -> str:
    """Where the run's newest dataset is: ``<run>/dataset`` on a disk, the dataset's own folder in a bucket."""
    link = f"{run.config.run_url}/dataset"
    return link if isinstance(run.store("shards").fs, LocalFileSystem) else pointers.followed(link) or link


def _dataset_folder(run: Run, manifest: bytes, digests: Mapping[str, str]) -> str:
    """The folder of the dataset with this manifest and these shards, named after a digest of them."""
    content = content_digest(manifest, *(digest.encode() for digest in digests.values()))
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
    patiently(lambda: fs.cp_file(source, target), target)


def _take_name(temporary_folder: str, dataset_folder: str) -> None:
    """Give a finished dataset its name. A damaged dataset with that name is renamed first, then deleted."""
    old_folder = f"{temporary_folder}.old.tmp"
    if os.path.lexists(dataset_folder):
        os.rename(dataset_folder, old_folder)
    os.rename(temporary_folder, dataset_folder)
    shutil.rmtree(old_folder, ignore_errors=True)


def _is_whole(store: PartStore, dataset_folder: str, digests: Mapping[str, str], manifest: bytes) -> bool:
    """Whether a dataset's folder holds exactly the shards with these digests, and this manifest.

    In a bucket only the sizes of the shards are compared.
    """
    fs = store.fs
    try:
        if patiently(lambda: fs.cat_file(f"{dataset_folder}/manifest.parquet"), dataset_folder) != manifest:
            return False
        found = patiently(lambda: fs.ls(dataset_folder, detail=False), dataset_folder)
        names = {path.rpartition("/")[2] for path in found}
        if {name for name in names if name.endswith(".tar")} != set(digests):
            return False
        return all(_same(store, name, digest, f"{dataset_folder}/{name}") for name, digest in digests.items())
    except FileNotFoundError:
        return False


def _same(store: PartStore, name: str, digest: str, shared: str) -> bool:
    """Whether a shard in a dataset equals the one with this file name in the part store.

    In a bucket only their sizes are compared, to save a transfer.
    """
    fs, own = store.fs, f"{store.root}/{name}"
    if isinstance(fs, LocalFileSystem):
        return os.path.samefile(own, shared) or file_sha256(fs, shared) == digest
    return patiently(lambda: fs.size(own), own) == patiently(lambda: fs.size(shared), shared)
