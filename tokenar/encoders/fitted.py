"""The tokenizers that a training run fits to its own pictures: which one settings mean, and which one a file holds."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_schemas.io.files import check_file
from tokenar.encoders.config import PatchVqConfig, TokenizerConfig
from tokenar.encoders.patch_vq import METADATA, PatchVq
from tokenar.encoders.patch_vq_fit import fit_patch_vq
from tokenar.encoders.patches import PatchCodebook

FittedTokenizer = PatchCodebook | PatchVq


def fit_tokenizer(config: TokenizerConfig, pictures: Tensor) -> FittedTokenizer:
    """Fit the tokenizer that ``config`` describes to images [B, 3, S, S] float in [-1, 1]."""
    return fit_patch_vq(config, pictures) if isinstance(config, PatchVqConfig) else PatchCodebook.fit(config, pictures)


def load_fitted(path: Path) -> FittedTokenizer:
    """Read a file that ``save`` of either tokenizer wrote; UserError if it is missing or damaged."""
    check_file(path, "train or copy the model again")
    try:
        with safe_open(path, "pt") as file:
            networks = METADATA in (file.metadata() or {})
    except (OSError, SafetensorError):
        networks = False  # the codebook's reader says what is wrong with the file
    return PatchVq.load(path) if networks else PatchCodebook.load(path)
