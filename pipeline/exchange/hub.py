"""A dataset as a repository of the Hugging Face Hub, in a folder of this machine.

    train-*.tar, test-*.tar     the shards, byte for byte
    preview/*.parquet           their samples with thumbnails, for the Hub's viewer
    manifest.parquet, run.json  as the dataset's own, without people, paths of a machine and addresses
    croissant.json              Croissant metadata
    README.md                   the dataset's card; its front matter names the files of each config
    cards/                      the cards of the datasets that this one was merged of, if it was

Nothing in it depends on when, where or by whom it was exported: the same dataset gives the same bytes.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from data_schemas.errors import UserError
from data_schemas.io.documents import MAX_BYTES, parse_yaml
from data_schemas.io.new_folders import filling, local_folder
from data_schemas.io.storage import read_bounded, shown
from data_schemas.tables import SPLITS
from pipeline.dataset.opened import Dataset, open_dataset
from pipeline.exchange.croissant import croissant
from pipeline.exchange.preview import write_preview
from pipeline.exchange.unnamed import manifest_bytes, unnamed

CARDS = 1000
"""Most cards of merged datasets that are looked for."""
FILES = """
## In this repository

- `train-*.tar`, `test-*.tar`: the samples at full size, as WebDataset shards.
- `preview/*.parquet`: the same samples with thumbnails, one file for each shard.
- `manifest.parquet`: every planned sample with its scores, the decision and its reasons. {people}
- `run.json`: settings, versions, models, thresholds and digests. Paths and addresses of machines are cut.
- `croissant.json`: the same files and columns for tools that read Croissant.

```python
import os
from datasets import load_dataset

here = os.path.abspath(".")  # this folder; or owner/name of the repository
preview = load_dataset(here)
planned = load_dataset(here, "manifest", split="planned")
samples = load_dataset(here, data_files={{"{split}": "{split}-*.tar"}}, split="{split}", streaming=True)
```
"""
LEFT_OUT = "Who reviewed samples is left out."
NAMED = "It names the people who reviewed samples, with their words."


def export_to_hub(url: str, out: str, with_reviewers: bool = False) -> Path:
    """Write the dataset of a run, or in a dataset's folder, into the folder ``out``, which gets its name when it is
    whole. A folder that holds the very same already is left alone. ``with_reviewers`` publishes who reviewed, and what
    they wrote. Returns the folder.

    Raises UserError if nothing was kept, a shard is missing or damaged, or ``out`` holds anything else.
    """
    dataset, target = open_dataset(url), local_folder(out)
    dataset.need_facts()
    if not dataset.shards:
        raise UserError(f"{shown(url)}: no sample was kept, so there is nothing to publish")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        with filling(target) as folder:
            _write(dataset, folder, with_reviewers)
        return target
    with tempfile.TemporaryDirectory() as fresh:
        _write(dataset, Path(fresh), with_reviewers)
        if not _same(Path(fresh), target):
            raise UserError(f"--out {out}: holds something else; give another folder, or remove this one")
    return target


def _write(dataset: Dataset, folder: Path, with_reviewers: bool) -> None:
    (folder / "preview").mkdir()
    files = {}
    for shard in sorted(dataset.shards):
        files[shard] = dataset.bring(shard, folder / shard)
        try:
            write_preview(folder / shard, folder / "preview" / f"{Path(shard).stem}.parquet")
        except UserError as error:  # the folder that is being filled is nobody's
            raise UserError(str(error).replace(str(folder), shown(dataset.url))) from error
    manifest = manifest_bytes(dataset.table().replace_schema_metadata(dataset.schema.metadata), with_reviewers)
    (folder / "manifest.parquet").write_bytes(manifest)
    files["manifest.parquet"] = hashlib.sha256(manifest).hexdigest()
    facts = unnamed(dataset.facts) | {"manifest_sha256": files["manifest.parquet"]}
    _put(folder / "run.json", _json(facts))
    front, card = _card(dataset, folder)
    splits = [split for split in SPLITS if any(name.startswith(f"{split}-") for name in files)]
    more = FILES.format(people=NAMED if with_reviewers else LEFT_OUT, split=splits[0])
    front |= {"configs": _configs(splits)}
    written = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    _put(folder / "README.md", f"---\n{written}---\n{card.rstrip()}\n{more}")
    described = croissant(
        name=dataset.name,
        version=str(dataset.version),
        licence=str(front.get("license_name") or front.get("license") or "stated in README.md and cards/"),
        description="Two reference subjects, a relation and the picture that shows both, with scores and decisions.",
        files=files,
        manifest=pq.read_schema(folder / "manifest.parquet"),
        preview=pq.read_schema(next(iter(sorted((folder / "preview").iterdir())))),
    )
    _put(folder / "croissant.json", _json(described))


def _configs(splits: list[str]) -> list[dict[str, Any]]:
    """The configs that the Hub offers. All are Parquet: it reads one format in all configs of a repository."""
    previews = [{"split": split, "path": f"preview/{split}-*.parquet"} for split in splits]
    return [
        {"config_name": "preview", "default": True, "data_files": previews},
        {"config_name": "manifest", "data_files": [{"split": "planned", "path": "manifest.parquet"}]},
    ]


def _card(dataset: Dataset, folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the text of the dataset's card. Cards of datasets that it was merged of are copied."""
    card = _read(dataset, "README.md")
    parts = re.match(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)
    front = parse_yaml(parts[1], shown(f"{dataset.url}: README.md")) if parts else None
    if parts is None or not isinstance(front, dict):
        raise UserError(f"{shown(dataset.url)}: README.md is no dataset card; curate again")
    for name in sorted(set(re.findall(r"\((cards/\d+\.md)\)", card)))[:CARDS]:
        (folder / "cards").mkdir(exist_ok=True)
        _put(folder / name, _read(dataset, name))
    return front, parts[2]


def _read(dataset: Dataset, name: str) -> str:
    data = read_bounded(dataset.fs, f"{dataset.folder}/{name}", "curate again", MAX_BYTES)
    return data.decode(errors="replace")


def _put(path: Path, text: str) -> None:
    """Write a text. Half a surrogate pair, which JSON and YAML may name, is written as its number."""
    path.write_bytes(text.encode(errors="backslashreplace"))


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files with the same bytes."""
    names = [sorted(p.relative_to(root) for p in root.rglob("*")) for root in (one, other)]
    if names[0] != names[1]:
        return False
    return all(filecmp.cmp(one / n, other / n, shallow=False) for n in names[0] if (one / n).is_file())
