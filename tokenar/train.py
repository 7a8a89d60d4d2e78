"""The trainer: shards in, a run folder out. Continues after a stop with bit-identical weights.

All that is random about step s follows from (seed, s): the order of the data, the guidance drops, the dropout. So a
checkpoint needs no generator state, and a resumed run draws what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from data_schemas.errors import UserError
from tokenar import checkpoint, data
from tokenar.config import TrainConfig
from tokenar.model import TokenAR
from tokenar.parallel import Workers, workers
from tokenar.progress import Progress
from tokenar.signals import StopSignal, stop_signals
from tokenar.text import HashedWords
from tokenar.tokenizers import PatchCodebook

RUN_FILES = ("checkpoints", "tensorboard", "model", "metrics.jsonl", "summary.json", "tokenizer.safetensors")
MAY_CHANGE = {"steps", "log_every", "eval_every", "save_every", "keep", "out"}
"""Settings that a resumed run may have different. With the cosine schedule ``steps`` bends the rest of the curve."""


def train(
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
    with workers() as group, _deterministic(), stop_signals() as stop:
        return _Trainer(config, group, stop, progress, resume, overwrite).run()


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels and untouched global random numbers for the caller."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng():
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step 0, 1, ...: linear warm-up, then constant or a cosine down to 5 %."""
    warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return config.lr * warm
    return config.lr * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


