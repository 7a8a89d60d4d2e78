"""Folders of the published layout to shards: those that instructar export wrote, and anybody else's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from data_schemas.errors import UserError
from data_schemas.io import folders
from data_schemas.io.documents import parse_json
from data_schemas.io.new_folders import filling, new_folder
from data_schemas.io.tars import read_members, sample_ids
from data_schemas.io.text import from_path
from data_schemas.progress import Progress
from data_schemas.tables import SPLITS
from pipeline.core.tar_writer import write_tar
from pipeline.exchange import examples
from pipeline.exchange.folders_out import BESIDE, FORMAT, STATED, digest_of

SAMPLES_A_SHARD = 1000
DEEPER = "neither train nor test; import it by itself, with --split"
"""Why the examples in a folder of another name are left out."""
Sample = tuple[str, dict[str, bytes]]


@dataclass
class Imported:
    """What an import did: samples by split, shards, examples ``left_out`` with the reason, and the ``changed`` ones,
    whose files are not those of the export any more, so that only what the files hold was taken."""

    samples: dict[str, int] = field(default_factory=dict)
    shards: int = 0
    left_out: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def import_folders(
    source: str, out: str, split: str = "train", limit: int | None = None, black_background: bool = False
) -> Imported:
    """Make shards of the examples in ``source`` and in its sub-folders ``train`` and ``test``, in the new folder
    ``out``. Examples that stand in neither are of ``split``. Only the first ``limit`` of each split are taken.

    Raises UserError for examples that cannot be read, or if there are none; ``out`` is then not there.
    """
    root = Path(source)
    own = [root / name for name in SPLITS]
    beside = [path for path in folders.example_folders(root) if path not in own]
    found = [(name, folder, folders.example_folders(folder)) for name, folder in zip(SPLITS, own, strict=True)]
    parts = [part for part in (*found, (split, root, beside)) if part[2]]
    if not parts:
        raise UserError(
            f"{source}: no example there; give a folder of folders with ref/, background.png, real.png and "
            "description.txt, or of Parquet files of pairs"
        )
    others = [path for path in folders.listed(root) if path not in own and folders.is_folder(path)]
    deeper = [path for path in others if path not in beside and folders.example_folders(path)]
    done, ids = Imported(), set[str]()
    with filling(new_folder(out)) as target:
        writing = [_Part(*part, target, done, ids, black_background) for part in parts]
        for part in writing:
            part.reserve()
        for part in writing:
            part.write(limit)
        if not sum(done.samples.values()):
            raise UserError(f"{source}: no example can be used; the first: {done.left_out[0]}")
    done.left_out += [f"{from_path(path.name)} ({DEEPER})" for path in deeper]
    return done


class _Part:
    """The examples of one folder, which are of one split, on their way into shards."""

    def __init__(
        self, split: str, folder: Path, found: list[Path], target: Path, done: Imported, ids: set[str], black: bool
    ):
        self.split, self.target, self.done, self.ids, self.black = split, target, done, ids, black
        self.left = {from_path(path.name): path for path in found}
        self.beside = sorted((folder / BESIDE).glob("*.tar")) if folders.is_folder(folder / BESIDE) else []

    def reserve(self) -> None:
        """Keep the ids of the exported shards for them. Raises UserError if two samples have one."""
        for path in self.beside:
            for sample_id in sample_ids(str(path)):
                if sample_id in self.ids:
                    raise UserError(f"{path}: sample {sample_id} is there twice; remove this file, or export again")
                self.ids.add(sample_id)

    def write(self, limit: int | None) -> None:
        """Write the shards of the export again, then new ones of the examples that it does not name."""
        taken = self.done.samples.get(self.split, 0)  # from another folder of this split
        total = len(self.left) if limit is None else min(limit - taken, len(self.left))
        with Progress(f"import {self.split}", total, every=100) as bar:

            def counted(samples: Iterable[Sample]) -> Iterator[Sample]:
                for sample in samples:
                    self.ids.add(sample[0])
                    self.done.samples[self.split] = self.done.samples.get(self.split, 0) + 1
                    bar.advance()
                    yield sample

            room = total
            for path in self.beside:
                before = self.done.samples.get(self.split, 0)
                self._shard(path.name, counted(islice(self._again(path), room)))
                room -= self.done.samples.get(self.split, 0) - before
            fresh, number = counted(islice(self._fresh(), room)), 0
            while (first := next(fresh, None)) is not None:
                while (self.target / f"{self.split}-{number:05d}.tar").exists():
                    number += 1
                self._shard(f"{self.split}-{number:05d}.tar", chain([first], islice(fresh, SAMPLES_A_SHARD - 1)))

    def _shard(self, name: str, samples: Iterable[Sample]) -> None:
        if (first := next(samples := iter(samples), None)) is None:
            return
        if (self.target / name).exists():
            raise UserError(f"{BESIDE}/{name}: is there in two folders; remove one, or export again")
        with open(self.target / name, "xb") as file:
            write_tar(file, chain([first], samples))
        self.done.shards += 1

    def _again(self, path: Path) -> Iterator[Sample]:
        """The samples of an exported shard whose examples are still there, in its order."""
        for sample_id, more in read_members(str(path)):
            stated = _stated(more, f"{path}: sample {sample_id}")
            folder = self.left.pop(str(stated["example"]), None)
            example = None if folder is None else self._example(folder)
            if example is None:
                continue
            members = examples.members(example, sample_id, self.split)
            if example.digest() == stated["files"]:
                more.pop(STATED)
                members = {name: c for name, c in (members | more).items() if name not in stated["without"]}
                if digest_of(members) != stated["sample"]:
                    raise UserError(f"{path}: sample {sample_id}: other members than exported; export again")
            else:
                self.done.changed.append(example.name)
            yield sample_id, members

    def _fresh(self) -> Iterator[Sample]:
        """The samples of the examples that no exported shard names, in order."""
        for folder in self.left.values():
            if (example := self._example(folder)) is not None:
                name = examples.sample_name(example.name)
                sample_id = next(i for i in _candidates(name) if i not in self.ids)
                yield sample_id, examples.members(example, sample_id, self.split)

    def _example(self, folder: Path) -> examples.Example | None:
        """Read an example; None, with a note, for one that the published program leaves out too."""
        if (why := examples.lacking(folder)) is not None:
            self.done.left_out.append(f"{from_path(folder.name)} ({why})")
            return None
        return examples.read(folder, self.black)


def _candidates(name: str) -> Iterator[str]:
    """A name, and the same with numbers, for a folder whose name another has already."""
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _stated(more: dict[str, bytes], where: str) -> dict:
    text = more.get(STATED, b"").decode(errors="replace")
    stated = parse_json(text, f"{where}: {STATED}")
    if not isinstance(stated, dict) or stated.get("format") != FORMAT or not isinstance(stated.get("without"), list):
        raise UserError(f"{where}: no export of this program's format; remove the folder {BESIDE}, or export again")
    if missing := {"example", "files", "sample"} - stated.keys():
        raise UserError(f"{where}: {STATED} lacks {min(missing)!r}; export again")
    return stated
