"""Pools of reference pictures: installed packages, generated subjects, folders, Parquet files and data sets of the hub.

``list_pool`` lists a pool before any picture is decoded. The id of a picture is made from its content, so it is the
same in a folder and in a Parquet file. The paper's pools are presets in pools.yaml.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import Field, model_validator

from data_schemas.errors import UserError
from data_schemas.io.pictures import SUFFIXES
from data_schemas.io.storage import Unreadable
from data_schemas.io.text import from_path, label, one_line
from data_schemas.settings import Settings, suggest
from pipeline.references import archives
from pipeline.references.files import SPLIT_NAMES, census, descend, inside, mask_file, note, other_kinds, walk
from pipeline.references.generated.subjects import Generated, recipe
from pipeline.references.packaged import package_file, packaged
from pipeline.references.parquet import column_names, find_columns, list_rows
from pipeline.references.places import BucketPath, Place, digest_of, each, refused
from pipeline.references.sources import PictureLocation, Source

BUILT_IN = ("packaged", "generated")
"""Pools that come with the program."""
FILES = (".parquet", *archives.SUFFIXES)
"""Files that are a pool by themselves."""
GENERATED = 2000
"""Subjects of a generated pool that states no count."""


class PoolConfig(Settings):
    """One pool and how it is read.

    A folder that contains Parquet files is read as those. Any other folder is read as pictures, with one sub-folder for
    each category; outer folders that hold nothing else, and the split's folder, are skipped. Archives are read as the
    folder that unpacking them would give, also where they are all that a folder holds. Masks in a folder have the file
    names of their pictures.
    """

    preset: str | None = Field(
        None, description="A pool of the paper, relationbench or human_parsing, whose values apply unless set here"
    )
    source: str = Field(
        min_length=1,
        description="`packaged`, `generated`, a folder of pictures or of Parquet files, a Parquet file, the URL of "
        "either in a bucket, a zip or tar archive, or `hf:owner/name`: a data set of the hub that is on this machine",
    )
    revision: str = Field("main", min_length=1, description="Branch, tag or commit of a data set of the hub")
    split: str = Field("train", min_length=1, description="Split to read, where files or folders tell splits apart")
    image: str | None = Field(
        None, min_length=1, description="Column or folder of pictures; None: the first such column, or the whole folder"
    )
    mask: str | None = Field(
        None, min_length=1, description="Column or folder of label maps; None: alpha or GrabCut cuts the subjects out"
    )
    subject_labels: tuple[int, ...] | None = Field(
        None, min_length=1, max_length=65_536, description="Labels of a mask that are the subject; None: all but 0"
    )
    category: str | None = Field(None, min_length=1, description="Category of every picture; None: each its own")
    category_column: str | None = Field(
        None, min_length=1, description="Column of categories; None: category, label, class, class_name, object or text"
    )
    name: str | None = Field(
        None, min_length=1, description="Name of every subject in prompts; None: each picture's own, else its category"
    )
    name_column: str | None = Field(None, min_length=1, description="Column of names; None: name, else the file's name")
    subject: Literal["name", "category", "picture"] = Field(
        "name",
        description="Which pictures show the same subject: `name`: those with the same category and name; `picture`: "
        "none; `category`: those of one category, whose name without a number at its end is then category and name",
    )
    count: int | None = Field(None, ge=1, le=10**6, description="Subjects of a generated pool; None: 2000")
    seed: int | None = Field(None, ge=0, lt=2**31, description="Seed of a generated pool; None: 0")
    mirror: bool = Field(True, description="Whether subjects may be shown mirrored; false for letters and signs")
    limit: int | None = Field(
        None, ge=1, le=10**9, description="Most pictures to take: those with the smallest digests; None: all"
    )

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_preset(cls, values: Any) -> Any:
        if isinstance(values, str):
            values = {"preset": values} if values in presets() else {"source": values}
        if not isinstance(values, dict) or values.get("preset") is None:
            return values
        preset = str(values["preset"])
        if preset not in presets():
            raise ValueError(f"there is no preset {preset!r}; {suggest(preset, presets())}")
        return {**presets()[preset]["read"], **values}

    @model_validator(mode="after")
    def _labels_need_a_mask(self) -> Self:
        if self.subject_labels is not None and self.mask is None:
            raise ValueError("subject_labels says which labels of a mask are the subject; name the mask too")
        return self

    @model_validator(mode="after")
    def _count_and_seed_need_a_generated_pool(self) -> Self:
        if self.source != "generated" and (self.count, self.seed) != (None, None):
            raise ValueError(f"count and seed belong to the pool 'generated', not to {self.source!r}; leave them out")
        return self

    @property
    def hub_id(self) -> str | None:
        """owner/name of a data set on the hub; None for any other source."""
        return self.source.removeprefix("hf:") if self.source.startswith("hf:") else None


@cache
def presets() -> dict[str, dict]:
    """pools.yaml by short name: "read" holds keys of PoolConfig, the others what the pool's makers say about it."""
    return yaml.safe_load((files("pipeline.references") / "pools.yaml").read_text())


