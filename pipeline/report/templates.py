"""Filling the templates of the report's pages."""

from __future__ import annotations

from functools import cache

import jinja2

from pipeline.report.text import count_text, interval_text, number_text, plain, share_text


def fill(template: str, **values: object) -> str:
    """A template of this package, such as "page/report.html.jinja", as the text of a page.

    Whatever the values say is shown as text: they are escaped, and their control and direction marks are taken out.
    Only markupsafe.Markup, our own SVG, is inserted as it is.
    """
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report", ""), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=plain, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(count=count_text, number=number_text, share=share_text, interval=interval_text)
    return environment
