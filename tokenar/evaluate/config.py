"""The settings of an evaluation. An encoder that is None is not used, and its figures are left out."""

from __future__ import annotations

from pydantic import Field

from data_schemas.errors import UserError
from data_schemas.settings import MAX_SEED, Settings, suggest

PAPER_ENCODERS = {
    "lpips": "alex",
    "inception": "default",
    "clip": "openai/clip-vit-large-patch14",
    "dino": "timm/vit_small_patch16_224.dino",
    "dinov2": "timm/vit_base_patch14_dinov2.lvd142m",
}
"""Published weights for the figures of the paper's tables. The paper names none, so CLIP is torchmetrics' default and
DINO the one that DreamBooth introduced for subject-driven generation (arXiv 2208.12242, section 4.3)."""


class EvalConfig(Settings):
    """The encoders of an evaluation, and the constants in its figures' definitions (docs/evaluation.md).

    The figures of an encoder that is None are left out.
    """

    lpips: str | None = Field(
        default=None,
        min_length=1,
        description="for LPIPS: alex, vgg or squeeze to download torchvision's backbone, or a file with such weights",
    )
    inception: str | None = Field(
        default=None,
        min_length=1,
        description="for FID and KID: default to download torch-fidelity's weights, or a file with them",
    )
    clip: str | None = Field(
        default=None, min_length=1, description="for CLIP-I and CLIP-T: a Hugging Face id or a folder"
    )
    dino: str | None = Field(
        default=None,
        min_length=1,
        description="for DINO (v1): an id such as timm/vit_small_patch16_224.dino, a folder in the same layout, or a "
        "safetensors file with the weights of exactly that network",
    )
    dinov2: str | None = Field(
        default=None, min_length=1, description="for DINOv2, named as dino is; also compares identities, if given"
    )
    side: int | None = Field(
        default=None, ge=16, le=4096, description="side of the pictures in pixels; None: that of the smallest drawn one"
    )
    edge_tolerance: float = Field(default=2.0, ge=0, le=4096, description="pixels between edges that match")
    mask_threshold: float = Field(default=0.1, gt=0, lt=1, description="change, 0 to 1, that makes a pixel foreground")
    padding: float = Field(
        default=0.12, ge=0, le=1, description="white room around a subject, as a share of its longer side"
    )
    swap_margin: float = Field(default=0.0, ge=-1, le=1, description="below it two subjects count as swapped")
    kid_subsets: int = Field(default=100, ge=1, le=10_000, description="random subsets of which KID is the mean")
    kid_subset_size: int = Field(default=1000, ge=2, le=1_000_000, description="pictures in a subset, at most half")
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="seed of KID's subsets")
    shown: int = Field(default=12, ge=0, le=1000, description="samples in the picture grid")


def encoders_of(name: str) -> dict[str, object]:
    """The encoder settings that a name stands for. The only name is "paper"."""
    if name != "paper":
        raise UserError(f"no encoders {name!r}; {suggest(name, ['paper'])}")
    return dict(PAPER_ENCODERS)
