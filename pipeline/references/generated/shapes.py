"""Generated shapes and things: for each kind a function that draws its parts, with proportions of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.references.generated.outlines import (
    Part,
    arc,
    band,
    box,
    ellipse,
    part,
    polygon,
    smooth,
    spokes,
    turned,
    upright,
)

Rng = np.random.Generator
Maker = Callable[[Rng], list[Part]]


def triangle(rng: Rng) -> list[Part]:
    shape = np.array([[rng.uniform(-0.5, 0.5), -1], [1, 0.8], [-1, 0.8]])
    return [part("main", shape), part("second", shape * 0.45 + (0, 0.1))]


def diamond(rng: Rng) -> list[Part]:
    wide = rng.uniform(0.55, 0.85)
    shape = np.array([[0, -1], [wide, 0], [0, 1], [-wide, 0]])
    return [part("main", shape), part("second", shape * rng.uniform(0.3, 0.5))]


def hexagon(rng: Rng) -> list[Part]:
    start = 30.0 * rng.integers(2)
    inner = rng.uniform(0.35, 0.55)
    return [part("main", polygon(6, 1, start)), part("second", polygon(6, inner, start))]


def star(rng: Rng) -> list[Part]:
    count, inner = int(rng.integers(4, 9)), rng.uniform(0.4, 0.62)
    return [part("main", spokes(count, 1, inner)), part("second", ellipse(0, 0, inner * rng.uniform(0.4, 0.75)))]


def gear(rng: Rng) -> list[Part]:
    teeth, root = int(rng.integers(7, 13)), rng.uniform(0.72, 0.82)
    angles = np.radians(np.arange(4 * teeth) * 90 / teeth)
    radii = np.where(np.arange(4 * teeth) % 4 < 2, 1.0, root)
    rim = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
    hole = rng.uniform(0.18, 0.3)
    return [part("main", rim), part("second", ellipse(0, 0, hole * 1.6)), part("hole", ellipse(0, 0, hole))]


def blob(rng: Rng) -> list[Part]:
    radii = rng.uniform(0.55, 1.0, 9)
    angles = np.radians(np.arange(9) * 40)
    rim = smooth(np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1))
    spots = [ellipse(*rng.uniform(-0.3, 0.3, 2), *rng.uniform(0.08, 0.17, 2)) for _ in range(3)]
    return [part("main", rim), *(part("second", spot) for spot in spots)]


def heart(rng: Rng) -> list[Part]:
    t = np.radians(np.linspace(0, 360, 72, endpoint=False))
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    shape = np.stack([np.sin(t) ** 3 * rng.uniform(0.85, 1.1), y], 1)
    return [part("main", shape), part("second", shape * rng.uniform(0.35, 0.6))]


def moon(rng: Rng) -> list[Part]:
    shift = rng.uniform(0.4, 0.65)
    crater = ellipse(-0.7, 0.12, 0.1)
    return [part("main", ellipse(0, 0, 1)), part("hole", ellipse(shift, -0.15, 0.85)), part("second", crater)]


def cross(rng: Rng) -> list[Part]:
    arm = rng.uniform(0.25, 0.42)
    upper, lower = box(-arm, -1, arm, 1), box(-1, -arm, 1, arm)
    return [part("main", upper), part("main", lower), part("second", box(-arm, -arm, arm, arm) * 0.8)]


def arrow(rng: Rng) -> list[Part]:
    shaft, head, at = rng.uniform(0.16, 0.28), rng.uniform(0.5, 0.7), rng.uniform(-0.1, 0.2)
    turn = 90.0 * rng.integers(4)
    tip, rod = np.array([[1, 0], [at, head], [at, -head]]), box(-1, -shaft, at + 0.05, shaft)
    return [part("second", turned(rod, turn)), part("main", turned(tip, turn))]


def drop(rng: Rng) -> list[Part]:
    wide = rng.uniform(0.5, 0.75)
    rim = upright([(0, -1.1), (0.08, -0.85), (wide * 0.8, 0), (wide, 0.5), (wide * 0.7, 1), (0.1, 1.1)], 3)
    return [part("main", rim), part("light", ellipse(-wide * 0.45, 0.35, 0.09, 0.22, 20))]


def flower(rng: Rng) -> list[Part]:
    count = int(rng.integers(5, 10))
    long, wide = rng.uniform(0.42, 0.5), rng.uniform(0.18, 0.27)
    petals = [turned(ellipse(0, -0.55, wide, long), 360 * k / count) for k in range(count)]
    return [*(part("main", petal) for petal in petals), part("second", ellipse(0, 0, rng.uniform(0.24, 0.36)))]


def bottle(rng: Rng) -> list[Part]:
    wide, neck, shoulder = rng.uniform(0.35, 0.55), rng.uniform(0.12, 0.18), rng.uniform(-0.45, -0.15)
    glass = upright([(neck, -1), (neck, shoulder - 0.25), (wide, shoulder + 0.1), (wide, 1)], 2)
    top = rng.uniform(0.0, 0.2)
    label = box(-wide * 0.97, top, wide * 0.97, top + rng.uniform(0.3, 0.5))
    return [part("main", glass), part("second", label), part("dark", box(-neck - 0.03, -1.12, neck + 0.03, -0.9))]


def house(rng: Rng) -> list[Part]:
    wide, wall, roof = rng.uniform(0.6, 0.85), rng.uniform(-0.25, 0.05), rng.uniform(0.5, 0.8)
    parts = [part("main", box(-wide, wall, wide, 1))]
    if rng.random() < 0.5:
        parts.append(part("dark", box(wide * 0.4, wall - roof, wide * 0.65, wall)))
    parts.append(part("second", [[-wide - 0.15, wall], [0, wall - roof], [wide + 0.15, wall]]))
    door = wide * rng.choice([-0.5, 0.0, 0.5])
    parts.append(part("dark", box(door - 0.13, 0.45, door + 0.13, 1)))
    for x in (-0.5, 0.5):
        if abs(x * wide - door) > 0.1:
            parts.append(part("light", box(x * wide - 0.14, wall + 0.2, x * wide + 0.14, wall + 0.5)))
    return parts


def mushroom(rng: Rng) -> list[Part]:
    stem, tall = rng.uniform(0.18, 0.3), rng.uniform(0.7, 1.0)
    foot = upright([(stem * 0.8, 0), (stem, tall * 0.6), (stem * 1.3, tall)], 1)
    spots = [ellipse(x, rng.uniform(-0.5, -0.3), rng.uniform(0.08, 0.15)) for x in (-0.5, 0.0, 0.5)]
    cap = smooth(np.concatenate([arc(0, 0, 1, rng.uniform(0.7, 0.95), 180, 360), [[0.8, 0.14], [-0.8, 0.14]]]), 1)
    return [part("light", foot), part("main", cap), *(part("second", spot) for spot in spots)]


def mug(rng: Rng) -> list[Part]:
    wide, grip = rng.uniform(0.6, 0.8), rng.uniform(0.3, 0.4)
    parts = [part("second", ellipse(wide, 0.05, grip, 0.5)), part("hole", ellipse(wide, 0.05, grip - 0.15, 0.33))]
    foot = wide * rng.uniform(0.7, 1.0)
    body = np.concatenate([[[-wide, -0.8], [wide, -0.8]], arc(0, 0.8, foot, 0.16, 0, 180)])
    return [*parts, part("main", body), part("second", ellipse(0, -0.8, wide, 0.17)),
            part("dark", ellipse(0, -0.79, wide * 0.86, 0.11))]  # fmt: skip


def tree(rng: Rng) -> list[Part]:
    trunk = part("dark", upright([(0.09, 0), (0.11, 0.8), (0.2, 1)], 1))
    if rng.random() < 0.5:
        tiers = [[[0, -1 + 0.4 * k], [0.4 + 0.15 * k, -0.3 + 0.4 * k], [-0.4 - 0.15 * k, -0.3 + 0.4 * k]]
                 for k in (2, 1, 0)]  # fmt: skip
        return [trunk, *(part("main" if k != 1 else "second", tier) for k, tier in enumerate(tiers))]
    crowns = [ellipse(x, y, rng.uniform(0.4, 0.52)) for x, y in ((-0.38, -0.05), (0.38, -0.05), (0, -0.45))]
    fruit = [ellipse(x, y, 0.08) for x, y in rng.uniform(-0.4, 0.2, (4, 2))]
    return [trunk, *(part("main", crown) for crown in crowns), *(part("second", f) for f in fruit)]


def cloud(rng: Rng) -> list[Part]:
    at = ((-0.65, 0.1, 0.36), (-0.2, -0.2, 0.45), (0.35, -0.1, 0.42), (0.75, 0.15, 0.32))
    puffs = [ellipse(x + rng.uniform(-0.06, 0.06), y, r * rng.uniform(0.9, 1.15)) for x, y, r in at]
    base = smooth(box(-1.0, 0.0, 1.05, 0.5), 2)
    return [part("main", base), part("second", puffs[0]), *(part("main", puff) for puff in puffs[1:])]


def leaf(rng: Rng) -> list[Part]:
    wide, turn = rng.uniform(0.35, 0.6), rng.uniform(-35, 35)
    blade = upright([(0.0, -1), (wide * 0.7, -0.5), (wide, 0.1), (wide * 0.6, 0.6), (0.03, 0.85)], 2)
    veins = [band([[0, y], [s * wide * 0.6, y - 0.28]], 0.05) for y in (-0.2, 0.2, 0.55) for s in (-1, 1)]
    lines = [band([[0, -0.8], [0, 1.15]], 0.07), *veins]
    return [part("main", turned(blade, turn)), *(part("second", turned(line, turn)) for line in lines)]


def key(rng: Rng) -> list[Part]:
    bow, long = rng.uniform(0.32, 0.42), rng.uniform(0.95, 1.2)
    teeth = [box(0.05, long - 0.12 - 0.22 * k, rng.uniform(0.25, 0.38), long - 0.22 * k) for k in range(2)]
    return [part("second", ellipse(0, -0.6, bow)), part("main", box(-0.09, -0.3, 0.09, long)),
            *(part("main", tooth) for tooth in teeth), part("hole", ellipse(0, -0.62, bow * 0.5))]  # fmt: skip


def bell(rng: Rng) -> list[Part]:
    flare = rng.uniform(0.75, 0.95)
    rim = upright([(0.1, -0.9), (0.42, -0.7), (0.5, 0.1), (flare, 0.55), (flare, 0.65)], 2)
    return [part("dark", ellipse(0, 0.68, 0.18)), part("dark", ellipse(0, -0.92, 0.12)), part("main", rim),
            part("second", box(-0.55, 0.08, 0.55, 0.26))]  # fmt: skip


def boat(rng: Rng) -> list[Part]:
    high, front = rng.uniform(-1, -0.8), rng.uniform(0.55, 0.8)
    hull = smooth([[-0.95, 0.4], [0.95, 0.4], [0.6, 0.95], [-0.6, 0.95]], 1)
    return [part("dark", box(-0.05, high, 0.05, 0.42)), part("second", [[0.1, high + 0.1], [front, 0.3], [0.1, 0.3]]),
            part("second", [[-0.1, high + 0.2], [-0.1, 0.3], [-0.6, 0.3]]), part("main", hull)]  # fmt: skip


def rocket(rng: Rng) -> list[Part]:
    wide = rng.uniform(0.26, 0.38)
    fins = [[[s * wide * 0.8, 0.2], [s * (wide + 0.35), 0.85], [s * wide * 0.6, 0.7]] for s in (-1, 1)]
    flame = upright([(wide * 0.7, 0.6), (wide * 0.5, 0.9), (0, 1.15)], 1)
    hull = upright([(0, -1.15), (wide * 0.7, -0.7), (wide, -0.2), (wide, 0.4), (wide * 0.7, 0.75)], 2)
    return [*(part("second", fin) for fin in fins), part("light", flame), part("main", hull),
            part("second", ellipse(0, -0.3, wide * 0.55)), part("light", ellipse(0, -0.3, wide * 0.38))]  # fmt: skip


def umbrella(rng: Rng) -> list[Part]:
    tall, folds = rng.uniform(0.75, 1.0), int(rng.integers(3, 6))
    edge = np.linspace(1, -1, folds * 8 + 1)
    scallop = np.stack([edge, -0.1 * np.abs(np.sin(np.pi * folds * (edge + 1) / 2))], 1)
    dome = np.concatenate([arc(0, 0, 1, tall, 180, 360), scallop])
    hook = np.concatenate([[[0, -tall]], arc(0.14, 0.85, 0.14, None, 180, 10)])
    return [part("second", band(hook, 0.09)), part("main", dome), part("dark", box(-0.04, -tall - 0.14, 0.04, -tall))]


def lamp(rng: Rng) -> list[Part]:
    top, wide = rng.uniform(0.25, 0.45), rng.uniform(0.65, 0.85)
    foot = rng.uniform(0.12, 0.32)
    stand = upright([(0.06, -0.2), (0.06, 0.2), (foot, 0.55), (0.1, 0.9), (0.45, 1)], 2)
    return [part("second", stand), part("main", [[-top, -1], [top, -1], [wide, -0.05], [-wide, -0.05]])]


def hourglass(rng: Rng) -> list[Part]:
    wide, waist = rng.uniform(0.5, 0.68), rng.uniform(0.07, 0.14)
    glass = upright([(wide, -0.85), (wide * 0.9, -0.35), (waist, 0), (wide * 0.9, 0.35), (wide, 0.85)], 2)
    plates = [box(-wide - 0.12, y, wide + 0.12, y + 0.18) for y in (-1, 0.82)]
    return [part("main", glass), *(part("second", plate) for plate in plates)]


def vase(rng: Rng) -> list[Part]:
    lip, neck, wide, foot = (rng.uniform(*r) for r in ((0.25, 0.45), (0.14, 0.25), (0.5, 0.75), (0.22, 0.4)))
    at = rng.uniform(-0.1, 0.3)
    body = upright([(lip, -1), (lip, -0.95), (neck, -0.65), (wide, at), (foot, 0.9), (foot + 0.08, 1)], 2)
    return [part("main", body), part("second", ellipse(0, -0.98, lip, 0.06)), part("second", box(-foot, 0.86, foot, 1))]


def lightning_bolt(rng: Rng) -> list[Part]:
    wide = rng.uniform(0.8, 1.1)
    shape = np.array([[0.2, -1], [-0.6, 0.15], [-0.08, 0.15], [-0.25, 1], [0.6, -0.3], [0.05, -0.3], [0.55, -1]])
    return [part("main", shape * (wide, 1)), part("second", shape * (wide * 0.4, 0.4) + (0, -0.1))]


def apple(rng: Rng) -> list[Part]:
    wide = rng.uniform(0.75, 0.92)
    rim = upright([(0.05, -0.55), (wide * 0.6, -0.75), (wide, -0.1), (wide * 0.7, 0.7), (0.15, 0.75)], 2)
    blade = ellipse(0.32, -0.88, 0.3, 0.12, -25)
    return [part("main", rim), part("dark", band([[0, -0.5], [0.03, -0.8], [0.1, -1.05]], 0.09)), part("second", blade)]


def pear(rng: Rng) -> list[Part]:
    neck, wide = rng.uniform(0.28, 0.38), rng.uniform(0.62, 0.78)
    rim = upright([(0.12, -0.9), (neck, -0.7), (neck * 1.2, -0.2), (wide, 0.4), (wide * 0.7, 0.95), (0.1, 1)], 2)
    return [part("main", rim), part("dark", band([[0, -0.8], [0.05, -1.15]], 0.09)),
            part("second", ellipse(0.28, -1.0, 0.24, 0.1, -20))]  # fmt: skip


def crown(rng: Rng) -> list[Part]:
    tips, dip = int(rng.integers(3, 6)), rng.uniform(-0.15, 0.1)
    x = np.linspace(-1, 1, 2 * tips - 1)
    y = np.where(np.arange(2 * tips - 1) % 2 == 0, -0.7, dip)
    ring = np.concatenate([np.stack([x, y], 1), [[0.85, 0.7], [-0.85, 0.7]]])
    gems = [ellipse(gx, -0.72, 0.11) for gx in x[::2]]
    return [part("main", ring), part("second", box(-0.86, 0.42, 0.86, 0.72)), *(part("second", gem) for gem in gems)]


def hat(rng: Rng) -> list[Part]:
    wide, top, tall = rng.uniform(0.48, 0.6), rng.uniform(0.42, 0.62), rng.uniform(0.7, 1.1)
    body = smooth([[-top, -tall], [top, -tall], [wide, 0.25], [-wide, 0.25]], 1)
    return [part("main", ellipse(0, 0.2, 1, 0.2)), part("main", body), part("second", box(-wide, -0.12, wide, 0.14))]


def boot(rng: Rng) -> list[Part]:
    tall, toe = rng.uniform(0.9, 1.1), rng.uniform(0.75, 0.95)
    body = smooth([[-0.5, -tall], [0.1, -tall], [0.12, 0.1], [toe, 0.35], [toe, 0.8], [-0.55, 0.8]], 2)
    return [part("main", body), part("dark", box(-0.55, 0.72, toe - 0.02, 0.9)),
            part("second", smooth(box(-0.55, -tall - 0.08, 0.17, -tall + 0.2), 1))]  # fmt: skip


def hammer(rng: Rng) -> list[Part]:
    thick = rng.uniform(0.09, 0.14)
    head = smooth([[-0.65, -1], [0.5, -1], [0.8, -0.62], [0.3, -0.55], [-0.65, -0.5]], 1)
    return [part("second", box(-thick, -0.6, thick, 1)), part("main", head)]


def chair(rng: Rng) -> list[Part]:
    back, leg = rng.uniform(-1.1, -0.8), rng.uniform(0.12, 0.18)
    legs = [box(x, 0.2, x + leg, 1) for x in (-0.6, 0.6 - leg)]
    slats = [part("hole", box(-0.38 + 0.3 * k, back + 0.25, -0.24 + 0.3 * k, -0.12)) for k in range(3)]
    return [part("main", smooth(box(-0.6, back, 0.6, 0.1), 1)), *slats, *(part("dark", rod) for rod in legs),
            part("second", smooth(box(-0.75, 0.0, 0.75, 0.3), 1))]  # fmt: skip


def car(rng: Rng) -> list[Part]:
    roof, front = rng.uniform(-0.6, -0.45), rng.uniform(0.25, 0.45)
    cabin = smooth([[-0.6, -0.05], [-0.4, roof], [front, roof], [front + 0.3, -0.05]], 1)
    panes = [box(-0.42, roof + 0.12, -0.06, -0.08), box(0.04, roof + 0.12, front + 0.05, -0.08)]
    wheels = [[part("dark", ellipse(x, 0.42, 0.24)), part("light", ellipse(x, 0.42, 0.1))] for x in (-0.55, 0.55)]
    return [part("second", cabin), *(part("light", pane) for pane in panes),
            part("main", smooth(box(-1, -0.12, 1, 0.42), 1)), *wheels[0], *wheels[1]]  # fmt: skip


def cactus(rng: Rng) -> list[Part]:
    wide, parts = rng.uniform(0.2, 0.3), []
    for side in (-1, 1):
        at, up = rng.uniform(-0.1, 0.35), rng.uniform(0.35, 0.6)
        arm = band([[0, at], [side * 0.55, at], [side * 0.6, at - 0.1], [side * 0.6, at - up]], 0.24)
        parts += [part("main", arm), part("main", ellipse(side * 0.6, at - up, 0.12))]
    trunk = smooth(box(-wide, -1, wide, 0.8), 2)
    pot = [[-0.5, 0.55], [0.5, 0.55], [0.38, 1.1], [-0.38, 1.1]]
    return [*parts, part("main", trunk), part("second", pot), part("second", box(-0.56, 0.5, 0.56, 0.66))]


def balloon(rng: Rng) -> list[Part]:
    wide = rng.uniform(0.6, 0.75)
    string = np.stack([0.07 * np.sin(np.linspace(0, 7, 24)), np.linspace(0.5, 1.3, 24)], 1)
    knot = [[-0.1, 0.66], [0.1, 0.66], [0, 0.48]]
    return [part("dark", band(string, 0.045)), part("second", knot), part("main", ellipse(0, -0.25, wide, 0.8)),
            part("light", ellipse(-wide * 0.45, -0.6, 0.1, 0.2, 25))]  # fmt: skip


SHAPES: dict[str, Maker] = {
    maker.__name__.replace("_", " "): maker
    for maker in (
        triangle, diamond, hexagon, star, gear, blob, heart, moon, cross, arrow, drop, flower, bottle, house, mushroom,
        mug, tree, cloud, leaf, key, bell, boat, rocket, umbrella, lamp, hourglass, vase, lightning_bolt, apple, pear,
        crown, hat, boot, hammer, chair, car, cactus, balloon,
    )
}  # fmt: skip
"""Every kind of thing with the function that draws it."""
