"""Drawn pictures against the true ones, several methods in one table. docs/evaluation.md defines the figures.

Under torchrun every process takes its share of the samples. What a process finds out goes into ``out/cache`` as it
goes, so that the same command goes on where it was stopped; the first process puts everything together. No figure
depends on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.documents import read_json
from data_schemas.io.files import write_atomically
from data_schemas.io.pictures import FORMATS
from data_schemas.progress import Progress
from data_schemas.shards import file_name
from tokenar.config import SampleConfig
from tokenar.evaluate import metrics, tables
from tokenar.evaluate.cache import Cache, CachedFeatures, pack, unpack
from tokenar.evaluate.config import EvalConfig
from tokenar.evaluate.encoders import Encoders
from tokenar.evaluate.pictures import Truth, fit, grid, noted, read_drawn, remove_earlier, strip, unlisted
from tokenar.evaluate.rows import Scorer, model_figures, summarise
from tokenar.evaluate.samples import Stored, stored_samples
from tokenar.model.folder import Model, load_model, model_fingerprint
from tokenar.processes import Workers, workers
from tokenar.sample.sampler import sample_pictures

PACKAGES = (
    "torch", "torchvision", "torchmetrics", "torch-fidelity", "timm", "transformers", "numpy", "pillow",
    "scikit-image", "opencv-python-headless",
)  # fmt: skip
ROWS = 1
"""Version of the rows' definitions; part of their keys in the cache."""

PART = 32
"""Samples between two writes to the cache."""

LPIPS_SIDE = 32
"""Pixels; below, nothing is left of a picture in AlexNet's last layers."""

CROP = (
    "subject i: pixels with alpha >= 128 inside box i, the rest white, trimmed, in the middle of a white square with "
    "room of {padding:g} of the longer side around it; the reference likewise along its own alpha"
)
NAME = re.compile(r"[\w][\w .+-]*")

Folders = Mapping[str, str | Path] | Mapping[str, Path] | Sequence[str | Path]


@dataclass(frozen=True)
class Method:
    """A name in the table and where its pictures are; ``model`` is what draws them, with its fingerprint."""

    name: str
    pictures: Path
    model: Path | None = None
    fingerprint: str | None = None

    def picture(self, sample_id: str) -> Path:
        return self.pictures / f"{file_name(sample_id)}.png"


def evaluate_models(
    shards: str,
    out: str | Path,
    *,
    models: Folders = (),
    predictions: Folders = (),
    config: EvalConfig | None = None,
    sampling: SampleConfig | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate models and folders of drawn pictures on shards; returns what is written to ``out/metrics.json``.

    ``models`` are model folders, whose pictures are drawn first, into ``out/<name>/samples``; ``predictions`` folders
    with ``<sample_id>.png`` of any method. Either maps names to folders, or lists folders, which name themselves.
    ``out`` also gets per_sample.parquet, table.md, table.tex, grid.png, and ``pictures/<sample_id>.png``: the rows of
    the grid. Raises UserError naming what cannot be used, missing encoders and pictures before anything is drawn.
    """
    config, sampling, folder = config or EvalConfig(), sampling or SampleConfig(), Path(out)
    methods = _methods(models, predictions, folder)
    with workers() as group:
        run = Evaluation(shards, folder, methods, config, sampling, limit, group, quiet)
        run.check_predictions()
        run.load_encoders()
        run.draw()
        run.score()
        if group.first:
            run.write()
        group.wait()
    return json.loads((folder / "metrics.json").read_text())


PARTS_OF_A_RUN = ("model", "samples", "training", "evaluation")


def named(folders: Folders) -> dict[str, Path]:
    """Name -> folder. What is only a part of a run goes by the run's name: ``runs/mine/training/model`` is "mine"."""
    if isinstance(folders, Mapping):
        return {name: Path(path) for name, path in folders.items()}
    found: dict[str, Path] = {}
    for path in map(Path, folders):
        parts = path.resolve().parts
        name = next((part for part in reversed(parts[1:]) if part not in PARTS_OF_A_RUN), parts[-1])
        if name in found:
            raise UserError(f"{path}: a second method would be called {name!r}; give each its own: NAME=DIR")
        found[name] = path
    return found


def _methods(models: Folders, predictions: Folders, out: Path) -> list[Method]:
    drawn, given = named(models), named(predictions)
    for name in (*drawn, *given):
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} cannot name a method; use letters, digits, spaces and . + -")
    if both := drawn.keys() & given.keys():
        raise UserError(f"{min(both)!r} names a model and predictions; give each a name of its own: NAME=DIR")
    if not drawn and not given:
        raise UserError("nothing to evaluate; give models, folders of predictions, or both")
    found = [Method(name, out / name / "samples", path, model_fingerprint(path)) for name, path in drawn.items()]
    return found + [Method(name, path) for name, path in given.items()]


