"""The identity stage: how similar each subject's region is to each reference. All four similarities are stored.

The regions are cut out along the matte and padded, because whole pictures do not separate identities
(docs/differences.md, "Crops instead of whole pictures"). The paper's own rule is scored as well.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from data_schemas.tables import IDENTITY
from pipeline.core.stage import BatchStage, Rule, Sample, StageConfig
from pipeline.core.weights import ONE_FILE, Weights, locate
from pipeline.device import Device, Precision, device_of, dtype_of
from pipeline.identity import encoders

DINOV2 = "vit_base_patch14_dinov2.lvd142m"
VIEWS = 5
"""Views of a target: both regions, each with its mirror image, and the whole foreground."""

Padding = Annotated[
    float, Field(ge=0, le=1, description="White space on each side of a crop, as a share of its longer side")
]


class IdentityConfig(StageConfig):
    """Settings of EfficientNet-Lite0."""

    backend: Literal["efficientnet"] = Field(
        "efficientnet", description="`efficientnet` compares with EfficientNet-Lite0, on the CPU, without a download"
    )
    padding: Padding = 0.12


class TimmIdentityConfig(StageConfig):
    """Settings of a timm encoder."""

    how: ClassVar[frozenset[str]] = frozenset({"device", "batch_size"})
    backend: Literal["timm"] = Field(
        "timm", description="`timm` compares with an encoder of timm; its default, DINOv2, is the paper's"
    )
    encoder: str = Field(DINOV2, description="Name of the encoder in timm; the default is DINOv2 ViT-B/14")
    source: str | None = Field(
        None,
        description="Hugging Face id, folder with model.safetensors, or such a file; None: timm's own repository",
    )
    revision: str = Field("main", description="Branch, tag or commit of the weights on the hub")
    side: int | None = Field(
        None,
        ge=32,
        le=2048,
        description="Side in pixels of the square that the encoder reads; None: its own (518 for DINOv2)",
    )
    precision: Precision = "float32"
    device: Device = "auto"
    batch_size: int = Field(16, ge=1, le=1024, description="Samples in a batch, each with five views")
    padding: Padding = 0.12


def identity_rules(low: float, swapped: float, copied: float) -> tuple[Rule, ...]:
    """The rules of the stage with these thresholds: lowest similarity, lowest swap margin, highest similarity."""
    return (
        Rule("similarity_min", "min", low, "identity_low", "A subject does not look like its reference."),
        Rule("swap_margin", "min", swapped, "identity_swapped", "Regions look more like the other's reference."),
        Rule("similarity_max", "max", copied, "identity_copied", "A subject is its reference pasted in."),
    )


class Comparison(BatchStage):
    """Encodes the views of a batch in one call and compares them with the references.

    A subclass provides the encoder.
    """

    name = "identity"
    columns = IDENTITY

    @abstractmethod
    def load_encoder(self) -> encoders.Encoder:
        """The encoder with its weights. Called once in each process."""

    def setup(self) -> None:
        self.encoder = self.load_encoder()
        self.references = encoders.EncodedReferences(self.encoder.encode, self.config.padding)

    def process_batch(self, samples: Sequence[Sample]) -> list[dict]:
        views = [view for sample in samples for view in views_of(sample, self.config.padding)]
        encoded = self.encoder.encode(views).reshape(len(samples), VIEWS, -1)  # (B, VIEWS, D)
        return [compare(*pair) for pair in zip(encoded, self.references.of(samples), strict=True)]


class Identity(Comparison):
    """Comparison with EfficientNet-Lite0 on a CPU.

    By default nothing counts as copied, as collages are pasted copies.
    """

    version = 2
    rules = identity_rules(low=0.4, swapped=0.1, copied=1.0)
    model = encoders.MODEL
    licence = encoders.LICENCE
    Config = IdentityConfig

    def load_encoder(self) -> encoders.Encoder:
        return encoders.EfficientNet()


class TimmIdentity(Comparison):
    """Comparison with DINOv2 or another timm encoder.

    The thresholds are starting points, because similarities differ between encoders. ``instructar calibrate`` measures
    them on the pictures of a run.
    """

    version = 1
    rules = identity_rules(low=0.4, swapped=0.0, copied=0.95)
    Config = TimmIdentityConfig

    def __init__(self, config: TimmIdentityConfig | None = None):
        super().__init__(config)
        self.batch_size = self.config.batch_size
        self.encoder_name, self.licence = encoders.published(self.config.encoder)

    def weights(self) -> tuple[Weights, ...]:
        gigabytes, memory = (0.35, 0.5) if self.encoder_name == DINOV2 else (0.0, 0.0)
        source, files = self.config.source or f"timm/{self.encoder_name}", (ONE_FILE,)
        revision = self.config.revision
        return (Weights("identity encoder", source, files, revision, self.licence, gigabytes, memory),)

    def load_encoder(self) -> encoders.Encoder:
        (weights,) = self.weights()
        path = locate(weights)
        return encoders.TimmEncoder(
            self.encoder_name,
            path if path.is_file() else path / "model.safetensors",
            self.config.side,
            device_of(self.config.device),
            dtype_of(self.config.precision),
        )


def views_of(sample: Sample, padding: float) -> list[Image.Image]:
    """The VIEWS of a sample's target. Each is a matted square on white."""
    target = sample.picture("synthesis", "target").convert("RGB")
    alpha = sample.picture("matting", "alpha")
    crops = [encoders.region(target, alpha, sample.plan[f"box_{i}"], padding) for i in range(2)]
    whole = encoders.region(target, alpha, (0, 0, 1, 1), padding)
    return [crops[0], ImageOps.mirror(crops[0]), crops[1], ImageOps.mirror(crops[1]), whole]


def compare(views: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The identity columns, from unit vectors of the target ``views`` (VIEWS, D) and of both ``references`` (2, D).

    The similarity of a region is that of the better of its two views. The ``literal`` columns follow the paper: the
    whole foreground is compared with each reference.
    """
    matrix = np.zeros((2, 2))
    for i in range(2):
        for j in range(2):
            matrix[i, j] = max(float(view @ references[j]) for view in views[2 * i : 2 * i + 2])
    matrix = matrix.clip(-1, 1).round(6)
    literal = np.array([float(views[4] @ reference) for reference in references]).clip(-1, 1).round(6)
    right = np.diag(matrix)
    margin = (np.trace(matrix) - matrix[0, 1] - matrix[1, 0]) / 2
    return {
        **{f"similarity_{i}_{j}": float(matrix[i, j]) for i in range(2) for j in range(2)},
        "similarity_min": float(right.min()),
        "similarity_max": float(right.max()),
        "swap_margin": round(float(margin), 6),
        "literal_0": float(literal[0]),
        "literal_1": float(literal[1]),
        "literal_min": float(literal.min()),
    }
