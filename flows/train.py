"""The Prefect flow of the model: encode the shards, train on them and evaluate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact

from data_schemas.errors import UserError
from data_schemas.shards import expand_shards
from flows.engine import callable_of, reports_mistakes, under_prefect
from flows.evaluate import evaluate_tokenar
from tokenar.config import PRESETS, TrainConfig, read_settings, with_changes
from tokenar.data.encode import EncodeConfig, encode_shards
from tokenar.data.shard_index import is_encoded
from tokenar.encoders.config import T5Config, VqConfig
from tokenar.train.loop import RUN_FILES, train_model


@flow(name="train-tokenar", log_prints=True)
@reports_mistakes
def train_tokenar(
    shards: str = "runs/quickstart/dataset/train-*.tar",
    val_shards: str | None = "runs/quickstart/dataset/test-*.tar",
    out: str = "runs/quickstart/training",
    preset: str = "cpu_quick",
    settings: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    processes: int = 1,
    resume: bool = False,
    overwrite: bool = False,
) -> dict:
    """Encode the shards if the config has frozen encoders, train, and evaluate on ``val_shards``.

    A training in ``out`` with the same settings and samples is continued, or kept if it has finished. A training that
    was interrupted has a checkpoint but no model, so it is not evaluated.

    Args:
        shards: Glob of the training shards.
        val_shards: Glob of the validation shards; without one nothing is validated or evaluated.
        out: Folder of the training. Any other training there is refused and left untouched.
        preset: Name of the settings to start from.
        settings: JSON file of settings, instead of a preset.
        steps: Updates of the weights, instead of those of the settings.
        seed: Seed of weights and order, instead of that of the settings.
        processes: Training processes on this machine (torchrun), one for each GPU.
        resume: Whether there must be a training to continue.
        overwrite: Whether another training in the folder is removed first.

    Returns:
        The losses and the paths of the results.
    """
    if settings is None and preset not in PRESETS:
        raise UserError(f"no preset {preset!r}; there is: {', '.join(PRESETS)}")
    config = read_settings(settings, TrainConfig) if settings is not None else PRESETS[preset]()
    if resume and overwrite:
        raise UserError("resume and overwrite exclude each other; set one")
    changes = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    config = with_changes(config, shards=shards, val_shards=val_shards, out=out, **changes)
    if isinstance(config.tokenizer, VqConfig) and not is_encoded(expand_shards(shards)[0]):
        encoded = {"shards": _encoded(config, shards, "train", processes)}
        if val_shards:
            encoded["val_shards"] = _encoded(config, val_shards, "val", processes)
        config = with_changes(config, **encoded)
    if not (resume or overwrite):
        resume, overwrite = _found(Path(out))
    summary = callable_of(train_task)(config, processes, resume, overwrite)
    if under_prefect():
        create_table_artifact([summary], key="training", description="Losses in nats a token, and the model's place")
    if val_shards and "model" in summary:
        evaluated = callable_of(evaluate_tokenar)([summary["model"]], shards=val_shards, out=f"{out}/evaluation")
        summary |= {"evaluation": evaluated}
    return summary


def _found(out: Path) -> tuple[bool, bool]:
    """(resume, overwrite) for what is in ``out``: resume from a checkpoint, overwrite a training that saved none."""
    if any(out.glob("checkpoints/step-*")):
        print(f"{out}: goes on from what is there")
        return True, False
    left = {path.name for path in out.iterdir()} if out.is_dir() else set()
    return False, bool(left) and left <= set(RUN_FILES) - {"model"}


def _encoded(config: TrainConfig, shards: str, name: str, processes: int) -> str:
    """Glob of the encoded copies of the shards in ``<out>-encoded/<name>``. Complete ones are not made again."""
    if config.tokenizer_weights is None or not isinstance(config.text, T5Config):
        raise UserError(f"{shards}: raw shards; set tokenizer_weights (the VQ tokenizer's file) and a T5 as text")
    assert isinstance(config.tokenizer, VqConfig)
    folder = f"{config.out}-encoded/{name}"
    wanted = EncodeConfig(
        shards=shards, out=folder, vq=config.tokenizer_weights, vq_config=config.tokenizer,
        image_size=config.image_size, text=config.text, teacher=config.teacher,
        keep_padding=config.model.text_padding == "attended",
    )  # fmt: skip
    callable_of(encode_task)(wanted, processes)
    return f"{folder}/*.tar"


@task(task_run_name="encode {config.out}")
def encode_task(config: EncodeConfig, processes: int) -> None:
    if processes == 1:
        encode_shards(config)
    else:
        _torchrun(processes, "encode", config.model_dump_json(), Path(config.out).with_suffix(".json"))


@task(task_run_name="train {config.out}")
def train_task(config: TrainConfig, processes: int, resume: bool, overwrite: bool) -> dict[str, Any]:
    if processes == 1:
        return train_model(config, resume=resume, overwrite=overwrite)
    options = ["--resume"] * resume + ["--overwrite"] * overwrite
    out = Path(config.out)
    _torchrun(processes, "train", config.model_dump_json(), out.with_name(f"{out.name}-settings.json"), *options)
    return json.loads((out / "summary.json").read_text())


def _torchrun(processes: int, command: str, settings: str, file: Path, *options: str) -> None:
    """Run a command of tokenar.cli in several processes on this machine and pass on what it prints.

    Raises UserError with the first error line if it fails.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(settings)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    launch += ["-m", "tokenar.cli", command, "--config", str(file), *options]
    complaint = None
    with subprocess.Popen(launch, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        try:
            for line in process.stderr or ():
                print(line.rstrip("\n"))
                if complaint is None and line.startswith("error: "):
                    complaint = line.removeprefix("error: ").strip()
        except BaseException:
            process.terminate()  # the trainer saves a checkpoint before it exits
            raise
    if process.returncode:
        raise UserError(complaint or f"{command} ended with status {process.returncode}")
