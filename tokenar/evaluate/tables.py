"""Tables of an evaluation in Markdown and LaTeX, in the layout of the paper's Tables 2 and 3 (section 4.1).

The paper's Table 2 is about pictures with one subject, its Table 3 about several; both have the same columns. The paper
does not say over which part of a picture it computes them. Here PSNR and FID, which it calls background preservation,
are those of the background, and CLIP-I and DINO compare the whole picture to the true one, times 100.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenar.evaluate.metrics import FID_SAMPLES

Result = Mapping[str, Any]


class Column(NamedTuple):
    """A column of the tables. ``higher`` says whether higher is better; figures are multiplied by ``scale``."""

    group: str
    title: str
    figure: str
    higher: bool
    scale: float = 1.0


COLUMNS = (
    Column("Background Preservation", "PSNR", "background_psnr", True),
    Column("Background Preservation", "FID", "background_fid", False),
    Column("Content Similarity", "CLIP-I", "whole_clip_i", True, 100),
    Column("Content Similarity", "DINO", "whole_dino", True, 100),
)
GROUPS = {"single_subject": "One subject (layout of Table 2)", "multi_subject": "Several subjects (layout of Table 3)"}
VENUES = {
    "DreamO": "SIG-A 2025", "EditAR": "CVPR 2025", "InsertAnything": "Arxiv 2025", "MIP-Adapter": "AAAI 2025",
    "MS-Diffusion": "ICLR 2025",
}  # fmt: skip
NEEDS = {
    "lpips": "LPIPS", "inception": "FID and KID", "clip": "CLIP-I and CLIP-T", "dino": "DINO", "dinov2": "DINOv2",
}  # fmt: skip
"""The figures that are left out without an encoder, by the encoder's setting."""

LOWER = ("mse", "lpips", "fid", "kid", "kid_std", "identity_wrong", "swap_rate", "loss", "loss_target")
NO_DIRECTION = ("samples", "pictures", "subset", "cut", "target")
DASH = "–"


def notes(result: Result) -> list[str]:
    """Notes for the reader of the tables: figures left out, FID over too few pictures, prompts that CLIP cut."""
    missing = [f"{figures} ({option})" for option, figures in NEEDS.items() if option not in result["encoders"]]
    lines = [f"not measured: {', '.join(missing)}; --set OPTION=... adds one, --encoders paper all"] if missing else []
    figures = [method["figures"] for method in result["methods"].values()]
    pictures = [count for method in figures if (count := method.get("whole_fid_pictures"))]
    if pictures and min(pictures) < FID_SAMPLES:
        lines.append(
            f"FID over {min(pictures):,} pictures: below {FID_SAMPLES:,} it comes out too high and hangs on their "
            "number; compare it over the same samples only, and read KID beside it"
        )
    lines += [
        f"{name}: its model takes 1 reference; its figures are over the {few:,} samples with one"
        for name, method in result["methods"].items()
        if (few := method["figures"]["samples"]) < result["samples"]
    ]
    if cut := max((method.get("clip_prompt_cut") or 0 for method in figures), default=0):
        lines.append(f"CLIP-T: {cut:.0%} of the prompts are longer than CLIP reads; it saw their beginnings")
    return lines


def markdown(result: Result) -> str:
    """The paper's two tables, for samples with one and with several subjects, then a table of all figures and notes."""
    blocks = []
    for group, title in GROUPS.items():
        rows = _rows(result, group)
        if not rows:
            blocks.append(f"**{title}**: no such sample in these shards.\n")
            continue
        heads = [f"{c.group}: {c.title} {'↑' if c.higher else '↓'}" for c in COLUMNS]
        lines = [f"**{title}**, {_samples(result, group)}\n"]
        lines += _markdown_table(["Method", "Venue", *heads], [[_escaped(n), v, *cells] for n, v, *cells in rows])
        blocks.append("\n".join(lines) + "\n")
    blocks.append("**All figures**, over all samples\n\n" + "\n".join(_all_figures(result)) + "\n")
    blocks.append("".join(f"- {line}\n" for line in notes(result)))
    return "\n".join(block for block in blocks if block)


