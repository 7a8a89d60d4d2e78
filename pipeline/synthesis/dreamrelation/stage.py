"""The synthesis stage with DreamRelation: SDXL, the MS-Diffusion adapter for subjects in boxes, and relation LoRAs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from PIL import Image
from pydantic import Field, field_validator

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.settings import suggest
from data_schemas.tables import SYNTHESIS
from pipeline.core.stage import BatchStage, Sample, SampleError, StageConfig
from pipeline.core.weights import Weights, locate
from pipeline.device import Device, Precision, device_of, dtype_of, exact_float32
from pipeline.references import copies
from pipeline.synthesis.dreamrelation.found import ANY, WORDS, files_here, lora_file, match
from pipeline.synthesis.dreamrelation.sizes import ResamplerSizes

if TYPE_CHECKING:
    import torch

    from pipeline.synthesis.dreamrelation.generator import Scene, Settings

NEGATIVE_PROMPT = "monochrome, lowres, bad anatomy, worst quality, low quality"
ADAPTER_FILE = "ms_adapter.bin"
LOCAL_FILE = "epoch_6.pt"
REMEMBERED = 1024
"""References whose CLIP tokens are cached; this many take about 0.9 GB of memory in float16."""


class DreamRelationConfig(StageConfig):
    """Settings of DreamRelation. Models are Hugging Face ids or local paths. The plan's prompt is used unchanged.

    A relation without a LoRA uses the base and the adapter alone.
    """

    # these change results by float rounding at most; vae_tiling does more, because its tiles are blended
    how: ClassVar[frozenset[str]] = frozenset({"device", "batch_size", "compile", "offload"})

    backend: Literal["dreamrelation"] = Field(
        "dreamrelation", description="`dreamrelation` generates the picture with SDXL, as the paper does; for a GPU"
    )
    base: str = Field("stabilityai/stable-diffusion-xl-base-1.0", description="SDXL, in the folders of diffusers")
    base_revision: str = Field("main", description="Branch, tag or commit of `base` on the hub")
    image_encoder: str = Field(
        "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", description="CLIP whose vision half encodes the references"
    )
    adapter: str = Field("doge1516/MS-Diffusion", description="Where ms_adapter.bin is, or such a file itself")
    resampler: ResamplerSizes = Field(
        ResamplerSizes(), description="Sizes of the adapter's network that makes prompt tokens of a reference"
    )
    vae: str | None = Field(None, description="VAE, such as madebyollin/sdxl-vae-fp16-fix; None: the base's own")
    local_encoder: str | None = Field(
        None, description="CLIPSelf checkpoint that adds 16 tokens a reference; None: none added"
    )
    lora_source: str = Field(
        "QingyuShi/DreamRelation",
        description="Folder or hub repository of the LoRAs; a relation gets the file whose path names it",
    )
    loras: dict[str, str | None] = Field(
        {}, description="By relation a file or folder in `lora_source`, instead of the one found; null: no LoRA"
    )
    find_loras: bool = Field(True, description="Whether relations that loras leaves out get the file that names them")
    steps: int = Field(30, ge=1, le=200, description="Denoising steps of a picture")
    guidance: float = Field(
        5.0, ge=1, le=30, description="Weight of the prompt; 1 turns guidance off and halves the time"
    )
    adapter_scale: float = Field(0.6, ge=0, le=2, description="Weight of the references in the picture")
    negative_prompt: str = Field(
        NEGATIVE_PROMPT,
        description="What the picture must not look like, at most 77 tokens; without effect at guidance 1",
    )
    side: int = Field(1024, ge=64, le=2048, multiple_of=8, description="Side of the picture when made, in pixels")
    size: int = Field(512, ge=64, le=2048, description="Side of the picture when stored, in pixels")
    precision: Precision = "float16"
    device: Device = "auto"
    batch_size: int = Field(4, ge=1, le=64, description="Pictures made at once")
    compile: bool = Field(False, description="Compile the UNet: slow for each new LoRA, then faster")
    vae_tiling: bool = Field(False, description="Decode in tiles, for pictures of more than 1024 pixels a side")
    offload: bool = Field(False, description="Keep only the model in use on the GPU")

    @field_validator("loras")
    @classmethod
    def _of_known_relations(cls, loras: dict[str, str | None]) -> dict[str, str | None]:
        if unknown := loras.keys() - WORDS.keys():
            raise ValueError(f"there is no relation {min(unknown)!r}; {suggest(min(unknown), WORDS)}")
        return loras


class DreamRelation(BatchStage):
    """Saves ``target`` (RGB, ``size`` x ``size`` pixels).

    docs/differences.md lists what differs from the published program.
    """

    name = "synthesis"
    version = 1
    reads = ("references", "plan")
    columns = SYNTHESIS
    saves_pictures = True
    Config = DreamRelationConfig
    config: DreamRelationConfig

    def __init__(self, config: DreamRelationConfig | None = None):
        super().__init__(config)
        c = self.config
        self.batch_size = c.batch_size
        # set once, so that fingerprint and run.json tell which relation was made with which file
        files = files_here(c.lora_source) if c.find_loras else []
        self._to_fetch = files is None
        named = {relation: lora_file(name) for relation, name in c.loras.items() if name is not None}
        unset = {relation: file for relation, file in match(files or ()).of.items() if relation not in c.loras}
        self._loras: dict[str, str] = unset | named
        self.config = c.model_copy(update={"loras": self._loras})
        self._features: dict[str, torch.Tensor] = {}
        self._turn = threading.Lock()

    def weights(self) -> tuple[Weights, ...]:
        c = self.config
        size = 2 if c.precision == "float32" else 1
        needed = [
            Weights("SDXL base", c.base, self._base_files(), c.base_revision, "CreativeML Open RAIL++-M", 7 * size,
                    7 * size),
            Weights("CLIP image encoder", c.image_encoder, ("config.json", "model*.safetensors*"), licence="MIT",
                    gigabytes=10, memory=3.7 * size),
            Weights("MS-Diffusion adapter", c.adapter, (ADAPTER_FILE,), licence="Apache-2.0", gigabytes=1.84,
                    memory=0.92 * size),
        ]  # fmt: skip
        if c.vae is not None:
            files = ("config.json", "diffusion_pytorch_model.safetensors")
            needed.append(Weights("VAE", c.vae, files, gigabytes=0.33, memory=0.33))
        if c.local_encoder is not None:
            needed.append(Weights("local encoder", c.local_encoder, (LOCAL_FILE,), gigabytes=10, memory=3.7 * size))
        names: tuple[str, ...] = tuple(sorted({*self._loras.values()}))
        if c.find_loras and (self._to_fetch or not Weights("", c.lora_source, ()).is_local):
            names = (*names, ANY)  # whatever the hub has
        if names:
            needed.append(Weights("relation LoRAs", c.lora_source, names, gigabytes=0.1))
        return tuple(needed)

    def _base_files(self) -> tuple[str, ...]:
        """The files that are loaded: from the hub those of the chosen precision, from a local folder either kind."""
        c = self.config
        parts = ["text_encoder", "text_encoder_2", "unet"] + (["vae"] if c.vae is None else [])
        if Weights("", c.base, ()).is_local:
            tensors = [f"{part}/*.safetensors" for part in parts]
        else:
            half = "" if c.precision == "float32" else ".fp16"
            stems = {"text_encoder": "model", "text_encoder_2": "model"}
            tensors = [f"{part}/{stems.get(part, 'diffusion_pytorch_model')}{half}.safetensors" for part in parts]
        settings = [f"{part}/config.json" for part in parts]
        return ("model_index.json", "scheduler/*.json", "tokenizer/*", "tokenizer_2/*", *settings, *tensors)

    def setup(self) -> None:
        from pipeline.synthesis.dreamrelation.generator import load_generator

        c = self.config
        device = device_of(c.device)
        if c.offload and device.type == "cpu":
            raise UserError("synthesis.offload: there is no GPU to save memory on; set it to false")
        paths = {w.purpose: locate(w) for w in self.weights()}
        local = paths.get("local encoder")
        self.generator = load_generator(
            paths["SDXL base"],
            paths["CLIP image encoder"],
            _inside(paths["MS-Diffusion adapter"], ADAPTER_FILE),
            device,
            dtype_of(c.precision),
            vae=paths.get("VAE"),
            local_encoder=_inside(local, LOCAL_FILE) if local else None,
            loras={relation: _inside(paths["relation LoRAs"], file) for relation, file in self._loras.items()},
            sizes=c.resampler,
            offload=c.offload,
        )
        if c.vae_tiling:
            self.generator.pipe.vae.enable_tiling()
        if c.compile:
            self.generator.pipe.unet.compile()
        if not self.generator.fits(c.negative_prompt):
            raise UserError("synthesis.negative_prompt: more than the text encoder's 77 tokens; make it shorter")

    def batches(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """Batches that each contain one relation only, because a LoRA changes the whole UNet."""
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.plan["relation"], []).append(sample)
        return [batch for group in groups.values() for batch in super(DreamRelation, self).batches(group)]

    def process_batch(self, samples: Sequence[Sample]) -> list[dict | Exception]:
        """Make the pictures of samples with the same relation, as ``batches`` groups them."""
        (relation,) = {sample.plan["relation"] for sample in samples}
        with self._turn, exact_float32():
            results = self._generate(samples, relation)
        return [
            made if isinstance(made, Exception) else self._keep(sample, made)
            for sample, made in zip(samples, results, strict=True)
        ]

    def _generate(self, samples: Sequence[Sample], relation: str) -> list[Image.Image | Exception]:
        """The picture of each sample, ``side`` x ``side`` pixels, or the error that explains why there is none."""
        from pipeline.synthesis.dreamrelation.generator import to_pictures

        scenes: dict[int, Scene] = {}
        results: dict[int, Image.Image | Exception] = {}
        for k, sample in enumerate(samples):
            try:
                scenes[k] = self._scene(sample)
            except (SampleError, UserError) as error:
                results[k] = error
        if scenes:
            self.generator.use_relation(relation)
            for k, latents in zip(scenes, self.generator.sample(list(scenes.values()), self._settings()), strict=True):
                if latents.isfinite().all():
                    results[k] = to_pictures(self.generator.decode(latents[None]))[0]
                else:
                    message = f"the numbers overflowed in {self.config.precision}; try bfloat16"
                    results[k] = SampleError("not_finite", message)
        return [results[k] for k in range(len(samples))]

    def _scene(self, sample: Sample) -> Scene:
        from pipeline.synthesis.dreamrelation.generator import Scene

        plan = sample.plan
        phrases = [plan[f"reference_{i}_name"] for i in range(2)]
        for text in (plan["prompt"], *phrases):
            if not self.generator.fits(text):
                raise SampleError("prompt_too_long", f"more than the text encoder's 77 tokens: {text[:80]}...")
        features = [self._reference(sample, i) for i in range(2)]
        return Scene(plan["prompt"], phrases, [plan["box_0"], plan["box_1"]], features, plan["seed"])

    def _reference(self, sample: Sample, index: int) -> torch.Tensor:
        """The CLIP tokens of a reference, cached for the last REMEMBERED references."""
        key = sample.plan[f"reference_{index}_id"]
        if key not in self._features:
            while len(self._features) >= REMEMBERED:
                self._features.pop(next(iter(self._features)))
            self._features[key] = self.generator.encode_reference(pictures.on_white(sample.reference(index)))
        return self._features[key]

    def _settings(self) -> Settings:
        from pipeline.synthesis.dreamrelation.generator import Settings

        c = self.config
        return Settings(c.steps, c.guidance, c.adapter_scale, c.side, c.side, c.negative_prompt)

    def _keep(self, sample: Sample, picture: Image.Image) -> dict:
        if picture.width != self.config.size:
            picture = picture.resize((self.config.size, self.config.size), Image.Resampling.LANCZOS)
        sample.save("target", picture)
        return {"planted_fault": "none", "planted_subject": None, "target_phash": copies.hash_of(picture)}


def _inside(folder: Path, name: str) -> Path:
    """``folder`` itself if it is a file, else the file ``name`` in it."""
    return folder if folder.is_file() else folder / name
