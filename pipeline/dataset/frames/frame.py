"""Samples of a run to be looked at: chosen by conditions, sorted by any column, shown as pictures.

run = open_run("runs/quickstart")
run.frame.where("decision = rejected", "similarity_min < 0.5").sorted_by("similarity_min").show(12)
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from data_schemas.errors import UserError
from data_schemas.io.text import one_line
from pipeline.dataset.frames.columns import FIRST, Columns, need_column
from pipeline.dataset.frames.conditions import met, parse
from pipeline.dataset.frames.decisions import Compared, decided, funnel, rules_with
from pipeline.dataset.frames.selection import save

if TYPE_CHECKING:
    import pandas as pd

Pictures = Callable[[str, str], Image.Image | None]
"""A picture of a sample by (sample id, name); None if it was never made."""
SIDE = 160
"""Longest side of a picture that ``show`` shows, in pixels."""
LONGEST = 300


@dataclass(frozen=True)
class Frame:
    """Some samples, in some order. ``rows`` are their rows in the columns, ``conditions`` those they were chosen by."""

    columns: Columns
    rows: np.ndarray
    picture: Pictures
    conditions: tuple[str, ...] = ()

    @classmethod
    def of(cls, columns: Columns, picture: Pictures) -> Frame:
        """All samples, in the order of the plan."""
        return cls(columns, np.arange(len(columns)), picture)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: slice) -> Frame:
        return replace(self, rows=self.rows[chosen])

    @property
    def ids(self) -> list[str]:
        """The samples' ids."""
        return self.values(FIRST).to_pylist()

    def values(self, name: str) -> pa.ChunkedArray:
        """A column of these samples. Raises UserError if there is none of this name."""
        return self.columns.column(name).take(pa.array(self.rows))

    def where(self, *conditions: str) -> Frame:
        """The samples that meet all conditions, which are texts such as "similarity_min < 0.5" (see conditions.py)."""
        rows = met(self.columns, [parse(text) for text in conditions], self.rows)
        return replace(self, rows=rows, conditions=(*self.conditions, *conditions))

    def sorted_by(self, name: str, descending: bool = False) -> Frame:
        """In the order of a column; samples without a value last, equal ones in the order of the plan."""
        kind = need_column(self.columns, name).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise UserError(f"column {name!r} holds {kind}, which has no order; sort by another")
        order = "descending" if descending else "ascending"
        table = pa.table({"value": self.values(name), "row": self.rows})
        found = pc.sort_indices(table, sort_keys=[("value", order, "at_end"), ("row", "ascending", "at_end")])
        return replace(self, rows=self.rows[found.to_numpy()])

    def compared(self, **thresholds: float) -> Frame:
        """The samples with the columns ``before``, ``after`` and ``change``: decided under other thresholds, by reason,
        as in compared(identity_low=0.65).where("change = leaves")."""
        was, now = decided(self.columns), decided(self.columns, rules_with(self.columns, thresholds))
        return replace(self, columns=Compared(self.columns, was.decisions, now.decisions))

    def funnel(self) -> pd.DataFrame:
        """What each rule leaves of these samples, and how many break it, alone or with others."""
        import pandas as pd

        lines = funnel(decided(self.columns), self.rows)
        return pd.DataFrame(lines).set_index("step").astype("Int64")

    def to_pandas(self, *names: str) -> pd.DataFrame:
        """These columns of the samples, or all, as a pandas frame."""
        self.columns.load(names or self.columns.fields)
        wanted = names or tuple(self.columns.fields)
        return pa.table({name: self.values(name) for name in dict.fromkeys((FIRST, *wanted))}).to_pandas()

    def images(self, name: str = "target") -> Iterator[Image.Image | None]:
        """The samples' pictures of a name, one after the other: target, foreground, background, alpha, reference_0 or
        reference_1; None for one that was never made."""
        return (self.picture(sample_id, name) for sample_id in self.ids)

    def show(self, count: int = 12, name: str = "target") -> Shown:
        """The first samples as a grid of pictures for a notebook."""
        first = self[:count]
        told = (first.values(column).to_pylist() for column in (FIRST, "decision", "reasons", "prompt"))
        cells = [_cell(texts, self.picture(texts[0], name)) for texts in zip(*told, strict=True)]
        return Shown(cells, len(self))

    def save(self, out: str, shards: bool = False) -> str:
        """Write the samples into the folder ``out``, which must not be there: as a manifest, or with shards too."""
        return save(self.columns, self.rows, self.conditions, out, shards)

    @cached_property
    def _shown(self) -> Shown:
        return self.show()

    def _repr_html_(self) -> str:
        return self._shown._repr_html_()

    def __repr__(self) -> str:
        chosen = f" where {' and '.join(self.conditions)}" if self.conditions else ""
        return f"{len(self)} of {len(self.columns)} samples{chosen}"


class Shown:
    """A grid of pictures, which a notebook shows."""

    def __init__(self, cells: Sequence[str], of: int):
        self.cells, self.of = cells, of

    def _repr_html_(self) -> str:
        grid = "display:grid;grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:10px"
        return f'<div style="{grid}">{"".join(self.cells)}</div><p>{len(self.cells)} of {self.of} samples</p>'

    def __repr__(self) -> str:
        return f"{len(self.cells)} of {self.of} samples; a notebook shows their pictures"


def _cell(told: Sequence[Any], picture: Image.Image | None) -> str:
    """A picture with its sample's decision. What data says is text, whatever it holds."""
    sample_id, decision, reasons, prompt = told
    colour = {"kept": "#0b6b52", "rejected": "#b3341b"}.get(decision, "#8a5603")
    why = ", ".join(map(str, reasons or ()))
    head = " ".join(filter(None, [str(decision or "not decided"), why]))
    style = f"font-weight:600;color:{colour}"
    return (
        f'<figure style="margin:0;font:13px/1.35 sans-serif;overflow-wrap:anywhere">{_img(picture)}'
        f'<figcaption><span style="{style}">{_text(head)}</span><br>{_text(prompt or "")}'
        f"<br><code>{_text(sample_id)}</code></figcaption></figure>"
    )


def _img(picture: Image.Image | None) -> str:
    if picture is None:
        return '<div style="padding:40px 0;text-align:center;border:1px dashed">not made</div>'
    small = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" style="width:100%;max-width:{SIDE}px" src="data:image/png;base64,{data}">'


def _text(value: object) -> str:
    return html.escape(one_line(value, LONGEST))
