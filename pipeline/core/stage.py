"""The base class of per-sample stages.

The author of a stage provides a name, a version, the columns it scores, the rules by which ``decide`` may reject, and
``process``. The base class loads the model once in each process, turns an error on one sample into an error row,
measures time, and reads and writes parts.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa
from PIL import Image
from pydantic import ConfigDict

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.storage import Unreadable
from data_schemas.io.text import stored_line
from data_schemas.schema import Column, TableSchema, validate
from data_schemas.settings import Settings
from data_schemas.tables import verdict_schema
from pipeline.core.parts import DamagedPart, fingerprint
from pipeline.core.weights import Weights, identity
from pipeline.device import device_of


def form_title(model: type) -> str:
    """The title of a stage's settings in Prefect's form: the backend's name if there is one, else the class name."""
    backend = getattr(model, "model_fields", {}).get("backend")
    return str(backend.default) if backend else model.__name__


def any_of(schema: dict[str, Any]) -> None:
    """Rename ``oneOf`` of a union's JSON schema to ``anyOf``, because Prefect's form shows ``oneOf`` as raw JSON."""
    schema["anyOf"] = schema.pop("oneOf")


class StageConfig(Settings):
    """Settings of one stage. Unknown keys are refused.

    All settings are part of the stage's fingerprint except those named in ``how``, which affect where and how fast the
    work is done but not its result.
    """

    # Prefect's form shows the alternatives of a section under these titles
    model_config = ConfigDict(model_title_generator=form_title)
    how: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Rule:
    """One way to reject a sample.

    With ``bound`` "min", a score in ``column`` must be at least ``threshold``, with "max" at most. ``threshold`` is the
    default; the config can override it in ``decide.thresholds`` under the name ``reason``.
    """

    column: str
    bound: str
    threshold: float
    reason: str
    meaning: str

    def passes(self, score: Any) -> Any:
        """Whether a score passes, or each of an array; one that is missing (NaN) does not."""
        return score >= self.threshold if self.bound == "min" else score <= self.threshold


class SampleError(Exception):
    """A stage raises this if it cannot process a sample. ``code`` is stored in the sample's row for counting."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


NEEDED = {"synthesis": ("target",), "matting": ("foreground", "background", "alpha")}
"""The pictures that these stages must save of each sample, as shards hold them."""


class StageUnusable(UserError):
    """A stage raises this if it cannot process any sample. It ends the run."""


@dataclass
class Sample:
    """One sample as ``process`` receives it.

    ``rows`` has its row of the plan and of every stage that was read, by stage. ``files`` gives the pictures that a
    stage saved, ``reference_file`` the cut-out of a reference by its id. ``saved`` collects the pictures to store.
    """

    sample_id: str
    rows: Mapping[str, dict]
    files: Callable[[str], Mapping[str, bytes]]
    reference_file: Callable[[str], bytes]
    review: Mapping[str, Any] | None = None
    """The sample's row of the review table, if there is one and the stage is listed in review.STAGES."""
    saved: dict[str, bytes] = field(default_factory=dict)
    latency: float | None = None
    """Seconds from request to answer, set by stages that ask a model or server.

    Stored in the part's notes, not in the row.
    """

    @property
    def plan(self) -> dict:
        """The sample's row of the plan."""
        return self.rows["plan"]

    def picture(self, stage: str, name: str) -> Image.Image:
        """A picture that an earlier stage saved under ``name``, with its size and mode (RGB, RGBA or L)."""
        return pictures.decode(self.files(stage)[f"{name}.png"], f"{stage} {self.sample_id} {name}")

    def reference(self, index: int) -> Image.Image:
        """The cut-out of reference 0 or 1, RGBA, its longest side ``references.size`` pixels."""
        return self.cutout(self.plan[f"reference_{index}_id"])

    def other(self) -> Image.Image | None:
        """The cut-out of some subject of the same split that is not in the sample, RGBA; None if there is none."""
        reference_id = self.plan["other_reference_id"]
        return None if reference_id is None else self.cutout(reference_id)

    def cutout(self, reference_id: str) -> Image.Image:
        """The cut-out of a reference of the plan, RGBA."""
        return pictures.decode(self.reference_file(reference_id), f"reference {reference_id}").convert("RGBA")

    def save(self, name: str, picture: Image.Image) -> None:
        """Store a picture of this sample (RGB, RGBA or L) in the part's tar as ``<sample_id>.<name>.png``."""
        self.saved[f"{name}.png"] = pictures.encode_png(picture)


