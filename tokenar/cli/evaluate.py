"""The command tokenar-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_schemas.commands import Version
from data_schemas.errors import UserError
from tokenar.cli.options import (
    DEFAULT,
    SHARDS_HELP,
    T5,
    Average,
    Guidance,
    Limit,
    Out,
    Seed,
    Temperature,
    Tokenizer,
    TopK,
    TopP,
    assigned,
    sample_config,
    source_of,
    tell_first,
)
from tokenar.config import read_settings

app = typer.Typer(pretty_exceptions_enable=False)


@app.command("eval")
def evaluate(
    shards: Annotated[list[str], typer.Option(help=SHARDS_HELP + " Repeatable.")],
    out: Out,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]DIR", help="The 'model' folder of a run, or a published .pt file; repeatable."),
    ] = None,
    tokenizer: Tokenizer = None,
    t5: T5 = None,
    ema: Average = True,
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
    changes = (encoders_of(encoders) if encoders is not None else {}) | assigned(settings)
    # --set sampling.name=value changes how pictures are drawn, and not how they are measured.
    names = [name for name in changes if name.startswith("sampling__")]
    drawing = {name.removeprefix("sampling__"): changes.pop(name) for name in names}
    measured = EvalConfig.parse(start | changes, "settings")
    sampling = sample_config(seed, guidance, temperature, top_k, top_p, drawing, "sampling")
    models = {
        name: path if path.is_dir() else source_of(str(path), tokenizer, t5, ema=ema)
        for name, path in _named(model or []).items()
    }
    from tokenar.evaluate.run import evaluate_models

    evaluate_models(
        shards, out, models=models, predictions=_named(predictions or []), config=measured,
        sampling=sampling, limit=limit,
    )  # fmt: skip
    tell_first((Path(out) / "table.md").read_text())
    tell_first(f"{out}: table.md, table.tex, metrics.json, per_sample.parquet, grid.png")


def _named(options: list[str]) -> dict[str, Path]:
    """``NAME=DIR`` or ``DIR`` as name -> folder. A folder that exists is taken as it is, even with "=" in its name."""
    from tokenar.evaluate.methods import named

    folders: dict[str, Path] = {}
    for text in options:
        name, equals, path = text.partition("=")
        pair = {name: Path(path)} if equals and not Path(text).exists() else named([text])
        if both := folders.keys() & pair.keys():
            raise UserError(f"{text}: a second method would be called {min(both)!r}; give each its own: NAME=DIR")
        folders |= pair
    return folders
