"""tokenar-playground: the page that draws with a model, given the curation's way of cutting subjects out."""

from __future__ import annotations

import os
from glob import glob
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from data_schemas import commands
from data_schemas.commands import Version, say
from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.serving import Host, Port

PORT = 7861
QUICKSTART = ("runs/quickstart/dataset/test-*.tar", "runs/quickstart/dataset/train-*.tar")
"""Where the examples come from if nothing else is said; those that the model has not seen first."""
SIDE = 256
"""Side of the pictures for which the matting's margin is meant, in pixels."""

app = typer.Typer(pretty_exceptions_enable=False)


@app.command("playground")
def playground(
    model: Annotated[
        list[str] | None,
        typer.Option(help="A 'model' folder, or a folder of runs to search; more than once. Else the packaged model."),
    ] = None,
    shards: Annotated[
        str | None, typer.Option(help="Glob of the shards of examples; by default the quickstart's, if there is one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for saved recipes.")] = Path("runs/playground"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or a GPU's number such as cuda:1.")] = "auto",
    host: Host = "127.0.0.1",
    port: Port = PORT,
    version: Version = False,
) -> None:
    """Draw with a model in a page: drop references and a background, type a prompt, watch the picture grow."""
    choose_device(device)
    from tokenar.playground.examples import read_examples
    from tokenar.playground.models import find_models
    from tokenar.playground.studio import SLOTS, Cutting, Studio

    models = find_models(model or [])
    found = shards if shards is not None else next(filter(glob, QUICKSTART), None)
    examples = [] if found is None else read_examples(found, SLOTS)
    say(f"models: {', '.join(models)}; examples: {found or 'none, give --shards'}")
    from tokenar.playground.page import serve_playground

    def studio(scratch: Path) -> Studio:
        return Studio(models, examples, Cutting(cut_out, without_subject), out, scratch)

    serve_playground(studio, host, port)


def choose_device(name: str) -> None:
    """Let this process see that device alone. UserError if it is not there."""
    kind, _, number = name.partition(":")
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif name != "auto":
        import torch

        wanted = int(number) if number.isdecimal() else 0
        if kind != "cuda" or (number and not number.isdecimal()):
            raise UserError(f"--device {name}: no such device; give auto, cpu, cuda or cuda:1")
        if wanted >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs; give auto or cpu")
        os.environ["CUDA_VISIBLE_DEVICES"] = str(wanted)  # the page draws in many threads, each with an own device


def cut_out(picture: Image.Image) -> Image.Image:
    """The subject of a picture as RGBA of the subject's size, by the picture's own transparency or with GrabCut."""
    whole = _with_alpha(picture)
    return whole.crop(whole.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox())


def without_subject(picture: Image.Image) -> Image.Image:
    """The picture (RGB), black where its subject is, with the margin that the matting stage leaves around it."""
    from pipeline.matting.grabcut import GrabCutConfig
    from pipeline.matting.matting import background

    alpha = np.asarray(_with_alpha(picture).getchannel("A"))
    config = GrabCutConfig()
    margin = round(config.dilate * max(picture.size) / SIDE)
    return background(pictures.on_white(picture), alpha > 255 * config.alpha_threshold, margin)


def _with_alpha(picture: Image.Image) -> Image.Image:
    from pipeline.references import cutouts

    found = cutouts.cut_out(picture, None)
    if (np.asarray(found.getchannel("A")) > 127).mean() < cutouts.MIN_SHARE:
        raise UserError("no subject was found in the picture; take one with a plain or transparent background")
    return found


def main() -> None:
    """Entry point of tokenar-playground."""
    commands.run(app)


if __name__ == "__main__":
    main()
