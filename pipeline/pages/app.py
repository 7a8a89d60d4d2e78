"""What the pages of a run share: their files, the stories of samples, and pictures of any size."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response
from PIL import Image

from data_schemas.io import pictures
from data_schemas.serving import page_app
from pipeline.pages.samples import PICTURES, Samples

WEB = resources.files("pipeline.pages") / "web"
COLOURS = resources.files("pipeline.report") / "colours.css"
KINDS = {"html": "text/html; charset=utf-8", "css": "text/css", "js": "text/javascript"}
LARGEST = 1024
"""Longest side of a thumbnail, in pixels; without a side a picture comes as it is stored."""


def run_app(samples: Samples, page: str, told: Callable[[str, str], dict[str, Any]]) -> FastAPI:
    """An application that serves ``<page>.html`` as its front page, and the scripts and styles of this folder.

    GET /api/run: the run's name, rules and columns. GET /api/story/ID: a sample's story, as ``told`` gives it for id
    and part. GET /picture/ID/NAME?side=: one of PICTURES as PNG, or with ``side`` as a thumbnail (JPEG, or PNG if it is
    transparent).
    """
    app = file_app(samples.run.config.name, page)

    @app.get("/api/run")
    def about() -> dict[str, Any]:
        return facts(samples)

    @app.get("/api/story/{sample_id}")
    def story(sample_id: str) -> dict[str, Any]:
        return told(sample_id, part_of(samples, sample_id))

    @app.get("/picture/{sample_id}/{name}")
    def picture(request: Request, sample_id: str, name: str, side: int | None = None) -> Response:
        found = samples.picture(sample_id, part_of(samples, sample_id), name) if name in PICTURES else None
        if found is None:
            raise HTTPException(404)
        return sent(request, found, side)

    return app


def file_app(name: str, page: str) -> FastAPI:
    """An application that serves ``<page>.html`` as its front page, and the scripts and styles of this folder."""
    app = page_app(f"{page} {name}")
    files = {file.name: file for file in (*WEB.iterdir(), COLOURS) if file.name.endswith((".css", ".js"))}

    @app.get("/")
    def front() -> Response:
        return _file(WEB / f"{page}.html")

    @app.get("/files/{name}")
    def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return _file(files[name])

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    return app


def part_of(samples: Samples, sample_id: str) -> str:
    """The part of a sample; HTTPException 404 if the run plans no such sample."""
    part = samples.part_of().get(sample_id)
    if part is None:
        raise HTTPException(404, "no such sample")
    return part


def facts(samples: Samples) -> dict[str, Any]:
    """What a page says of its run: name, stages with fingerprint and model, rules, and what each column means."""
    run = samples.run
    columns = {column.name: column for stage in run.stages() for column in stage.columns}
    return {
        "name": run.config.name,
        "samples": run.config.samples,
        "stages": [stage.name for stage in run.stages()],
        "alpha_threshold": getattr(run.stage("matting").config, "alpha_threshold", None),
        "dilate": getattr(run.stage("matting").config, "dilate", None),
        "rules": [
            {"stage": stage, "reason": r.reason, "column": r.column, "bound": r.bound, "threshold": r.threshold,
             "meaning": r.meaning}
            for stage, r in samples.rules
        ],
        "columns": {name: {"meaning": c.meaning, "unit": c.unit, "low": c.low, "high": c.high}
                    for name, c in columns.items()},
    }  # fmt: skip


def sent(request: Request, data: bytes, side: int | None) -> Response:
    """A picture as an answer, or none if the browser has it already."""
    tag = f'"{zlib.crc32(data):08x}-{len(data)}-{side or 0}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if side is None:
        return Response(data, media_type="image/png", headers=headers)
    content, kind = thumbnail(data, max(1, min(side, LARGEST)))
    return Response(content, media_type=kind, headers=headers)


def thumbnail(data: bytes, side: int) -> tuple[bytes, str]:
    """The picture with sides of at most ``side`` pixels, and its media type."""
    picture = pictures.decode(data, "the picture")
    clear = picture.has_transparency_data
    small = picture.convert("RGBA" if clear else "RGB")
    small.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2)
    buffer = io.BytesIO()
    small.save(buffer, "PNG" if clear else "JPEG", **({} if clear else {"quality": 85}))
    return buffer.getvalue(), "image/png" if clear else "image/jpeg"


def _file(file: Traversable) -> Response:
    text = file.read_text(encoding="utf-8")
    return Response(text, media_type=KINDS[file.name.rpartition(".")[2]], headers={"cache-control": "no-cache"})
