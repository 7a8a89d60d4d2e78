"""One thing that a reviewer said of a sample."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data_schemas.io.text import one_line


class Said(BaseModel):
    """One line of the log: a reviewer's verdict on a sample, its alpha threshold or matte, a flag, or an undo.

    ``value`` is "kept" or "rejected" (verdict), a fraction (alpha_threshold), a path below the run (matte), true or
    false (flag), or the id of one of the reviewer's own lines (undo). None takes verdict, threshold or matte back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f-]{8,64}$")
    sample_id: str = Field(min_length=1, max_length=200)
    action: Literal["verdict", "alpha_threshold", "matte", "flag", "undo"]
    value: bool | float | str | None = None
    reason: str | None = None
    reviewer: str = Field(min_length=1, max_length=100)
    time: datetime.datetime

    @field_validator("reason")
    @classmethod
    def _short(cls, reason: str | None) -> str | None:
        return one_line(reason, 500) or None if reason else None

    @model_validator(mode="after")
    def _fits(self) -> Said:
        value, number = self.value, isinstance(self.value, float) and not isinstance(self.value, bool)
        fits = {
            "verdict": value in ("kept", "rejected", None),
            "alpha_threshold": value is None or (number and 0 <= float(value) <= 1),
            "matte": value is None or isinstance(value, str),
            "flag": isinstance(value, bool),
            "undo": isinstance(value, str),
        }
        if not fits[self.action]:
            raise ValueError(f"{one_line(value, 80)!r} is no {self.action}")
        return self