class Stage(ABC):
    """Base class of per-sample stages. A subclass sets the class variables and implements ``process``.

    Several parts are made at the same time, each in its own thread. If a model can only serve one batch at a time, its
    stage must lock it while it computes; other threads can then still read and write pictures.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("references", "plan", "synthesis", "matting")
    columns: ClassVar[tuple[Column, ...]]
    rules: ClassVar[tuple[Rule, ...]] = ()
    saves_pictures: ClassVar[bool] = False
    model: ClassVar[str] = "none"
    licence: str = "not stated"  # of ``model``, where no Weights state theirs
    Config: ClassVar[type[StageConfig]] = StageConfig
    batch_size: int = 1

    def __init__(self, config: Any = None):
        self.config: Any = self.Config() if config is None else config
        self._ready = False
        self._lock = threading.Lock()

    def weights(self) -> tuple[Weights, ...]:
        """The model files that this stage needs with its config. They are looked for before any work is done."""
        return ()

    def setup(self) -> None:
        """Load the model. Called once in each process, and only if there is a sample to process."""

    @abstractmethod
    def process(self, sample: Sample) -> dict:
        """The scores of one sample by column name. Pictures are stored with ``sample.save``."""

    def process_batch(self, samples: Sequence[Sample]) -> Sequence[dict | Exception]:
        """The scores of several samples. Override it, and set ``batch_size``, if the model is faster in batches.

        An exception returned instead of scores marks that sample as failed. If the method raises an exception, each
        sample of the batch is processed again alone.
        """
        return [self.process(sample) for sample in samples]

    def batches(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """The samples of a part divided into batches of ``batch_size``, in order."""
        return [samples[i : i + self.batch_size] for i in range(0, len(samples), self.batch_size)]

    def model_name(self) -> str:
        """The model with its revision, or the method, as stored in each row."""
        return ", ".join(f"{w.name}@{identity(w)[:16]}" for w in self.weights()) or self.model

    @cached_property
    def _made_by(self) -> str:
        """``model_name``, computed once because it may hash files."""
        return self.model_name()

    def fingerprint(self, inputs: Mapping[str, str]) -> str:
        """A fingerprint of all that may change the output: stage, version, config, model, and the stages it reads."""
        return fingerprint(
            stage=self.name,
            version=self.version,
            config=self.config.model_dump(mode="json", exclude=set(self.config.how)),
            model=self._made_by,
            inputs=dict(inputs),
        )

    @classmethod
    def schema(cls) -> TableSchema:
        """The schema of the stage's table."""
        return verdict_schema(cls.name, cls.version, cls.columns)

    def on_gpu(self) -> bool:
        """Whether the stage computes on a GPU: its settings have a ``device``, and that is one."""
        return hasattr(self.config, "device") and device_of(self.config.device).type == "cuda"

    def probe(self) -> None:
        """Raise UserError if an external service that the stage needs, such as a server, is not available."""

    def ready(self) -> None:
        """Call ``setup`` unless it has been called in this process."""
        with self._lock:
            if not self._ready:
                try:
                    self.setup()
                except ModuleNotFoundError as error:
                    raise UserError(
                        f"stage {self.name}: the package {error.name} is not installed; pip install 'instructar[paper]'"
                    ) from error
                self._ready = True

    def run(
        self,
        samples: Sequence[Sample],
        failed: Mapping[str, str],
        working: Callable[[Sequence[str]], None] = lambda ids: None,
        doubted: Sequence[str] = (),
        given_up: Sequence[tuple[str, str, str]] = (),
    ) -> tuple[list[dict], dict, dict]:
        """Process the samples of one part.

        ``failed`` maps samples on which an earlier stage failed to that stage's name. ``working`` is called with the
        ids of each batch before it is begun, and with none at the end. Samples that are ``doubted`` come last, each in
        a batch of its own. ``given_up`` has (id, code, message) of samples that are not tried.

        Returns the rows, the pictures by sample id, and the seconds by sample id.
        """
        rows: dict[str, dict] = {}
        seconds: dict[str, float] = {}
        for sample_id, stage in failed.items():
            rows[sample_id] = self._row(sample_id, "skipped", f"{stage}_failed", f"stage {stage} failed on it")
        for sample_id, code, message in given_up:
            rows.setdefault(sample_id, self._row(sample_id, "error", code, message))
        todo = [s for s in samples if s.sample_id not in rows]
        if todo:
            self.ready()
        alone = [[s] for s in todo if s.sample_id in doubted]
        for batch in [*self.batches([s for s in todo if s.sample_id not in doubted]), *alone]:
            working([s.sample_id for s in batch])
            began = time.perf_counter()
            batch_rows = self._attempt(batch)
            for sample, row in zip(batch, batch_rows, strict=True):
                rows[sample.sample_id] = row
                seconds[sample.sample_id] = round((time.perf_counter() - began) / len(batch), 4)
        working(())
        checked = self._checked([rows[s.sample_id] for s in samples])
        status = {row["sample_id"]: row["status"] for row in checked}
        saved = {s.sample_id: s.saved for s in samples if s.saved and status[s.sample_id] == "ok"}
        return checked, saved, seconds

    def _checked(self, rows: list[dict]) -> list[dict]:
        """The rows as the stage's table accepts them. A row that it does not accept becomes an error row."""
        problem = self._problem(rows)
        if problem is None:
            return rows
        if len(rows) > 1:
            return [checked for row in rows for checked in self._checked([row])]
        return [self._row(rows[0]["sample_id"], "error", "bad_score", stored_line(problem))]

    def _problem(self, rows: list[dict]) -> Exception | None:
        """Why the stage's table cannot hold these rows, or None if it can."""
        try:
            validate(self.schema().table(rows), self.schema(), f"stage {self.name}")
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            return error
        return None

    def _attempt(self, batch: Sequence[Sample]) -> list[dict]:
        """The rows of a batch.

        If the batch fails, each sample is tried alone, so that only the bad one gets an error row.
        """
        try:
            scores = self.process_batch(batch)
            return [
                self._row(s.sample_id, "error", *describe_error(values)) if isinstance(values, Exception)
                else self._scored(s, values)
                for s, values in zip(batch, scores, strict=True)
            ]  # fmt: skip
        except (DamagedPart, Unreadable, StageUnusable):
            raise  # not an error of the sample
        except (Exception, SystemExit) as error:  # SystemExit may come from a user's own stage
            if len(batch) > 1:
                return [self._attempt([sample])[0] for sample in batch]
            return [self._row(batch[0].sample_id, "error", *describe_error(error))]

    def _scored(self, sample: Sample, scores: Any) -> dict:
        for name in NEEDED.get(self.name, ()) if self.saves_pictures else ():
            if f"{name}.png" not in sample.saved:
                return self._row(sample.sample_id, "error", f"no_{name}", f"stage {self.name} saved no picture {name}")
        return self._row(sample.sample_id, "ok", scores=scores)

    def _row(
        self, sample_id: str, status: str, code: str | None = None, message: str | None = None, scores: Any = None
    ) -> dict:
        row = {
            "sample_id": sample_id, "status": status, "error_code": code, "error_message": message,
            "model": self._made_by,
        }  # fmt: skip
        if status != "ok":
            return row
        if not isinstance(scores, Mapping):
            raise SampleError("bad_score", f"scores by column were expected, not {type(scores).__name__}")
        if taken := row.keys() & scores.keys():
            raise SampleError("bad_score", f"{min(taken)} is not the stage's to score")
        return {**row, **scores}


class BatchStage(Stage):
    """Base class of a stage whose model takes several samples at once. A subclass implements ``process_batch`` only."""

    @abstractmethod
    def process_batch(self, samples: Sequence[Sample]) -> Sequence[dict | Exception]: ...

    def process(self, sample: Sample) -> dict:
        (scores,) = self.process_batch([sample])
        if isinstance(scores, Exception):
            raise scores
        return scores


def describe_error(error: BaseException) -> tuple[str, str]:
    """(code, message) of an error row. The message is one line and the same in every process and on every machine."""
    # torch's message mentions other processes and the memory that was free at that moment
    if type(error).__name__ == "OutOfMemoryError":
        return "out_of_memory", "the device's memory is full; make batch_size smaller, or retry with fewer workers"
    message = stored_line(error) or type(error).__name__
    if isinstance(error, SampleError):
        return error.code, message
    if isinstance(error, UserError):
        return "bad_input", message
    return type(error).__name__, message
