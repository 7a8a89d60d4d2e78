"""Stages without models or real pictures, so that a run costs nothing but its engine; and one that kills."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pyarrow as pa
from PIL import Image

from data_schemas.schema import Column
from pipeline import Rule, Sample, Stage, StageConfig


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


class TroubleConfig(StageConfig):
    """Samples by their number in the plan. The stage leaves traces in ``folder``, and reads there what it did before.

    ``work`` is seconds of the processor a sample, ``rest`` seconds of waiting.
    """

    folder: str = ""
    crash: list[int] = []
    crash_once: list[int] = []
    hang: list[int] = []
    crash_at_setup: bool = False
    work: float = 0.0
    rest: float = 0.0
    batch_size: int = 1
    how = frozenset({"folder", "batch_size", "work", "rest"})


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

    def process(self, sample: Sample) -> dict:
        number = int(sample.plan["index"])
        self.note("made", f"{number} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
        once = Path(self.config.folder) / f"crashed-{number}"
        if number in self.config.crash_once and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGSEGV)
        if number in self.config.crash:
            os.kill(os.getpid(), signal.SIGSEGV)
        while number in self.config.hang:
            time.sleep(1)
        until = time.process_time() + self.config.work
        while time.process_time() < until:
            pass
        time.sleep(self.config.rest)
        return {"trouble": float(number)}


class Fails(Stage):
    """Fails on two of three samples."""

    name = "fails"
    reads = ("plan",)
    columns = ()

    def process(self, sample: Sample) -> dict:
        if int(sample.plan["index"]) % 3:
            raise ValueError("not this one")
        return {}


STUBS = {
    "synthesis": {"use": "troubled.stages:Painted"},
    "matting": {"use": "troubled.stages:Cut"},
    **{section: {"backend": "none"} for section in ("semantics", "identity", "quality")},
}
"""The sections of a config whose stages cost nothing."""
