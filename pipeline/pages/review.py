"""``instructar review``: a page on which people walk through samples, decide, and mend mattes."""

from __future__ import annotations

import base64
import binascii
import getpass
import hashlib
from collections import Counter
from collections.abc import Mapping, Set
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, Field

from data_schemas.errors import UserError
from data_schemas.io import pictures
from data_schemas.io.storage import read_bounded, write_file
from data_schemas.io.text import one_line
from data_schemas.tables import STATUS_COLUMNS
from pipeline.core.review import is_below
from pipeline.dataset.frames.columns import FIRST
from pipeline.pages.app import part_of, run_app, sent
from pipeline.pages.applying import Applying
from pipeline.pages.queues import BLIND, QUEUES, Decisions, queue
from pipeline.pages.samples import Samples, plain
from pipeline.review.agreement import agreement
from pipeline.review.log import FOLDER, ReviewLog
from pipeline.review.opinions import Opinion, opinions
from pipeline.review.said import Said

WINDOW, BEHIND = 1000, 20
"""Ids of a queue that a page gets at once, and how many that were seen already come first."""
STAGES_TOLD_TO_BLIND = ("synthesis", "matting")
"""The stages of which a blind reviewer sees whether they made the sample; the others judge."""
STATES_TOLD_TO_BLIND = frozenset({FIRST, "model", *(column.name for column in STATUS_COLUMNS)})
"""What of their rows: all other columns are scores, or know what was planted."""
PLAN_TOLD_TO_BLIND = frozenset({
    FIRST, "prompt", "relation", "layout", "front",
    *(f"{name}_{i}" for i in range(2) for name in ("box", "turn", "mirror")),
    *(f"reference_{i}_{name}" for i in range(2) for name in ("id", "name", "category")),
})  # fmt: skip
"""What the picture should show. The rest of the plan can tell of faults: they are planted at even distances."""


class Saying(BaseModel):
    """What a page sends: a line of the log without reviewer and time, or for a matte its picture as a data URI."""

    id: str
    sample_id: str
    action: str
    value: bool | float | str | None = None
    reason: str | None = Field(None, max_length=5000)


def review_app(samples: Samples, reviewer: str, blind: bool) -> FastAPI:
    """The review page of a run. ``blind`` hides what filters and other people decided."""
    app = run_app(samples, "review", partial(_blind_story, samples) if blind else samples.story)
    log, decisions, applying = ReviewLog(samples.run.config.run_url), Decisions(samples.run), Applying()
    log.adopt()
    queues = BLIND if blind else QUEUES

    @app.get("/api/review")
    def about() -> dict[str, Any]:
        run, frame = samples.run, decisions.frame()
        counts = Counter(reason for reasons in frame["reasons"] for reason in reasons)
        reasons = [] if blind else [f"reason:{reason}" for reason, _ in counts.most_common()]
        missing = [s.name for s in run.stages() if not run.store(s.name).exists(run.parts()[-1])]
        return {"reviewer": reviewer, "blind": blind, "queues": [*queues, *reasons], "decided": len(frame),
                "missing": missing}  # fmt: skip

    @app.get("/api/queue")
    def ids(name: str) -> dict[str, Any]:
        if blind and name not in BLIND:
            raise UserError(f"queue {one_line(name, 80)!r}: not while reviewing blind")
        said = opinions(log.rows())
        found = queue(name, decisions.frame(), decisions.rules, said, reviewer, blind)
        done = [_verdict(said.get(i, {}).get(reviewer)) for i in found]
        first = done.index(None) if None in done else 0
        start = max(0, first - BEHIND)
        window = found[start : start + WINDOW]
        return {"ids": window, "first": first - start, "total": len(found), "left": done.count(None)}

    @app.get("/api/opinions/{sample_id}")
    def of_sample(sample_id: str) -> dict[str, Any]:
        part_of(samples, sample_id)
        rows = [row for row in log.rows() if row.sample_id == sample_id and (not blind or row.reviewer == reviewer)]
        found = opinions(rows).get(sample_id, {})
        mine = found.get(reviewer, Opinion())
        return {
            "mine": _lines(mine),
            "others": {who: _lines(opinion) for who, opinion in found.items() if who != reviewer},
            "last": next((_line(row) for row in reversed(rows) if _can_undo(row, mine)), None),
        }

    @app.post("/api/say")
    def say(saying: Saying) -> dict[str, Any]:
        part = part_of(samples, saying.sample_id)
        value = saying.value
        if saying.action == "matte" and value is not None:
            value = _stored_matte(samples, log, saying.sample_id, part, str(value))
        row = log.append({**saying.model_dump(), "value": value, "reviewer": reviewer})
        return _line(row)

    @app.get("/matte/{sample_id}")
    def painted(request: Request, sample_id: str, path: str) -> Response:
        said = {(row.sample_id, row.value) for row in log.rows() if row.action == "matte"}
        if (sample_id, path) not in said or not is_below(path):
            raise HTTPException(404)
        return sent(request, read_bounded(log.fs, f"{log.root}/{path}", "paint it again", pictures.MAX_BYTES), None)

    @app.get("/api/agreement")
    def agree() -> list[dict[str, Any]]:
        return [] if blind else agreement(samples.run)

    @app.post("/api/apply")
    def apply() -> dict[str, Any]:
        applying.begin(samples.run.config.run_url)
        return applying.told()

    @app.get("/api/apply")
    def applied() -> dict[str, Any]:
        return applying.told()

    return app


