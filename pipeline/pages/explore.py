"""``instructar explore``: the page on which a run's samples are filtered, sorted, compared and saved."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict

from pipeline.pages.app import file_app, run_app
from pipeline.pages.explorer import Asked, Explorer

Texts = Annotated[list[str] | None, Query()]
Thresholds = Annotated[list[str] | None, Query(alias="set")]


class Choice(BaseModel):
    """What is saved: the samples of a question, under a name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    shards: bool = False
    where: list[str] = []
    thresholds: list[str] = []
    against: bool = False


def explore_app(explorer: Explorer) -> FastAPI:
    """The application.

    GET /api/about: columns, rules, what is missing. GET /api/rows: a page of samples. GET /api/compare: before and
    after. GET /api/row/ID: a sample's row of all tables. POST /api/save: saves what was chosen. Questions have
    ``where`` (several), ``sort``, ``descending``, ``set`` (thresholds to compare with), ``against``.
    """
    app = (
        file_app(explorer.name, "explore")
        if explorer.samples is None
        else run_app(explorer.samples, "explore", explorer.samples.story)
    )

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return explorer.about()

    @app.get("/api/rows")
    def rows(
        where: Texts = None,
        sort: str = "",
        descending: bool = False,
        thresholds: Thresholds = None,
        against: bool = False,
        page: Annotated[int, Query(ge=1, le=10_000_000)] = 1,
    ) -> dict[str, Any]:
        return explorer.rows(Asked(tuple(where or ()), sort, descending, tuple(thresholds or ()), against), page)

    @app.get("/api/compare")
    def compare(thresholds: Thresholds = None, against: bool = False) -> dict[str, Any]:
        return explorer.comparison(Asked(thresholds=tuple(thresholds or ()), against=against))

    @app.get("/api/row/{sample_id}")
    def row(sample_id: str) -> dict[str, Any]:
        found = explorer.row(sample_id)
        if found is None:
            raise HTTPException(404, "no such sample")
        return found

    @app.post("/api/save")
    def save(choice: Choice) -> dict[str, Any]:
        asked = Asked(tuple(choice.where), thresholds=tuple(choice.thresholds), against=choice.against)
        return explorer.save(asked, choice.name, choice.shards)

    return app