def list_pool(pool: PoolConfig) -> list[Source]:
    """All pictures of the pool in a fixed order. Reads the files to compute their digests, but decodes none."""
    if pool.source == "packaged":
        return [_packaged_source(entry, pool.mirror and entry.get("mirror", True)) for entry in packaged()["subjects"]]
    if pool.source == "generated":
        return [_generated_source(Generated(pool.seed or 0, k), pool.mirror) for k in range(pool.count or GENERATED)]
    root = inside(pool_folder(pool), pool.source)
    prefix = f"{pool.hub_id}/" if pool.hub_id else ""
    parquet = parquet_files(root, pool)
    if not parquet:
        return _folder_sources(root, pool, prefix)
    return _parquet_sources(root.parent if root.is_file() else root, parquet, pool, prefix)


def parquet_files(root: Place, pool: PoolConfig) -> list[Place]:
    """The Parquet files that are read of a pool's folder or file; none if it is read as pictures."""
    return [root] if root.is_file() else _of_split(root, walk(root, (".parquet",)), pool)


def take(sources: Sequence[Source], limit: int | None) -> list[Source]:
    """At most ``limit`` sources in their order. Those with the smallest digests are chosen, unreadable ones last."""
    if limit is None or len(sources) <= limit:
        return list(sources)
    chosen = sorted(range(len(sources)), key=lambda k: (not sources[k].sha256, sources[k].sha256, k))[:limit]
    return [sources[k] for k in sorted(chosen)]


def pool_folder(pool: PoolConfig) -> Place:
    """The pool's folder or Parquet file. Raises UserError if it is missing; nothing is downloaded."""
    hub_id = pool.hub_id
    if hub_id is None:
        try:
            path = BucketPath.of(pool.source) if "://" in pool.source else Path(pool.source).expanduser()
            if path is not None and (path.is_dir() or (path.suffix.lower() in FILES and path.is_file())):
                return path
            what = "no such folder" if path is None or not path.exists() else "not a folder, a Parquet, zip or tar file"
        except Unreadable:
            raise
        except (OSError, RuntimeError) as error:  # the name is too long, no permission, unknown ~user
            what = one_line(error.strerror if isinstance(error, OSError) else error)
        raise UserError(
            f"references.pool {pool.source}: {what}; give a folder of pictures or of Parquet files, a Parquet file, "
            f"hf:owner/name, 'packaged', 'generated' or one of: {', '.join(presets())}"
        )
    try:
        wanted = [f"*{suffix}" for suffix in (*FILES, *SUFFIXES, ".txt")]
        return Path(snapshot_download(
            hub_id, repo_type="dataset", revision=pool.revision, allow_patterns=wanted, local_files_only=True
        ))  # fmt: skip
    except (LocalEntryNotFoundError, ValueError) as error:  # ValueError: not a valid id
        revision = "" if pool.revision == "main" else f" --revision {pool.revision}"
        raise UserError(
            f"references.pool {pool.source}: not on this machine, or not all of it; get it with "
            f"`hf download --repo-type dataset {hub_id}{revision}`, or give a folder as its source"
        ) from error


