"""The model weights that a config needs: which are missing, how large they are, and downloading them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from data_schemas.errors import UserError
from pipeline.core.stage import Stage
from pipeline.core.weights import NOT_HERE, Weights, look


def require(stages: Iterable[Stage]) -> None:
    """Raise one UserError that names every model of these stages that is not on this machine."""
    needed = [w for stage in stages for w in stage.weights()]
    missing = [w for w in dict.fromkeys(needed) if isinstance(look(w), str)]
    if missing:
        names = "; ".join(f"{w.purpose} {w.text}" + (f" ({w.gigabytes:g} GB)" if w.gigabytes else "") for w in missing)
        raise UserError(
            f"{len(missing)} of {len(set(needed))} models are missing on this machine: {names}. "
            "Get them with `instructar models fetch`, or name local paths in the config"
        )


@dataclass(frozen=True)
class ModelStatus:
    """One model that a stage needs, and where it is. ``problem`` says what is missing, or is empty."""

    stage: str
    weights: Weights
    path: Path | None
    problem: str

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the model's files on this machine; 0 if it is missing."""
        if self.path is None:
            return 0
        files = [self.path] if self.path.is_file() else {f for p in self.weights.files for f in self.path.glob(p)}
        return sum(f.stat().st_size for f in files)


def check(stages: Iterable[Stage]) -> list[ModelStatus]:
    """Every model that the stages need, and whether it is on this machine. Loads no model."""
    models = []
    for stage in stages:
        for weights in stage.weights():
            location = look(weights)
            path, problem = (None, location) if isinstance(location, str) else (location, "")
            models.append(ModelStatus(stage.name, weights, path, problem))
    return models


def table(models: Iterable[ModelStatus]) -> list[str]:
    """The lines that ``instructar models check`` prints.

    They are a header, one line for each model, and for each stage whether its models fit into the GPU's memory.
    """
    models = list(models)
    wide = max((len(f"{f.weights.purpose}: {f.weights.text}") for f in models), default=5)
    lines = [f"{'stage':<10} {'model':<{wide}} {'state':<8} {'size':>9}  licence"]
    memory: dict[str, float] = {}
    for f in models:
        w = f.weights
        size = f"{f.bytes_on_disk / 1e9:.2f} GB" if f.path else f"~{w.gigabytes:g} GB"
        gated = ", gated: accept it on the hub and set HF_TOKEN" if w.gated and f.path is None else ""
        name, state = f"{w.purpose}: {w.text}", "missing" if f.problem else "here"
        lines.append(f"{f.stage:<10} {name:<{wide}} {state:<8} {size:>9}  {w.licence}{gated}")
        if f.problem and f.problem != NOT_HERE:
            lines.append(f"{'':<10} {f.problem}")
        memory[f.stage] = memory.get(f.stage, 0.0) + w.memory
    return [*lines, "", *_fit(memory)]


def _fit(memory: dict[str, float]) -> list[str]:
    """Whether the weights of each stage fit into the GPU.

    Stages run one after another, so they need not fit together.
    """
    import torch

    if not torch.cuda.is_available():
        return ["No GPU here: these models would run on the CPU, slowly."]
    device = torch.cuda.get_device_properties(0)
    room = device.total_memory / 1e9
    return [
        f"{stage:<10} {need:.1f} GB of weights on {device.name} ({room:.0f} GB): "
        + ("fits" if need * 1.2 < room else "does not fit with room to work; see offload, precision and batch_size")
        for stage, need in memory.items()
        if need
    ]


def fetch(weights: Weights) -> Path:
    """Download a model's files from the hub unless they are here. Raises UserError if the hub refuses."""
    growing = weights.patterns != list(weights.files)  # whatever the hub has: it may have more than there is here
    if isinstance(path := look(weights), Path) and (weights.is_local or constants.HF_HUB_OFFLINE or not growing):
        return path
    if weights.is_local:
        raise UserError(f"{weights.purpose}: {weights.text}: {path}; put it there, or name a Hugging Face id")
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{weights.purpose}: {weights.text} is not here and HF_HUB_OFFLINE is set; unset it to fetch")
    try:
        return Path(snapshot_download(weights.source, revision=weights.revision, allow_patterns=weights.patterns))
    except GatedRepoError as error:
        raise UserError(
            f"{weights.purpose}: {weights.source} is gated: accept its licence at {HfApi().endpoint}/{weights.source} "
            "and set HF_TOKEN to a token of that account"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"{weights.purpose}: {weights.text} does not exist on the hub, or HF_TOKEN may not see it; check the "
            "name and the revision"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{weights.purpose}: {weights.text} could not be fetched ({reason}); try again") from error
