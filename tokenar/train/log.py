"""The log of a training run: rows of numbers in a file, TensorBoard and Weights & Biases; speed; a profiler trace."""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.documents import parse_json
from data_schemas.io.files import check_file, write_atomically
from tokenar.config import TrainConfig
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers

BF16_PEAKS = {
    "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "H800": 989e12, "H20": 148e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
    "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
"""Dense bfloat16 FLOP/s from the vendor's data sheets. The first key that the device's name contains counts, so longer
names come first."""
TRAINING_PASSES = 3
"""FLOPs of a training step in forward passes: the backward pass costs two. Activation checkpointing is not counted."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The peak FLOP/s of a device: from its data sheet, or else measured with a few matrix products."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = next((peak for part, peak in BF16_PEAKS.items() if part in name), None)
        if known is not None:
            return known
    return measured_flops(device, dtype, side=8192 if device.type == "cuda" else 1024)


def measured_flops(device: torch.device, dtype: torch.dtype, side: int) -> float:
    # Random numbers, because a GPU multiplies ones with less power and so faster. On a GPU several products in a row,
    # so that starting them costs nothing.
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    products, best = 10 if device.type == "cuda" else 1, float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(products):
            c = a @ b
        c[0, 0].item()
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 * products / best


def memory_gb(device: torch.device) -> float:
    """Peak memory so far in GB (1e9 bytes): of the tensors on a GPU, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e9


class Speed:
    """Measures the training's speed between two rows of the log, over all ranks together.

    ``begun`` is when the interval began; the trainer moves it forward by the time that validation and saving take.
    """

    def __init__(self, net: TokenAR, config: TrainConfig, group: Workers):
        self.net, self.group = net, group
        dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.peak = peak_flops(group.device, dtype) * group.world
        self._start(0.0)

    def _start(self, waited: float) -> None:
        self.begun, self.waited = time.monotonic(), waited
        self.samples = self.tokens = self.flops = 0

    def count(self, samples: int, scored_tokens: int, references: int) -> None:
        """Add one step. ``samples`` and ``scored_tokens`` are those of the whole batch over all ranks."""
        self.samples += samples
        self.tokens += scored_tokens
        self.flops += TRAINING_PASSES * self.net.flops(references) * samples

    def row(self, waited: float) -> dict[str, float]:
        """The speed since the last row, and begin a new interval.

        ``waited`` is the time in seconds that this rank has waited for data since the run began. In the row,
        tokens_per_s counts scored tokens, mfu is the model's FLOP/s as a share of the hardware's peak, data_wait is the
        share of the time spent waiting for data, and memory_gb is this rank's peak memory.
        """
        seconds = time.monotonic() - self.begun
        row = {
            "samples_per_s": self.samples / seconds, "tokens_per_s": self.tokens / seconds,
            "mfu": self.flops / seconds / self.peak, "data_wait": (waited - self.waited) / seconds,
            "memory_gb": memory_gb(self.group.device),
        }  # fmt: skip
        self._start(waited)
        return row


class Log:
    """Writes rows to ``out/metrics.jsonl``, TensorBoard and, if set, Weights & Biases. Only the first rank has a log.

    ``step`` is the number of steps already done. Rows of later steps, which a stopped run wrote after its last
    checkpoint, are removed, because these steps are run again.
    """

    def __init__(self, config: TrainConfig, step: int, progress: Callable[[dict[str, Any]], None] | None):
        out = Path(config.out)
        self.path, self.progress = out / "metrics.jsonl", progress
        rows = _rows(self.path) if step and self.path.exists() else []
        kept = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step)
        write_atomically(self.path, lambda path: path.write_text(kept))
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not needed to measure speed

        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step or None)
        self.wandb = _wandb(config, step) if config.wandb else None

    def record(self, row: dict[str, Any]) -> None:
        """Write one row: values by name, with the step under "step"; a text is for the file alone."""
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
        for key, value in numbers.items():
            self.board.add_scalar(key, value, row["step"])
        if self.wandb is not None:
            self.wandb.log(numbers, step=row["step"])
        if self.progress is not None:
            self.progress(row)

    def picture(self, step: int, picture: Image.Image) -> None:
        """Show a picture in TensorBoard at step ``step``."""
        self.board.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. A line that cannot be read, such as one cut short by a full disk, is left out."""
    rows = []
    with open(check_file(path, "start again with --overwrite"), errors="replace") as file:
        for line in file:
            with suppress(UserError):
                row = parse_json(line, str(path))
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    rows.append(row)
    return rows


def wandb_module() -> Any:
    """The wandb module; UserError if it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise UserError("wandb is not installed; pip install wandb, or leave --wandb away") from error


def _wandb(config: TrainConfig, step: int) -> Any:
    wandb = wandb_module()
    out = Path(config.out)
    id_file = out / "wandb-id.txt"  # a resumed run continues the same run at Weights & Biases
    if not (step and id_file.exists()):
        id_file.write_text(wandb.util.generate_id())
    name, settings = "-".join(out.resolve().parts[-2:]), config.model_dump(mode="json")
    return wandb.init(project="tokenar", name=name, id=id_file.read_text(), resume="allow", dir=out, config=settings)


@contextmanager
def profiler(config: TrainConfig, group: Workers) -> Iterator[Callable[[], None]]:
    """Yields a function to call after every step. With ``config.profile`` it traces steps 3 to 5 to ``out/profile``."""
    if not (config.profile and group.first):
        yield lambda: None
        return
    activities = [torch.profiler.ProfilerActivity.CPU]
    if group.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(
        activities=activities,
        schedule=torch.profiler.schedule(wait=1, warmup=1, active=3, repeat=1),
        on_trace_ready=torch.profiler.tensorboard_trace_handler(str(Path(config.out) / "profile")),
    ) as trace:
        yield trace.step
