"""The commands tokenar-encode, tokenar-train, tokenar-sample, tokenar-eval and tokenar-attention.

Whatever a user can get wrong ends in one line on stderr and exit code 2. A run that was asked to stop says so and
leaves with 128 plus the number of the signal, after saving.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from data_schemas import commands
from data_schemas.commands import Version, say
from data_schemas.errors import UserError
from data_schemas.io import documents
from data_schemas.settings import suggest
from tokenar.config import (
    MAX_SAMPLES,
    PRESETS,
    SampleConfig,
    TrainConfig,
    read_settings,
    read_train_config,
    with_changes,
)
from tokenar.encoders.config import check_folder

encode_app = typer.Typer(pretty_exceptions_enable=False)
train_app = typer.Typer(pretty_exceptions_enable=False)
sample_app = typer.Typer(pretty_exceptions_enable=False)
eval_app = typer.Typer(pretty_exceptions_enable=False)
attention_app = typer.Typer(pretty_exceptions_enable=False)

Shards = Annotated[str, typer.Option(help="Glob of shards, such as 'data/test-*.tar'.")]
ModelFolder = Annotated[str, typer.Option(help="The 'model' folder of a finished run.")]


def _folder(path: str) -> str:
    try:
        return check_folder(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Out = Annotated[str, typer.Option(help="Folder to write to.", callback=_folder)]
Limit = Annotated[int | None, typer.Option(min=1, max=MAX_SAMPLES, help="Only the first samples.")]
Seed = Annotated[int, typer.Option(help="Sample i is drawn with seed + i.")]
Guidance = Annotated[float, typer.Option(help="Weight of the text; 1 is off.")]
Temperature = Annotated[float, typer.Option(help="Below 1 plainer, above 1 wilder.")]
TopK = Annotated[int, typer.Option(help="Only the k most probable tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Only the most probable tokens up to this share; 1 is off.")]
DEFAULT = SampleConfig()


@encode_app.command("encode")
def encode_command(
    shards: Annotated[str | None, typer.Option(help="Glob of the raw shards.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the encoded shards.")] = None,
    vq: Annotated[str | None, typer.Option(help="Weights of the VQ tokenizer: vq_ds16_t2i.pt or safetensors.")] = None,
    t5: Annotated[str | None, typer.Option(help="Text encoder: a Hugging Face id or a folder.")] = None,
    teacher: Annotated[bool, typer.Option(help="Also make the distillation targets.")] = True,
    keep_padding: Annotated[
        bool | None, typer.Option(help="Also the captions' padding, which `released` reads.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the pictures in pixels.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples encoded at once.")] = None,
    vq_batch: Annotated[int | None, typer.Option(help="Pictures in the VQ tokenizer at once.")] = None,
    config: Annotated[str | None, typer.Option(help="JSON file of settings, instead of the options.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make shards again that other encoders made.")] = False,
    version: Version = False,
) -> None:
    """Run the frozen encoders over shards once, before training. Several GPUs: torchrun -m tokenar.cli encode ..."""
    from tokenar.encoders.config import EncodeConfig

    given = {
        "shards": shards, "out": out, "vq": vq, "text": {"model": t5} if t5 else None, "keep_padding": keep_padding,
        "image_size": image_size, "batch": batch, "vq_batch": vq_batch,
    }  # fmt: skip
    values = {key: value for key, value in given.items() if value is not None} | ({} if teacher else {"teacher": None})
    if config is not None:
        if values:
            raise UserError(f"--config and --{next(iter(values))} exclude each other; give one")
        settings = read_settings(config, EncodeConfig)
    else:
        if missing := [f"--{name}" for name in ("shards", "out", "vq") if name not in values]:
            raise UserError(f"{', '.join(missing)} missing; say what to encode, with what, and where to")
        settings = EncodeConfig.parse(values, "settings")
    from tokenar.data.encode import encode_shards

    done = encode_shards(settings, overwrite=overwrite)
    _tell(f"{settings.out}: {done['encoded']} shards encoded, {done['there']} there already")


@train_app.command()
def train(
    shards: Annotated[str | None, typer.Option(help="Glob of the training shards.")] = None,
    val_shards: Annotated[str | None, typer.Option(help="Glob of the validation shards.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run.  [default: runs/train]")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings to start from: " + ", ".join(PRESETS) + ".")] = None,
    config: Annotated[str | None, typer.Option(help="JSON file of settings, instead of a preset.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between log rows.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between validations; 0: at the end.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    index_embedding: Annotated[bool | None, typer.Option(help="Tell source tokens their picture.")] = None,
    identity_disentanglement: Annotated[bool | None, typer.Option(help="Predict the references again.")] = None,
    instruct_tokens: Annotated[int | None, typer.Option(help="Learned positions after the text; 0 is off.")] = None,
    tokenizer_weights: Annotated[str | None, typer.Option(help="File of the VQ tokenizer.")] = None,
    start_from: Annotated[str | None, typer.Option(help="Published checkpoint to begin with.")] = None,
    parallel: Annotated[str | None, typer.Option(help="Over processes: ddp, fsdp or hybrid.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    wandb: Annotated[bool | None, typer.Option("--wandb", help="Also log to Weights & Biases.")] = None,
    profile: Annotated[bool | None, typer.Option("--profile", help="Trace a few early steps.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any other setting: ema=0.999, model.layers=4; repeatable.")
    ] = None,
    sweep: Annotated[str | None, typer.Option(help="'ablation': train and measure the paper's ablations.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Seeds of each run of a sweep.")] = 3,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier run first.")] = False,
    version: Version = False,
) -> None:
    """Train on shards. Several processes: torchrun --standalone --nproc-per-node 2 -m tokenar.cli train ..."""
    given = {
        "shards": shards, "val_shards": val_shards, "out": out, "steps": steps, "batch": batch, "lr": lr, "seed": seed,
        "log_every": log_every, "eval_every": eval_every, "save_every": save_every,
        "model__index_embedding": index_embedding, "model__instruct_tokens": instruct_tokens,
        "model__identity_disentanglement": identity_disentanglement, "tokenizer_weights": tokenizer_weights,
        "start_from": start_from, "parallel": parallel, "precision": precision, "wandb": wandb, "profile": profile,
    }  # fmt: skip
    changes = {key: value for key, value in given.items() if value is not None} | _assigned(settings or [])
    start = _start(preset or ("cpu_ablation" if sweep else "cpu_small"), config)
    run_config = with_changes(start, **changes)
    if not run_config.shards:
        raise UserError("no training shards; give --shards 'folder/train-*.tar'")
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; give one")
    if sweep is not None:
        if sweep != "ablation":
            raise UserError(f"no sweep {sweep!r}; {suggest(sweep, ['ablation'])}")
        from tokenar.ablation import sweep as run_sweep

        run_sweep(run_config, seeds, say=typer.echo)
        typer.echo(f"{run_config.out}: ablation.md, ablation.png, ablation.json")
        return
    from tokenar.train.loop import train_model

    summary = train_model(run_config, resume=resume, overwrite=overwrite)
    if not summary["finished"]:
        say(f"stopped after step {summary['steps']}, saved; continue with the same command and --resume")
        raise typer.Exit(128 + (summary["signal"] or 0))
    if "model" in summary:  # only the first of several processes has it
        typer.echo(_train_line(summary))


def _assigned(settings: list[str]) -> dict[str, object]:
    """``name=value`` or ``part.name=value`` as what with_changes takes; values are JSON, or else text.

    What is no JSON is left to the setting that it is meant for: a number's says that it is none.
    """
    changes: dict[str, object] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise UserError(f"--set {setting}: no value; write name=value, such as ema=0.999 or model.layers=4")
        try:
            changes[name.replace(".", "__")] = documents.parse_json(value, name)
        except UserError:
            changes[name.replace(".", "__")] = value
    return changes


def _start(preset: str, config: str | None) -> TrainConfig:
    if config is not None:
        return read_train_config(config)
    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r}; {suggest(preset, PRESETS)}")
    return PRESETS[preset]()


def _train_line(summary: dict[str, Any]) -> str:
    line = f"model: {summary['model']}"
    if "val_loss" in summary:
        line += f"  validation loss {summary['val_loss']:.3f}"
        line += f", guessing by token frequency {summary['val_unigram_cross_entropy']:.3f}"
    return line


@sample_app.command()
def sample(
    model: ModelFolder,
    out: Out,
    shards: Annotated[str | None, typer.Option(help="Glob of shards, such as 'data/test-*.tar'.")] = None,
    folder: Annotated[
        str | None, typer.Option(help="Folder with ref/, background.png, description.txt, or a folder of such folders.")
    ] = None,
    list_: Annotated[
        str | None, typer.Option("--list", help="JSON list of objects with references, background and prompt.")
    ] = None,
    limit: Limit = None,
    seed: Seed = DEFAULT.seed,
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Pictures of each sample, from one reading of it.")] = 1,
    guidance: Guidance = DEFAULT.guidance,
    image_guidance: Annotated[
        float, typer.Option(help="Weight of references and background; 1 is off.")
    ] = DEFAULT.image_guidance,
    temperature: Temperature = DEFAULT.temperature,
    top_k: TopK = DEFAULT.top_k,
    top_p: TopP = DEFAULT.top_p,
    copies: Annotated[str, typer.Option(help="The references' copies: given, drawn or verified.")] = DEFAULT.copies,
    batch: Annotated[int, typer.Option(min=1, help="Samples drawn at once.")] = DEFAULT.batch,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any other setting: guided_tokens=64.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show pictures as they grow.")] = False,
    version: Version = False,
) -> None:
    """Draw pictures. On several GPUs: torchrun --standalone --nproc-per-node 2 -m tokenar.cli sample ..."""
    if sum(place is not None for place in (shards, folder, list_)) != 1:
        raise UserError("give one of --shards, --folder and --list")
    values: dict[str, object] = {
        "seed": seed, "guidance": guidance, "image_guidance": image_guidance, "temperature": temperature,
        "top_k": top_k, "top_p": top_p, "copies": copies, "batch": batch, **_assigned(settings or []),
    }  # fmt: skip
    config = SampleConfig.parse(values, "settings")
    from tokenar.sample import requests
    from tokenar.sample.sampler import sample_pictures

    places = {requests.from_shards: shards, requests.from_folder: folder, requests.from_list: list_}
    ((read, place),) = [(read, place) for read, place in places.items() if place is not None]
    drawn = sample_pictures(model, read(place, limit), out, config, seeds=seeds, preview=preview)
    _tell(f"{len(drawn)} picture{'' if len(drawn) == 1 else 's'}: {out}")


@eval_app.command("eval")
def evaluate(
    shards: Shards,
    out: Out,
    model: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]DIR", help="The 'model' folder of a run; repeatable.")
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]DIR", help="Pictures of any method: <sample_id>.png; repeatable."),
    ] = None,
    encoders: Annotated[str | None, typer.Option(help="'paper': the published encoders of every figure.")] = None,
    config: Annotated[str | None, typer.Option(help="JSON file of settings.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting: lpips=PATH, side=512, sampling.copies=verified; repeatable."),
    ] = None,
    limit: Limit = None,
    seed: Seed = DEFAULT.seed,
    guidance: Guidance = DEFAULT.guidance,
    temperature: Temperature = DEFAULT.temperature,
    top_k: TopK = DEFAULT.top_k,
    top_p: TopP = DEFAULT.top_p,
    version: Version = False,
) -> None:
    """Compare drawn pictures with the true ones. Several processes: torchrun ... -m tokenar.cli eval ..."""
    from tokenar.evaluate.config import EvalConfig, encoders_of

    start = read_settings(config, EvalConfig).model_dump() if config is not None else {}
    changes = (encoders_of(encoders) if encoders is not None else {}) | _assigned(settings or [])
    sampling: dict[str, object] = {
        "seed": seed,
        "guidance": guidance,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    for name in [name for name in changes if name.startswith("sampling__")]:
        sampling[name.removeprefix("sampling__")] = changes.pop(name)
    measured = EvalConfig.parse(start | changes, "settings")
    drawn = SampleConfig.parse(sampling, "sampling")
    from tokenar.evaluate.run import evaluate_models

    evaluate_models(
        shards, out, models=_named(model or []), predictions=_named(predictions or []), config=measured,
        sampling=drawn, limit=limit,
    )  # fmt: skip
    _tell((Path(out) / "table.md").read_text())
    _tell(f"{out}: table.md, table.tex, metrics.json, per_sample.parquet, grid.png")


def _named(given: list[str]) -> dict[str, Path]:
    """``NAME=DIR`` or ``DIR`` as name -> folder; a folder that is there is never taken apart."""
    from tokenar.evaluate.methods import named

    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        pair = {name: Path(path)} if equals and not Path(text).is_dir() else named([text])
        if both := found.keys() & pair.keys():
            raise UserError(f"{text}: a second method would be called {min(both)!r}; give each its own: NAME=DIR")
        found |= pair
    return found


@attention_app.command("attention")
def attention(
    model: ModelFolder,
    shards: Shards,
    out: Out,
    limit: Limit = None,
    layers: Annotated[str | None, typer.Option(help="Layers in the heat maps: 0,5,11. Else up to four.")] = None,
    heads: Annotated[bool, typer.Option("--heads", help="Keep every head in the arrays.")] = False,
    predictions: Annotated[str | None, typer.Option(help="Folder of drawn pictures to take as targets.")] = None,
    version: Version = False,
) -> None:
    """See where each part of a picture looks, layer by layer."""
    chosen = None if layers is None else _numbers("--layers", layers)
    from tokenar.attention.report import write_maps

    result = write_maps(model, shards, out, layers=chosen, heads=heads, predictions=predictions, limit=limit)
    line = f"{out}/attention.json: {result['samples']} samples"
    if result["identity"] is not None:
        line += f", identity {result['identity']:.3f} (chance {result['identity_chance']:.3f})"
    typer.echo(line)


def _numbers(option: str, text: str) -> list[int]:
    """``0,5,11`` as numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text}: not numbers; write them with commas, such as 0,5,11") from error


def _tell(result: str) -> None:
    """Print what came of a command; of several processes the first speaks."""
    if not int(os.environ.get("RANK", 0)):
        typer.echo(result)


def encode_main() -> None:
    """Entry point of tokenar-encode."""
    commands.run(encode_app)


def train_main() -> None:
    """Entry point of tokenar-train."""
    commands.run(train_app)


def sample_main() -> None:
    """Entry point of tokenar-sample."""
    commands.run(sample_app)


def eval_main() -> None:
    """Entry point of tokenar-eval."""
    commands.run(eval_app)


def attention_main() -> None:
    """Entry point of tokenar-attention."""
    commands.run(attention_app)


def main() -> None:
    """All of them as ``python -m tokenar.cli encode|train|sample|eval|attention``."""
    app = typer.Typer(pretty_exceptions_enable=False, help="Train TokenAR on shards, draw pictures, measure them.")
    app.command("encode")(encode_command)
    app.command("train")(train)
    app.command("sample")(sample)
    app.command("eval")(evaluate)
    app.command("attention")(attention)
    commands.run(app)


if __name__ == "__main__":
    main()
