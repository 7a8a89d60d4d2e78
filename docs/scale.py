"""Writes the table of docs/scale.md that says what runs of the paper's profile take, from `instructar estimate`.

python docs/scale.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import CurationConfig
from pipeline.estimate.from_figures import estimate_profile

PAGE = Path(__file__).parent / "scale.md"
BEGIN, END = "<!-- made by python docs/scale.py -->\n", "<!-- end -->\n"
PRICE = 2.5
SIZES = {28_000: (1, 16), 80_000: (1, 16, 64), 1_000_000: (16, 64, 512), 10_000_000: (64, 512), 100_000_000: (512,)}
"""Samples planned, each with the numbers of GPUs that are worth their while."""


def table() -> str:
    config = CurationConfig.load("paper")
    lines = [
        "| planned | kept | GPUs | hours of work on GPUs | hours on the wall | of these without a GPU | TB | files | "
        f"cost at {PRICE} |",
        "| ---: " * 9 + "|",
    ]
    for samples, counts in SIZES.items():
        for gpus in counts:
            lines.append(_line(estimate_profile("paper", config, samples, gpus, PRICE, {})))
    return "\n".join(lines) + "\n"


def _line(found: dict[str, Any]) -> str:
    idle = sum(row["hours_on_the_wall"] for row in found["stages"].values() if not row["gpu"])
    figures = [
        f"{found['samples']:,}", f"{found['kept']:,}", f"{found['places']}", f"{found['gpu_hours']:,.0f}",
        f"{found['hours_on_the_wall']:,.1f}", f"{idle:,.1f}", f"{found['gigabytes'] / 1000:,.2f}",
        f"{found['files']:,}", f"{found['cost']:,.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(figures)} |"


def page() -> str:
    """docs/scale.md with the table as it should be."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
