"""What a stage author writes, and what the base does for it.

A stage gives a name, a version, the columns it scores, the rules by which ``decide`` may reject, and ``process``.
The base loads the model once a process, captures the error of a single sample in that sample's row, times it,
reads the parts before it and commits its own atomically (design, decisions 1 to 4).
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
from data_schemas.io.text import stored_line
from data_schemas.schema import Column, TableSchema, validate
from data_schemas.settings import Settings
from data_schemas.tables import verdict_schema
from pipeline.core.parts import DamagedPart, Part, PartPictures, fingerprint
from pipeline.core.weights import Weights, identity


def form_title(model: type) -> str:
    """The name of a stage's settings in a form: their backend's, where they have one."""
    backend = getattr(model, "model_fields", {}).get("backend")
    return str(backend.default) if backend else model.__name__


def any_of(schema: dict[str, Any]) -> None:
    """Name the members of a union ``anyOf``: for ``oneOf`` Prefect's form shows nothing but raw JSON."""
    schema["anyOf"] = schema.pop("oneOf")


class StageConfig(Settings):
    """Settings of one stage; a misspelt key is refused.

    All of them enter the stage's fingerprint, but those named in ``how``: they say where and how fast the work is
    done, never what comes of it.
    """

    # a section's alternatives stand in Prefect's form under their backends' names
    model_config = ConfigDict(model_title_generator=form_title)
    how: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Rule:
    """One way to reject: ``column`` must be at least (bound "min") or at most ("max") the threshold.

    ``threshold`` is the default; ``decide.thresholds`` in the config overrides it under the name ``reason``.
    """

    column: str
    bound: str
    threshold: float
    reason: str
    meaning: str


class SampleError(Exception):
    """A stage's own word that it cannot do this sample; ``code`` goes to the row for counting."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class StageUnusable(UserError):
    """A stage's own word that it can do no sample at all, whatever it is given; ends the run."""


@dataclass
class Sample:
    """One sample as ``process`` sees it: its plan row, the rows and pictures of the stages it reads."""

    sample_id: str
    rows: Mapping[str, dict]
    files: Callable[[str], Mapping[str, bytes]]
    reference_file: Callable[[str], bytes]
    review: Mapping[str, Any] | None = None
    """The sample's row in the review table, if a person looked at it and the stage is one of review.STAGES."""
    saved: dict[str, bytes] = field(default_factory=dict)
    latency: float | None = None
    """Seconds from question to answer, for a stage that asks somebody else; kept with the timing, not in the row."""

    @property
    def plan(self) -> dict:
        return self.rows["plan"]

    def picture(self, stage: str, name: str) -> Image.Image:
        """A picture an earlier stage saved, by the name it was saved under."""
        return pictures.decode(self.files(stage)[f"{name}.png"], f"{stage} {self.sample_id} {name}")

    def reference(self, index: int) -> Image.Image:
        """Reference 0 or 1 as RGBA, cut out."""
        reference_id = self.plan[f"reference_{index}_id"]
        return pictures.decode(self.reference_file(reference_id), f"reference {reference_id}").convert("RGBA")

    def save(self, name: str, picture: Image.Image) -> None:
        """Keep a picture of this sample in the part's tar as ``<sample_id>.<name>.png``."""
        self.saved[f"{name}.png"] = pictures.encode_png(picture)