def latex(result: Result) -> str:
    """The paper's two tables for a LaTeX document that loads booktabs, with the best figures bold."""
    blocks = []
    for group in GROUPS:
        rows = _rows(result, group, bold=r"\textbf{{{}}}")
        if rows:
            blocks.append(_latex_table(rows, _caption(result, group), group.replace("_", "-")))
        else:
            blocks.append(f"% {GROUPS[group]}: no such sample in these shards\n")
    return "\n".join(blocks)


def _rows(result: Result, group: str, bold: str = "**{}**") -> list[list[str]]:
    """Name, venue and cells of every method with figures for the group. With several methods the best is bold."""
    methods = {name: method for name, method in result["methods"].items() if group in method}
    cells = {name: [_cell(method[group], column) for column in COLUMNS] for name, method in methods.items()}
    for place, column in enumerate(COLUMNS):
        values = {float(row[place]) for row in cells.values() if row[place] != DASH}
        if len(methods) < 2 or not values:
            continue
        best = max(values) if column.higher else min(values)
        for row in cells.values():  # compared as printed, so that equal numbers are both bold
            if row[place] != DASH and float(row[place]) == best:
                row[place] = bold.format(row[place])
    return [[name, VENUES.get(name, DASH), *cells[name]] for name in methods]


def _cell(figures: Mapping[str, Any], column: Column) -> str:
    value = figures.get(column.figure)
    return DASH if value is None else f"{value * column.scale:.2f}"


def _samples(result: Result, group: str) -> str:
    count = next(method[group]["samples"] for method in result["methods"].values() if group in method)
    return f"{count:,} sample{'s' if count != 1 else ''} at {result['side']} pixels"


def _all_figures(result: Result) -> list[str]:
    """A table with a row for each figure and a column for each method. Figures of single subjects are left out."""
    methods = result["methods"]
    names = dict.fromkeys(name for method in methods.values() for name in method["figures"])
    shown = [name for name in names if not re.match(r"subject_\d|similarity_\d|samples", name)]
    rows = [[f"{name}{_arrow(name)}", *(_figure(m["figures"].get(name)) for m in methods.values())] for name in shown]
    return _markdown_table(["Figure", *map(_escaped, methods)], rows)


def _arrow(name: str) -> str:
    if name.endswith(NO_DIRECTION) and not name.startswith("loss"):
        return ""
    return " ↓" if name.endswith(LOWER) else " ↑"


def _figure(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    words = sum(head in ("Method", "Venue", "Figure") for head in heads)
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return ["| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows)]


def _caption(result: Result, group: str) -> str:
    pictures = [
        method[group].get("background_fid_pictures") for method in result["methods"].values() if group in method
    ]
    fid = f" FID over {pictures[0]:,} pictures." if pictures[0] else ""
    return (
        f"{GROUPS[group]}: {_samples(result, group)}. PSNR and FID over the background, CLIP-I and DINO "
        f"of whole pictures.{fid}"
    )


def _latex_table(rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    groups = list(dict.fromkeys(column.group for column in COLUMNS))
    spans = [sum(column.group == group for column in COLUMNS) for group in groups]
    heads = " & ".join(rf"\multicolumn{{{span}}}{{c}}{{{group}}}" for group, span in zip(groups, spans, strict=True))
    rules, start = [], 3
    for span in spans:
        rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    titles = " & ".join(rf"{c.title}$\{'uparrow' if c.higher else 'downarrow'}$" for c in COLUMNS)
    body = [" & ".join([_tex(name), _tex(venue), *cells]).replace(DASH, "--") + r" \\" for name, venue, *cells in rows]
    lines = [
        r"\begin{table}[t]", r"\centering", rf"\caption{{{_tex(caption)}}}", rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{ll{'c' * len(COLUMNS)}}}", r"\toprule", rf"Method & Venue & {heads} \\", "".join(rules),
        rf" & & {titles} \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    """Text with the special characters of LaTeX escaped."""
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _escaped(text: str) -> str:
    """Text with the special characters of Markdown escaped."""
    return re.sub(r"([|*_`\\])", r"\\\1", text)
