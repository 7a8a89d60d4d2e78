"""Checkpoints of a training run. Every rank writes its slices of the tensors in the background during training.

    out/checkpoints/step-000100/                        exists only if it is complete
        rank-00000-of-00002.safetensors ...             slices of weights, averages and optimiser state (state.py)
        facts.json                                      step, settings, sizes and digests of the files
    out/checkpoints/best -> step-000100

A checkpoint loads on any number of ranks and with any ``parallel`` setting, because each slice is stored with the name
of the tensor and the offset at which the slice begins. A slice that several ranks hold is written by one of them.
Nothing is pickled. Random number generators have no saved state, because everything random about step s depends on
(seed, s) only.

torch.distributed.checkpoint (torch 2.14) is not used. Its FileSystemReader unpickles the file ``.metadata``, which can
run code from a checkpoint of unknown origin. Its safetensors format (HuggingFaceStorageWriter, ``save_distributed``)
has no digests, so altered bytes are not noticed. It has no list of its files either. If a file is lost, its slices keep
their initial values, and there is no error. Neither format can read the existing checkpoints, so this module would be
needed in addition.
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
from tokenar.train.parallel import local_shard
from tokenar.train.state import SavedState, digest, model_state, optimizer_facts, optimizer_state, write_rank_file

FORMAT = 1
MAX_FACTS_BYTES = 1_000_000_000
"""The largest facts.json that is read. The usual limit of read_json is too low, because the file has the name of every
parameter and of every rank's file. A limit keeps a file of unknown origin from filling the memory."""
_FOLDER = re.compile(r"step-(\d{6,})")
_T = TypeVar("_T")


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, damaged ones included."""
    paths = [path for path in (out / "checkpoints").glob("step-*") if _FOLDER.fullmatch(path.name)]
    return sorted(paths, key=_step)


class Checkpoints:
    """Saves and loads the checkpoints of the run in ``out``; keeps the newest ``keep`` and the best one.

    All ranks of ``group`` must create it and call its methods together. If a save fails in the background, the next
    call of save, load, newest or wait raises UserError on every rank, and the earlier checkpoints stay. Call ``wait``
    before leaving the group.
    """

    def __init__(self, out: Path, keep: int, group: Workers):
        self.out, self.keep, self.group = out, keep, group
        self.folder = out / "checkpoints"
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._staged: dict[str, Tensor] = {}
        self._saved_step: int | None = None  # the step that was last loaded or saved, or is being saved
        self._checked: Path | None = None  # a checkpoint whose files were found to match their digests
        # The background threads need a process group of their own, as training uses the main one at the same time.
        self._channel: dist.ProcessGroup | None = None
        if group.world > 1:
            self._channel = host_group()
        if group.first:
            for unfinished in self.folder.glob(".step-*.tmp"):  # left by a run that was killed while saving
                shutil.rmtree(unfinished, ignore_errors=True)
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
        """Copy the current state to host memory and write it in the background, after the previous save has ended.

        ``facts`` are JSON values that ``load`` returns: the settings and the position in the data. ``ema`` has the
        averaged weights by parameter name, sliced like the parameters. ``best`` marks this checkpoint as the best one,
        which is kept until another is marked. If ``step`` is the one last saved or loaded, only the best mark is
        updated.
        """
        self.wait()
        if step == self._saved_step:
            if best and self.group.first:
                self._point(step)
            return
        facts = {**facts, "step": step}
        content = {"format": FORMAT, "facts": facts, "optimizer": optimizer_facts(net, optimizer)}
        snapshot = json.loads(json.dumps(content))  # training may change the originals while this is being written
        tensors, places = self._stage(model_state(net, ema) | optimizer_state(net, optimizer))
        self._saved_step = step
        arguments = (step, tensors, places, snapshot, best)
        self._thread = threading.Thread(target=self._run, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last save is on the disk. UserError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            self._saved_step = None
            raise error

    def newest(self) -> Path | None:
        """The newest checkpoint whose files match their digests. Damaged ones are reported on stderr and skipped."""
        self.wait()
        of_first_rank = self._gather(checkpoints(self.out))[0]  # so that all ranks check the same checkpoints together
        for path in reversed(of_first_rank):
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
        check: Callable[[dict[str, Any]], object] = lambda facts: None,
    ) -> dict[str, Any]:
        """Load a checkpoint (``path``, or the newest) into network, optimiser and averages. Returns its facts.

        The facts are those given to ``save``, plus "step"; ``check`` sees them before any tensor is loaded. Every rank
        reads only the slices it holds. Raises UserError if no checkpoint can be read, or if the checkpoint belongs to
        another model or optimiser; the message says what differs.
        """
        self.wait()
        path = path or self._newest_or_refuse()
        problem = self._problem(path)
        if problem is not None:
            raise UserError(f"{path}: {problem}; resume from another checkpoint")
        content = _read_content(path)
        try:
            check(content["facts"])
            with ExitStack() as files, torch.no_grad():
                saved = SavedState(path, sorted(content["files"]), files, self.group)
                saved.fill(model_state(net, ema))
                saved.fill_optimizer(net, optimizer, content["optimizer"])
        except (KeyError, TypeError, AttributeError, SafetensorError) as error:  # digests match, but another layout
            raise UserError(f"{path}: not a checkpoint of this program; start again with --overwrite") from error
        self._saved_step = content["facts"]["step"]
        return content["facts"]

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
        """(CPU copies of the slices that this rank writes, the tensors' full shapes and the offsets), both by name."""
        tensors, places = {}, {}
        # Ranks that hold the same slice (replicas) share the work: tensor i is written by replica i mod replicas.
        # The tensors are sorted by size to balance the bytes that each of them writes.
        for number, name in enumerate(sorted(state, key=lambda name: (-state[name].numel(), name))):
            own = local_shard(state[name], self.group)
            if number % own.replicas != own.replica or not own.local.numel():
                continue
            copy = self._staged.get(name)
            if copy is None or copy.shape != own.local.shape or copy.dtype != own.local.dtype:
                copy = torch.empty(own.local.shape, dtype=own.local.dtype, pin_memory=own.local.is_cuda)
            tensors[name] = copy.copy_(own.local, non_blocking=True)
            places[name] = {"shape": own.shape, "offset": own.offset}
        if self.group.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._staged = tensors  # pinning memory is slow, so the next save reuses these copies
        return tensors, places

    def _run(
        self, step: int, tensors: dict[str, Tensor], places: dict[str, Any], content: dict[str, Any], best: bool
    ) -> None:
        """Runs in the background thread: every rank writes its file, then the first rank completes the checkpoint."""
        final, temporary = self.folder / f"step-{step:06d}", self.folder / f".step-{step:06d}.tmp"
        name = f"rank-{self.group.rank:05d}-of-{self.group.world:05d}.safetensors"
        try:
            written, problem = _attempt(lambda: write_rank_file(temporary / name, tensors, places))
            reports = self._gather((name, written, problem))
            problem = next((problem for *_, problem in reports if problem), None)
            if self.group.first:
                if problem is None:
                    content["files"] = {name: written for name, written, _ in reports}
                    _, problem = _attempt(lambda: self._commit(temporary, final, content, best))
                shutil.rmtree(temporary, ignore_errors=True)
            problem = self._gather(problem)[0]
            if problem is not None:
                raise UserError(f"{final}: cannot be saved ({problem}); see to the disk and continue with --resume")
        except Exception as error:  # the next call of save, load, newest or wait raises it
            self._error = error

    def _commit(self, temporary: Path, final: Path, content: dict[str, Any], best: bool) -> None:
        """Write facts.json, rename the folder to its final name, and delete checkpoints that are no longer kept."""
        with open(temporary / "facts.json", "w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _drop(final)  # an older folder of this step: a damaged one, or the run was resumed from an earlier checkpoint
        os.rename(temporary, final)
        if best:
            self._point(_step(final))
        best_path = (self.folder / "best").resolve()
        # Ignore later steps: their checkpoints are damaged or will be overwritten.
        past = [path for path in checkpoints(self.out) if _step(path) <= _step(final)]
        for path in past[: -self.keep]:
            if path.resolve() != best_path:
                _drop(path)

    def _point(self, step: int) -> None:
        """Point the symbolic link ``best`` to the checkpoint of ``step``."""
        link = self.folder / ".best.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(f"step-{step:06d}")
        os.replace(link, self.folder / "best")

    def _problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint's files, or None. The ranks share the hashing; all get the same answer."""
        if path == self._checked:
            return None
        _, problem = _attempt(lambda: self._check(path))
        problem = next((problem for problem in self._gather(problem) if problem), None)
        if problem is None:
            self._checked = path
        return problem

    def _check(self, path: Path) -> None:
        for number, (name, written) in enumerate(sorted(_read_content(path)["files"].items())):
            if not (path / name).is_file() or (path / name).stat().st_size != written["bytes"]:
                raise ValueError(f"{name} is missing or cut short")
            if number % self.group.world == self.group.rank and digest(path / name) != written["sha256"]:
                raise ValueError(f"{name} is damaged")

    def _gather(self, value: Any) -> list[Any]:
        """The value of every rank, in order."""
        if self._channel is None:
            return [value]
        values: list[Any] = [None] * self.group.world
        dist.all_gather_object(values, value, group=self._channel)
        return values


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _read_content(path: Path) -> dict[str, Any]:
    """The content of facts.json. Raises ValueError with the reason if it is missing, damaged or of another format.

    Its keys are "format", "files", "optimizer" and "facts", which are the facts given to ``save``.
    """
    damaged = "facts.json is missing or damaged"
    try:
        content = read_json(path / "facts.json", limit=MAX_FACTS_BYTES)
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(damaged) from error
    if version != FORMAT:
        raise ValueError(f"facts.json is of format {one_line(version, 40)}, this program reads {FORMAT}")
    if not _is_complete(content):
        raise ValueError(damaged)
    return content


def _is_complete(content: dict[str, Any]) -> bool:
    """Whether the content of a facts.json of this format has all that is read from it."""
    try:
        # A name with "/" could make a checkpoint of unknown origin read files outside its folder.
        files = all("/" not in name and {"bytes", "sha256"} <= set(file) for name, file in content["files"].items())
        return files and isinstance(content["facts"]["step"], int) and isinstance(content["optimizer"], dict)
    except (KeyError, TypeError, AttributeError):
        return False


def _drop(path: Path) -> None:
    """Delete a checkpoint if it exists. It is renamed first, so that being killed leaves no half-deleted checkpoint."""
    if path.exists():
        renamed = path.with_name(f".{path.name}.old.tmp")
        os.rename(path, renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def _attempt(act: Callable[[], _T]) -> tuple[_T | None, str | None]:
    """(result, None), or (None, the error in a few words).

    Never raises, because this rank must still take part in the exchange that follows, or the others would hang.
    """
    try:
        return act(), None
    except Exception as error:
        inner = re.search(r"I/O error: (.*?) \(os error", str(error))  # the wording of safetensors
        reason = inner[1] if inner else getattr(error, "strerror", None) or str(error) or type(error).__name__
        return None, reason.splitlines()[0]
