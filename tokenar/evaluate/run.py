"""Evaluates drawn pictures against the true ones, several methods in one table. docs/evaluation.md defines the figures.

Under torchrun every rank scores a share of the samples. Rows and features are cached in ``out/cache``, so that the same
command continues where it was stopped; the first rank then writes the results. No figure depends on the number of
ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.pictures import FORMATS
from data_schemas.progress import Progress
from data_schemas.shards import file_name
from tokenar.config import SampleConfig
from tokenar.evaluate.cache import Cache, CachedFeatures, pack, unpack
from tokenar.evaluate.config import EvalConfig
from tokenar.evaluate.encoders import Encoders
from tokenar.evaluate.methods import Folders, Method, Models, methods_of
from tokenar.evaluate.pictures import Truth, fit, read_drawn, unlisted
from tokenar.evaluate.results import Results
from tokenar.evaluate.rows import Scorer, model_figures
from tokenar.evaluate.samples import Stored, stored_samples
from tokenar.model.folder import Model, load_model
from tokenar.processes import Workers, workers
from tokenar.sample.requests import from_shards
from tokenar.sample.sampler import sample_pictures

ROWS_VERSION = 1
"""Raise it when a figure of a row changes its definition. It is part of the rows' keys in the cache."""
FLUSH_EVERY = 32
"""Scored samples between two writes to the cache."""
LPIPS_SIDE = 32
"""Pixels. AlexNet's last layers have no output for smaller pictures."""