def require(pool: PoolConfig) -> None:
    """Raise UserError if the pool is not on this machine. Reads none of its pictures."""
    if pool.source in BUILT_IN:
        for entry in packaged()["subjects" if pool.source == "packaged" else "backgrounds"]:
            package_file(entry["package"], entry["file"])
    else:
        pool_folder(pool)


def _packaged_source(entry: dict, mirror: bool) -> Source:
    path = package_file(entry["package"], entry["file"])
    source, name, category = f"{entry['package']}/{entry['file']}", entry["name"], entry["category"]
    box, digest = tuple(entry["box"]), _digest(path)
    inside, outside = (tuple(map(tuple, entry.get(key, []))) for key in ("inside", "outside"))
    # the id includes the file and the box, because several entries may be cut from one photograph
    reference_id = _id(source, box, inside, outside, name, category, digest)
    subject_id = f"{_slug(category)}/{_slug(name)}"
    return Source(
        reference_id, subject_id, name, category, source, digest, PictureLocation(path), box, inside, outside,
        mirror=mirror,
    )  # fmt: skip


def _generated_source(subject: Generated, mirror: bool) -> Source:
    made, digest = recipe(subject), subject.digest
    reference_id = _id(subject.source, made.name, made.kind, digest)
    return Source(reference_id, subject.source, made.name, made.kind, subject.source, digest, subject, mirror=mirror)


def _of_split(root: Place, paths: list[Place], pool: PoolConfig) -> list[Place]:
    """The Parquet files whose names contain this split; all files if no name contains any split."""
    words = {path: set(re.split(r"[\W_]+", path.relative_to(root).as_posix().lower())) for path in paths}
    own = [path for path in paths if pool.split.lower() in words[path]]
    if own or not any(words[path] & SPLIT_NAMES for path in paths):
        return own or paths
    names = ", ".join(path.relative_to(root).as_posix() for path in paths[:5])
    raise UserError(f"references.pool {pool.source}: no Parquet file of split {pool.split!r}; there is: {names}")


def _parquet_sources(root: Place, paths: list[Place], pool: PoolConfig, prefix: str) -> list[Source]:
    sources = []
    for path in paths:
        columns = find_columns(path, pool.image, pool.mask, pool.category_column, pool.name_column)
        file = prefix + from_path(path.relative_to(root).as_posix())
        for row in list_rows(path, columns):
            made_from = Path(row.path)
            category = row.category or (made_from.parent.name if columns.category is None else "")
            if not (category or pool.category or columns.category):
                raise UserError(
                    f"{path}: no column says what a picture shows; set category_column (there is: "
                    f"{', '.join(column_names(path))}) or one category for all of them"
                )
            image = PictureLocation(path, row.number, columns.image)
            mask = PictureLocation(path, row.number, columns.mask) if columns.mask else None
            stem = "" if pool.subject == "category" else made_from.stem
            name = row.name or (_words(stem) if stem else "")
            sources.append(
                _source(pool, f"{file}#{row.number}", image, row.sha256, category, name, mask, row.mask_sha256)
            )
    if not sources:
        raise UserError(f"references.pool {pool.source}: its Parquet files hold no row; get them again")
    return sources


