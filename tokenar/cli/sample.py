"""The command tokenar-sample."""

from __future__ import annotations

from typing import Annotated

import typer

from data_schemas.commands import Version
from data_schemas.errors import UserError
from tokenar.cli.options import (
    DEFAULT,
    T5,
    Average,
    Guidance,
    Limit,
    Model,
    OptionalShards,
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

app = typer.Typer(pretty_exceptions_enable=False)


@app.command("sample")
def sample(
    model: Model,
    out: Out,
    tokenizer: Tokenizer = None,
    t5: T5 = None,
    ema: Average = True,
    shards: OptionalShards = None,
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
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Any other setting: guided_tokens=64.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show pictures as they grow.")] = False,
    version: Version = False,
) -> None:
    """Draw pictures. On several GPUs: torchrun --standalone --nproc-per-node 2 -m tokenar.cli sample ..."""
    if sum(place is not None for place in (shards, folder, list_)) != 1:
        raise UserError("give one of --shards, --folder and --list")
    others: dict[str, object] = {
        "image_guidance": image_guidance,
        "copies": copies,
        "batch": batch,
        "precision": precision,
    }
    others |= assigned(settings)
    config = sample_config(seed, guidance, temperature, top_k, top_p, others, "settings")
    from tokenar.sample import requests
    from tokenar.sample.sampler import sample_pictures

    sources = {requests.from_shards: shards, requests.from_folder: folder, requests.from_list: list_}
    ((read, source),) = [(read, source) for read, source in sources.items() if source is not None]
    network = source_of(model, tokenizer, t5, ema=ema)
    drawn = sample_pictures(network, read(source, limit), out, config, seeds=seeds, preview=preview)
    tell_first(f"{len(drawn)} picture{'' if len(drawn) == 1 else 's'}: {out}")