def user() -> str:
    """The name of who started this program."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "reviewer"


def _blind_story(samples: Samples, sample_id: str, part: str) -> dict[str, Any]:
    """A sample's story without all that filters said, and without what was planted."""
    told = samples.story(sample_id, part)
    shown = [stage for stage in told["stages"] if stage["name"] in STAGES_TOLD_TO_BLIND]
    rows = [{**stage, "row": _only(STATES_TOLD_TO_BLIND, stage["row"])} for stage in shown]
    return {**told, "plan": _only(PLAN_TOLD_TO_BLIND, told["plan"]), "stages": rows, "decide": None, "rules": []}


def _only(names: Set[str], row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if row is None else {name: value for name, value in row.items() if name in names}


def _verdict(opinion: Opinion | None) -> Any:
    return None if opinion is None else opinion.value("verdict")


def _can_undo(row: Said, mine: Opinion) -> bool:
    return any(line.id == row.id for line in mine.lines.values())


def _lines(opinion: Opinion) -> dict[str, Any]:
    return {action: _line(line) for action, line in opinion.lines.items()}


def _line(row: Said) -> dict[str, Any]:
    return {name: plain(value) for name, value in row.model_dump().items()}


def _stored_matte(samples: Samples, log: ReviewLog, sample_id: str, part: str, uri: str) -> str:
    """Store a painted matte (grey PNG as a data URI) and return its path below the run."""
    kind, _, text = uri.partition(",")
    try:
        if kind != "data:image/png;base64":
            raise ValueError
        data = base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise UserError("matte: no PNG; paint it on this page") from error
    matte = pictures.decode(data, "matte").convert("L")
    target = samples.picture(sample_id, part, "target")
    if target is None:
        raise UserError(f"sample {sample_id}: has no target yet, so no matte fits it")
    size = pictures.decode(target, "target").size
    if matte.size != size:
        raise UserError(f"matte: has {matte.size[0]} x {matte.size[1]} pixels, the target {size[0]} x {size[1]}")
    png = pictures.encode_png(Image.fromarray(np.asarray(matte)))
    path = f"{FOLDER}/mattes/{sample_id}-{hashlib.sha256(png).hexdigest()[:16]}.png"
    write_file(log.fs, f"{log.root}/{path}", png)
    return path
