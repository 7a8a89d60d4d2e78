"""The commands tokenar-import and tokenar-export: published checkpoints in and out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_schemas.commands import Version
from data_schemas.errors import UserError
from data_schemas.settings import suggest
from tokenar.cli.options import T5, Average, ModelFolder, Out, assigned

if TYPE_CHECKING:
    from tokenar.model.checkpoints import Parts

import_app = typer.Typer(pretty_exceptions_enable=False)
export_app = typer.Typer(pretty_exceptions_enable=False)


@import_app.command("import")
def import_(
    checkpoint: Annotated[str, typer.Argument(help="File of the network: t2i_XL_stage2_512.pt or a training's .pt.")],
    tokenizer: Annotated[str, typer.Option(help="File of its VQ tokenizer, such as vq_ds16_t2i.pt.")],
    out: Out,
    t5: T5 = None,
    preset: Annotated[str, typer.Option(help="What shapes do not tell: released or tokenar_xl.")] = "released",
    ema: Average = True,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A setting of the model: heads=20.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
    version: Version = False,
) -> None:
    """Turn a published checkpoint into a model folder that every other command takes."""
    from tokenar.model.checkpoints import PRESETS, Checkpoint
    from tokenar.model.folder import FILES, import_checkpoint

    if preset not in PRESETS:
        raise UserError(f"no preset {preset!r}; {suggest(preset, PRESETS)}")
    if not overwrite and any((Path(out) / name).exists() for name in FILES):
        raise UserError(f"{out}: there is a model already; give another --out, or --overwrite")
    source = Checkpoint(Path(checkpoint), Path(tokenizer), t5, preset, ema, assigned(settings))
    parts = import_checkpoint(source, Path(out))
    typer.echo(f"{out}: {_about(parts)}")
    if parts.left_out:
        typer.echo(f"left out: {_listed(parts.left_out)}")
    if parts.new:
        typer.echo(f"not in the file: {_listed(parts.new)}; train it on (tokenar-train --start-from) before you draw")


@export_app.command("export")
def export(
    model: ModelFolder,
    out: Annotated[str, typer.Option(help="File to write the network to, such as tokenar.pt.")],
    tokenizer: Annotated[str | None, typer.Option(help="File to write the VQ tokenizer to.")] = None,
    version: Version = False,
) -> None:
    """Write a model folder back as the files that the published programs read."""
    from tokenar.export import export_model

    for path in (out, tokenizer):
        if path is not None and (Path(path).suffix not in (".pt", ".pth") or Path(path).is_dir()):
            raise UserError(f"{path or '--out'}: give the name of a .pt file to write")
    if tokenizer is not None and Path(out).resolve() == Path(tokenizer).resolve():
        raise UserError(f"--tokenizer {tokenizer}: the network is written to this file; give another name")
    otherwise = export_model(Path(model), Path(out), None if tokenizer is None else Path(tokenizer))
    typer.echo(", ".join(filter(None, (out, tokenizer))))
    if otherwise:
        typer.echo(f"the published program computes otherwise with these weights: it has no {', '.join(otherwise)}")


def _about(parts: Parts) -> str:
    """One line about an imported model."""
    config, references = parts.model, parts.model.max_references
    images = "one picture to edit" if not config.background else f"up to {references} references and a background"
    side = config.grid * parts.vq.reduction
    return (
        f"{config.layers} layers of width {config.width}, {images}, {config.instruct_tokens} instruct tokens, "
        f"{side}-pixel pictures"
    )


def _listed(names: list[str]) -> str:
    from data_schemas.io.text import one_line

    return one_line(", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else ""))