class Stage(ABC):
    """Base of every per-sample stage. Subclasses set the class variables and write ``process``.

    Parts are made side by side, each in a thread of its own. A model that can serve only one batch at a time is
    locked by its stage while it is at work, so that other parts read and write their pictures beside it.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    reads: ClassVar[tuple[str, ...]] = ("references", "plan", "synthesis", "matting")
    columns: ClassVar[tuple[Column, ...]]
    rules: ClassVar[tuple[Rule, ...]] = ()
    saves_pictures: ClassVar[bool] = False
    model: ClassVar[str] = "none"
    Config: ClassVar[type[StageConfig]] = StageConfig
    batch_size: int = 1

    def __init__(self, config: Any = None):
        self.config: Any = self.Config() if config is None else config
        self._ready = False
        self._lock = threading.Lock()

    def weights(self) -> tuple[Weights, ...]:
        """The model files this stage needs under its config; looked for before any work is done."""
        return ()

    def setup(self) -> None:
        """Load the model; called once a process, and only when a sample has to be made."""

    @abstractmethod
    def process(self, sample: Sample) -> dict:
        """Scores of one sample by column name; pictures through ``sample.save``."""

    def process_batch(self, samples: Sequence[Sample]) -> Sequence[dict | Exception]:
        """Scores of several samples; a stage whose model gains from batches overrides this and batch_size.

        An exception in a sample's place fails that sample alone; one that is raised has each sample tried alone.
        """
        return [self.process(sample) for sample in samples]

    def batches(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """The samples of a part in the batches that they are processed in: ``batch_size`` at a time, in order."""
        return [samples[i : i + self.batch_size] for i in range(0, len(samples), self.batch_size)]

    def model_name(self) -> str:
        """Model and revision, or the method: what a row says it was made by."""
        return ", ".join(f"{w.name}@{identity(w)[:16]}" for w in self.weights()) or self.model

    @cached_property
    def _made_by(self) -> str:
        """``model_name``, asked once: it looks at files, and every row carries it."""
        return self.model_name()

    def fingerprint(self, inputs: Mapping[str, str]) -> str:
        """Changes with anything that may change the output: code version, config, model, what it reads."""
        return fingerprint(
            stage=self.name,
            version=self.version,
            config=self.config.model_dump(mode="json", exclude=set(self.config.how)),
            model=self._made_by,
            inputs=dict(inputs),
        )

    @classmethod
    def schema(cls) -> TableSchema:
        return verdict_schema(cls.name, cls.version, cls.columns)

    def probe(self) -> None:
        """UserError if something outside this machine that the stage needs is not there, such as a server."""

    def ready(self) -> None:
        with self._lock:
            if not self._ready:
                try:
                    self.setup()
                except ModuleNotFoundError as error:
                    raise UserError(
                        f"stage {self.name}: the package {error.name} is not installed; pip install 'instructar[paper]'"
                    ) from error
                self._ready = True

    def run(self, samples: Sequence[Sample], failed: Mapping[str, str]) -> tuple[list[dict], dict, dict]:
        """Rows, pictures and seconds of one part; ``failed`` maps samples an earlier stage failed on to its name."""
        rows: dict[str, dict] = {}
        seconds: dict[str, float] = {}
        for sample_id, stage in failed.items():
            rows[sample_id] = self._row(sample_id, "skipped", f"{stage}_failed", f"stage {stage} failed on it")
        todo = [s for s in samples if s.sample_id not in failed]
        if todo:
            self.ready()
        for batch in self.batches(todo):
            began = time.perf_counter()
            made = self._attempt(batch)
            for sample, row in zip(batch, made, strict=True):
                rows[sample.sample_id] = row
                seconds[sample.sample_id] = round((time.perf_counter() - began) / len(batch), 4)
        checked = self._checked([rows[s.sample_id] for s in samples])
        status = {row["sample_id"]: row["status"] for row in checked}
        saved = {s.sample_id: s.saved for s in samples if s.saved and status[s.sample_id] == "ok"}
        return checked, saved, seconds

    def _checked(self, rows: list[dict]) -> list[dict]:
        """The rows as the stage's table takes them: one that it does not take becomes its sample's error."""
        problem = self._problem(rows)
        if problem is None:
            return rows
        if len(rows) > 1:
            return [checked for row in rows for checked in self._checked([row])]
        return [self._row(rows[0]["sample_id"], "error", "bad_score", stored_line(problem))]

    def _problem(self, rows: list[dict]) -> Exception | None:
        """Why the stage's table cannot hold these rows, if it cannot."""
        try:
            validate(self.schema().table(rows), self.schema(), f"stage {self.name}")
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            return error
        return None

    def _attempt(self, batch: Sequence[Sample]) -> list[dict]:
        """Rows of a batch. If it fails, each sample is tried alone, so that only the bad one gets the error."""
        try:
            scores = self.process_batch(batch)
            return [
                self._row(s.sample_id, "error", *describe_error(values)) if isinstance(values, Exception)
                else self._row(s.sample_id, "ok", scores=values)
                for s, values in zip(batch, scores, strict=True)
            ]  # fmt: skip
        except (DamagedPart, StageUnusable):
            raise  # nothing is wrong with the sample
        except (Exception, SystemExit) as error:  # SystemExit: a stage of the user's own may say anything
            if len(batch) > 1:
                return [self._attempt([sample])[0] for sample in batch]
            return [self._row(batch[0].sample_id, "error", *describe_error(error))]

    def _row(
        self, sample_id: str, status: str, code: str | None = None, message: str | None = None, scores: Any = None
    ) -> dict:
        row = {
            "sample_id": sample_id,
            "status": status,
            "error_code": code,
            "error_message": message,
            "model": self._made_by,
        }
        if status != "ok":
            return row
        if not isinstance(scores, Mapping):
            raise SampleError("bad_score", f"scores by column were expected, not {type(scores).__name__}")
        if taken := row.keys() & scores.keys():
            raise SampleError("bad_score", f"{min(taken)} is not the stage's to score")
        return {**row, **scores}


class BatchStage(Stage):
    """Base of a stage whose model takes several samples at once: it writes ``process_batch`` alone."""

    @abstractmethod
    def process_batch(self, samples: Sequence[Sample]) -> Sequence[dict | Exception]: ...

    def process(self, sample: Sample) -> dict:
        (scores,) = self.process_batch([sample])
        if isinstance(scores, Exception):
            raise scores
        return scores


def describe_error(error: BaseException) -> tuple[str, str]:
    """(code, one line) for an error row: the same in every process and on every machine."""
    if (
        type(error).__name__ == "OutOfMemoryError"
    ):  # torch's, which tells of other processes and what was free just then
        return "out_of_memory", "the device's memory is full; make batch_size smaller, or retry with fewer workers"
    message = stored_line(error) or type(error).__name__
    if isinstance(error, SampleError):
        return error.code, message
    if isinstance(error, UserError):
        return "bad_input", message
    return type(error).__name__, message


@dataclass(frozen=True)
class Inputs:
    """What one part of the stages before holds, ready to be handed to samples."""

    parts: Mapping[str, Part]
    pictures: Mapping[str, PartPictures]
    reference_file: Callable[[str], bytes]
    reviews: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def samples(self) -> tuple[list[Sample], dict[str, str]]:
        """The samples of the part in plan order, and those that an earlier stage failed on (id -> stage)."""
        rows = {stage: {r["sample_id"]: r for r in p.rows()} for stage, p in self.parts.items()}
        failed: dict[str, str] = {}

        def files_of(sample_id: str) -> Callable[[str], Mapping[str, bytes]]:
            return lambda stage: self.pictures[stage].of(sample_id)

        samples = []
        for sample_id in rows["plan"]:
            for stage in self.parts:
                if rows[stage][sample_id].get("status", "ok") == "error":
                    failed.setdefault(sample_id, stage)
            own = {stage: rows[stage][sample_id] for stage in self.parts}
            samples.append(
                Sample(sample_id, own, files_of(sample_id), self.reference_file, self.reviews.get(sample_id))
            )
        return samples, failed
