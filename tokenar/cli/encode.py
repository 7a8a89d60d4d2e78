"""The command tokenar-encode."""

from __future__ import annotations

from typing import Annotated

import typer

from data_schemas.commands import Version
from data_schemas.errors import UserError
from tokenar.cli.options import tell_first
from tokenar.config import read_settings

app = typer.Typer(pretty_exceptions_enable=False)


@app.command("encode")
def encode(
    shards: Annotated[str | None, typer.Option(help="Glob of the raw shards.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the encoded shards.")] = None,
    vq: Annotated[str | None, typer.Option(help="Weights of the VQ tokenizer: vq_ds16_t2i.pt or safetensors.")] = None,
    t5: Annotated[str | None, typer.Option(help="Text encoder: a Hugging Face id or a folder.")] = None,
    teacher: Annotated[bool, typer.Option(help="Also make the distillation targets.")] = True,
    distill: Annotated[str | None, typer.Option(help="Which teacher: dinov2, clip or both.  [default: dinov2]")] = None,
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

    options = {
        "shards": shards, "out": out, "vq": vq, "text": {"model": t5} if t5 else None, "keep_padding": keep_padding,
        "image_size": image_size, "batch": batch, "vq_batch": vq_batch,
    }  # fmt: skip
    values: dict[str, object] = {key: value for key, value in options.items() if value is not None}
    if not teacher and distill:
        raise UserError("--distill and --no-teacher exclude each other; give one")
    if not teacher or distill:
        values["teacher"] = {"kind": distill} if teacher else None
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
    tell_first(f"{settings.out}: {done['encoded']} shards encoded, {done['there']} there already")
