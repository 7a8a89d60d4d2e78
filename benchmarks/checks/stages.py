"""The curation's stages with random weights of the paper's models, each beside its bare model."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from checks.scale import Scale, Skipped, require, seconds
from packaging.requirements import Requirement
from PIL import Image, ImageDraw

NEEDED = {"synthesis": ("diffusers", "transformers", "peft"), "matting": ("timm",), "semantics": ("transformers",),
          "identity": ("timm",)}  # fmt: skip
QUICKER: dict[str, tuple[dict[str, int], float]] = {
    "synthesis": ({"steps": 8}, 8 / 30), "semantics": ({"max_tokens": 48}, 48 / 160),
}  # fmt: skip
"""Settings at full size that fit a check's time, as 30 steps and 160 tokens take minutes a round, and the share of the
model's work that is left. The stage's other work is not less, so ``ratio_in_earnest`` counts it with this share."""
GOAL = 0.9
"""Share of the bare model's speed that a stage should reach on a GPU; on a CPU the times are noise."""


def need(name: str) -> None:
    """Skip the check unless all packages that the stage needs are there, and as new as pyproject.toml asks."""
    needed = (*NEEDED[name], "cv2", "pyarrow")
    if missing := [package for package in needed if find_spec(package) is None]:
        raise Skipped(f"not installed: {', '.join(missing)}")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    asked = [Requirement(line) for lines in (project["dependencies"], *project["optional-dependencies"].values())
             for line in lines]  # fmt: skip
    for requirement in (each for each in asked if each.name in needed):
        if not requirement.specifier.contains(found := version(requirement.name), prereleases=True):
            raise Skipped(f"{requirement.name} {found} is installed, {requirement} is needed")


def stage(name: str) -> Callable[[Scale], dict[str, Any]]:
    """The check of one stage."""

    def check(scale: Scale) -> dict[str, Any]:
        need(name)
        import stages

        # Work outside the model takes more processor time than the model takes of the GPU, so several parts at once.
        samples, workers = ((16, 4) if name in QUICKER else (64, 16)) if scale.full else (1, 1)
        rounds = 1 if not scale.full or name in QUICKER else stages.ROUNDS
        changes, share = QUICKER.get(name, ({}, 1.0)) if scale.full else ({}, 1.0)
        with tempfile.TemporaryDirectory() as folder:
            pool = write_pool(Path(folder) / "pool")
            with plain_backgrounds():
                pictures, run = stages.prepare(Path(folder), [name], scale.full, samples, workers, pool, changes)
            figures = stages.measure(pictures, run.stage(name), workers, rounds)
        figures["ratio_in_earnest"] = round(1 / (1 + (1 / figures["ratio"] - 1) * share), 3)
        require(figures["ratio_in_earnest"] >= GOAL or not scale.on_gpu, f"slower than the bare model: {figures}")
        return figures

    check.__doc__ = f"Samples a second of {name} and of its bare model."
    return check


def synthesis_batches(scale: Scale) -> dict[str, Any]:
    """Seconds of the bare model for a picture by batch, eager and with its UNet compiled, at a few denoising steps."""
    need("synthesis")
    import stages

    sizes, steps = ((1, 4, 8), 4) if scale.full else ((1,), 1)
    with tempfile.TemporaryDirectory() as folder:
        changes = {"batch_size": sizes[-1], "steps": steps}
        pool = write_pool(Path(folder) / "pool")
        with plain_backgrounds():
            pictures, run = stages.prepare(Path(folder), ["synthesis"], scale.full, sizes[-1], 1, pool, changes)
        stage = run.stage("synthesis")
        stage.ready()
        bare = stages.bare_synthesis(stage, stages.inputs_of(pictures, stage)[0])
        rows: dict[str, Any] = {"steps": steps}
        for way in ("eager", "compiled") if scale.full else ("eager",):
            if way == "compiled":
                stage.generator.pipe.unet.compile()
            for size in sizes:
                try:
                    taken = seconds(lambda size=size: bare(size), scale.device, turns=2)
                    rows[f"{way}_{size}"] = {"s_per_picture": round(min(taken) / size, 4)}
                except torch.OutOfMemoryError:
                    rows[f"{way}_{size}"] = {"memory": "does not fit"}
    return rows


def plain_backgrounds() -> AbstractContextManager[Any]:
    """Collages on one plain background, as a machine with torch alone has no package of photographs."""
    plain = (("plain", Image.new("RGB", (512, 512), (200, 210, 180))),)
    return mock.patch("pipeline.synthesis.collage.load_backgrounds", return_value=plain)


def write_pool(folder: Path) -> str:
    """Twelve transparent pictures of two categories."""
    for number in range(12):
        picture = Image.new("RGBA", (256, 256))
        colour = (40 + 17 * number, 255 - 18 * number, 90 + 50 * (number % 3), 255)
        shape = ImageDraw.Draw(picture).ellipse if number % 2 else ImageDraw.Draw(picture).rectangle
        shape((40, 60 + 3 * number, 216, 200), fill=colour)
        path = folder / ("balls" if number % 2 else "boxes") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return str(folder)


CHECKS = {
    **{f"stage_{name}": stage(name) for name in ("identity", "matting", "synthesis", "semantics")},
    "synthesis_batches": synthesis_batches,
}
