"""What a run leaves on disk: checkpoints to continue from, and the model folder that sampler and evaluator read.

    out/checkpoints/step-000100.pt    everything needed to continue, loaded with weights_only=True
    out/tokenizer.safetensors         the tokenizer of the run
    out/model/                        model.safetensors, config.json, tokenizer.safetensors

Every file is written under a temporary name and renamed, so that a file that exists is whole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from data_schemas.errors import UserError
from tokenar.config import ModelConfig, TextConfig, first_problem
from tokenar.model import TokenAR
from tokenar.text import HashedWords
from tokenar.tokenizers import PatchCodebook

MODEL_FORMAT = 1
_CHECKPOINT = re.compile(r"step-(\d{6,})\.pt")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [
        (int(m[1]), path) for path in (out / "checkpoints").glob("*.pt") if (m := _CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def save_checkpoint(out: Path, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` (tensors, dicts, lists, numbers, text; ``state["step"]`` names it); drop all but ``keep``."""
    path = out / "checkpoints" / f"step-{state['step']:06d}.pt"
    write_atomically(path, lambda temporary: torch.save(state, temporary))
    for old in checkpoints(out)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def newest_checkpoint(out: Path) -> dict[str, Any]:
    """The newest checkpoint that can be read; a damaged one is passed over. UserError if there is none."""
    found = checkpoints(out)
    for path in reversed(found):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict) and {"model", "optimizer", "step", "epoch", "batch", "config"} <= set(state):
                return state
        except Exception:  # a damaged archive raises many kinds: RuntimeError, EOFError, UnpicklingError, KeyError
            continue
    if found:
        raise UserError(f"{out / 'checkpoints'}: no checkpoint there can be read; start again with --overwrite")
    raise UserError(f"{out}: nothing to resume, no checkpoint found; leave --resume away or give the run's --out")


@dataclass
class Model:
    """A trained model with what it needs to read prompts and pictures."""

    net: TokenAR
    tokenizer: PatchCodebook
    text: HashedWords


def save_model(folder: Path, net: TokenAR, tokenizer: PatchCodebook, text: TextConfig) -> None:
    """Write the model folder; config.json comes last and marks it whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    write_atomically(folder / "model.safetensors", lambda path: save_file(weights, path))
    write_atomically(folder / "tokenizer.safetensors", tokenizer.save)
    config = {"format": MODEL_FORMAT, "model": net.config.model_dump(), "text": text.model_dump()}
    write_atomically(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=2) + "\n"))


def load_model(folder: str | Path) -> Model:
    """Read a model folder, in evaluation mode. UserError naming the file that is missing or damaged."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no model there (no config.json); give the 'model' folder of a finished run")
    try:
        settings = json.loads(path.read_text())
        if settings["format"] != MODEL_FORMAT:
            raise UserError(f"{path}: model format {settings['format']}, this program reads {MODEL_FORMAT}")
        config, text = ModelConfig.model_validate(settings["model"]), TextConfig.model_validate(settings["text"])
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; train or copy the model again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a model configuration ({error}); train or copy the model again") from error
    net = TokenAR(config)
    try:
        net.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{folder / 'model.safetensors'}: not the whole weights of this model ({reason}); "
            "train or copy the model again"
        ) from error
    return Model(net.eval(), PatchCodebook.load(folder / "tokenizer.safetensors"), HashedWords(text))
