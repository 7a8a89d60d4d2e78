"""Charts of the calibration: a score with its control, where each kind of fault lies, and rates by threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.report.calibration.figures import Candidate, Seen
from pipeline.report.calibration.floor import spread_evenly
from pipeline.report.charts import (
    ACCENT,
    KEPT,
    LINE,
    REJECTED,
    WARN,
    bin_edges,
    mark_bounds,
    plain_axes,
    svg_text,
)
from pipeline.report.planted import share, wilson

POINTS = 80
"""Most points of a kind of samples."""

Bounds = Sequence[tuple[str, float, str]]


def contrast(
    scores: Sequence[float], floor: Sequence[float], bad: Sequence[float], bounds: Bounds, name: str
) -> str | None:
    """Shares of the scores (filled) and of a control (outlined), with a line for each (bound, threshold, label).

    ``bad`` are those of the scores whose samples are known to be bad; they are the part of a bar that is drawn in
    another colour. Shares are drawn because a control is usually smaller. Values that are not finite are left out; None
    if there is no score.
    """
    shown, control = (np.asarray([v for v in values if math.isfinite(v)]) for values in (scores, floor))
    if not shown.size:
        return None
    thresholds = [threshold for _, threshold, _ in bounds]
    edges = bin_edges([*shown.tolist(), *control.tolist(), *thresholds], thresholds[0] if thresholds else None)
    figure, axes = plain_axes(10, 2.8, left=0.045, right=0.99, bottom=0.1, top=0.86)
    shares, known = (np.histogram(values, edges)[0] / shown.size for values in (shown, np.asarray(bad, float)))
    axes.bar(edges[:-1], shares - known, np.diff(edges) * 0.9, known, align="edge", color=ACCENT, alpha=0.75)
    axes.bar(edges[:-1], known, np.diff(edges) * 0.9, align="edge", color=WARN)
    highest = float(shares.max())
    if control.size:
        outline = np.histogram(control, edges)[0] / control.size
        axes.stairs(outline, edges, fill=True, color=REJECTED, alpha=0.15)
        axes.stairs(outline, edges, color=REJECTED, linewidth=1.4)
        highest = max(highest, float(outline.max()))
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    axes.set_ylim(0, highest * 1.05)
    _percent(axes)
    mark_bounds(axes, bounds, (float(edges[0]), float(edges[-1])))
    return svg_text(figure, name, f"Histogram of {name}: the samples and their control, with the thresholds")


def kind_strips(kinds: Sequence[Seen], bounds: Bounds, name: str) -> str | None:
    """A line of points for each kind of labelled samples, at their scores; up to POINTS of each, spread by rank.

    None without kinds.
    """
    if not kinds:
        return None
    height = 0.42 + 0.19 * len(kinds)
    figure, axes = plain_axes(10, height, left=0.165, right=0.99, bottom=0.24 / height, top=1 - 0.3 / height)
    everything = [score for seen in kinds for score in seen.scores]
    edges = bin_edges([*everything, *(threshold for _, threshold, _ in bounds)], None)
    for row, seen in enumerate(kinds):
        points = spread_evenly(sorted(seen.scores), POINTS)
        colour = WARN if seen.bad else ACCENT
        axes.scatter(points, [-row] * len(points), s=13, color=colour, alpha=0.6, linewidths=0)
        axes.axhline(-row, color=LINE, linewidth=0.6, zorder=0)
    axes.set_yticks([-row for row in range(len(kinds))], [f"{seen.kind} ({len(seen.scores)})" for seen in kinds])
    axes.set_ylim(-len(kinds) + 0.4, 0.6)
    axes.grid(visible=False)
    low, high = float(edges[0]), float(edges[-1])
    axes.set_xlim(low, high)
    mark_bounds(axes, bounds, (low, high))
    return svg_text(figure, name, f"Scores of {name} of each kind of labelled samples, with the thresholds")


def rate_curves(curve: Sequence[Candidate], samples: int, bounds: Bounds, name: str) -> str | None:
    """Precision, recall and yield over thresholds, each with its 95 % interval; None without labels of both kinds."""
    if not curve or not curve[0].rates.bad or not curve[0].rates.good:
        return None
    figure, axes = plain_axes(10, 2.8, left=0.05, right=0.99, bottom=0.1, top=0.85)
    places = np.array([c.threshold for c in curve])
    counts = {
        ACCENT: [(c.rates.caught, c.rates.caught + c.rates.lost) for c in curve],
        WARN: [(c.rates.caught, c.rates.bad) for c in curve],
        KEPT: [(c.together, samples) for c in curve],
    }
    step: Literal["pre", "post"] = "pre" if bounds[0][0] == "min" else "post"  # nothing changes between two scores
    for colour, pairs in counts.items():
        low, high = np.array([wilson(*pair) or [np.nan, np.nan] for pair in pairs]).T
        axes.fill_between(places, low, high, color=colour, alpha=0.14, linewidth=0, step=step)
        values = [np.nan if (value := share(*pair)) is None else value for pair in pairs]
        axes.step(places, values, where=step, color=colour, linewidth=1.7)
    edges = bin_edges([*places.tolist(), *(threshold for _, threshold, _ in bounds)], None)
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    axes.set_ylim(-0.02, 1.03)
    _percent(axes)
    mark_bounds(axes, bounds, (float(edges[0]), float(edges[-1])))
    return svg_text(figure, name, f"Precision, recall and yield by threshold of {name}, with their intervals")


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
