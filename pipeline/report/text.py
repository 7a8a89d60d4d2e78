"""Numbers, texts and reasons as the report's pages show them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import yaml
from markupsafe import Markup

from data_schemas.io.text import is_plain
from pipeline.report.charts import number


def plain(value: object) -> object:
    """A text with a space for every control mark and every mark that turns the direction of writing, but with its lines
    and columns; any other value as it is."""
    if not isinstance(value, str) or isinstance(value, Markup) or is_plain(value):
        return value
    return "".join(letter if letter in "\t\n" or is_plain(letter) else " " for letter in value)


def count_text(value: object) -> str:
    """A count with separated thousands; an en dash if there is none."""
    count = as_float(value)
    return f"{count:,.0f}" if math.isfinite(count) else "–"


def number_text(value: object) -> str:
    """A whole number in full, any other number to three digits."""
    return count_text(value) if isinstance(value, Integral) else number(as_float(value))


def share_text(value: object) -> str:
    """A fraction as a percentage. A share that is only close to 0 or 1 is never shown as "0 %" or "100 %"."""
    share = as_float(value)
    if not math.isfinite(share):
        return "–"
    digits = 1 if 0 < share < 0.01 or 0.99 < share < 1 else 0
    return f"{100 * share:.{digits}f} %"


def interval_text(value: object) -> str:
    """The interval of a share as " (68 % to 94 %)"; nothing if there is none."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return ""
    return f" ({share_text(value[0])} to {share_text(value[1])})"


def as_float(value: object) -> float:
    """The value as a number; NaN for None, text and other values that are not numbers."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def as_text(value: object) -> str:
    """The value of a text column; "" for any kind of null."""
    return value if isinstance(value, str) else ""


def reasons_of(row: Mapping[str, Any]) -> list[str]:
    """The row's reason codes as a list, whether the column holds null, a list or an array."""
    reasons = row.get("reasons")
    if reasons is None or isinstance(reasons, str | float):
        return [reasons] if isinstance(reasons, str) and reasons else []
    return [str(reason) for reason in reasons]


def yaml_text(config: Mapping[str, Any]) -> str:
    """The config as YAML. Values that YAML cannot express (a path, an enum) are shown as text."""
    plain = json.loads(json.dumps(config, default=str))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)
