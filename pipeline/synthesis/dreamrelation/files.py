"""Reading tensors from files of unknown origin; no code in a file is executed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file

from data_schemas.errors import UserError


def read_tensors(path: Path, what: str) -> Any:
    """The content of a torch or ``.safetensors`` file, on the CPU. A pickle with anything but tensors is refused.

    Raises UserError that names the file by ``what`` and its path.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{what} {path}: refused, for it is no torch file of tensors alone; give the original file, or the same "
            "tensors as .safetensors"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{what} {path}: cannot be read ({' '.join(str(error).split())}); fetch it again") from error
