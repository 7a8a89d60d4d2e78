"""SDXL with the MS-Diffusion adapter and relation LoRAs: from prompts, references and boxes to pictures.

The denoising loop is diffusers' own; the adapter is part of the attention processors. What differs from the published
program is in docs/differences.md. Shapes: B samples, n subjects, T CLIP tokens a reference, Q tokens a subject, D the
width of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPVisionModel

from data_schemas.errors import UserError
from pipeline.synthesis.dreamrelation.adapter import Adapter, load_adapter
from pipeline.synthesis.dreamrelation.attention import SelfAttention, SubjectAttention, Subjects
from pipeline.synthesis.dreamrelation.local_tokens import LocalEncoder, load_local_encoder
from pipeline.synthesis.dreamrelation.loras import read_lora
from pipeline.synthesis.dreamrelation.resampler import ResamplerSizes

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Scene:
    """One picture to make. Phrases, boxes and features (CLIP tokens [T, width]) are in the order of the references."""

    prompt: str
    phrases: Sequence[str]
    boxes: Sequence[Sequence[float]]
    features: Sequence[Tensor]
    seed: int


@dataclass(frozen=True)
class Settings:
    """How pictures are made. The defaults are the published ones; height and width are in pixels, multiples of 8."""

    steps: int = 30
    guidance: float = 5.0
    adapter_scale: float = 0.6
    height: int = 1024
    width: int = 1024
    negative_prompt: str = ""


@dataclass(frozen=True)
class Text:
    """Prompt embeddings: tokens [B, 77, D] and pooled [B, .], and those of the negative prompt if there is guidance."""

    tokens: Tensor
    pooled: Tensor
    negative_tokens: Tensor | None = None
    negative_pooled: Tensor | None = None


class Generator:
    """The loaded models. It serves one call at a time, because LoRA and scheduler are shared state."""

    def __init__(self, pipe: Any, adapter: Adapter, device: torch.device, local: LocalEncoder | None = None):
        self.pipe, self.adapter, self.device, self.local = pipe, adapter, device, local
        self.dtype = pipe.unet.dtype
        self.relations: list[str] = []
        names = set(adapter.layers.values())
        pipe.unet.set_attn_processor(
            {name: SubjectAttention(name) if name in names else SelfAttention() for name in pipe.unet.attn_processors}
        )
        pipe.set_progress_bar_config(disable=True)

    def add_loras(self, files: Mapping[str, Path]) -> None:
        """Load the LoRA of each relation. None is active until ``use_relation`` is called."""
        tensors = {relation: read_lora(path, self.pipe.unet) for relation, path in files.items()}
        for relation, lora in tensors.items():
            self.pipe.unet.load_lora_adapter(lora, prefix="unet", adapter_name=relation)
            self.relations.append(relation)
        self.use_relation(None)

    def use_relation(self, relation: str | None) -> None:
        """Activate the LoRA of this relation, or none if it has none."""
        if relation in self.relations:
            self.pipe.unet.enable_lora()
            self.pipe.unet.set_adapters(relation)
        elif self.relations:
            self.pipe.unet.disable_lora()

    def fits(self, text: str) -> bool:
        """Whether a prompt or phrase fits into the text encoders: 75 tokens, and two for its start and end."""
        tokenizers = (self.pipe.tokenizer, self.pipe.tokenizer_2)
        return all(len(t(text, truncation=False).input_ids) <= t.model_max_length for t in tokenizers)

    @torch.no_grad()
    def encode_reference(self, picture: Image.Image) -> Tensor:
        """CLIP tokens [T, width] of an RGB picture, on the CPU, followed by local tokens if there is a local encoder.

        They do not depend on box or phrase, so they can be cached for each reference.
        """
        pixels = clip_pixels(picture, self.pipe.image_encoder.config.image_size)
        tokens = self.encode_pixels(pixels[None])[0].cpu()
        if self.local is None:
            return tokens
        pixels = clip_pixels(picture, self.local.side)[None]
        return torch.cat([tokens, self.local(pixels.to(self.device, self.dtype))[0].cpu()])

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """CLIP tokens [R, T, width] of normalised pixels [R, 3, side, side]: the output of the last layer but one."""
        pixels = pixels.to(self.device, self.dtype)
        return self.pipe.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]

    @torch.no_grad()
    def encode_phrases(self, phrases: Sequence[str]) -> Tensor:
        """Phrase vectors [R, width]: the pooled output of the first text encoder."""
        ids = self.pipe.tokenizer(
            list(phrases), padding="max_length", max_length=self.pipe.tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        return self.pipe.text_encoder(ids.to(self.device)).pooler_output

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], settings: Settings) -> Text:
        """Embeddings of prompts, and of the negative prompt if there is guidance."""
        guided = settings.guidance > 1
        negative = [settings.negative_prompt] * len(prompts) if guided else None
        tokens, negative_tokens, pooled, negative_pooled = self.pipe.encode_prompt(
            list(prompts), device=self.device, do_classifier_free_guidance=guided, negative_prompt=negative
        )
        return Text(tokens, pooled, negative_tokens, negative_pooled)

    @torch.no_grad()
    def image_tokens(self, features: Tensor, phrases: Sequence[str], boxes: Tensor) -> Tensor:
        """Tokens [B, n, Q, D] from CLIP tokens [B, n, T, .], B n phrases (sample by sample) and boxes [B, n, 4]."""
        vectors = self.encode_phrases(phrases)
        rows = features.to(vectors).flatten(0, 1), vectors, boxes.to(self.device).flatten(0, 1)
        tokens = self.adapter.image_proj(*rows)
        return tokens.unflatten(0, boxes.shape[:2])

    @torch.no_grad()
    def place(self, scenes: Sequence[Scene], settings: Settings) -> Subjects:
        """The subjects of all scenes. Scenes with fewer subjects than the largest are padded with boxes of zeros."""
        most = max(len(scene.phrases) for scene in scenes)
        phrases = [p for scene in scenes for p in [*scene.phrases, *[""] * (most - len(scene.phrases))]]
        boxes = pad_sequence([torch.tensor(scene.boxes, dtype=torch.float32) for scene in scenes], batch_first=True)
        features = pad_sequence([torch.stack(list(scene.features)) for scene in scenes], batch_first=True)
        tokens = self.image_tokens(features, phrases, boxes)
        return self.subjects(tokens, boxes, settings)

    @torch.no_grad()
    def subjects(self, tokens: Tensor, boxes: Tensor, settings: Settings) -> Subjects:
        """What the UNet needs of image tokens [B, n, Q, D] and boxes [B, n, 4]."""
        factor = self.pipe.vae_scale_factor
        size = (settings.height // factor, settings.width // factor)
        return self.adapter.subjects(tokens, boxes.to(self.device), settings.adapter_scale, size)

    def noise(self, generators: Iterable[torch.Generator], settings: Settings) -> Tensor:
        """Start noise [B, 4, rows, columns]. Each sample's own generator draws it, in float32 on the CPU.

        So a sample's noise is the same on every device, in every precision and in every batch.
        """
        factor, channels = self.pipe.vae_scale_factor, self.pipe.unet.config.in_channels
        shape = (channels, settings.height // factor, settings.width // factor)
        return torch.stack([torch.randn(shape, generator=g) for g in generators])

    @torch.no_grad()
    def denoise(
        self,
        text: Text,
        subjects: Subjects,
        noise: Tensor,
        settings: Settings,
        generators: list[torch.Generator] | None = None,
    ) -> Tensor:
        """Latents [B, 4, rows, columns] from noise of unit variance.

        ``generators`` are for schedulers that add noise.
        """
        return self.pipe(
            prompt_embeds=text.tokens,
            pooled_prompt_embeds=text.pooled,
            negative_prompt_embeds=text.negative_tokens,
            negative_pooled_prompt_embeds=text.negative_pooled,
            latents=noise.to(self.device, self.dtype),
            height=settings.height,
            width=settings.width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            cross_attention_kwargs={"subjects": subjects},
            generator=generators,
            output_type="latent",
            return_dict=False,
        )[0]

    def sample(self, scenes: Sequence[Scene], settings: Settings) -> Tensor:
        """Latents [B, 4, rows, columns] of the scenes.

        Those of one scene depend on the others by float rounding at most.
        """
        generators = [torch.Generator("cpu").manual_seed(scene.seed) for scene in scenes]
        text = self.encode_text([scene.prompt for scene in scenes], settings)
        noise = self.noise(generators, settings)
        return self.denoise(text, self.place(scenes, settings), noise, settings, generators)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, height, width] in [0, 1], float32 on the CPU, decoded one by one to save memory."""
        vae = self.pipe.vae
        scaled = (latents / vae.config.scaling_factor).to(self.device, vae.dtype)
        pixels = torch.cat([vae.decode(one[None], return_dict=False)[0].float().cpu() for one in scaled])
        return (pixels / 2 + 0.5).clamp(0, 1)


