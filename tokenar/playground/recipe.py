"""A drawn picture's recipe: its inputs as a folder that tokenar-sample reads, and the command that draws it again."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.files import write_atomically
from tokenar.config import SampleConfig
from tokenar.sample.requests import Request

LONGEST_NAME = 40
OPTIONS = ("guidance", "image_guidance", "temperature", "top_k", "top_p", "copies")
"""The settings that the page offers and the command has options for, besides the seed."""


def name_of(request: Request) -> str:
    """The name of a recipe's folder: words of the prompt, and a digest of prompt and pictures.

    The picture's metadata holds it, so it must be known before anything is drawn.
    """
    words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower())[:LONGEST_NAME].strip("-") or "picture"
    digest = hashlib.sha256(f"{request.fingerprint} {request.prompt}".encode()).hexdigest()
    return f"{words}-{digest[:8]}"


def save_inputs(request: Request, out: Path) -> Path:
    """Write a request to its folder in ``out``, as tokenar-sample --folder reads it; returns the folder."""
    folder = out / request.sample_id
    files = {f"ref/{number}.png": pictures.encode_png(picture) for number, picture in enumerate(request.references)}
    if request.background is not None:
        files["background.png"] = pictures.encode_png(request.background)
    files["description.txt"] = request.prompt.encode()
    try:
        for name, data in files.items():
            write_atomically(folder / name, lambda path, data=data: path.write_bytes(data))  # type: ignore[misc]
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give another --out") from error
    return folder


def command(model: Path, folder: Path, config: SampleConfig, seeds: int) -> str:
    """The shell command that draws the pictures of a saved request, from the folder where the playground was started.

    ``config`` has the settings as they were chosen; those left at their default are not repeated.
    """
    parts = ["tokenar-sample", "--model", str(model), "--folder", str(folder), "--out", str(folder / "drawn")]
    parts += ["--seed", str(config.seed)] + (["--seeds", str(seeds)] if seeds > 1 else [])
    default = SampleConfig()
    for name in OPTIONS:
        if (value := getattr(config, name)) != getattr(default, name):
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)
