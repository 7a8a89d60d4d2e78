"""Generated creatures: kinds that can hug, dance or carry something (relations.yaml lists them as animate)."""

from __future__ import annotations

import numpy as np

from pipeline.references.generated.outlines import Part, arc, band, box, ellipse, part, smooth, upright
from pipeline.references.generated.shapes import Maker, Rng


def eyes(x: float, y: float, size: float) -> list[Part]:
    """Two eyes at -x and x."""
    white = [part("light", ellipse(s * x, y, size)) for s in (-1, 1)]
    return [*white, *(part("dark", ellipse(s * x, y, size * 0.55)) for s in (-1, 1))]


def limbs(rng: Rng, wide: float) -> list[Part]:
    """Two arms that hang from a body of this half width, and two feet."""
    hang = rng.uniform(15, 50)
    arms = [part("main", ellipse(s * (wide + 0.05), 0.45, 0.14, 0.38, -s * hang)) for s in (-1, 1)]
    return [*arms, *(part("second", ellipse(s * wide * 0.55, 1.12, 0.26, 0.16)) for s in (-1, 1))]


def fish(rng: Rng) -> list[Part]:
    tall, tail = rng.uniform(0.42, 0.65), rng.uniform(0.35, 0.55)
    fin = smooth([[-0.2, -tall * 0.7], [0.1, -tall - 0.3], [0.45, -tall * 0.5]], 1)
    return [part("second", [[0.5, 0], [1.15, -tail], [1.0, 0], [1.15, tail]]), part("second", fin),
            part("main", ellipse(-0.1, 0, 0.8, tall)), part("second", ellipse(0.05, 0.1, 0.2, 0.11, 20)),
            part("light", ellipse(-0.55, -0.12, 0.12)), part("dark", ellipse(-0.57, -0.12, 0.06))]  # fmt: skip


def bird(rng: Rng) -> list[Part]:
    wide, lift = rng.uniform(0.55, 0.7), rng.uniform(-15, 25)
    legs = [band([[x, 0.5], [x, 1.0], [x - 0.12, 1.0]], 0.06) for x in (-0.08, 0.18)]
    tail = part("second", [[0.4, 0.0], [1.15, -0.3], [1.1, 0.15], [0.5, 0.4]])
    beak = part("dark", [[-0.72, -0.62], [-1.05, -0.48], [-0.7, -0.42]])
    return [*(part("dark", leg) for leg in legs), tail, beak, part("main", ellipse(0.05, 0.15, wide, 0.48)),
            part("main", ellipse(-0.45, -0.5, 0.34)), part("second", ellipse(0.18, 0.12, 0.42, 0.22, lift)),
            part("light", ellipse(-0.55, -0.56, 0.09)), part("dark", ellipse(-0.57, -0.56, 0.05))]  # fmt: skip


def butterfly(rng: Rng) -> list[Part]:
    upper, lower, turn = rng.uniform(0.45, 0.58), rng.uniform(0.3, 0.42), rng.uniform(25, 45)
    parts = [part("main", ellipse(s * 0.52, 0.42, lower, lower * 0.8, s * turn)) for s in (-1, 1)]
    parts += [part("main", ellipse(s * 0.55, -0.3, upper, upper * 0.75, -s * turn)) for s in (-1, 1)]
    parts += [part("second", ellipse(s * 0.62, -0.34, upper * 0.4)) for s in (-1, 1)]
    parts += [part("second", ellipse(s * 0.55, 0.45, lower * 0.4)) for s in (-1, 1)]
    parts += [part("dark", band([[0, -0.5], [s * 0.15, -0.8], [s * 0.3, -0.95]], 0.05)) for s in (-1, 1)]
    return [*parts, part("dark", ellipse(0, 0.05, 0.1, 0.65))]


def snail(rng: Rng) -> list[Part]:
    size = rng.uniform(0.5, 0.62)
    turns = np.radians(np.linspace(0, rng.uniform(600, 800), 70))
    spiral = np.stack([np.cos(turns), np.sin(turns)], 1) * np.linspace(size * 0.85, 0.04, 70)[:, None] + (0.2, -0.1)
    foot = smooth([[-1.1, 0.1], [-0.75, 0.1], [-0.6, 0.4], [1.1, 0.4], [1.2, 0.6], [-0.95, 0.62]], 2)
    stalks = [band([[-0.9, 0.2], [x, -0.25]], 0.07) for x in (-1.02, -0.78)]
    tips = [part("dark", ellipse(x, -0.27, 0.08)) for x in (-1.02, -0.78)]
    return [*(part("second", stalk) for stalk in stalks), part("second", foot), part("main", ellipse(0.2, -0.1, size)),
            part("dark", band(spiral, 0.05)), *tips]  # fmt: skip


def bear(rng: Rng) -> list[Part]:
    wide, head = rng.uniform(0.48, 0.62), rng.uniform(0.46, 0.54)
    ears = [part("main", ellipse(s * head * 0.8, -0.92, 0.2)) for s in (-1, 1)]
    inner = [part("second", ellipse(s * head * 0.8, -0.92, 0.11)) for s in (-1, 1)]
    return [*limbs(rng, wide), *ears, *inner, part("main", ellipse(0, 0.5, wide, 0.65)),
            part("second", ellipse(0, 0.55, wide * 0.6, 0.42)), part("main", ellipse(0, -0.5, head + 0.06, head)),
            part("second", ellipse(0, -0.34, 0.22, 0.17)), part("dark", ellipse(0, -0.42, 0.09, 0.06)),
            *eyes(0.22, -0.62, 0.08)]  # fmt: skip


