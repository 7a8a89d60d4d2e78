"""A dataset that was published, opened for reading: what its run.json says, and columns of its manifest."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from data_schemas.errors import UserError
from data_schemas.io import pointers
from data_schemas.io.documents import MAX_BYTES, parse_json
from data_schemas.io.files import check_file
from data_schemas.io.new_folders import link_or_copy
from data_schemas.io.storage import reaching, read_bounded, shown, url_to_fs
from data_schemas.io.text import one_line
from data_schemas.schema import TableSchema, validate
from data_schemas.tables import MANIFEST, SPLITS
from pipeline.dataset.versions import published

SHARD = re.compile(rf"({'|'.join(SPLITS)})-[0-9]{{5,}}\.tar")
"""The name of a shard. Anything else that run.json names as one could be a file elsewhere, or one of ours."""
GIVE = "give a run, or a dataset's folder with manifest.parquet and run.json"


@dataclass(frozen=True)
class Dataset:
    """A dataset's folder, never a link to it. ``url`` is what the user gave, ``facts`` the content of run.json."""

    url: str
    fs: fsspec.AbstractFileSystem
    folder: str
    facts: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the run that it is of."""
        config = self.facts.get("config")
        return str(self.facts.get("name") or (config.get("name") if isinstance(config, dict) else None) or "unnamed")

    @property
    def version(self) -> str | None:
        """Its version; None if it was published by a program that gave none."""
        found = self.facts.get("version")
        return found if isinstance(found, str) else None

    @cached_property
    def shards(self) -> dict[str, Any]:
        """The digests of the shards by their names; none if run.json tells none. UserError for what is no shard."""
        stated = self.facts.get("shards")
        found = stated if isinstance(stated, dict) else {}
        if bad := next((name for name in sorted(found) if not SHARD.fullmatch(name)), None):
            raise UserError(f"{shown(self.url)}: run.json names a shard {one_line(bad, 100)!r}; curate again")
        return found

    def need_facts(self) -> None:
        """Raise UserError unless run.json names a version and the shards with their digests."""
        if self.version is None or not isinstance(self.facts.get("shards"), dict):
            raise UserError(
                f"{shown(self.url)}: was published by a program that gave no versions; run its curation again, which "
                "makes no part anew"
            )
        _ = self.shards  # refuses other names

    @property
    def rules(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(reason, column) -> the rule, with its stage, bound and threshold; none if run.json tells none."""
        stated = self.facts.get("rules")
        good = [r for r in stated if isinstance(r, dict)] if isinstance(stated, list) else []
        return {
            (str(r["reason"]), str(r["column"])): r
            for r in good
            if {"reason", "column", "bound", "stage"} <= r.keys() and isinstance(r.get("threshold"), int | float)
        }

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns of the manifest. Raises UserError if it cannot be read."""
        with self._manifest() as file:
            return pq.read_schema(file)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of the manifest, or all. Raises UserError if one is missing or holds what it must not.

        The column "content" is empty in a dataset of a program that wrote none.
        """
        wanted = list(columns or self.schema.names)
        there = [name for name in wanted if name != "content" or name in self.schema.names]
        source = shown(f"{self.url}/manifest.parquet")
        if missing := [name for name in [MANIFEST.key, *there] if name not in self.schema.names]:
            raise UserError(f"{source}: column {missing[0]!r} is missing; curate again")
        with self._manifest() as file:
            table = pq.read_table(file, columns=there)
            table.validate(full=True)  # else text that is not UTF-8 is found by whoever looks at it
        table = table.replace_schema_metadata(None)  # versions of the schema differ in other columns
        if "content" in wanted and "content" not in there:
            table = table.append_column("content", pa.nulls(len(table), pa.string()))
        ours = tuple(column for column in MANIFEST.columns if column.name in wanted)
        return validate(table, TableSchema("manifest", 0, ours, MANIFEST.key, open=True), source).select(wanted)

    def bring(self, shard: str, path: Path) -> str:
        """Link or copy a shard, such as ``train-00000.tar``, to ``path``. Returns its SHA-256.

        Raises UserError if it is missing or has other bytes than run.json says.
        """
        where = shown(f"{self.url}/{shard}")
        try:
            with reaching(where):
                if isinstance(self.fs, LocalFileSystem):
                    source = f"{self.folder}/{shard}"
                    if os.path.exists(source):  # opening a pipe would wait for ever
                        check_file(source, "run its curation again")
                    link_or_copy(os.path.realpath(source), path)
                else:
                    self.fs.get_file(f"{self.folder}/{shard}", str(path))
        except FileNotFoundError as error:
            raise UserError(f"{where}: is missing; run its curation again") from error
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.shards[shard]:
            raise UserError(f"{where}: has other bytes than run.json says; run its curation again")
        return digest

    @contextmanager
    def _manifest(self) -> Iterator[IO[bytes]]:
        path, where = f"{self.folder}/manifest.parquet", f"{self.url}/manifest.parquet"
        if isinstance(self.fs, LocalFileSystem):  # opening a pipe would wait for ever
            check_file(path, "curate again")
        try:
            with reaching(where), self.fs.open(path, "rb") as file:
                yield file
        except (FileNotFoundError, pa.ArrowException) as error:
            raise UserError(f"{shown(where)}: cannot be read ({one_line(error, 200)}); curate again") from error


def open_dataset(url: str) -> Dataset:
    """Open a dataset's folder, or the newest dataset of a run, on a disk or in a bucket; UserError if there is none."""
    fs, root = url_to_fs(url)
    root = root.rstrip("/")
    with reaching(url):
        folder = root if fs.exists(f"{root}/run.json") else _newest(fs, root)
        if folder is None:
            raise UserError(f"{shown(url)}: no dataset is there; {GIVE}")
    if isinstance(fs, LocalFileSystem):  # a curation that ends meanwhile switches the link to another dataset
        folder = os.path.realpath(folder)
    text = read_bounded(fs, f"{folder}/run.json", GIVE, MAX_BYTES).decode(errors="replace")
    facts = parse_json(text, shown(f"{url}: run.json"))
    if not isinstance(facts, dict):
        raise UserError(f"{shown(url)}: run.json holds no facts; curate again")
    return Dataset(url, fs, folder, facts)


def _newest(fs: fsspec.AbstractFileSystem, run: str) -> str | None:
    """The folder of a run's newest dataset."""
    if isinstance(fs, LocalFileSystem) and fs.exists(f"{run}/dataset/run.json"):
        return f"{run}/dataset"
    if not isinstance(fs, LocalFileSystem) and (newest := pointers.followed(fs.unstrip_protocol(f"{run}/dataset"))):
        return url_to_fs(newest)[1]
    folders = [f"{run}/datasets/{entry.dataset}" for entry in published(fs, f"{run}/datasets")]
    return next((folder for folder in reversed(folders) if fs.exists(f"{folder}/run.json")), None)