def evaluate_models(
    shards: str | Sequence[str],
    out: str | Path,
    *,
    models: Models = (),
    predictions: Folders = (),
    config: EvalConfig | None = None,
    sampling: SampleConfig | None = None,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate models and folders of drawn pictures on the shards of a glob, or of several. Returns what is written to
    ``out/metrics.json``.

    ``models`` are model folders, or published checkpoints by name; their pictures are drawn first, into
    ``out/<name>/samples``. ``predictions`` are folders with ``<sample_id>.png`` of any method. Both map names to
    folders, or list folders, which are then named
    after their runs. ``out`` also gets per_sample.parquet, table.md, table.tex, grid.png, and the rows of the grid as
    ``pictures/<sample_id>.png``. Raises UserError naming what cannot be used; missing encoders and predictions are
    noticed before anything is drawn.
    """
    config, sampling, folder = config or EvalConfig(), sampling or SampleConfig(), Path(out)
    methods = methods_of(models, predictions, folder)
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


class Evaluation:
    """One rank's part of an evaluation. The public methods are its steps, to be called in this order."""

    def __init__(
        self,
        shards: str | Sequence[str],
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
        read = [(stored.sample_id, stored.digest, stored.references) for stored in stored_samples(shards, limit)]
        self.sample_ids = [sample_id for sample_id, _, _ in read]
        self.digests = {sample_id: digest for sample_id, digest, _ in read}
        counts = [references for _, _, references in read]
        self.numbers = [(method, method.numbers(counts)) for method in methods]
        self._model: tuple[str, Model] | None = None

    def check_predictions(self) -> None:
        """UserError if a folder of predictions lacks a picture."""
        for method in self.methods:
            if method.model is not None:
                continue
            if not method.pictures.is_dir():
                raise UserError(f"{method.pictures}: no such folder; give one with a <sample_id>.png for every sample")
            if missing := unlisted(method.pictures, self.sample_ids):
                left = " (an earlier call's is there)" if method.picture(missing[0]).is_file() else ""
                raise UserError(
                    f"{method.pictures}: no prediction for {len(missing)} of {len(self.sample_ids)} samples, first "
                    f"{file_name(missing[0])}.png{left}; draw them, or evaluate the first with --limit"
                )

    def load_encoders(self) -> None:
        """Load the encoders and open the caches. UserError naming the encoders that cannot be loaded."""
        self.encoders = Encoders(self.config, self.group.device)
        self.rows = Cache(self.out / "cache" / "rows")
        self.features = CachedFeatures(Cache(self.out / "cache" / "features"))
        self.scorer = Scorer(self.config, self.encoders, self.features)

    def draw(self) -> None:
        """Draw the models' pictures, every rank its share, and set ``side``, to which all pictures are resized."""
        requests = from_shards(self.shards, len(self.sample_ids))
        for method, numbers in self.numbers:
            if method.model is not None:
                sample_pictures(
                    method.model, requests.only(set(numbers)), method.pictures, self.sampling, quiet=self.quiet
                )
        drawn = (m.picture(self.sample_ids[number]) for m, numbers in self.numbers for number in numbers)
        self.side = self.config.side or min(map(self._side, drawn))
        if self.encoders.lpips and self.side < LPIPS_SIDE:
            raise UserError(f"lpips reads no picture below {LPIPS_SIDE} pixels, these have {self.side}; set side")

    def score(self) -> None:
        """Make a row for every method and every sample of this rank's share, unless the cache has it."""
        own = [(m, {n for n in numbers if n % self.group.world == self.group.rank}) for m, numbers in self.numbers]
        show = not self.quiet and self.group.first
        with Progress("evaluate", sum(len(numbers) for _, numbers in own), every=10, show=show) as bar:
            for method, numbers in own:
                for stored, following in self._followed(numbers):
                    self._score(method, stored, following)
                    bar.advance()
                    if len(self.rows.new) >= FLUSH_EVERY:
                        self._flush()
        self._flush()
        self.group.wait()

    def _flush(self) -> None:
        self.features.cache.flush()  # before the rows, which refer to these features
        self.rows.flush()

    def _score(self, method: Method, stored: Stored, following: Stored) -> None:
        """Make and cache the row of one drawn picture. ``following`` is a sample that gives a wrong reference."""
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

    def _has_features(self, entry: dict[str, Any]) -> bool:
        """Whether the cache has all Inception features that a cached entry refers to."""
        keys = (key for pairs in entry["inception"].values() for pair in pairs for key in pair)
        return all(key in self.features.cache.values for key in keys)

    def _followed(self, numbers: Collection[int]) -> Iterator[tuple[Stored, Stored]]:
        """The samples of these numbers, each with the sample that follows it; the first one follows the last."""
        first = before = None
        for stored in stored_samples(self.shards, len(self.sample_ids)):
            first = first or stored
            if before is not None and before.number in numbers:
                yield before, stored
            before = stored
        assert first is not None
        assert before is not None
        if before.number in numbers:
            yield before, first

    def _key(self, method: Method, number: int) -> str:
        """The cache key of a row: a digest of everything that its figures depend on."""
        sample_id, following = self.sample_ids[number], self.sample_ids[(number + 1) % len(self.sample_ids)]
        definitions = ("edge_tolerance", "mask_threshold", "padding", "swap_margin")
        facts = [
            ROWS_VERSION, self.side, {name: getattr(self.config, name) for name in definitions},
            {name: encoder.fingerprint for name, encoder in self.encoders.named().items()},
            method.name, method.fingerprint, self.digests[sample_id], self.digests[following],
            hashlib.sha256(method.picture(sample_id).read_bytes()).hexdigest(),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _load(self, method: Method) -> Model:
        """The method's model on this rank's device. Only the last one is kept in memory."""
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
        """Write the files of the evaluation from the rows of all ranks. For the first rank alone."""
        results = Results(
            self.out, self.shards, self.sample_ids, self.side, self.methods, self.config, self.sampling, self.encoders,
            self.features,
        )  # fmt: skip
        results.drop_earlier()
        self.rows.load()
        self.features.cache.load()
        entries = {
            method.name: [unpack(self.rows.values[self._key(method, number)]) for number in numbers]
            for method, numbers in self.numbers
        }
        self.rows.compact()
        self.features.cache.compact()
        results.write(entries)
