"""Sums up the rows of an evaluation and writes its files: metrics.json, the tables, and the pictures side by side."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data_schemas.io.files import write_atomically
from data_schemas.shards import file_name
from tokenar.config import SampleConfig
from tokenar.evaluate import metrics, tables
from tokenar.evaluate.cache import CachedFeatures
from tokenar.evaluate.config import EvalConfig
from tokenar.evaluate.encoders import Encoders
from tokenar.evaluate.methods import Method
from tokenar.evaluate.pictures import grid, noted, read_drawn, remove_earlier, strip
from tokenar.evaluate.rows import summarise
from tokenar.evaluate.samples import stored_samples, told
from tokenar.model.folder import model_settings

PACKAGES = (
    "torch", "torchvision", "torchmetrics", "torch-fidelity", "timm", "transformers", "numpy", "pillow",
    "scikit-image", "opencv-python-headless",
)  # fmt: skip
"""Packages whose versions may change a figure; metrics.json lists them."""
CROP = (
    "subject i: pixels with alpha >= 128 inside box i, the rest white, trimmed, in the middle of a white square with "
    "room of {padding:g} of the longer side around it; the reference likewise along its own alpha"
)
"""How subjects are cut out, in words for metrics.json."""

Entries = Mapping[str, Sequence[dict[str, Any]]]
"""By method, in the order of the samples: {"row": figures, "inception": keys of the cached Inception features}."""


@dataclass(frozen=True)
class Results:
    """What the files of an evaluation are written from. Pictures were compared at ``side`` x ``side`` pixels."""

    out: Path
    shards: str | Sequence[str]
    sample_ids: Sequence[str]
    side: int
    methods: Sequence[Method]
    config: EvalConfig
    sampling: SampleConfig
    encoders: Encoders
    features: CachedFeatures

    def drop_earlier(self) -> None:
        """Remove files of an earlier evaluation in this folder that the new one does not overwrite.

        metrics.json is removed too: it is written last, and says that all other files are complete.
        """
        before = set(map(str, noted(self.out / "metrics.json", "shown")))
        shown = self.sample_ids[: self.config.shown]
        remove_earlier(self.out / "pictures", [f"{file_name(sample_id)}.png" for sample_id in before - set(shown)])
        remove_earlier(self.out, ["metrics.json", *(["grid.png"] if not shown else [])])

    def write(self, entries: Entries) -> None:
        """Write all files, metrics.json last."""
        rows = [entry["row"] for of_method in entries.values() for entry in of_method]
        _write_table(self.out / "per_sample.parquet", rows)
        result = self._result(entries)
        content = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        self._write_grid()
        write_atomically(self.out / "table.md", lambda path: path.write_text(tables.markdown(result)))
        write_atomically(self.out / "table.tex", lambda path: path.write_text(tables.latex(result)))
        write_atomically(self.out / "metrics.json", lambda path: path.write_text(content))

    def _result(self, entries: Entries) -> dict[str, Any]:
        """The content of metrics.json."""
        methods = {method.name: self._method_result(method, entries[method.name]) for method in self.methods}
        encoders = {
            name: {"name": encoder.name, "fingerprint": encoder.fingerprint}
            for name, encoder in self.encoders.named().items()
        }
        result = {
            "methods": methods, "samples": len(self.sample_ids), "shown": self.sample_ids[: self.config.shown],
            "shards": told(self.shards), "side": self.side,
            "crop": CROP.format(padding=self.config.padding), "encoders": encoders,
            "settings": self.config.model_dump(mode="json"), "sampling": self.sampling.model_dump(mode="json"),
            "seed": self.sampling.seed, "versions": _versions(),
        }  # fmt: skip
        return result | {"notes": tables.notes(result)}

    def _method_result(self, method: Method, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A method's figures over all samples, over those with one reference, and over those with several."""
        groups = {
            "figures": list(entries),
            "single_subject": [e for e in entries if e["row"]["references"] == 1],
            "multi_subject": [e for e in entries if e["row"]["references"] > 1],
        }
        result: dict[str, Any] = {"pictures": str(method.pictures)}
        if method.model is not None:
            result |= {"model": str(method.model), "fingerprint": method.fingerprint}
            result["model_config"] = model_settings(method.model).model_dump(mode="json")
        for name, chosen in groups.items():
            if len(chosen) == len(entries) and name != "figures":
                result[name] = result["figures"]  # the same samples; FID is slow
            elif chosen:
                figures = summarise([entry["row"] for entry in chosen]) | self._distances(chosen)
                result[name] = {"samples": len(chosen), **figures}
        return result

    def _distances(self, entries: Sequence[dict[str, Any]]) -> dict[str, float | int | None]:
        """FID and KID over a set of samples, of whole pictures, backgrounds and subjects.

        Also the number of pictures and the size of KID's subsets. None where a figure is not finite.
        """
        figures: dict[str, float | int | None] = {}
        for part in ("whole", "background", "subjects") if self.encoders.inception else ():
            pairs = [pair for entry in entries for pair in entry["inception"][part]]
            figures[f"{part}_fid_pictures"] = len(pairs)
            if not pairs:
                continue
            drawn, true = (np.stack([self.features.read(pair[which]) for pair in pairs]) for which in (0, 1))
            size = min(self.config.kid_subset_size, max(2, len(pairs) // 2))
            mean, deviation = metrics.kid(drawn, true, self.config.kid_subsets, size, self.config.seed)
            values = {"fid": metrics.fid(drawn, true), "kid": mean, "kid_std": deviation}
            figures |= {f"{part}_{name}": value if np.isfinite(value) else None for name, value in values.items()}
            figures[f"{part}_kid_subset"] = size
        return figures

    def _write_grid(self) -> None:
        """Write a strip of pictures for each of the first samples, and all strips together as grid.png."""
        first = stored_samples(self.shards, min(self.config.shown, len(self.sample_ids)) or 1)
        items = [stored.decode() for stored in first]
        references = max(len(item.references) for item in items)
        titles = [f"reference {i + 1}" for i in range(references)] + ["background"]
        titles += [method.name for method in self.methods] + ["truth"]
        strips = []
        for item in items[: self.config.shown]:
            empty = [None] * (references - len(item.references))
            drawn = [
                read_drawn(method.picture(item.sample_id)) if method.draws(len(item.references)) else None
                for method in self.methods
            ]
            row = strip([*item.references, *empty, item.background, *drawn, item.target])
            strips.append(row)
            path = self.out / "pictures" / f"{file_name(item.sample_id)}.png"
            write_atomically(path, lambda temporary, shown=row: shown.save(temporary, "PNG"))  # type: ignore[misc]
        if strips:
            whole = grid(titles, strips)
            write_atomically(self.out / "grid.png", lambda path: whole.save(path, "PNG"))


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as Parquet, with a column for every name in any of them; a row without the name has null there."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def _versions() -> dict[str, str]:
    """Versions of Python and of the installed PACKAGES, and the name of the GPU."""
    versions = {"python": platform.python_version()}
    if torch.cuda.is_available():
        versions["device"] = torch.cuda.get_device_name()
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
