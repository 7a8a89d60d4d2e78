"""Shared by the frozen encoders: loading a published model with all its weights, and a fingerprint of the weights."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import torch
from torch import nn

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from tokenar.weight_files import check_finite

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options for transformers: download nothing, and run no code that comes with a model."""


def fingerprint(network: nn.Module, *facts: str) -> str:
    """SHA-256 over ``facts`` and every tensor of the state dict: name, type, shape and bytes."""
    digest = hashlib.sha256("\n".join(facts).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def transformers() -> Any:
    """The transformers package, which is optional; UserError with the command that installs it if it is missing.

    Its own bars of progress are off, and so is what torch says of torchao's classes while they are imported.
    """
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(
            "T5 and teachers need transformers; install it with: pip install 'instructar[paper]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


def load_pretrained(kind: Any, purpose: str, source: str, revision: str, dtype: torch.dtype) -> Any:
    """Load a model of the transformers class ``kind``, in evaluation mode and without gradients.

    ``source`` is a folder or the Hugging Face id of a model that was downloaded before, with weights as safetensors.
    UserError if it cannot be loaded or lacks a weight; its message begins with ``purpose``, such as "text encoder".
    """
    try:
        config = transformers().AutoConfig.from_pretrained(source, revision=revision, **LOCAL)
        halves = (config, getattr(config, "vision_config", None))  # of a CLIP the vision half alone may be wanted
        if not any(isinstance(half, kind.config_class) for half in halves):
            raise ValueError(f"it is a {config.model_type}, not a {kind.config_class.model_type}")
        network, report = kind.from_pretrained(
            source, revision=revision, dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL
        )
    except Exception as error:  # any other folder raises anything: OSError, KeyError, SafetensorError, RuntimeError
        raise cannot_load(purpose, source, error) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{purpose}: {source} lacks {len(missing)} weights of {kind.__name__} ({missing[0]}); fetch it again"
        )
    check_finite(network.state_dict(), f"{purpose}: {source}", "fetch it again")
    return network.eval().requires_grad_(False)


def cannot_load(purpose: str, source: str, error: Exception) -> UserError:
    """A UserError of one line for an exception that transformers raised while loading ``source``."""
    reason = one_line(error, 300) or type(error).__name__
    return UserError(
        f"{purpose}: {source} cannot be loaded ({reason}); fetch it first, or name the folder that holds it"
    )
