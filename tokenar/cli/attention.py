"""The command tokenar-attention."""

from __future__ import annotations

from typing import Annotated

import typer

from data_schemas.commands import Version
from data_schemas.errors import UserError
from tokenar.cli.options import T5, Average, Limit, Model, Out, Shards, Tokenizer, source_of

app = typer.Typer(pretty_exceptions_enable=False)


@app.command("attention")
def attention(
    model: Model,
    shards: Shards,
    out: Out,
    tokenizer: Tokenizer = None,
    t5: T5 = None,
    ema: Average = True,
    limit: Limit = None,
    layers: Annotated[str | None, typer.Option(help="Layers in the heat maps: 0,5,11. Else up to four.")] = None,
    heads: Annotated[bool, typer.Option("--heads", help="Keep every head in the arrays.")] = False,
    predictions: Annotated[str | None, typer.Option(help="Folder of drawn pictures to take as targets.")] = None,
    version: Version = False,
) -> None:
    """See where each part of a picture looks, layer by layer."""
    chosen = None if layers is None else _numbers("--layers", layers)
    from tokenar.attention.report import write_maps

    network = source_of(model, tokenizer, t5, ema=ema)
    result = write_maps(network, shards, out, layers=chosen, heads=heads, predictions=predictions, limit=limit)
    line = f"{out}/attention.json: {result['samples']} samples"
    if result["identity"] is not None:
        line += f", identity {result['identity']:.3f} (chance {result['identity_chance']:.3f})"
    typer.echo(line)


def _numbers(option: str, text: str) -> list[int]:
    """``0,5,11`` as numbers. UserError naming the option."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text}: not numbers; write them with commas, such as 0,5,11") from error