def rabbit(rng: Rng) -> list[Part]:
    wide, long, lean = rng.uniform(0.42, 0.55), rng.uniform(0.4, 0.55), rng.uniform(5, 22)
    ears = [part("main", ellipse(s * 0.26, -1.0, 0.14, long, s * lean)) for s in (-1, 1)]
    inner = [part("second", ellipse(s * 0.26, -1.0, 0.07, long * 0.7, s * lean)) for s in (-1, 1)]
    return [*limbs(rng, wide), *ears, *inner, part("main", ellipse(0, 0.5, wide, 0.65)),
            part("second", ellipse(0, 0.6, wide * 0.55, 0.4)), part("main", ellipse(0, -0.4, 0.46, 0.42)),
            part("dark", ellipse(0, -0.3, 0.07, 0.05)), *eyes(0.2, -0.48, 0.09)]  # fmt: skip


def cat(rng: Rng) -> list[Part]:
    wide, curl = rng.uniform(0.42, 0.55), rng.uniform(0.75, 0.95)
    ears = [part("main", [[s * 0.5, -0.5], [s * 0.46, -1.12], [s * 0.08, -0.85]]) for s in (-1, 1)]
    tail = band(arc(0.4, 0.55, curl - 0.4 + 0.15, 0.5, 90, -80), 0.15)
    hairs = [band([[s * 0.1, -0.32], [s * 0.5, y]], 0.025) for s in (-1, 1) for y in (-0.38, -0.24)]
    body = upright([(0.2, 0), (wide, 0.6), (wide, 1.1)], 2)
    return [part("second", tail), *limbs(rng, wide), *ears, part("main", body),
            part("second", ellipse(0, 0.6, wide * 0.5, 0.36)), part("main", ellipse(0, -0.5, 0.54, 0.45)),
            part("dark", [[-0.08, -0.4], [0.08, -0.4], [0, -0.3]]), *(part("dark", hair) for hair in hairs),
            *eyes(0.22, -0.58, 0.1)]  # fmt: skip


def owl(rng: Rng) -> list[Part]:
    wide, eye = rng.uniform(0.55, 0.7), rng.uniform(0.2, 0.26)
    body = upright([(0.25, -0.9), (wide * 0.9, -0.95), (wide, -0.2), (wide, 0.6), (0.2, 1.0)], 2)
    wings = [part("second", ellipse(s * wide * 0.85, 0.2, 0.18, 0.55, s * 12)) for s in (-1, 1)]
    feet = [part("dark", ellipse(s * 0.2, 0.98, 0.14, 0.08)) for s in (-1, 1)]
    beak = part("dark", [[-0.08, -0.25], [0.08, -0.25], [0, -0.05]])
    return [*feet, part("main", body), *wings, *eyes(eye * 1.05, -0.4, eye), beak,
            part("second", ellipse(0, 0.4, wide * 0.45, 0.32))]  # fmt: skip


def turtle(rng: Rng) -> list[Part]:
    tall = rng.uniform(0.6, 0.8)
    shell = np.concatenate([arc(0, 0.25, 0.8, tall, 180, 360), [[0.8, 0.38], [-0.8, 0.38]]])
    legs = [part("second", smooth(box(x, 0.2, x + 0.32, 0.75), 1)) for x in (-0.65, 0.3)]
    return [*legs, part("second", ellipse(-1.0, -0.05, 0.28, 0.22)), part("second", box(-0.95, 0.0, -0.6, 0.3)),
            part("second", [[0.7, 0.2], [1.1, 0.4], [0.7, 0.4]]), part("main", shell),
            part("light", ellipse(-1.08, -0.1, 0.07)), part("dark", ellipse(-1.1, -0.1, 0.04))]  # fmt: skip


def robot(rng: Rng) -> list[Part]:
    wide, head = rng.uniform(0.45, 0.6), rng.uniform(0.32, 0.45)
    arms = [part("second", box(s * (wide + 0.14) - 0.1, -0.1, s * (wide + 0.14) + 0.1, 0.6)) for s in (-1, 1)]
    legs = [part("second", box(s * wide * 0.5 - 0.14, 0.7, s * wide * 0.5 + 0.14, 1.2)) for s in (-1, 1)]
    aerial = [part("dark", box(-0.03, -1.15, 0.03, -0.8)), part("second", ellipse(0, -1.17, 0.09))]
    return [*arms, *legs, *aerial, part("main", smooth(box(-head, -0.85, head, -0.25), 1)),
            part("main", box(-wide, -0.2, wide, 0.75)), *eyes(head * 0.45, -0.6, 0.11),
            part("light", box(-wide * 0.55, 0.05, wide * 0.55, 0.4)), part("dark", ellipse(0, 0.22, 0.1))]  # fmt: skip


def ghost(rng: Rng) -> list[Part]:
    folds, tall = int(rng.integers(3, 6)), rng.uniform(0.8, 1.0)
    edge = np.linspace(0.75, -0.75, folds * 8 + 1)
    hem = np.stack([edge, 0.85 + 0.16 * np.abs(np.sin(np.pi * folds * (edge + 0.75) / 1.5))], 1)
    body = np.concatenate([arc(0, 0, 0.75, tall, 180, 360), hem])
    return [part("main", body), *eyes(0.26, -0.2, 0.15), part("dark", ellipse(0, 0.2, 0.12, 0.16)),
            part("second", ellipse(0, 0.62, 0.3, 0.14))]  # fmt: skip


CREATURES: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (fish, bird, butterfly, snail, bear, rabbit, cat, owl, turtle, robot, ghost)
}  # fmt: skip
"""Every kind of creature with the function that draws it."""
