"""Stages without models or real pictures, so that a run costs nothing but its engine; and one that kills."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pyarrow as pa
from fsspec import AbstractFileSystem
from PIL import Image

from data_schemas.io import storage
from data_schemas.schema import Column
from pipeline import Rule, Sample, Stage, StageConfig
from pipeline.core import parts


class Painted(Stage):
    """A plain picture in the sample's colour."""

    name = "synthesis"
    reads = ("plan",)
    columns = ()
    saves_pictures = True

    def process(self, sample: Sample) -> dict:
        number = int(sample.plan["index"])
        sample.save("target", Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 0)))
        return {}


class Forgets(Painted):
    """Saves no target of every third sample."""

    def process(self, sample: Sample) -> dict:
        return super().process(sample) if int(sample.plan["index"]) % 3 else {}


class Cut(Stage):
    """The whole picture as foreground."""

    name = "matting"
    reads = ("plan", "synthesis")
    columns = ()
    saves_pictures = True

    def process(self, sample: Sample) -> dict:
        target = sample.picture("synthesis", "target")
        for name, mode in (("alpha", "L"), ("foreground", "RGBA"), ("background", "RGB")):
            sample.save(name, target.convert(mode))
        return {}


class Nothing(Stage):
    """No picture at all."""

    name = "synthesis"
    reads = ("plan",)
    columns = ()

    def process(self, sample: Sample) -> dict:
        return {}


class NothingCut(Nothing):
    name = "matting"
    reads = ("plan", "synthesis")


class TroubleConfig(StageConfig):
    """Samples by their number in the plan. The stage leaves traces in ``folder``, and reads there what it did before.

    ``crash_once`` may name a sample several times. ``work`` is seconds of the processor a sample, ``rest`` seconds of
    waiting.
    """

    folder: str = ""
    crash: list[int] = []
    crash_once: list[int] = []
    hang: list[int] = []
    nan: list[int] = []
    crash_at_setup: bool = False
    full_once: bool = False
    work: float = 0.0
    rest: float = 0.0
    batch_size: int = 1
    how = frozenset({"folder", "batch_size", "work", "rest", "crash_once", "full_once"})


class Trouble(Stage):
    """Scores the sample's number; kills its process or sleeps for ever where it was asked to."""

    name = "trouble"
    reads = ("plan",)
    columns = (Column("trouble", pa.float64(), "The sample's number.", "", low=0),)
    rules = (Rule("trouble", "min", 0.0, "troubled", "Never."),)
    Config = TroubleConfig

    def __init__(self, config: TroubleConfig | None = None):
        super().__init__(config)
        self.batch_size = self.config.batch_size

    def note(self, kind: str, text: object) -> None:
        if self.config.folder:
            with open(Path(self.config.folder) / kind, "a") as file:  # one short line, which the system appends whole
                file.write(f"{text}\n")

    def setup(self) -> None:
        self.note("loads", os.environ.get("CUDA_VISIBLE_DEVICES"))
        if self.config.crash_at_setup:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.config.full_once:
            parts.write_stream = self.full  # type: ignore[assignment]

    def full(self, fs: AbstractFileSystem, path: str, write: Callable[[IO[bytes]], object]) -> object:
        """Writes like the real one, but the first time the disk is full."""
        try:
            (Path(self.config.folder) / "full").touch(exist_ok=False)
        except FileExistsError:
            return storage.write_stream(fs, path, write)
        raise OSError(errno.ENOSPC, "No space left on device", path)

    def process(self, sample: Sample) -> dict:
        number = int(sample.plan["index"])
        self.note("made", f"{number} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
        for times in range(self.config.crash_once.count(number)):
            mark = Path(self.config.folder) / f"crashed-{number}-{times}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGSEGV)
        if number in self.config.crash:
            os.kill(os.getpid(), signal.SIGSEGV)
        while number in self.config.hang:
            time.sleep(1)
        until = time.process_time() + self.config.work
        while time.process_time() < until:
            pass
        time.sleep(self.config.rest)
        return {"trouble": float("nan") if number in self.config.nan else float(number)}


SCORES = tuple(f"score_{k}" for k in range(8))


class Scored(Stage):
    """Scores between 0 and 1 that follow from the sample's id, each with a rule that most samples break."""

    name = "scored"
    reads = ("plan",)
    columns = tuple(Column(name, pa.float64(), "A score.", "fraction", low=0, high=1) for name in SCORES)
    rules = tuple(Rule(name, "min", 0.5, f"{name}_low", "Below the half.") for name in SCORES)

    def process(self, sample: Sample) -> dict:
        digits = hashlib.sha256(sample.sample_id.encode()).digest()
        return {name: digits[k] / 255 for k, name in enumerate(SCORES)}


class Aimless(Stage):
    """Reads no plan, which names the samples."""

    name = "aimless"
    reads = ("synthesis",)
    columns = ()

    def process(self, sample: Sample) -> dict:
        return {}


class Fails(Stage):
    """Fails on two of three samples."""

    name = "fails"
    reads = ("plan",)
    columns = ()

    def process(self, sample: Sample) -> dict:
        if int(sample.plan["index"]) % 3:
            raise ValueError("not this one")
        return {}


class FailsAtFirst(Fails):
    """The same, until somebody mends it."""

    def process(self, sample: Sample) -> dict:
        return super().process(sample) if os.environ.get("FAILS_AT_FIRST") else {}


STUBS = {
    "references": {"pool": [{"source": "generated", "count": 24}], "size": 64},
    "synthesis": {"use": "troubled.stages:Painted"},
    "matting": {"use": "troubled.stages:Cut"},
    **{section: {"backend": "none"} for section in ("semantics", "identity", "quality")},
}
"""The sections of a config whose work costs nothing."""
