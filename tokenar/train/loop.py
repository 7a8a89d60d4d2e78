"""The trainer: reads shards, writes a run folder. A run that was stopped continues with bit-identical weights.

Everything random about step s (order of the data, guidance drops, dropout) depends on (seed, s) only. A checkpoint
therefore needs no random number generator state, and a resumed run draws the same numbers as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_schemas.errors import UserError
from data_schemas.io.documents import parse_json
from data_schemas.io.files import sweep, write_atomically
from data_schemas.io.new_folders import make_folder
from data_schemas.progress import Progress, tell
from tokenar.config import TrainConfig
from tokenar.data.prefetch import Prefetched
from tokenar.data.samples import Order, Position
from tokenar.device import device_name, own_random_numbers, repeatable
from tokenar.model.folder import save_model, start_folder
from tokenar.model.published import load_published
from tokenar.model.transformer import TokenAR
from tokenar.processes import Workers, workers
from tokenar.train.batches import StepBatches, rank_batches
from tokenar.train.checkpoint import Checkpoints
from tokenar.train.inputs import LoadInputs, load_inputs
from tokenar.train.log import Log, Speed, profiler, wandb_module
from tokenar.train.signals import StopSignal, stop_signals
from tokenar.train.step import Step
from tokenar.train.validate import draw_samples, unigram_losses, validate, validation_line

RUN_FILES = (
    "checkpoints", "tensorboard", "model", "pictures", "profile", "wandb", "wandb-id.txt", "metrics.jsonl",
    "summary.json", "tokenizer.safetensors", "evaluation", "ablation.json",
)  # fmt: skip
"""Everything that a run, its evaluation and a sweep write into the run folder. ``overwrite`` removes exactly these."""
MAY_CHANGE = {
    "steps", "epochs", "log_every", "eval_every", "pictures_every", "pictures", "save_every", "keep", "out", "wandb",
    "profile",
    "accumulation", "parallel", "compile", "activation_checkpointing", "deterministic",
}  # fmt: skip
"""Settings that may differ when a run is resumed. With a schedule that falls, another ``steps`` changes the learning
rates of the steps that follow. The settings of the last line change the order of sums, and so the last digits."""
STOP_EVERY = 5
"""On several GPUs the ranks ask each other every so many steps whether one got a stop signal: asking makes them wait
for each other."""


def train_model(
    config: TrainConfig,
    progress: Callable[[dict[str, Any]], None] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    load: LoadInputs = load_inputs,
) -> dict[str, Any]:
    """Train a model and return the summary that is also written to ``out/summary.json``.

    ``progress`` is called with every row that goes to ``out/metrics.jsonl``. ``resume`` continues from the newest
    undamaged checkpoint; ``overwrite`` first removes the files of an earlier run; ``load`` may have samples already.
    Raises UserError for data, folders and settings that cannot be used, and for a loss that is not finite.
    """
    if config.wandb:
        wandb_module()  # fails early if it is not installed
    with (
        repeatable(config.deterministic),  # must be set before anything is on a GPU
        workers() as group,
        own_random_numbers(group.device),
        stop_signals() as stop,
    ):
        return _Trainer(config, group, stop, progress, resume, overwrite, load).run()


class OtherRun(UserError):
    """The folder holds a run with other settings or other samples, which cannot be resumed with these."""


class _Trainer:
    """One training run. ``run`` calls the other methods in the order in which things happen."""

    def __init__(
        self,
        config: TrainConfig,
        group: Workers,
        stop: StopSignal,
        progress: Callable[[dict[str, Any]], None] | None,
        resume: bool,
        overwrite: bool,
        load: LoadInputs,
    ):
        self.config, self.group, self.stop, self.progress, self.load = config, group, stop, progress, load
        self.out = Path(config.out)
        self.begun = time.monotonic()
        self.steps_done = 0
        self.best_loss: float | None = None  # the lowest validation loss so far
        self.loss: float | None = None  # that of the last row of the log with training losses
        self.shown = ""  # what the progress bar shows of that row
        self.validation: dict[str, float] = {}  # the last validation losses
        self._open_out(resume, overwrite)
        self.checkpoints = Checkpoints(self.out, config.keep, group)
        self.step, self.resumed_data = self._build(resume)

    def run(self) -> dict[str, Any]:
        self._load_data()
        config, group = self.config, self.group
        stream = rank_batches(self.order, self.steps_done, self.inputs.train, config, self.step.net, group)
        bar = Progress("train", config.steps, every=config.log_every, initial=self.steps_done, show=group.first)
        with stream, bar, profiler(config, group) as traced:
            try:
                self._open_log()
                self._loop(stream, bar, traced)
                summary = self._finish()
            except BaseException:
                # Let a save in progress end. If it fails too, the first error is the one to report.
                with suppress(UserError):
                    self.checkpoints.wait()
                raise
        group.wait()
        return summary

    # Preparation

    def _open_out(self, resume: bool, overwrite: bool) -> None:
        """Make the run folder, or check that the existing one may be used."""
        if self.group.first and not resume:
            if self.out.exists() and not self.out.is_dir():
                raise UserError(f"{self.out}: is a file; give another --out")
            if overwrite:
                _remove_run(self.out)
            elif self.out.is_dir() and any(self.out.iterdir()):
                raise UserError(
                    f"{self.out}: not empty; continue with --resume, start again with --overwrite or give another --out"
                )
        if self.group.first:
            make_folder(self.out)
            for folder in (self.out, self.out / "model", self.out / "pictures"):
                sweep(folder)
        self.group.wait()

    def _build(self, resume: bool) -> tuple[Step, tuple[str, Any, Position] | None]:
        """Make network and optimiser, and load the newest checkpoint into them if the run is resumed.

        Returns the step and, for a resumed run, what its data must be: (digest of the samples, fingerprints of their
        encoders, position of the next batch).
        """
        config = self.config
        torch.manual_seed(config.seed)
        net = TokenAR(config.model).to(self.group.device)
        if config.start_from and not resume:
            folder = start_folder(config.start_from)
            load_published(net, folder / "model.safetensors" if folder else config.start_from)
        step = Step(net, config, self.group)
        if not resume:
            return step, None
        same = partial(_same_settings, config, self.out)
        facts = self.checkpoints.load(net, step.optimizer, step.averages, check=same)
        try:
            self.steps_done, self.best_loss, self.loss = int(facts["step"]), facts["best"], facts.get("loss")
            data = facts["data"], facts["encoders"], Position(int(facts["epoch"]), int(facts["batch"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.out}: its checkpoint is none of a training; start again with --overwrite"
            ) from error
        if self.group.first and self.steps_done < config.steps:
            # It sums up the run as it was; the resumed run writes a new one when it ends.
            (self.out / "summary.json").unlink(missing_ok=True)
        return step, data

    def _load_data(self) -> None:
        """Open or encode the samples, and set the position of the next batch."""
        config, resumed_data, position = self.config, self.resumed_data, Position()
        self.inputs = self.load(config, self.group, self.out / "tokenizer.safetensors", resumed_data is not None)
        if config.pictures_every and self.inputs.tokenizer is None:
            raise UserError("pictures_every: there is no tokenizer to draw with; set tokenizer_weights, or 0")
        if resumed_data is not None:
            digest, encoders, position = resumed_data
            if (digest, encoders) != (self.inputs.digest, self.inputs.encoders):
                raise OtherRun(
                    f"{self.out}: the run there began with other samples than those of {config.shards}; give another "
                    "--out, or start again with --overwrite"
                )
        self.position = position
        self.order = Order(self.inputs.train.references, config.batch, config.seed, position, self.inputs.mix)
        if config.epochs:
            self.config = self.step.config = config.model_copy(update={"steps": self.order.steps(config.epochs)})

    def _open_log(self) -> None:
        """Open the log. The first row of a new run has the unigram losses, the number of parameters and the device."""
        self.log = Log(self.config, self.steps_done, self.progress) if self.group.first else None
        tell("measuring the hardware's speed and what guessing by token frequency would reach", self.group.first)
        self.speed = Speed(self.step.net, self.config, self.group)
        self.baseline = unigram_losses(self.step.net, self.inputs.train, self.inputs.val) if self.log else {}
        if self.log and not self.steps_done:
            parameters = {"parameters": sum(p.numel() for p in self.step.net.parameters())}
            self.log.record({"step": 0, **self.baseline, **parameters, "device": device_name(self.group.device)})
        # The other ranks wait here on the host. In the first gradient sum on the device they would time out sooner.
        self.group.wait()

    # The loop

    def _loop(self, stream: Prefetched[Any, StepBatches], bar: Progress, traced: Callable[[], None]) -> None:
        config = self.config
        while self.steps_done < config.steps and not self._stopped():
            batches = next(stream)
            rate = self.step.update(batches)
            self.steps_done, self.position = self.steps_done + 1, batches.next_position
            self.speed.count(batches.samples, batches.scored_tokens, batches.references)
            if self.steps_done % config.log_every == 0 or self.steps_done == config.steps:
                self._log_row(batches, rate, stream.waited)
            bar.advance(self.shown)
            begun = time.monotonic()
            self._evaluate_and_save(bar)
            self.speed.begun += time.monotonic() - begun  # the logged speed is that of training alone
            traced()

    def _stopped(self) -> bool:
        """Whether any rank got a stop signal."""
        group = self.group
        if group.world > 1 and group.device.type == "cuda" and self.steps_done % STOP_EVERY:
            return False
        return group.any(self.stop.received)

    def _log_row(self, batches: StepBatches, rate: float, waited: float) -> None:
        values = self.step.read(batches)
        self.step.check()  # NaN must not get into a row, as JSON has none
        row = {"step": self.steps_done, **values, "lr": rate, **self.speed.row(waited)}
        self.loss = row["loss"]
        self.shown = f"loss {row['loss_target']:.3f}  {row['samples_per_s']:.1f} samples/s"
        if self.log:
            self.log.record(row)

    def _evaluate_and_save(self, bar: Progress) -> None:
        """Validate, draw pictures and save a checkpoint, each if it is due after this step."""
        config, last, best = self.config, self.steps_done == self.config.steps, False
        if self.inputs.val and (last or (config.eval_every and self.steps_done % config.eval_every == 0)):
            best = self._validate(bar)
        if config.pictures_every and self.steps_done % config.pictures_every == 0:
            self._draw()
        if last or best or self.steps_done % config.save_every == 0:
            self._save(best)

    def _validate(self, bar: Progress) -> bool:
        """Measure and log the validation losses. Returns whether they are the best so far."""
        loss = self._measure_validation()
        best = self.best_loss is None or loss < self.best_loss
        self.best_loss = loss if best else self.best_loss
        if self.log:
            self.log.record({"step": self.steps_done, **self.validation})
            bar.line(f"step {self.steps_done}  {validation_line(self.validation | self.baseline)}")
        return best

    def _measure_validation(self) -> float:
        """Set ``validation`` to the losses of the averaged weights, or of the weights if none are averaged.

        Returns the loss over all scored tokens. UserError if it is not finite.
        """
        assert self.inputs.val is not None
        with self._averaged():
            self.validation = validate(self.step.net, self.inputs.val, self.config, self.group)
        if not math.isfinite(loss := self.validation["val_loss"]):
            raise UserError(
                f"the validation loss is not finite after step {self.steps_done}; set a lower --lr and continue with "
                "--overwrite, or resume from the last checkpoint"
            )
        return loss

    def _draw(self) -> None:
        """The first rank draws some validation samples into ``out/pictures``; the others wait."""
        if self.log:
            assert self.inputs.val is not None
            assert self.inputs.tokenizer is not None
            with self._averaged():
                drawn = draw_samples(self.step.net, self.inputs.tokenizer, self.inputs.val, self.config)
            path = self.out / "pictures" / f"step-{self.steps_done:06d}.png"
            write_atomically(path, lambda temporary: drawn.save(temporary, format="png"))
            self.log.picture(self.steps_done, drawn)
        self.group.wait()

    def _averaged(self) -> AbstractContextManager[None]:
        return self.step.average.swapped() if self.step.average else nullcontext()

    # Saving

    def _save(self, best: bool = False) -> None:
        self.step.check()
        self.step.check_weights(self.steps_done)
        facts = {
            "epoch": self.position.epoch, "batch": self.position.batch, "data": self.inputs.digest,
            "encoders": self.inputs.encoders, "best": self.best_loss, "loss": self.loss,
            "config": self.config.model_dump_json(),
        }  # fmt: skip
        self.checkpoints.save(self.steps_done, self.step.net, self.step.optimizer, facts, self.step.averages, best)

    def _finish(self) -> dict[str, Any]:
        """Save a checkpoint and the summary. The model folder is written only if all steps are done."""
        finished = self.steps_done >= self.config.steps
        summary: dict[str, Any] = {
            "out": str(self.out), "finished": finished, "steps": self.steps_done, "signal": self.stop.number,
            "shards": [source.model_dump() for source in self.inputs.sources],
        }  # fmt: skip
        self._save()
        if finished:
            if self.inputs.val and not self.validation:
                self._measure_validation()
            save_model(
                self.out / "model", self.step.net, self.inputs.tokenizer, self.config.text,
                ema=self.step.averages, first=self.group.first,
            )  # fmt: skip
            summary |= {"loss": self.loss, **self.validation}
        self.checkpoints.wait()
        summary["seconds"] = round(time.monotonic() - self.begun, 1)
        if not self.log:
            return summary
        summary |= ({"model": str(self.out / "model")} if finished else {}) | self.baseline
        write_atomically(self.out / "summary.json", lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"))
        self.log.close()
        return summary


def _remove_run(out: Path) -> None:
    """Remove the files of an earlier run from its folder, and nothing else."""
    for path in (out / name for name in RUN_FILES):
        try:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be removed ({error.strerror}); remove it, or give another --out"
            ) from error


def _same_settings(config: TrainConfig, out: Path, facts: dict[str, Any]) -> None:
    """OtherRun if a setting that must not change differs from that in a checkpoint's facts."""
    now, saved = json.loads(config.model_dump_json()), parse_json(facts["config"], "config")
    for key in sorted((set(now) | set(saved)) - MAY_CHANGE):
        if now.get(key) != saved.get(key):
            raise OtherRun(
                f"{out}: the run there has {key} = {saved.get(key)}, not {now.get(key)}; resume with the same "
                "settings or give another --out"
            )