def make_optimizer(net: TokenAR, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups (spec section 10): tensors of two or more dimensions decay, the norms do not."""
    parameters = list(net.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8)


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
        self.state = self._open_out(resume, overwrite)
        self.step = 0
        self.begun = time.monotonic()

    def run(self) -> dict[str, Any]:
        self._load_data(resumed=self.state is not None)
        self._build()
        if self.group.first:
            self.writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step or None)
            self._open_metrics()
        name = "train"
        options = {"every": self.config.log_every, "initial": self.step, "show": self.group.first}
        with Progress(name, self.config.steps, **options) as bar:  # type: ignore[arg-type]
            self._loop(bar)
        summary = self._finish()
        self.group.wait()
        return summary

    # Preparation

    def _open_out(self, resume: bool, overwrite: bool) -> dict[str, Any] | None:
        """Check the run folder; the checkpoint to continue from, if any."""
        state = None
        if resume:
            state = checkpoint.newest_checkpoint(self.out)
            _same_settings(self.config, json.loads(state["config"]), self.out)
        elif self.group.first:
            if self.out.exists() and not self.out.is_dir():
                raise UserError(f"{self.out}: is a file; give another --out")
            if overwrite:
                for name in RUN_FILES:
                    shutil.rmtree(self.out / name, ignore_errors=True)
                    (self.out / name).unlink(missing_ok=True)
            elif self.out.is_dir() and any(self.out.iterdir()):
                raise UserError(
                    f"{self.out}: not empty; continue with --resume, start again with --overwrite or give another --out"
                )
        if self.group.first:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{self.out}: cannot be made ({error.strerror}); give another --out") from error
        self.group.wait()
        return state

    def _load_data(self, resumed: bool) -> None:
        """Read the shards, fit or load the tokenizer, and encode everything once."""
        config = self.config
        size, most = config.tokenizer.image_size, config.model.max_references
        train_set = data.read_resized(config.shards, size, most)
        val_set = data.read_resized(config.val_shards, size, most) if config.val_shards else []
        varied = data.variations(train_set, config.variations, config.tokenizer.patch, config.seed)
        path = self.out / "tokenizer.safetensors"
        if self.group.first and not resumed:
            fitted = torch.cat([sample.pixels for copy in varied[:2] for sample in copy])
            codebook = PatchCodebook.fit(config.tokenizer, data.as_float(fitted))
            checkpoint.write_atomically(path, codebook.save)
        self.group.wait()
        self.tokenizer = PatchCodebook.load(path)
        text = HashedWords(config.text)
        self.copies = [data.encode(copy, self.tokenizer, text) for copy in varied]
        self.val_set = data.encode(val_set, self.tokenizer, text) if val_set else []
        names = "\n".join(sample.sample_id for sample in train_set)
        self.data_digest = hashlib.sha256(names.encode()).hexdigest()

    def _build(self) -> None:
        """Network, optimiser and order, new or from the checkpoint."""
        config = self.config
        torch.manual_seed(config.seed)
        self.net = TokenAR(config.model).to(self.group.device)
        self.optimizer = make_optimizer(self.net, config)
        position = data.Position()
        if self.state is not None:
            if self.state["data"] != self.data_digest:
                raise UserError(f"{config.shards}: other samples than the run began with; start again with --overwrite")
            self.net.load_state_dict(self.state["model"])
            self.optimizer.load_state_dict(self.state["optimizer"])
            self.step = self.state["step"]
            position = data.Position(self.state["epoch"], self.state["batch"])
            self.state = None
        references = [sample.references for sample in self.copies[0]]
        self.order = data.Order(references, config.batch, config.seed, position)
        self.parallel: nn.Module = self.net
        if self.group.world > 1:
            self.parallel = DistributedDataParallel(self.net)

    def _open_metrics(self) -> None:
        """Drop rows that a stopped run wrote after its last checkpoint; a new run begins with the unigram figures."""
        path = self.out / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if self.step and path.exists() else []
        kept = [row for row in rows if row["step"] <= self.step]
        checkpoint.write_atomically(path, lambda p: p.write_text("".join(json.dumps(row) + "\n" for row in kept)))
        self.baseline = self._baseline()
        if not self.step:
            self._record({"step": 0, **self.baseline, "parameters": sum(p.numel() for p in self.net.parameters())})

    def _baseline(self) -> dict[str, Any]:
        """Unigram figures of the scored tokens, and of the picture's tokens alone."""
        vocabulary = self.config.model.vocabulary

        def scored(samples: list[data.Encoded], picture_only: bool) -> Tensor | None:
            if not samples:
                return None
            parts = [s.picture if picture_only else self.net.target_tokens(s.sources[None], s.picture[None])[0]
                     for s in samples]  # fmt: skip
            return torch.cat(parts)

        rows: dict[str, Any] = {}
        for suffix, only in (("", False), ("_target", True)):
            tokens = scored(self.copies[0], only)
            assert tokens is not None
            entropy, cross = unigram(tokens, scored(self.val_set, only), vocabulary)
            rows |= {f"unigram_entropy{suffix}": entropy, f"val_unigram_cross_entropy{suffix}": cross}
        return rows

    # The loop

    def _loop(self, bar: Progress) -> None:
        config = self.config
        window, samples, tokens = time.monotonic(), 0, 0
        self.last: dict[str, Any] = {}
        while self.step < config.steps and not self.group.any(self.stop.received):
            chosen = self.order.position.epoch, self.order.next()
            loss, norm, rate = self._update(*chosen)
            self.step += 1
            samples += len(chosen[1])
            tokens += len(chosen[1]) * self.net.layout(self.copies[0][chosen[1][0]].references).target_tokens
            if self.group.first and (self.step % config.log_every == 0 or self.step == config.steps):
                seconds = time.monotonic() - window
                self.last = {
                    "step": self.step, "loss": loss, "samples_per_s": samples / seconds,
                    "tokens_per_s": tokens / seconds, "lr": rate, "grad_norm": norm,
                }  # fmt: skip
                self._record(self.last)
                window, samples, tokens = time.monotonic(), 0, 0
            spent = self.last.get("samples_per_s")
            bar.advance(f"loss {loss:.3f}" + (f"  {spent:.1f} samples/s" if spent else ""))
            self._evaluate_and_save(bar)

    def _update(self, epoch: int, chosen: list[int]) -> tuple[float, float, float]:
        """One optimiser step on a batch; (mean loss over all processes, gradient norm, learning rate)."""
        config, group, step = self.config, self.group, self.step
        draws = torch.rand(len(chosen), generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step))
        torch.manual_seed((config.seed * 1_000_003 + step) * group.world + group.rank)
        mine = data.rank_share(range(len(chosen)), group.rank, group.world)
        share = mine or [0]  # a last batch smaller than the number of processes: take part with weight zero
        batch = data.collate([self._pick(chosen[i], epoch) for i in share])
        self.parallel.train()
        loss = self._loss_sum(batch, draws[share]) * (len(mine) > 0)
        layout = self.net.layout(batch.sources.shape[1] - 1)
        loss = loss / (len(chosen) * layout.target_tokens)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * group.world).backward()
        norm = float(nn.utils.clip_grad_norm_(self.net.parameters(), config.clip))
        total = float(group.total(loss.detach().clone()))
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise UserError(
                f"the loss is not finite at step {step + 1}; set a lower --lr and continue with --overwrite"
            )
        rate = learning_rate(config, step)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        self.optimizer.step()
        return total, norm, rate

    def _pick(self, number: int, epoch: int) -> data.Encoded:
        """Sample ``number`` in the copy that is its turn in this epoch."""
        return self.copies[(number + epoch) % len(self.copies)][number]

    def _loss_sum(self, batch: data.Batch, draws: Tensor) -> Tensor:
        device = self.group.device
        sources, picture = batch.sources.to(device), batch.picture.to(device)
        logits = self.parallel(sources, batch.text.to(device), picture, draws.to(device), self.config.drops)
        wanted = self.net.target_tokens(sources, picture)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean cross entropy of the validation samples in nats: all scored tokens, the picture's, the references'."""
        self.net.eval()
        sums = {"val_loss": [0.0, 0], "val_loss_target": [0.0, 0], "val_loss_references": [0.0, 0]}
        n = self.config.model.image_tokens
        for chosen in data.epoch_batches([s.references for s in self.val_set], self.config.batch, 0, 0):
            batch = data.collate([self.val_set[i] for i in chosen])
            device = self.group.device
            sources, picture = batch.sources.to(device), batch.picture.to(device)
            logits = self.net(sources, batch.text.to(device), picture)
            wanted = self.net.target_tokens(sources, picture)
            losses = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
            for key, part in zip(sums, (losses, losses[:, -n:], losses[:, :-n]), strict=True):
                sums[key][0] += part.sum().item()
                sums[key][1] += part.numel()
        return {key: total / count for key, (total, count) in sums.items() if count}

    def _evaluate_and_save(self, bar: Progress) -> None:
        """Whatever is due after a step, on the first process."""
        config, last = self.config, self.step == self.config.steps
        if not self.group.first:
            return
        due = last or (config.eval_every and self.step % config.eval_every == 0)
        if self.val_set and due:
            row = {"step": self.step, **self.validate()}
            self._record(row)
            baseline = self.baseline["val_unigram_cross_entropy"]
            bar.line(f"step {self.step}  validation loss {row['val_loss']:.3f}  (unigram {baseline:.3f})")
        if last or self.step % config.save_every == 0:
            self._save()

    # What is written

    def _record(self, row: dict[str, Any]) -> None:
        with open(self.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        for key, value in row.items():
            if key != "step" and value is not None:
                self.writer.add_scalar(key, value, row["step"])
        if self.progress is not None:
            self.progress(row)

    def _save(self) -> None:
        state = {
            "step": self.step, "model": self.net.state_dict(), "optimizer": self.optimizer.state_dict(),
            "epoch": self.order.position.epoch, "batch": self.order.position.batch, "data": self.data_digest,
            "config": self.config.model_dump_json(),
        }  # fmt: skip
        checkpoint.save_checkpoint(self.out, state, self.config.keep)

    def _finish(self) -> dict[str, Any]:
        """Save and sum up; the model folder only once the run is whole."""
        finished = self.step >= self.config.steps
        summary: dict[str, Any] = {
            "out": str(self.out), "finished": finished, "steps": self.step, "signal": self.stop.number,
            "seconds": round(time.monotonic() - self.begun, 1),
        }  # fmt: skip
        if not self.group.first:
            return summary
        if finished:
            checkpoint.save_model(self.out / "model", self.net, self.tokenizer, self.config.text)
            validation = self.validate() if self.val_set else {}
            summary |= {"model": str(self.out / "model"), "loss": self.last.get("loss"), **validation, **self.baseline}
        else:
            self._save()
        content = json.dumps(summary, indent=2) + "\n"
        checkpoint.write_atomically(self.out / "summary.json", lambda path: path.write_text(content))
        self.writer.close()
        return summary


def _same_settings(config: TrainConfig, before: dict[str, Any], out: Path) -> None:
    """Refuse to continue a run under other settings."""
    now = json.loads(config.model_dump_json())
    for key in sorted((set(now) | set(before)) - MAY_CHANGE):
        if now.get(key) != before.get(key):
            raise UserError(
                f"{out}: the run there has {key} = {before.get(key)}, not {now.get(key)}; resume with the same "
                "settings or give another --out"
            )
