"""A shard's sample made of what others publish: reference pictures, a background, the picture, a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageChops

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.shards import MAX_REFERENCES, ShardSample, encode_sample

SAME = 8
"""Largest difference of a channel (of 255) at which a pixel of background and picture counts as the same; lossy files
differ by as much."""


def foreground_alpha(target: Image.Image, background: Image.Image) -> Image.Image:
    """The matte [H, W], 0 or 255, that the two RGB pictures tell: 255 where they differ.

    What is black in the picture itself cannot be told from what was blacked out, and counts as background.
    """
    red, green, blue = ImageChops.difference(target, background).split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return most.point([255 if value > SAME else 0 for value in range(256)])


def members_of(
    sample_id: str,
    references: Sequence[Image.Image],
    background: Image.Image | None,
    target: Image.Image,
    prompt: str,
    info: dict,
) -> dict[str, bytes]:
    """The members of a sample from pictures of any size, decoded as L, RGB or RGBA.

    Transparency becomes white, and is kept as a reference's cut-out. A background of another size is brought to the
    picture's; without one it is black, and everything is foreground. Raises UserError for a wrong number of references.
    """
    if not 1 <= len(references) <= MAX_REFERENCES:
        raise UserError(
            f"{info.get('source', sample_id)}: {len(references)} references; a sample has 1 to {MAX_REFERENCES}, so "
            "take some away"
        )
    target = pictures.on_white(target)
    if background is None:
        scene, alpha = Image.new("RGB", target.size), Image.new("L", target.size, 255)
    else:
        scene = pictures.on_white(background)
        if scene.size != target.size:
            scene = scene.resize(target.size, Image.Resampling.BICUBIC)
        alpha = foreground_alpha(target, scene)
    foreground = target.copy()
    foreground.putalpha(alpha)
    flat, cut = [pictures.on_white(r) for r in references], [r.convert("RGBA") for r in references]
    return encode_sample(
        ShardSample(sample_id, flat, cut, scene, foreground, target, alpha, prompt, info)
    )  # fmt: skip