def _folder_sources(root: Place, pool: PoolConfig, prefix: str) -> list[Source]:
    """The pictures of a folder.

    The category of a picture is its first sub-folder, or the pool's own name. Its name is in a .txt file beside it, or
    is the file's stem.
    """
    top = descend(root, pool.split)
    folder = top / pool.image if pool.image else top
    paths = walk(folder, SUFFIXES) if folder.is_dir() else []
    if not paths:
        others = census(other_kinds(root, ()))
        where = pool.source if folder == root else f"{pool.source}: {folder.relative_to(root).as_posix()}"
        raise UserError(
            f"references.pool {where}: holds no picture and no Parquet file (there is: {others}); put "
            f"{', '.join(SUFFIXES)} files into it, in one sub-folder a category, and unpack archives"
        )
    of_folder = (top if top != root else top.resolve()).name
    own_name = (pool.hub_id or of_folder or Path(pool.source).stem).rpartition("/")[2]

    def contents(path: Place) -> tuple[str, str, Place | None, str]:
        """What is read for a picture: its digest, its note, and its mask with a digest."""
        mask = mask_file(top / pool.mask / path.relative_to(folder)) if pool.mask else None
        return _digest(path), note(path), mask, _digest(mask) if mask else ""

    sources = []
    for path, (digest, noted, mask, mask_digest) in zip(paths, each(contents, paths), strict=True):
        relative = path.relative_to(folder)
        flat = path.stem if pool.subject == "category" else own_name
        category = relative.parts[0] if len(relative.parts) > 1 else flat
        name = noted or ("" if pool.subject == "category" else _words(path.stem))
        where = prefix + from_path(path.relative_to(root).as_posix())
        image, labels = PictureLocation(path), PictureLocation(mask) if mask else None
        sources.append(_source(pool, where, image, digest, category, name, labels, mask_digest))
    return sources


def _source(
    pool: PoolConfig,
    source: str,
    location: PictureLocation,
    digest: str,
    category: str,
    name: str,
    mask: PictureLocation | None,
    mask_digest: str,
) -> Source:
    """A picture of a pool.

    ``category`` and ``name`` are those that were found, before the config's values override them.
    """
    name, category = label(name), from_path(category)
    of_subject = {"name": name or category, "category": category, "picture": digest[:12] or source}[pool.subject]
    category = pool.category or _words(category)
    if pool.subject == "category":
        category = re.sub(r"\s*\d+$", "", category) or category
    telling = re.search(r"[^\W\d_]", name)  # a name without letters does not say what the picture shows
    name = pool.name or (name if telling else category)
    subject_id = f"{_slug(category)}/{_slug(of_subject)}"
    told = mask_digest or ("" if mask is None else "no mask")  # a missing mask is an error row, none at all is not
    reference_id = _id(name, category, subject_id, digest or source, told, pool.subject_labels)
    return Source(
        reference_id, subject_id, name, category, source, digest, location,
        mask=mask, mask_sha256=mask_digest, labels=pool.subject_labels, mirror=pool.mirror,
    )  # fmt: skip


def tell_apart(sources: Sequence[Source]) -> list[Source]:
    """The sources, where each further copy of a picture with the same name gets a new id and thus its own row."""
    copies: Counter[str] = Counter()
    distinct = []
    for source in sources:
        copy = copies[source.reference_id]
        copies[source.reference_id] += 1
        distinct.append(replace(source, reference_id=_id(source.reference_id, copy)) if copy else source)
    return distinct


def _id(*content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _digest(path: Place) -> str:
    """SHA-256 of a file, or "" if it cannot be read; the cut-out's error row then says why."""
    try:
        if path.is_file():  # false for a pipe, which could block
            return digest_of(path)
    except (OSError, UserError) as error:  # UserError: an archive's member that cannot be unpacked
        if isinstance(error, Unreadable) and not refused(error):
            raise
    return ""


def _words(name: str) -> str:
    """A file's, folder's or category's name as words."""
    return label(re.sub(r"[_-]", " ", from_path(name))) or "subject"


def _slug(text: str) -> str:
    return re.sub(r"[\W_]+", "-", text.lower()).strip("-") or hashlib.sha256(text.encode()).hexdigest()[:8]