def clip_pixels(picture: Image.Image, side: int) -> Tensor:
    """An RGB picture as CLIP's input: [3, side, side], normalised.

    It is first squeezed to 512 x 512 (docs/differences.md, "Reference pictures are squeezed").
    """
    squeezed = picture.resize((512, 512), Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(squeezed)).float() / 255
    return ((pixels - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)).permute(2, 0, 1)


def to_pictures(pixels: Tensor) -> list[Image.Image]:
    """RGB pictures of pixels [B, 3, H, W] in [0, 1]."""
    return [Image.fromarray(p) for p in (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()]


def load_generator(
    base: Path,
    image_encoder: Path,
    adapter: Path,
    device: torch.device,
    dtype: torch.dtype,
    vae: Path | None = None,
    local_encoder: Path | None = None,
    loras: Mapping[str, Path] | None = None,
    sizes: ResamplerSizes | None = None,
    offload: bool = False,
) -> Generator:
    """A generator from files in their published layouts. Raises UserError for files that do not fit together.

    With ``offload`` the GPU holds only one of text encoders, image encoder, UNet and VAE at a time; the adapter and the
    local encoder stay on it.
    """
    pipe = load_pipeline(base, image_encoder, vae, dtype)
    image_adapter = load_adapter(
        adapter,
        pipe.unet,
        sizes or ResamplerSizes(),
        pipe.image_encoder.config.hidden_size,
        pipe.text_encoder.config.hidden_size,
    )
    local = load_local_encoder(local_encoder, pipe.image_encoder.config).to(device, dtype) if local_encoder else None
    generator = Generator(pipe, image_adapter.to(device, dtype), device, local)
    generator.add_loras(loras or {})
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    return generator


def load_pipeline(base: Path, image_encoder: Path, vae: Path | None, dtype: torch.dtype) -> Any:
    """SDXL in ``dtype`` on the CPU, with the CLIP image encoder registered in it.

    A VAE whose config says that it overflows in float16 (force_upcast) stays in float32.
    """
    variant = variant_of(base / "unet", dtype)
    try:
        decoder = (
            AutoencoderKL.from_pretrained(vae, use_safetensors=True)
            if vae is not None
            else AutoencoderKL.from_pretrained(base, subfolder="vae", variant=variant, use_safetensors=True)
        )
        pipe = StableDiffusionXLPipeline.from_pretrained(
            base,
            vae=decoder if decoder.config.force_upcast else decoder.to(dtype),
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            add_watermarker=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"SDXL base {base}: cannot be loaded ({reason}); fetch it again") from error
    pipe.register_modules(image_encoder=load_image_encoder(image_encoder, dtype))
    return pipe


def load_image_encoder(folder: Path, dtype: torch.dtype) -> CLIPVisionModel:
    """CLIP's vision tower, from a whole CLIP model or from a vision tower alone."""
    try:
        encoder, report = cast(
            "tuple[CLIPVisionModel, dict]",
            CLIPVisionModel.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True),
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"CLIP image encoder {folder}: cannot be loaded ({reason}); fetch it again") from error
    if missing := sorted(report["missing_keys"]):  # transformers would initialise them at random
        raise UserError(f"CLIP image encoder {folder}: {missing[0]} is missing; give a CLIP model")
    return encoder


def variant_of(folder: Path, dtype: torch.dtype) -> str | None:
    """ "fp16" if a model's folder has files of that variant, and they are wanted or the only ones; else None."""
    names = [path.name for path in folder.glob("*.safetensors")]
    halves = [name for name in names if ".fp16." in name]
    return "fp16" if halves and (dtype != torch.float32 or len(halves) == len(names)) else None
