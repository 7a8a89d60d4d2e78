"""The golden data's tiny SDXL, image encoder, adapter and LoRA in the layout in which the real ones are published."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from data_schemas.io import pictures
from pipeline.core.stage import Sample
from pipeline.synthesis.dreamrelation.resampler import ResamplerSizes

PART = "dreamrelation"
LORA_FOLDER = "lora-trained-xl-hugging-0.1kp-0.001cal-0.6"
OLD_LORA, NEW_LORA = "*lora*old*.safetensors", "*lora*peft*.safetensors"
"""The same LoRA in the naming of older and of newer tools."""

needs_tiny = pytest.mark.skipif(
    not golden.has(PART, "model_index.json"), reason=f"no tiny models in {golden.ROOT / PART}"
)


@dataclass(frozen=True)
class TinyModels:
    """Where the tiny models of a golden case are, whatever their folders are called."""

    base: Path
    encoder: Path
    adapter: Path
    sizes: ResamplerSizes

    @classmethod
    def of(cls, case: Path | None = None) -> TinyModels:
        """Those nearest to a case; without one, those of the whole set."""
        near = functools.partial(golden.near, case or golden.ROOT / PART / "any.json")
        told = golden.read(case) if case else {}
        sizes = told.get("resampler") or golden.read(near("tiny_model.json"))["resampler"]
        base, encoder = near("*/model_index.json").parent, near("*/config.json", _sees).parent
        return cls(base, encoder, near("*ms_adapter*"), sizes_of(sizes))


def _sees(config: Path) -> bool:
    """Is it an image encoder's?"""
    return golden.read(config).get("model_type") in ("clip", "clip_vision_model")


def sizes_of(values: dict) -> ResamplerSizes:
    """Resampler sizes in the golden data's words."""
    return ResamplerSizes(
        width=values["dim"],
        layers=values["depth"],
        heads=values["heads"],
        head_width=values["dim_head"],
        queries=values["num_queries"],
        ff_mult=values["ff_mult"],
    )


def lora(pattern: str) -> Path:
    return golden.near(golden.ROOT / PART / "any.json", pattern)


def lay_out(folder: Path) -> dict:
    """Copies as a user would have them after the download; returns settings that name them."""
    tiny = TinyModels.of()
    shutil.copytree(tiny.base, folder / "base")
    shutil.copytree(tiny.encoder, folder / "encoder")
    for name, source in {
        "adapter/ms_adapter.bin": tiny.adapter,
        f"loras/{LORA_FOLDER}/pytorch_lora_weights.safetensors": lora(OLD_LORA),
        "loras/newer.safetensors": lora(NEW_LORA),
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    for path in folder.rglob("*"):  # the golden data may be read-only
        path.chmod(0o755 if path.is_dir() else 0o644)
    return {
        "base": str(folder / "base"),
        "image_encoder": str(folder / "encoder"),
        "adapter": str(folder / "adapter"),
        "lora_source": str(folder / "loras"),
        "resampler": tiny.sizes.model_dump(),
        "precision": "float32",
        "device": "cpu",
        "side": 128,
        "size": 64,
        "steps": 3,
    }


def tiny_generator(case: Path | None = None, lora: str | None = None):
    """The tiny models nearest to a golden case, loaded by the real code, float32 on the CPU."""
    return _load(TinyModels.of(case), golden.near(case, lora) if case and lora else None)


@functools.cache
def _load(tiny: TinyModels, lora: Path | None = None):
    from pipeline.synthesis.dreamrelation.generator import load_generator

    loras = {"hug": lora} if lora else {}
    return load_generator(
        tiny.base, tiny.encoder, tiny.adapter, torch.device("cpu"), torch.float32, loras=loras, sizes=tiny.sizes
    )  # fmt: skip


@dataclass(frozen=True)
class Widths:
    """Sizes of the tiny models that tests make inputs by."""

    image: int  # of the image encoder's tokens
    tokens: int  # of a picture
    phrase: int  # of the first text encoder
    side: int  # of what the image encoder sees, in pixels
    patch: int

    @classmethod
    def of(cls, pipe) -> Widths:
        seen, text = pipe.image_encoder.config, pipe.text_encoder.config
        tokens = (seen.image_size // seen.patch_size) ** 2 + 1
        return cls(seen.hidden_size, tokens, text.hidden_size, seen.image_size, seen.patch_size)


def reference_file(reference_id):
    """A cut-out: an ellipse of a colour of its own on transparent, over hidden red."""
    rng = np.random.default_rng(sum(map(ord, reference_id)))
    pixels = np.zeros((60, 90, 4), np.uint8)
    pixels[..., 0] = 255
    picture = Image.fromarray(pixels, "RGBA")
    ImageDraw.Draw(picture).ellipse((10, 5, 80, 55), fill=(*rng.integers(256, size=3).tolist(), 255))
    return pictures.encode_png(picture)


PLANS = {
    "a": ("hug", "a cat hugging a plushie bear.", ("cat", "plushie bear"), [0.0, 0.2, 0.55, 0.85], [0.5, 0.25, 1, 0.9]),
    "b": ("fence", "a dog fencing with a toy.", ("dog", "toy"), [0.1, 0.1, 0.4, 0.6], [0.5, 0.5, 0.9, 0.9]),
    "c": ("hug", "a dog hugging a cat.", ("dog", "cat"), [0.25, 0.0, 0.5, 1.0], [0.5, 0.25, 0.75, 0.75]),
    "d": ("hug", "a toy hugging a dog.", ("toy", "dog"), [0.3, 0.1, 0.8, 0.6], [0.1, 0.5, 0.6, 0.9]),
}


def make_sample(name, **changes):
    relation, prompt, names, box_0, box_1 = PLANS[name]
    plan = {"seed": ord(name), "relation": relation, "prompt": prompt, "box_0": box_0, "box_1": box_1}
    for i in range(2):
        plan |= {f"reference_{i}_id": f"{names[i]}-{i}", f"reference_{i}_name": names[i]}
    return Sample(name, {"plan": plan | changes}, {}.__getitem__, reference_file)


def open_clip_checkpoint(tower, path):
    """The tower's weights under the names open_clip gives them, as CLIPSelf saves them."""
    stored = {"visual.proj": torch.zeros(40, 20), "text.token_embedding.weight": torch.zeros(3, 3)}
    for name, value in tower.state_dict().items():
        name = name.replace("embeddings.class_embedding", "class_embedding")
        name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
        name = name.replace("embeddings.patch_embedding", "conv1")
        name = name.replace("pre_layrnorm", "ln_pre").replace("post_layernorm", "ln_post")
        name = name.replace("encoder.layers", "transformer.resblocks").replace("layer_norm", "ln_")
        name = name.replace("self_attn", "attn").replace("fc1", "c_fc").replace("fc2", "c_proj")
        stored[f"visual.{name}"] = value
    for name in [n for n in stored if ".q_proj." in n]:
        parts = [stored.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        stored[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    torch.save({"epoch": 6, "state_dict": {f"module.{n}": v for n, v in stored.items()}}, path)
