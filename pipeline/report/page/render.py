"""The report of a run: one HTML page that needs no other files and loads nothing from the network.

The modules beside this one turn a finished run into dictionaries of values, which the template report.html.jinja turns
into HTML. How many samples are shown does not grow with the run. The same input gives the same bytes.
"""

from __future__ import annotations

from data_schemas.io.storage import url_to_fs, write_file
from pipeline.report.data import ReportData
from pipeline.report.page.against import against_view
from pipeline.report.page.cards import kept_cards, rejected_cards
from pipeline.report.page.copies import copies_view
from pipeline.report.page.coverage import coverage_view
from pipeline.report.page.nearest import edge_views
from pipeline.report.page.training import training_view
from pipeline.report.page.views import error_views, funnel_view, histogram_views, stage_views
from pipeline.report.templates import fill
from pipeline.report.text import yaml_text


def write_report(data: ReportData, path: str) -> str:
    """Write the page to ``path`` (any fsspec URL) in one step and return ``path``."""
    fs, target = url_to_fs(path)
    write_file(fs, target, render(data).encode())
    return path


def render(data: ReportData) -> str:
    """The page as text. All strings from the data are escaped; only our own SVG is inserted as markup."""
    return fill(
        "page/report.html.jinja",
        name=data.name,
        funnel=funnel_view(data),
        splits=data.metrics.get("splits") or {},
        planted=data.metrics.get("planted"),
        planted_in_shards=bool((data.config.get("shards") or {}).get("unfiltered")),
        against=against_view(data),
        agreement=data.agreement,
        histograms=histogram_views(data),
        edges=edge_views(data),
        coverage=coverage_view(data.manifest),
        copies=copies_view(data),
        kept=kept_cards(data),
        rejected=rejected_cards(data),
        errors=error_views(data.manifest),
        training=training_view(data),
        stages=stage_views(data.metrics.get("stages") or {}),
        config=yaml_text(data.config),
    )