class Evaluation:
    """One process's part of an evaluation; the methods are its steps, in order."""

    def __init__(
        self,
        shards: str,
        out: Path,
        methods: Sequence[Method],
        config: EvalConfig,
        sampling: SampleConfig,
        limit: int | None,
        group: Workers,
        quiet: bool,
    ):
        self.shards, self.out, self.methods, self.config = shards, out, methods, config
        self.sampling, self.group, self.quiet = sampling, group, quiet
        self.digests = {stored.sample_id: stored.digest for stored in stored_samples(shards, limit)}
        self.ids = list(self.digests)
        self._model: tuple[str, Model] | None = None

    def check_predictions(self) -> None:
        """UserError if a folder of predictions lacks a picture."""
        for method in self.methods:
            if method.model is not None:
                continue
            if not method.pictures.is_dir():
                raise UserError(f"{method.pictures}: no such folder; give one with a <sample_id>.png for every sample")
            if lost := unlisted(method.pictures, self.ids):
                left = " (an earlier call's is there)" if method.picture(lost[0]).is_file() else ""
                raise UserError(
                    f"{method.pictures}: no prediction for {len(lost)} of {len(self.ids)} samples, first "
                    f"{file_name(lost[0])}.png{left}; draw them, or evaluate the first with --limit"
                )

    def load_encoders(self) -> None:
        """UserError naming the encoders that cannot be had."""
        self.encoders = Encoders(self.config, self.group.device)
        self.rows = Cache(self.out / "cache" / "rows")
        self.features = CachedFeatures(Cache(self.out / "cache" / "features"))
        self.scorer = Scorer(self.config, self.encoders, self.features)

    def draw(self) -> None:
        """Pictures of the models, each process its share; then the side at which all are compared."""
        for method in self.methods:
            if method.model is None:
                continue
            sample_pictures(
                method.model, self.shards, method.pictures, self.sampling, limit=len(self.ids), quiet=self.quiet
            )
        self.side = self.config.side or min(self._side(m.picture(i)) for m in self.methods for i in self.ids)
        if self.encoders.lpips and self.side < LPIPS_SIDE:
            raise UserError(f"lpips reads no picture below {LPIPS_SIDE} pixels, these have {self.side}; set side")

    def score(self) -> None:
        """A row for every method and every sample of this process's share, unless the cache has it."""
        share = sum(1 for number in range(len(self.ids)) if number % self.group.world == self.group.rank)
        show = not self.quiet and self.group.first
        with Progress("evaluate", share * len(self.methods), every=10, show=show) as bar:
            for method in self.methods:
                for stored, following in self._share():
                    self._score(method, stored, following)
                    bar.advance()
                    if len(self.rows.new) >= PART:
                        self._flush()
        self._flush()
        self.group.wait()

    def _flush(self) -> None:
        self.features.cache.flush()  # first: a row counts on its features
        self.rows.flush()

    def _score(self, method: Method, stored: Stored, following: Stored) -> None:
        key = self._key(method, stored.number)
        if key in self.rows.values and self._has_features(unpack(self.rows.values[key])):
            return
        item = stored.decode()
        truth = Truth(item, self.side, self.config.padding)
        drawn = fit(read_drawn(method.picture(stored.sample_id)), self.side)
        figures = self.scorer.row(truth, drawn, following.decode().references_rgba[0])
        if method.model is not None:
            figures |= model_figures(item, truth, self._load(method), self.scorer)
        if self.encoders.clip:
            figures["clip_prompt_cut"] = float(self.encoders.clip.cuts(item.prompt))
        row = {"method": method.name, "sample_id": stored.sample_id, "references": len(item.references), **figures}
        self.rows.put(key, pack({"row": row, "inception": self.scorer.inception_keys(truth, drawn)}))

    def _has_features(self, found: dict[str, Any]) -> bool:
        keys = (key for pairs in found["inception"].values() for pair in pairs for key in pair)
        return all(key in self.features.cache.values for key in keys)

    def _share(self) -> Iterator[tuple[Stored, Stored]]:
        """This process's samples, each with the one that follows it; the first follows the last."""
        first = before = None
        for stored in stored_samples(self.shards, len(self.ids)):
            first = first or stored
            if before is not None and before.number % self.group.world == self.group.rank:
                yield before, stored
            before = stored
        assert first is not None
        assert before is not None
        if before.number % self.group.world == self.group.rank:
            yield before, first

    def _key(self, method: Method, number: int) -> str:
        """Names a row: a digest of all that decides it."""
        sample_id, following = self.ids[number], self.ids[(number + 1) % len(self.ids)]
        definitions = ("edge_tolerance", "mask_threshold", "padding", "swap_margin")
        facts = [
            ROWS, self.side, {name: getattr(self.config, name) for name in definitions},
            {name: encoder.fingerprint for name, encoder in self.encoders.named().items()},
            method.name, method.fingerprint, self.digests[sample_id], self.digests[following],
            hashlib.sha256(method.picture(sample_id).read_bytes()).hexdigest(),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _load(self, method: Method) -> Model:
        """The method's model on this process's device; one is held at a time."""
        assert method.model is not None
        if self._model is None or self._model[0] != method.name:
            self._model = None
            loaded = load_model(method.model)
            loaded.net.to(self.group.device).eval()
            self._model = (method.name, loaded)
        return self._model[1]

    def _side(self, path: Path) -> int:
        try:
            with Image.open(path, formats=FORMATS) as picture:
                return min(picture.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: not a readable picture ({error}); replace it") from error

    def write(self) -> None:
        """Put together what all processes found out: every file of the evaluation; metrics.json marks it whole."""
        self._drop_earlier()
        self.rows.load()
        self.features.cache.load()
        found = {
            method.name: [unpack(self.rows.values[self._key(method, n)]) for n in range(len(self.ids))]
            for method in self.methods
        }
        self.rows.compact()
        self.features.cache.compact()
        _write_table(self.out / "per_sample.parquet", [entry["row"] for rows in found.values() for entry in rows])
        result = self._result(found)
        content = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        self._write_grid()
        write_atomically(self.out / "table.md", lambda path: path.write_text(tables.markdown(result)))
        write_atomically(self.out / "table.tex", lambda path: path.write_text(tables.latex(result)))
        write_atomically(self.out / "metrics.json", lambda path: path.write_text(content))

    def _drop_earlier(self) -> None:
        """Remove what an earlier evaluation in this folder left of samples that are not shown now."""
        before, shown = noted(self.out / "metrics.json", "shown"), self.ids[: self.config.shown]
        remove_earlier(self.out / "pictures", [f"{sample_id}.png" for sample_id in before if sample_id not in shown])
        remove_earlier(self.out, ["metrics.json", *(["grid.png"] if not shown else [])])

    def _result(self, found: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
        methods = {method.name: self._method_result(method, found[method.name]) for method in self.methods}
        encoders = {
            name: {"name": encoder.name, "fingerprint": encoder.fingerprint}
            for name, encoder in self.encoders.named().items()
        }
        result = {
            "methods": methods, "samples": len(self.ids), "shown": self.ids[: self.config.shown],
            "shards": self.shards, "side": self.side,
            "crop": CROP.format(padding=self.config.padding), "encoders": encoders,
            "settings": self.config.model_dump(mode="json"), "sampling": self.sampling.model_dump(mode="json"),
            "seed": self.sampling.seed, "versions": _versions(),
        }  # fmt: skip
        return result | {"notes": tables.notes(result)}

    def _method_result(self, method: Method, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Figures over all samples, and over those with one reference and with several."""
        groups = {
            "figures": list(entries),
            "single_subject": [e for e in entries if e["row"]["references"] == 1],
            "multi_subject": [e for e in entries if e["row"]["references"] > 1],
        }
        result: dict[str, Any] = {"pictures": str(method.pictures)}
        if method.model is not None:
            result |= {"model": str(method.model), "fingerprint": method.fingerprint}
            result["model_config"] = read_json(method.model / "config.json")["model"]
        for name, chosen in groups.items():
            if len(chosen) == len(entries) and name != "figures":
                result[name] = result["figures"]  # FID takes a while
            elif chosen:
                figures = summarise([entry["row"] for entry in chosen]) | self._distances(chosen)
                result[name] = {"samples": len(chosen), **figures}
        return result

    def _distances(self, entries: Sequence[dict[str, Any]]) -> dict[str, float | int | None]:
        """FID and KID of the parts over a set of samples, with the number of pictures and of KID's subsets."""
        found: dict[str, float | int | None] = {}
        for part in ("whole", "background", "subjects") if self.encoders.inception else ():
            pairs = [pair for entry in entries for pair in entry["inception"][part]]
            found[f"{part}_fid_pictures"] = len(pairs)
            if not pairs:
                continue
            drawn, true = (np.stack([self.features.read(pair[side]) for pair in pairs]) for side in (0, 1))
            size = min(self.config.kid_subset_size, max(2, len(pairs) // 2))
            mean, deviation = metrics.kid(drawn, true, self.config.kid_subsets, size, self.config.seed)
            figures = {"fid": metrics.fid(drawn, true), "kid": mean, "kid_std": deviation}
            found |= {f"{part}_{name}": value if np.isfinite(value) else None for name, value in figures.items()}
            found[f"{part}_kid_subset"] = size
        return found

    def _write_grid(self) -> None:
        """The first samples side by side, and each as a strip of its own."""
        items = [stored.decode() for stored in stored_samples(self.shards, min(self.config.shown, len(self.ids)) or 1)]
        references = max(len(item.references) for item in items)
        titles = [f"reference {i + 1}" for i in range(references)] + ["background"]
        titles += [method.name for method in self.methods] + ["truth"]
        strips = []
        for item in items[: self.config.shown]:
            empty = [None] * (references - len(item.references))
            drawn = [read_drawn(method.picture(item.sample_id)) for method in self.methods]
            row = strip([*item.references, *empty, item.background, *drawn, item.target])
            strips.append(row)
            path = self.out / "pictures" / f"{file_name(item.sample_id)}.png"
            write_atomically(path, lambda temporary, shown=row: shown.save(temporary, "PNG"))  # type: ignore[misc]
        if strips:
            whole = grid(titles, strips)
            write_atomically(self.out / "grid.png", lambda path: whole.save(path, "PNG"))


def _write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A column for every name that some row has; null where a row lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
