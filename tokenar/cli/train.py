"""The command tokenar-train."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer

from data_schemas.commands import Version, say
from data_schemas.errors import UserError
from data_schemas.settings import suggest
from tokenar.cli.options import assigned
from tokenar.config import PRESETS, TrainConfig, read_settings, with_changes

SWEEPS = {
    "ablation": ["ablation.md", "ablation.png", "ablation.json"],
    "filters": ["filters.md", "filters.json"],
}
"""The modules of tokenar/sweeps that are sweeps, and what they write."""

app = typer.Typer(pretty_exceptions_enable=False)


@app.command("train")
def train(
    shards: Annotated[list[str] | None, typer.Option(help="Glob of training shards; repeatable, to mix sets.")] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="How often a sample is of each --shards, in proportion; repeatable.")
    ] = None,
    val_shards: Annotated[str | None, typer.Option(help="Glob of the validation shards.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run.  [default: runs/train]")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings to start from: " + ", ".join(PRESETS) + ".")] = None,
    config: Annotated[str | None, typer.Option(help="JSON file of settings, instead of a preset.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training samples, instead of --steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between log rows.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between validations; 0: at the end.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    index_embedding: Annotated[bool | None, typer.Option(help="Tell source tokens their picture.")] = None,
    identity_disentanglement: Annotated[bool | None, typer.Option(help="Predict the references again.")] = None,
    instruct_tokens: Annotated[int | None, typer.Option(help="Learned positions after the text; 0 is off.")] = None,
    tokenizer_weights: Annotated[str | None, typer.Option(help="File of the tokenizer.")] = None,
    start_from: Annotated[str | None, typer.Option(help="Checkpoint or model folder to begin with.")] = None,
    parallel: Annotated[str | None, typer.Option(help="Over processes: ddp, fsdp or hybrid.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    wandb: Annotated[bool | None, typer.Option("--wandb", help="Also log to Weights & Biases.")] = None,
    profile: Annotated[bool | None, typer.Option("--profile", help="Trace a few early steps.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: ema=0.999, model.layers=4; repeatable.")
    ] = None,
    sweep: Annotated[str | None, typer.Option(help="ablation: the paper's; filters: what curation is worth.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds of each run of a sweep.")] = 3,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier run first.")] = False,
    version: Version = False,
) -> None:
    """Train on shards. Several processes: torchrun --standalone --nproc-per-node 2 -m tokenar.cli train ..."""
    options = {
        "shards": shards[0] if shards else None, "also": tuple(shards[1:]) if shards else None,
        "weights": tuple(weight) if weight else None, "epochs": epochs,
        "val_shards": val_shards, "out": out, "steps": steps, "batch": batch, "lr": lr, "seed": seed,
        "log_every": log_every, "eval_every": eval_every, "save_every": save_every,
        "model__index_embedding": index_embedding, "model__instruct_tokens": instruct_tokens,
        "model__identity_disentanglement": identity_disentanglement, "tokenizer_weights": tokenizer_weights,
        "start_from": start_from, "parallel": parallel, "precision": precision, "wandb": wandb, "profile": profile,
    }  # fmt: skip
    changes = {key: value for key, value in options.items() if value is not None} | assigned(settings)
    start = _start(preset or ("cpu_ablation" if sweep else "cpu_quick"), config)
    run_config = with_changes(start, **changes)
    if steps and epochs:
        raise UserError("--steps and --epochs exclude each other; give one")
    if not run_config.shards:
        raise UserError("no training shards; give --shards 'folder/train-*.tar'")
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; give one")
    if sweep is not None:
        if sweep not in SWEEPS:
            raise UserError(f"no sweep {sweep!r}; {suggest(sweep, SWEEPS)}")
        import_module(f"tokenar.sweeps.{sweep}").sweep(run_config, seeds, say=typer.echo)
        typer.echo(f"{run_config.out}: {', '.join(SWEEPS[sweep])}")
        return
    from tokenar.train.loop import train_model

    summary = train_model(run_config, resume=resume, overwrite=overwrite)
    if not summary["finished"]:
        say(f"stopped after step {summary['steps']}, saved; continue with the same command and --resume")
        raise typer.Exit(128 + (summary["signal"] or 0))
    if "model" in summary:  # of several processes only the first one's summary has it
        typer.echo(_last_line(summary))


def _start(preset: str, config: str | None) -> TrainConfig:
    """The settings that the options change: those of a file, or of a preset."""
    if config is not None:
        return read_settings(config, TrainConfig)
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r}; {suggest(preset, PRESETS)}")
    return PRESETS[preset]()


def _last_line(summary: dict[str, Any]) -> str:
    from tokenar.train.validate import validation_line  # slow to import

    line = f"model: {summary['model']}"
    return f"{line}  {validation_line(summary)}" if "val_loss" in summary else line
