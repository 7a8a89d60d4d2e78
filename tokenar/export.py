"""A model folder written back as the files that the published programs read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from data_schemas.errors import UserError
from data_schemas.io.files import replacing
from tokenar.encoders.vq import read_vq
from tokenar.model.checkpoints import SETTINGS
from tokenar.model.config import ModelConfig, released
from tokenar.model.folder import FILES, read_settings
from tokenar.model.published import check_fit, read_weights
from tokenar.model.transformer import TokenAR

OURS = ("tied_output", "copy_head", "neighbours", "background_in_place", "qk_norm")
"""Settings of which the published program's network has nothing."""
COMPUTED = (
    "rotary_layout", "background_index", "index_on_targets", "text_padding", "text_rotary", "rotary_base", "norm_eps",
)  # fmt: skip
"""Settings that change what a network computes from the same weights."""


def export_model(folder: Path, out: Path, tokenizer: Path | None = None) -> list[str]:
    """Write a model folder's network to ``out`` as the published trainer stores it, and its VQ tokenizer to
    ``tokenizer``, each with the tensors' own bytes under "model".

    The network's file also has this program's settings beside the weights, so that importing it gives the same folder.
    Keys that an imported text-to-image checkpoint lacked are left out again. Returns the settings with which the
    published program would compute something else. UserError for a model that the published program does not have.
    """
    written = read_settings(folder)
    config = written.model
    if own := [name for name in OURS if getattr(config, name)]:
        raise UserError(f"{folder}: the published program has no {', '.join(own)}; such a model cannot be exported")
    if tokenizer is not None and written.vq is None:
        raise UserError(
            f"{folder}: its tokenizer is no VQ network, and the published program has no other; leave --tokenizer out"
        )
    weights = read_weights(folder / FILES[1])
    with torch.device("meta"):
        net = TokenAR(config)
    check_fit(net, weights, str(folder / FILES[1]))
    first = [name for name in net.state_dict() if name in weights]
    names = [name for name in dict.fromkeys([*first, *sorted(weights)]) if name not in written.new]
    settings = {"model": config.model_dump(), "text": written.text.model_dump()}
    files: dict[Path, dict[str, Any]] = {out: {"model": {name: weights[name] for name in names}, SETTINGS: settings}}
    if tokenizer is not None:
        files[tokenizer] = {"model": read_vq(folder / FILES[2])}
    with ExitStack() as whole:  # both files get their names, or none
        temporary = {path: whole.enter_context(replacing(path)) for path in files}
        for path, content in files.items():
            with open(temporary[path], "wb") as file:  # torch would store the file's name, and bytes would differ
                torch.save(content, file)
    return computed_otherwise(config)


def computed_otherwise(config: ModelConfig) -> list[str]:
    """The settings, as "name value", with which the published program computes something else from the same weights."""
    published = released()
    return [f"{n} {getattr(config, n)}" for n in COMPUTED if getattr(config, n) != getattr(published, n)]
