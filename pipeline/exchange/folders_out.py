"""Shards to folders of the published layout, and what more shards hold beside them, in one tar for each shard.

    out/train/example1/...              as data_schemas/io/folders.py has it
    out/train/instructar/train-00000.tar
    out/test/...

The tar names the example of every sample of its shard in order, with a digest of the example's files, and holds those
members of the sample that the files alone would make otherwise. From both, pipeline/exchange/folders_in.py makes the
same shard again. The published program finds no references in ``instructar`` and passes it over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_schemas.errors import UserError
from data_schemas.io.new_folders import filling, new_folder
from data_schemas.io.tars import expand_shards, read_members
from data_schemas.progress import Progress
from data_schemas.shards import check_distinct, decode_sample
from data_schemas.tables import SPLITS
from pipeline.core.tar_writer import write_tar
from pipeline.dataset.opened import open_dataset
from pipeline.exchange import examples

BESIDE = "instructar"
"""The folder of the tars, beside the examples."""
STATED = "example.json"
"""The member that tells a sample's example, its digest, and which members its files would add."""
FORMAT = 1


def export_to_folders(source: str, out: str) -> dict[str, int]:
    """Write the shards of a run, of a dataset's folder, or of a glob into the new folder ``out``, one folder a split.

    Returns how many examples each split has. Raises UserError for what cannot be read; ``out`` is then not there.
    """
    shards = shards_of(source)
    counts = dict.fromkeys(SPLITS, 0)
    known: dict[str, str] = {}
    with filling(new_folder(out)) as folder, Progress("export, shards", len(shards), every=10) as bar:
        for url in shards:
            name = url.rpartition("/")[2]
            split = next((s for s in SPLITS if name.startswith(f"{s}-")), SPLITS[0])
            path = folder / split / BESIDE / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise UserError(f"{url}: another shard has this name too; export one folder at a time")
            with open(path, "xb") as file:
                write_tar(file, _beside(url, folder / split, counts, split, known))
            bar.advance()
        if not any(counts.values()):
            raise UserError(f"{source}: no sample is in its shards; make them again")
    return {split: count for split, count in counts.items() if count}


def shards_of(source: str) -> list[str]:
    """The shards of a run, a dataset's folder, or a glob of tars."""
    if source.endswith(".tar"):
        return expand_shards(source)
    dataset = open_dataset(source)
    if not dataset.shards:
        raise UserError(f"{source}: its dataset names no shards; curate again")
    places = [f"{dataset.folder}/{name}" for name in sorted(dataset.shards)]
    return [dataset.fs.unstrip_protocol(place).removeprefix("file://") for place in places]


def _beside(
    url: str, folder: Path, counts: dict[str, int], split: str, known: dict[str, str]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Write the example of every sample of a shard; yields what else the sample holds."""
    for sample_id, members in read_members(url):
        check_distinct(sample_id, url, known)
        decode_sample(sample_id, members, url)  # what cannot be trained on is not published either
        counts[split] += 1
        example = examples.written(f"example{counts[split]}", members)
        for path, content in example.files.items():
            file = folder / example.name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        made = examples.members(example, sample_id, split)
        more = {name: content for name, content in members.items() if made.get(name) != content}
        stated = {
            "format": FORMAT, "example": example.name, "files": example.digest(),
            "without": sorted(made.keys() - members.keys()), "sample": digest_of(members),
        }  # fmt: skip
        yield sample_id, {**more, STATED: json.dumps(stated, sort_keys=True).encode()}


def digest_of(members: Mapping[str, bytes]) -> str:
    """A digest over the names and contents of a sample's members."""
    return examples.Example("", members).digest()
