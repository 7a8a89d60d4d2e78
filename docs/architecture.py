"""Draws docs/architecture.svg: the rooms of the four packages and which imports which, read from the code.

    python docs/architecture.py

A room is a sub-package, or a module that lies beside them. An arrow that follows from others (A -> B -> C says A -> C)
is left out. Rooms are drawn above all rooms that they import.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import grimp
import networkx as nx

PACKAGES = ("flows", "pipeline", "tokenar", "data_schemas")
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN, TITLE, BETWEEN = 108, 30, 14, 26, 16, 26, 40
"""Pixels: of a room, between rooms, around a package, of a package's title, and between packages."""


def rooms() -> nx.DiGraph:
    """Every room as package.room, with an arrow to each room that it imports."""
    imports = grimp.build_graph(*PACKAGES)
    arrows = nx.DiGraph()
    for module in sorted(imports.modules):
        if "." not in module:
            continue
        arrows.add_node(room_of(module))
        for imported in sorted(imports.find_modules_directly_imported_by(module)):
            if "." in imported and room_of(imported) != room_of(module):
                arrows.add_edge(room_of(module), room_of(imported))
    return arrows


def room_of(module: str) -> str:
    """The room that a module lies in: its first two names."""
    return ".".join(module.split(".")[:2])


def rows_of(package: str, arrows: nx.DiGraph) -> list[list[str]]:
    """A package's rooms from top to bottom; a room's row is the length of the longest way down from it."""
    inside = arrows.subgraph([room for room in arrows if room.startswith(f"{package}.")])
    height: dict[str, int] = {}
    for room in reversed(list(nx.lexicographical_topological_sort(inside))):
        height[room] = max((height[lower] + 1 for lower in inside.successors(room)), default=0)
    rows: list[list[str]] = [[] for _ in range(max(height.values()) + 1)]
    for room in sorted(height):
        rows[height[room]].append(room)
    return rows[::-1]


def place(rows: list[list[str]], left: float, top: float) -> tuple[dict[str, tuple[float, float]], float, float]:
    """(upper left corner of each room, width and height of the whole package)."""
    width = max(len(row) for row in rows) * (BOX_WIDTH + GAP_X) - GAP_X
    corners = {}
    for number, row in enumerate(rows):
        start = left + MARGIN + (width - len(row) * (BOX_WIDTH + GAP_X) + GAP_X) / 2
        for column, room in enumerate(row):
            corners[room] = (start + column * (BOX_WIDTH + GAP_X), top + TITLE + MARGIN + number * (BOX_HEIGHT + GAP_Y))
    return corners, width + 2 * MARGIN, TITLE + 2 * MARGIN + len(rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y


def draw() -> str:
    """The picture as SVG text."""
    arrows = rooms()
    rows = {package: rows_of(package, arrows) for package in PACKAGES}
    corners: dict[str, tuple[float, float]] = {}
    frames: dict[str, tuple[float, float, float, float]] = {}

    def put(package: str, left: float, top: float) -> None:
        placed, width, height = place(rows[package], left, top)
        corners.update(placed)
        frames[package] = (left, top, width, height)

    size = {package: place(rows[package], 0, 0)[1:] for package in PACKAGES}
    wide = size["pipeline"][0] + BETWEEN
    total = wide + size["tokenar"][0]
    middle = size["flows"][1] + BETWEEN
    below = middle + max(size["pipeline"][1], size["tokenar"][1]) + BETWEEN
    put("flows", (total - size["flows"][0]) / 2, 0)
    put("pipeline", 0, middle)
    put("tokenar", wide, middle)
    put("data_schemas", (total - size["data_schemas"][0]) / 2, below)
    height = below + size["data_schemas"][1]

    body = [frame(package, *frames[package]) for package in PACKAGES]
    inner = nx.DiGraph((a, b) for a, b in arrows.edges if a.split(".")[0] == b.split(".")[0])
    body += [arrow(corners[a], corners[b]) for a, b in sorted(nx.transitive_reduction(inner).edges)]
    across = sorted({(a.split(".")[0], b.split(".")[0]) for a, b in arrows.edges if a.split(".")[0] != b.split(".")[0]})
    outer = nx.transitive_reduction(nx.DiGraph(across))
    body += [package_arrow(frames[a], frames[b]) for a, b in sorted(outer.edges)]
    body += [room(name.split(".")[1], *corners[name]) for name in sorted(corners)]
    return "\n".join([HEAD.format(width=total + 16, height=height + 16), *body, "</svg>", ""])


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -8 {width:.0f} {height:.0f}" style="background:#fff" \
font-family="system-ui, sans-serif" font-size="13">
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 8 4 0 8z" fill="#8a93a3"/></marker></defs>"""


def frame(package: str, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="10" fill="#f5f6f8"/>'
        f'<text x="{x + MARGIN:.0f}" y="{y + TITLE:.0f}" font-weight="600" font-size="15">{escape(package)}</text>'
    )


def room(name: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="#fff" stroke="#3659c9"/>'
        f'<text x="{x + BOX_WIDTH / 2:.0f}" y="{y + BOX_HEIGHT / 2 + 4:.0f}" text-anchor="middle">{escape(name)}</text>'
    )


def arrow(upper: tuple[float, float], lower: tuple[float, float]) -> str:
    """From the bottom of one room to the top of another."""
    x, y = upper[0] + BOX_WIDTH / 2, upper[1] + BOX_HEIGHT
    to_x, to_y = lower[0] + BOX_WIDTH / 2, lower[1] - 1
    bend = min(40, (to_y - y) / 2)
    path = f"M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"
    return f'<path d="{path}" fill="none" stroke="#8a93a3" marker-end="url(#tip)"/>'


def package_arrow(upper: tuple[float, float, float, float], lower: tuple[float, float, float, float]) -> str:
    """From the bottom of one package to the top of another, straight down where they lie above each other."""
    middle = (max(upper[0], lower[0]) + min(upper[0] + upper[2], lower[0] + lower[2])) / 2
    ends = [min(max(middle, x + 24), x + width - 24) for x, _, width, _ in (upper, lower)]
    path = f"M{ends[0]:.0f} {upper[1] + upper[3]:.0f}L{ends[1]:.0f} {lower[1] - 2:.0f}"
    return f'<path d="{path}" stroke="#8a93a3" stroke-width="3" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    target = Path(__file__).with_suffix(".svg")
    target.write_text(draw())
    print(target)
