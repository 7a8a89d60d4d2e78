"""Checkpoints to continue from: every process writes what it holds, in the background, and any number of them reads it.

    out/checkpoints/step-000100/                        exists only when it is whole
        rank-00000-of-00002.safetensors ...             pieces of weights, averages and optimiser state (saved_state.py)
        facts.json                                      step, settings, sizes and digests of the files
    out/checkpoints/best -> step-000100

Since a tensor is kept by name, in pieces that know their place, a checkpoint of one way of spreading the network loads
into any other. What several processes hold alike is written by one of them. Nothing is pickled.

No state of a random number generator is kept: all that is random about step s follows from (seed, s).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from data_schemas.errors import UserError
from data_schemas.io.documents import read_json
from data_schemas.io.text import one_line
from tokenar.processes import Workers, host_group
from tokenar.train.parallel import piece
from tokenar.train.state import SavedState, digest, model_state, optimizer_facts, optimizer_state, write_pieces

FORMAT = 1
MAX_INDEX = 1_000_000_000
"""Bytes of facts.json: it names every parameter once, and every file."""
_FOLDER = re.compile(r"step-(\d{6,})")
_T = TypeVar("_T")


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in (out / "checkpoints").glob("step-*") if _FOLDER.fullmatch(path.name)]
    return sorted(found, key=_step)


class Checkpoints:
    """The checkpoints of the run in ``out``, of which the newest ``keep`` stay, and the best.

    All processes of ``group`` make it, and call each of its methods, together. A save that fails raises UserError from
    the next call, on every process; the earlier checkpoints stay. Call ``wait`` before the group is left.
    """

    def __init__(self, out: Path, keep: int, group: Workers):
        self.out, self.keep, self.group = out, keep, group
        self.folder = out / "checkpoints"
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._staged: dict[str, Tensor] = {}
        self._held: int | None = None  # the step whose state is in a checkpoint, or on its way
        self._sound: Path | None = None  # the checkpoint whose files were compared with their digests
        # The threads talk among themselves while training uses the main group, and on the CPU.
        self._channel: dist.ProcessGroup | None = None
        if group.world > 1:
            self._channel = host_group()
        if group.first:
            for left in self.folder.glob(".step-*.tmp"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
        group.wait()

    def save(
        self,
        step: int,
        net: nn.Module,
        optimizer: Optimizer,
        facts: dict[str, Any],
        ema: Mapping[str, Tensor] | None = None,
        best: bool = False,
    ) -> None:
        """Copy the state as it is now and write it in the background; waits for the save before.

        ``facts`` is for JSON: settings, the place in the data. ``ema`` is by parameter name, spread like the
        parameters. ``best`` makes this the checkpoint that is not dropped, until another is. A step that was just
        saved or loaded is not written again.
        """
        self.wait()
        if step == self._held:
            if best and self.group.first:
                self._point(step)
            return
        facts = {**facts, "step": step}
        index = json.dumps({"format": FORMAT, "facts": facts, "optimizer": optimizer_facts(net, optimizer)})
        tensors, places = self._stage(model_state(net, ema) | optimizer_state(net, optimizer))
        self._held = step
        arguments = (step, tensors, places, json.loads(index), best)
        self._thread = threading.Thread(target=self._run, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the last save is on the disk. UserError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            self._held = None
            raise error

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are as they were written; a damaged one is told of and passed over."""
        self.wait()
        for path in reversed(self._gather(checkpoints(self.out))[0]):
            problem = self._problem(path)
            if problem is None:
                return path
            if self.group.first:
                print(f"{path}: {problem}; passed over", file=sys.stderr, flush=True)
        return None

    def load(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        ema: Mapping[str, Tensor] | None = None,
        path: Path | None = None,
    ) -> dict[str, Any]:
        """Fill network, optimiser and averages from ``path`` or the newest checkpoint; its facts, with "step".

        Every process reads only what it holds. Raises UserError where there is no readable checkpoint, and naming what
        differs where it is one of another model or optimiser.
        """
        self.wait()
        path = path or self._newest_or_refuse()
        problem = self._problem(path)
        if problem is not None:
            raise UserError(f"{path}: {problem}; resume from another checkpoint")
        index = _read_index(path)
        try:
            with ExitStack() as files, torch.no_grad():
                saved = SavedState(path, sorted(index["files"]), files, self.group)
                saved.fill(model_state(net, ema))
                saved.fill_optimizer(net, optimizer, index["optimizer"])
        except (KeyError, TypeError, AttributeError, SafetensorError) as error:  # whole, but not as this writes it
            raise UserError(f"{path}: not a checkpoint of this program; start again with --overwrite") from error
        self._held = index["facts"]["step"]
        return index["facts"]

    def _newest_or_refuse(self) -> Path:
        path = self.newest()
        if path is not None:
            return path
        if checkpoints(self.out):
            raise UserError(f"{self.folder}: no checkpoint there can be read; start again with --overwrite")
        raise UserError(
            f"{self.out}: nothing to resume, no checkpoint found; leave --resume away or give the run's --out"
        )

    def _stage(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(CPU copies of what this process is to write, their places in the whole tensors), both by name."""
        tensors, places = {}, {}
        # Largest first, so that processes that hold the same and take turns write about as many bytes each.
        for number, name in enumerate(sorted(state, key=lambda name: (-state[name].numel(), name))):
            own = piece(state[name], self.group)
            if number % own.replicas != own.replica or not own.local.numel():
                continue
            copy = self._staged.get(name)
            if copy is None or copy.shape != own.local.shape or copy.dtype != own.local.dtype:
                copy = torch.empty(own.local.shape, dtype=own.local.dtype, pin_memory=own.local.is_cuda)
            tensors[name] = copy.copy_(own.local, non_blocking=True)
            places[name] = {"shape": own.shape, "offset": own.offset}
        if self.group.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._staged = tensors  # pinning memory takes long: the next save uses it again
        return tensors, places

    def _run(
        self, step: int, tensors: dict[str, Tensor], places: dict[str, Any], index: dict[str, Any], best: bool
    ) -> None:
        """The thread: every process writes its file, then the first makes them a checkpoint."""
        final, temporary = self.folder / f"step-{step:06d}", self.folder / f".step-{step:06d}.tmp"
        name = f"rank-{self.group.rank:05d}-of-{self.group.world:05d}.safetensors"
        try:
            written, problem = _attempt(lambda: write_pieces(temporary / name, tensors, places))
            reports = self._gather((name, written, problem))
            problem = next((problem for *_, problem in reports if problem), None)
            if self.group.first:
                if problem is None:
                    index["files"] = {name: written for name, written, _ in reports}
                    _, problem = _attempt(lambda: self._commit(temporary, final, index, best))
                shutil.rmtree(temporary, ignore_errors=True)
            problem = self._gather(problem)[0]
            if problem is not None:
                raise UserError(f"{final}: cannot be saved ({problem}); see to the disk and continue with --resume")
        except Exception as error:  # raised where the next call can tell it
            self._error = error

    def _commit(self, temporary: Path, final: Path, index: dict[str, Any], best: bool) -> None:
        """Give the folder its name, and drop what is no longer kept."""
        with open(temporary / "facts.json", "w") as file:
            json.dump(index, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _drop(final)  # a damaged one that was passed over, or of a run that went on from before it
        os.rename(temporary, final)
        if best:
            self._point(_step(final))
        best_path = (self.folder / "best").resolve()
        # Later ones are no past of this run; they are damaged, or will be written again.
        past = [path for path in checkpoints(self.out) if _step(path) <= _step(final)]
        for path in past[: -self.keep]:
            if path.resolve() != best_path:
                _drop(path)

    def _point(self, step: int) -> None:
        """Let ``best`` lead to the checkpoint of ``step``."""
        link = self.folder / ".best.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(f"step-{step:06d}")
        os.replace(link, self.folder / "best")

    def _problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint's files; the processes share the reading."""
        if path == self._sound:
            return None
        _, problem = _attempt(lambda: self._check(path))
        problem = next((problem for problem in self._gather(problem) if problem), None)
        if problem is None:
            self._sound = path
        return problem

    def _check(self, path: Path) -> None:
        for number, (name, written) in enumerate(sorted(_read_index(path)["files"].items())):
            if not (path / name).is_file() or (path / name).stat().st_size != written["bytes"]:
                raise ValueError(f"{name} is missing or cut short")
            if number % self.group.world == self.group.rank and digest(path / name) != written["sha256"]:
                raise ValueError(f"{name} is damaged")

    def _gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        if self._channel is None:
            return [value]
        values: list[Any] = [None] * self.group.world
        dist.all_gather_object(values, value, group=self._channel)
        return values


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read_index(path: Path) -> dict[str, Any]:
    """facts.json as it was written. Raises ValueError for what is not one, with the reason."""
    try:
        index = read_json(path / "facts.json", limit=MAX_INDEX)
        version = index["format"]
        whole = version != FORMAT or _is_index(index)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("facts.json is missing or damaged") from error
    if version != FORMAT:
        raise ValueError(f"facts.json is of format {one_line(version, 40)}, this program reads {FORMAT}")
    if not whole:
        raise ValueError("facts.json is missing or damaged")
    return index


def _is_index(index: dict[str, Any]) -> bool:
    files = all("/" not in name and {"bytes", "sha256"} <= set(file) for name, file in index["files"].items())
    return files and isinstance(index["facts"]["step"], int) and isinstance(index["optimizer"], dict)


def _drop(path: Path) -> None:
    """Delete a checkpoint if it is there. It loses its name first: being killed half-way leaves no half checkpoint."""
    if path.exists():
        doomed = path.with_name(f".{path.name}.old.tmp")
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _attempt(act: Callable[[], _T]) -> tuple[_T | None, str | None]:
    """(result, None), or (None, what went wrong in a few words): the other processes wait to hear of either."""
    try:
        return act(), None
    except Exception as error:
        inner = re.search(r"I/O error: (.*?) \(os error", str(error))  # as safetensors says it
        reason = inner[1] if inner else getattr(error, "strerror", None) or str(error) or type(error).__name__
        return None, reason.splitlines()[0]
