"""How a pool would be read: which column or folder becomes what. Told before work starts; no picture is decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data_schemas.errors import UserError
from data_schemas.io.pictures import SUFFIXES
from data_schemas.io.text import one_line
from pipeline.references.archives import Archives
from pipeline.references.files import census, descend, inside, other_kinds, walk
from pipeline.references.parquet import column_names, find_columns, first_values, row_count
from pipeline.references.places import BucketPath, Place
from pipeline.references.pools import BUILT_IN, PoolConfig, parquet_files, pool_folder

SHOWN = 5
"""Most names that a line tells."""


def told(pool: PoolConfig) -> tuple[bool, list[str]]:
    """Whether a pool is on this machine and can be read, and lines that say how it would be."""
    if pool.source in BUILT_IN:
        return True, [f"pool {pool.source}: comes with the program"]
    try:
        root = inside(pool_folder(pool), pool.source)
        files = parquet_files(root, pool)
        lines = _parquet(files, pool) if files else _folder(root, pool)
        if left := skipped(pool):
            lines.append(_line("not read", f"files {census(left)}"))
    except UserError as error:
        return False, [f"pool {pool.source}: {one_line(error).removeprefix(f'references.pool {pool.source}: ')}"]
    return True, [f"pool {pool.source}: {lines[0]}", *lines[1:]]


def skipped(pool: PoolConfig) -> Counter[str]:
    """How many files of the pool's folder are ignored because of their kind, by suffix.

    In a folder with Parquet files these are all other files. Notes, masks, licences and hidden files do not count.
    """
    if pool.source in BUILT_IN or (root := inside(pool_folder(pool), pool.source)).is_file():
        return Counter()
    if walk(root, (".parquet",)):
        return other_kinds(root, (".parquet", ".json"))
    masks = descend(root, pool.split) / pool.mask if pool.mask else None
    return other_kinds(root, SUFFIXES, masks)


def _parquet(files: Sequence[Place], pool: PoolConfig) -> list[str]:
    first = files[0]
    columns = find_columns(first, pool.image, pool.mask, pool.category_column, pool.name_column)
    read = [columns.image, columns.mask, columns.category, columns.name]
    rest = [name for name in column_names(first) if name not in read]
    return [
        f"{len(files)} Parquet files, {sum(map(row_count, files))} rows",
        _line("image", f"column {columns.image!r}"),
        _line("mask", f"column {columns.mask!r}" if columns.mask else "none: each subject is cut out"),
        _line("category", _text(first, pool.category, columns.category, "the picture's folder in its stored path")),
        _line("name", _text(first, pool.name, columns.name, "the picture's file name, else the category")),
        *([_line("not read", f"columns {_some(rest)}")] if rest else []),
    ]


def _text(file: Place, fixed: str | None, column: str | None, otherwise: str) -> str:
    if fixed is not None:
        return f"{fixed!r}, as the pool's settings say"
    return otherwise if column is None else f"column {column!r}: {_some(first_values(file, column))}, ..."


def _folder(root: Place, pool: PoolConfig) -> list[str]:
    top = descend(root, pool.split)
    folder = top / pool.image if pool.image else top
    pictures = walk(folder, SUFFIXES) if folder.is_dir() else []
    if not pictures:
        kinds = census(other_kinds(root, ()))
        raise UserError(f"holds no picture and no Parquet file (there is: {kinds}); unpack archives into it")
    below = sorted({p.relative_to(folder).parts[0] for p in pictures if len(p.relative_to(folder).parts) > 1})
    flat = "the file's name without a number" if pool.subject == "category" else "the pool's own name"
    by = f"its {len(below)} folders: {_some(below)}" if below else flat
    by = f"{pool.category!r}, as the pool's settings say" if pool.category else by
    name = "the category" if pool.subject == "category" else "the .txt beside a picture, else its file name"
    packed = isinstance(root, BucketPath) and isinstance(root.pool.fs, Archives)
    count = f"{len(pictures)} picture{'s' if len(pictures) != 1 else ''}"
    return [
        f"{count} in {'zip or tar archives' if packed else 'folders'}",
        _line("mask", f"folder {pool.mask!r}" if pool.mask else "transparency, else each subject is cut out"),
        _line("category", by),
        _line("name", f"{pool.name!r}, as the pool's settings say" if pool.name else name),
    ]


def _line(what: str, how: str) -> str:
    return f"  {what:<9} {how}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(one_line(name, 40) for name in names[:SHOWN]) + more
