"""Charts of the report, as functions from numbers to an inline SVG string.

Charts are drawn with placeholder colours, which are then replaced by the page's CSS variables, so that one drawing
serves light and dark themes. The same numbers give the same bytes. Ids contain the chart's name, so that one page can
hold several charts.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

INK, MUTED, LINE, KEPT, REJECTED, ACCENT = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
WARN = "#010209"
CSS_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    KEPT: "var(--kept)",
    REJECTED: "var(--rejected)",
    ACCENT: "var(--accent)",
    WARN: "var(--warn)",
}
BINS = 24
FONT_SIZE = 8
MAX_POINTS = 400
"""Most points of a curve. A longer log is averaged in equal groups of rows."""

Points = Sequence[tuple[float, float]]


def number(value: float) -> str:
    """A number to three significant digits, or whole from 100 on.

    Numbers next to zero are shown as a bound, and what is not finite as an en dash.
    """
    if not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 1e-4:
        return "<0.0001" if value > 0 else ">-0.0001"
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def bound_text(bound: str, threshold: float) -> str:
    """The condition for passing a rule, such as "≥ 0.45"."""
    return f"{'≥' if bound == 'min' else '≤'} {threshold:g}"


def histogram(
    kept: Sequence[float], rejected: Sequence[float], bounds: Sequence[tuple[str, float]], name: str
) -> str | None:
    """Scores of kept and rejected samples, stacked, with a labelled line for each (bound, threshold).

    The rejected side of a threshold is tinted. Values that are not finite are left out; None if none is left.
    """
    shown = [np.asarray([v for v in values if math.isfinite(v)]) for values in (kept, rejected)]
    scores = np.concatenate(shown)
    if not scores.size:
        return None
    thresholds = [threshold for _, threshold in bounds]
    edges = bin_edges([*scores.tolist(), *thresholds], thresholds[0] if thresholds else None)
    low, high = float(edges[0]), float(edges[-1])
    figure, axes = plain_axes(4.1, 2.15, left=0.1, right=0.98, bottom=0.13, top=0.86)
    base = np.zeros(len(edges) - 1)
    for values, colour in zip(shown, (KEPT, REJECTED), strict=True):
        counts, _ = np.histogram(values, edges)
        full = counts > 0
        width = np.diff(edges)[full] * 0.9
        axes.bar(edges[:-1][full], counts[full], width, base[full], align="edge", color=colour)
        base = base + counts
    axes.set_xlim(low, high)
    axes.set_ylim(0, float(base.max()) * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    mark_bounds(axes, [(bound, threshold, bound_text(bound, threshold)) for bound, threshold in bounds], (low, high))
    return svg_text(figure, name, f"Histogram of {name}: kept and rejected samples, with the threshold")


def training_curve(loss: Points, val_loss: Points, guess: float | None, name: str) -> str | None:
    """Training and validation loss (nats) over steps.

    ``guess`` is the loss of guessing by token frequency, a level line.

    The faint line is the logged loss, the strong one its running mean. None if no loss is a finite number.
    """
    train, val = _thin(loss), _thin(val_loss)
    if not train and not val:
        return None
    figure, axes = plain_axes(7.4, 3.5, left=0.07, right=0.985, bottom=0.12, top=0.95)
    if train:
        steps, values = np.asarray(train).T
        axes.plot(steps, values, color=ACCENT, linewidth=1, alpha=0.3)
        axes.plot(steps, _running_mean(values), color=ACCENT, linewidth=1.7)
    if val:
        steps, values = np.asarray(val).T
        axes.plot(steps, values, color=KEPT, linewidth=1.3, marker="o", markersize=3.5, markeredgewidth=0)
    if guess is not None and math.isfinite(guess):
        axes.axhline(guess, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
        axes.annotate(
            f"guessing by token frequency {number(guess)}",
            (0.995, guess),
            (0, 3),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            color=MUTED,
        )
    axes.margins(x=0.01, y=0.08)
    axes.set_xlabel("step", color=MUTED, labelpad=2)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return svg_text(figure, name, "Training and validation loss over steps")


def mark_bounds(axes: Axes, bounds: Sequence[tuple[str, float, str]], limits: tuple[float, float]) -> None:
    """Draw a labelled line at each threshold and tint the side that it rejects."""
    low, high = limits
    lines: list[float] = []
    for bound, threshold, text in bounds:
        failing = (low, threshold) if bound == "min" else (threshold, high)
        axes.axvspan(*failing, color=REJECTED, alpha=0.07, linewidth=0)
        axes.axvline(threshold, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
        share = (threshold - low) / (high - low)
        side = "left" if share < 0.1 else "right" if share > 0.9 else "center"
        label_x = low if side == "left" else high if side == "right" else threshold
        transform = axes.get_xaxis_transform()
        above = sum(abs(share - other) < 0.25 for other in lines)  # labels of close lines are stacked
        axes.text(label_x, 1.03 + 0.09 * above, text, color=INK, ha=side, transform=transform)
        lines.append(share)


def bin_edges(values: Sequence[float], threshold: float | None) -> np.ndarray:
    """Edges of equal bins over all values, with some space around.

    The threshold is an edge, so no bin lies on both sides.
    """
    low, high = min(values), max(values)
    air = (high - low) * 0.02 or abs(high) * 0.1 or 0.5
    step = (high - low + 2 * air) / BINS
    start = low - air
    if threshold is not None:
        start = threshold - step * math.ceil((threshold - start) / step)
    return start + step * np.arange(BINS + 2)


def _thin(points: Points) -> list[tuple[float, float]]:
    """The finite points, averaged in equal groups if there are more than MAX_POINTS."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(finite) <= MAX_POINTS:
        return finite
    cuts = np.linspace(0, len(finite), MAX_POINTS + 1).astype(int).tolist()
    groups = (np.asarray(finite[a:b]).mean(axis=0) for a, b in pairwise(cuts))
    return [(float(x), float(y)) for x, y in groups]


def _running_mean(values: np.ndarray) -> list[float]:
    """The mean over a centred window of about a twentieth of the curve, shortened at both ends."""
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return [float(mean) for mean in (total[last] - total[first]) / (last - first)]


def plain_axes(width: float, height: float, **margins: float) -> tuple[Figure, Axes]:
    """A figure of that many inches and its axes, with no frame and a faint horizontal grid."""
    figure = Figure(figsize=(width, height))
    figure.patch.set_visible(False)
    figure.subplots_adjust(**margins)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    axes.tick_params(length=0, pad=4, labelcolor=MUTED)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    return figure, axes


def svg_text(figure: Figure, name: str, label: str) -> str:
    """The figure as an SVG element for an HTML page: without a fixed size, with its own ids and CSS colours."""
    buffer = io.StringIO()
    for text in figure.findobj(Text):
        text.set(fontsize=FONT_SIZE)
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    unwanted = r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->"  # its <style> would affect the whole page
    svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    prefix = re.sub(r"[^A-Za-z0-9_-]", "-", name) + "."
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'url\(#|(?:xlink:)?href="#', lambda m: m[0].removeprefix("xlink:") + prefix, svg)
    svg = re.sub(r"font: [^;\"]*|font-size: [^;\"]*; font-family: [^;\"]*", f"font-size: {FONT_SIZE}px", svg)
    for placeholder, colour in CSS_COLOURS.items():
        svg = svg.replace(placeholder, colour)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    head = f'<svg class="chart" role="img" aria-label="{html.escape(label)}" {view_box[0]}>'
    return head + re.sub(r"\s+", " ", svg[svg.index(">") + 1 :]).replace("> <", "><").strip()
