"""The newest dataset of a run in a bucket, where there are no links: ``<run>/dataset.json`` names its folder.

    {"dataset": "datasets/<content>", "manifest_sha256": "..."}

The object is written when the dataset is whole. From then on ``<run>/dataset/train-*.tar`` stands for the shards in
that folder, as it does on a disk, where ``<run>/dataset`` is a link.
"""

from __future__ import annotations

import json
import re

from data_schemas.errors import UserError
from data_schemas.io.storage import parse_facts, patiently, shown, url_to_fs, write_file

LONGEST = 4096
"""Bytes that are read of such an object."""


def point(dataset: str, folder: str, manifest_sha256: str) -> None:
    """Let the URL ``dataset`` stand for ``folder``, which is relative to the run, from now on."""
    fs, path = url_to_fs(dataset)
    text = json.dumps({"dataset": folder, "manifest_sha256": manifest_sha256}, indent=2)
    write_file(fs, f"{path}.json", text.encode())


def followed(dataset: str) -> str | None:
    """The URL of the folder that the URL ``dataset`` stands for; None if there is no such object.

    Raises UserError if it names anything but a dataset of the same run.
    """
    fs, path = url_to_fs(dataset)

    def read() -> bytes:
        with fs.open(f"{path}.json", "rb") as file:
            return file.read(LONGEST)

    try:
        data = patiently(read, f"{dataset}.json")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    folder = (parse_facts(data, path) or {}).get("dataset")
    if not isinstance(folder, str) or not re.fullmatch(r"datasets/[0-9a-f]{16}", folder):
        raise UserError(f"{shown(dataset)}.json: does not name a dataset of its run; curate the run again")
    return f"{dataset.rpartition('/')[0]}/{folder}"
