"""The trainer: shards in, a run folder out. Continues after a stop with bit-identical weights.

All that is random about step s follows from (seed, s): the order of the data, the guidance drops, the dropout. So a
checkpoint needs no generator state, and a resumed run draws what an uninterrupted one would have.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_schemas.errors import UserError
from data_schemas.io.documents import parse_json
from data_schemas.io.files import sweep, write_atomically
from data_schemas.progress import Progress, tell
from tokenar.config import TrainConfig
from tokenar.data.prefetch import Prefetched
from tokenar.data.samples import InMemory, Order, Position, Samples, collate, rank_parts
from tokenar.device import own_random_numbers, repeatable
from tokenar.model.folder import save_model
from tokenar.model.published import load_published
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers, workers
from tokenar.train.checkpoint import Checkpoints
from tokenar.train.inputs import load_inputs
from tokenar.train.log import Log, Speed, profiler, wandb_module
from tokenar.train.signals import StopSignal, stop_signals
from tokenar.train.step import Part, Step, Work
from tokenar.train.validate import draw_samples, fixed_subset, validate

RUN_FILES = (
    "checkpoints", "tensorboard", "model", "pictures", "profile", "wandb", "wandb-id.txt", "metrics.jsonl",
    "summary.json", "tokenizer.safetensors", "evaluation", "ablation.json",
)  # fmt: skip
"""What a run, and what measured it, leaves in its folder."""
MAY_CHANGE = {
    "steps", "log_every", "eval_every", "pictures_every", "pictures", "save_every", "keep", "out", "wandb", "profile",
    "accumulation", "parallel", "compile", "activation_checkpointing",
}  # fmt: skip
"""Settings that a resumed run may have different. With a falling schedule ``steps`` bends the rest of the curve; the
last line's change the order of sums and so the last digits."""
BASELINE_SAMPLES = 1000
READERS = 4
"""Threads that read ahead; samples in memory need one."""
STOP_EVERY = 5
"""Steps between two looks at other processes' signals on GPUs, as every look makes the hosts wait for each other."""


def train_model(
    config: TrainConfig,
    progress: Callable[[dict[str, Any]], None] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train and return the summary that is also written to ``out/summary.json``.

    ``progress`` is called with every row that goes to ``out/metrics.jsonl``. ``resume`` continues from the newest
    whole checkpoint; ``overwrite`` first removes what an earlier run left. Raises UserError for data, folders and
    settings that cannot be used, and for a loss that is not finite.
    """
    if config.wandb:
        wandb_module()  # told before any work
    with (
        repeatable(config.deterministic),  # before anything is on a GPU
        workers() as group,
        own_random_numbers(group.device),
        stop_signals() as stop,
    ):
        return _Trainer(config, group, stop, progress, resume, overwrite).run()


def unigram(train_tokens: Tensor, other: Tensor | None, vocabulary: int) -> tuple[float, float | None]:
    """(entropy of the train tokens, cross entropy of ``other`` under the train frequencies), in nats a token.

    What a model reaches that knows only how often each token comes. The cross entropy counts every token once more
    than it came, so that unseen ones cost something finite.
    """
    counts = torch.bincount(train_tokens.flatten(), minlength=vocabulary).double()
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-300).log()).sum().item()
    if other is None:
        return entropy, None
    smooth = ((counts + 1) / (counts.sum() + vocabulary)).log()
    return entropy, -smooth[other.flatten()].mean().item()


def shares(
    order: Order, first: int, samples: Samples, config: TrainConfig, net: TokenAR, group: Workers
) -> Prefetched[Any, Work]:
    """One process's work of step ``first`` and on, without end, read ahead in threads."""

    def batches() -> Iterator[tuple[int, int, list[int], Position]]:
        step = first
        while True:
            epoch, chosen = order.position.epoch, order.next()
            yield step, epoch, chosen, order.position
            step += 1

    def read(item: tuple[int, int, list[int], Position]) -> Work:
        step, epoch, chosen, behind = item
        draws = torch.rand(len(chosen), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step))
        parts = []
        for places in rank_parts(len(chosen), config.batch, group.rank, group.world, config.accumulation):
            taken = places or [0]
            batch = collate([samples.read(chosen[i], epoch) for i in taken])
            batch = batch.pinned() if group.device.type == "cuda" else batch
            parts.append(Part(batch, draws[taken], counted=int(bool(places))))
        references = samples.references[chosen[0]]
        return Work(step, parts, len(chosen), len(chosen) * net.layout(references).target_tokens, references, behind)

    return Prefetched(batches(), read, 1 if isinstance(samples, InMemory) else READERS)


class OtherRun(UserError):
    """The folder holds a training with other settings or on other samples, which this one cannot continue."""


class _Trainer:
    """One run. The order of the calls in ``run`` is the order of events."""

    def __init__(
        self,
        config: TrainConfig,
        group: Workers,
        stop: StopSignal,
        progress: Callable[[dict[str, Any]], None] | None,
        resume: bool,
        overwrite: bool,
    ):
        self.config, self.group, self.stop, self.progress = config, group, stop, progress
        self.out = Path(config.out)
        self.begun = time.monotonic()
        self.done = 0  # steps
        self.best: float | None = None  # validation loss so far
        self.last: dict[str, Any] = {}
        self.validation: dict[str, float] = {}
        self._open_out(resume, overwrite)
        self.checkpoints = Checkpoints(self.out, config.keep, group)
        self.step, self.before = self._build(resume)

    def run(self) -> dict[str, Any]:
        config, group = self.config, self.group
        self._load_data()
        stream = shares(self.order, self.done, self.inputs.train, config, self.step.net, group)
        bar = Progress("train", config.steps, every=config.log_every, initial=self.done, show=group.first)
        with stream, bar, profiler(config, group) as traced:
            try:
                self._open_log()
                self._loop(stream, bar, traced)
                summary = self._finish()
            except BaseException:
                with suppress(UserError):  # the first mistake is told, but what was being saved is saved
                    self.checkpoints.wait()
                raise
        group.wait()
        return summary

    # Preparation

    def _open_out(self, resume: bool, overwrite: bool) -> None:
        """Make the run folder, or check that the one there may be used."""
        if self.group.first and not resume:
            if self.out.exists() and not self.out.is_dir():
                raise UserError(f"{self.out}: is a file; give another --out")
            if overwrite:
                _remove(self.out)
            elif self.out.is_dir() and any(self.out.iterdir()):
                raise UserError(
                    f"{self.out}: not empty; continue with --resume, start again with --overwrite or give another --out"
                )
        if self.group.first:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.out}: cannot be made ({error.strerror}); give another --out") from error
            for folder in (self.out, self.out / "model", self.out / "pictures"):
                sweep(folder)
        self.group.wait()

    def _build(self, resume: bool) -> tuple[Step, tuple[str, Any, Position] | None]:
        """Network and optimiser, new or from the newest checkpoint, with its samples, encoders and place in them."""
        config = self.config
        torch.manual_seed(config.seed)
        net = TokenAR(config.model).to(self.group.device)
        if config.start_from and not resume:
            load_published(net, config.start_from)
        step = Step(net, config, self.group)
        if not resume:
            return step, None
        facts = self.checkpoints.load(net, step.optimizer, step.averages)
        try:
            before = parse_json(facts["config"], "config")
            self.done, self.best = int(facts["step"]), facts["best"]
            places = facts["data"], facts["encoders"], Position(int(facts["epoch"]), int(facts["batch"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.out}: its checkpoint is none of a training; start again with --overwrite"
            ) from error
        _same_settings(config, before, self.out)
        if self.group.first and self.done < config.steps:
            (self.out / "summary.json").unlink(missing_ok=True)  # of the run as it was; a new one comes at the end
        return step, places

    def _load_data(self) -> None:
        """Open or encode the samples, and go to the place in them."""
        config, before, position = self.config, self.before, Position()
        self.inputs = load_inputs(config, self.group, self.out / "tokenizer.safetensors", resumed=before is not None)
        if config.pictures_every and self.inputs.tokenizer is None:
            raise UserError("pictures_every: there is no tokenizer to draw with; set tokenizer_weights, or 0")
        if before is not None:
            digest, encoders, position = before
            if (digest, encoders) != (self.inputs.digest, self.inputs.encoders):
                raise OtherRun(
                    f"{self.out}: the run there began with other samples than those of {config.shards}; give another "
                    "--out, or start again with --overwrite"
                )
        self.position = position
        self.order = Order(self.inputs.train.references, config.batch, config.seed, position)

    def _open_log(self) -> None:
        """A new run's log begins with the unigram figures."""
        self.log = Log(self.config, self.done, self.progress) if self.group.first else None
        tell("measuring the hardware's speed and what guessing by token frequency would reach", self.group.first)
        self.speed = Speed(self.step.net, self.config, self.group)
        self.baseline = self._baseline() if self.log else {}
        if self.log and not self.done:
            parameters = sum(p.numel() for p in self.step.net.parameters())
            self.log.record({"step": 0, **self.baseline, "parameters": parameters})
        self.group.wait()  # the first step's gradients would wait for the first process on the device, not as patiently

    def _baseline(self) -> dict[str, Any]:
        """Unigram figures of the scored tokens, and of the picture's tokens alone; of many samples a fixed part."""
        net, inputs = self.step.net, self.inputs

        def scored(samples: Samples | None, picture_only: bool) -> Tensor | None:
            if samples is None:
                return None
            numbers = fixed_subset(len(samples.references), BASELINE_SAMPLES)
            some = [samples.read(number) for number in numbers]
            if picture_only:
                return torch.cat([s.picture for s in some])
            return torch.cat([net.target_tokens(s.sources[None], s.picture[None])[0] for s in some])

        rows: dict[str, Any] = {}
        for suffix, only in (("", False), ("_target", True)):
            tokens = scored(inputs.train, only)
            assert tokens is not None
            entropy, cross = unigram(tokens, scored(inputs.val, only), self.config.model.vocabulary)
            rows |= {f"unigram_entropy{suffix}": entropy, f"val_unigram_cross_entropy{suffix}": cross}
        return rows

    # The loop

    def _loop(self, stream: Prefetched[Any, Work], bar: Progress, traced: Callable[[], None]) -> None:
        config = self.config
        while self.done < config.steps and not self._stopped():
            work = next(stream)
            rate = self.step.update(work)
            self.done, self.position = self.done + 1, work.behind
            self.speed.count(work.samples, work.scored_tokens, work.references)
            if self.done % config.log_every == 0 or self.done == config.steps:
                self._log_row(work, rate, stream.waited)
            shown = self.last
            bar.advance(f"loss {shown['loss']:.3f}  {shown['samples_per_s']:.1f} samples/s" if shown else "")
            begun = time.monotonic()
            self._evaluate_and_save(bar)
            self.speed.begun += time.monotonic() - begun  # speed is that of the training
            traced()

    def _stopped(self) -> bool:
        """Whether some process was asked to stop."""
        group = self.group
        if group.world > 1 and group.device.type == "cuda" and self.done % STOP_EVERY:
            return False
        return group.any(self.stop.received)

    def _log_row(self, work: Work, rate: float, waited: float) -> None:
        found = self.step.read(work)
        self.step.check()  # before a row is written that is no JSON
        self.last = {"step": self.done, **found, "lr": rate, **self.speed.row(waited)}
        if self.log:
            self.log.record(self.last)

    def _evaluate_and_save(self, bar: Progress) -> None:
        """Whatever is due after a step."""
        config, last, best = self.config, self.done == self.config.steps, False
        if self.inputs.val and (last or (config.eval_every and self.done % config.eval_every == 0)):
            best = self._validate(bar)
        if config.pictures_every and self.done % config.pictures_every == 0:
            self._draw()
        if last or best or self.done % config.save_every == 0:
            self._save(best)

    def _validate(self, bar: Progress) -> bool:
        """Log the validation losses, of the averaged weights if there are; whether they are the best so far."""
        loss = self._measure_validation()
        best = self.best is None or loss < self.best
        self.best = loss if best else self.best
        if self.log:
            self.log.record({"step": self.done, **self.validation})
            baseline = self.baseline["val_unigram_cross_entropy"]
            bar.line(f"step {self.done}  validation loss {loss:.3f}  (guessing by token frequency {baseline:.3f})")
        return best

    def _measure_validation(self) -> float:
        """The validation losses, of the averaged weights if there are; the one over all scored tokens."""
        assert self.inputs.val is not None
        with self._averaged():
            self.validation = validate(self.step.net, self.inputs.val, self.config, self.group)
        if not math.isfinite(loss := self.validation["val_loss"]):
            raise UserError(
                f"the validation loss is not finite after step {self.done}; set a lower --lr and continue with "
                "--overwrite, or resume from the last checkpoint"
            )
        return loss

    def _draw(self) -> None:
        """A sheet of drawn validation samples in ``out/pictures``, by the first process."""
        if self.log:
            self._draw_sheet(self.log)
        self.group.wait()

    def _draw_sheet(self, log: Log) -> None:
        assert self.inputs.val is not None
        assert self.inputs.tokenizer is not None
        with self._averaged():
            drawn = draw_samples(self.step.net, self.inputs.tokenizer, self.inputs.val, self.config)
        path = self.out / "pictures" / f"step-{self.done:06d}.png"
        write_atomically(path, lambda temporary: drawn.save(temporary, format="png"))
        log.picture(self.done, drawn)

    def _averaged(self) -> AbstractContextManager[None]:
        return self.step.average.swapped() if self.step.average else nullcontext()

    # What is written

    def _save(self, best: bool = False) -> None:
        self.step.check()
        self.step.check_weights(self.done)
        facts = {
            "epoch": self.position.epoch, "batch": self.position.batch, "data": self.inputs.digest,
            "encoders": self.inputs.encoders, "best": self.best, "config": self.config.model_dump_json(),
        }  # fmt: skip
        step = self.step
        self.checkpoints.save(self.done, step.net, step.optimizer, facts, step.averages, best)

    def _finish(self) -> dict[str, Any]:
        """Save and sum up; the model folder only once the run is whole."""
        finished = self.done >= self.config.steps
        summary: dict[str, Any] = {
            "out": str(self.out), "finished": finished, "steps": self.done, "signal": self.stop.number,
            "shards": {source.name: source.sha256 for source in self.inputs.sources},
        }  # fmt: skip
        self._save()
        if finished:
            if self.inputs.val and not self.validation:
                self._measure_validation()
            save_model(
                self.out / "model", self.step.net, self.inputs.tokenizer, self.config.text,
                ema=self.step.averages, first=self.group.first,
            )  # fmt: skip
            summary |= {"loss": self.last.get("loss"), **self.validation}
        self.checkpoints.wait()
        summary["seconds"] = round(time.monotonic() - self.begun, 1)
        if not self.log:
            return summary
        summary |= ({"model": str(self.out / "model")} if finished else {}) | self.baseline
        content = json.dumps(summary, indent=2) + "\n"
        write_atomically(self.out / "summary.json", lambda path: path.write_text(content))
        self.log.close()
        return summary


def _remove(out: Path) -> None:
    """Take an earlier run out of a folder, and nothing else."""
    for path in (out / name for name in RUN_FILES):
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be removed ({error.strerror}); remove it, or give another --out"
            ) from error


def _same_settings(config: TrainConfig, before: dict[str, Any], out: Path) -> None:
    """Refuse to continue a run under other settings."""
    now = json.loads(config.model_dump_json())
    for key in sorted((set(now) | set(before)) - MAY_CHANGE):
        if now.get(key) != before.get(key):
            raise OtherRun(
                f"{out}: the run there has {key} = {before.get(key)}, not {now.get(key)}; resume with the same "
                "settings or give another --out"
            )
