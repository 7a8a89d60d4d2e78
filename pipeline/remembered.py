"""The settings of a run's last curation: stored in its folder, used again, and compared with new settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_schemas.io.storage import need_bucket, parse_facts, reaching, read_all, url_to_fs, write_file
from pipeline.config import HOW, CurationConfig

FILE = "settings.json"


def remember(config: CurationConfig) -> None:
    """Store the settings in the run's folder."""
    fs, root = url_to_fs(config.run_url)
    text = json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True)
    write_file(fs, f"{root}/{FILE}", text.encode())


def remembered(config: CurationConfig) -> dict[str, Any] | None:
    """The settings of the last curation of the run that ``config`` names, as plain values; None if there was none.

    Name and root are taken from ``config``, because the run may have been moved since. Every command begins with this,
    so it raises UserError if the bucket is missing, does not answer or refuses.
    """
    fs, root = url_to_fs(config.run_url)
    path = f"{root}/{FILE}"
    try:
        with reaching(config.run_url):  # not patiently: a mistyped address is told at once
            before = parse_facts(read_all(fs, path), path)
    except FileNotFoundError:
        need_bucket(config.run_url)
        before = None
    return None if before is None else before | {"name": config.name, "root": config.root}


def taken_up(config: CurationConfig) -> CurationConfig:
    """The settings of an existing run, overridden by what was set in ``config``.

    If the run was never curated, the embedded profile is used instead.
    """
    before = remembered(config)
    if before is None:
        return config.on_profile("embedded")
    return config.laid_on(before, f"{config.run_url}/{FILE}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], key: str = "") -> list[str]:
    """One text ``key value (was value)`` for each setting that differs. ``key`` is the prefix of nested keys."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        path, old, new = f"{key}{name}", before.get(name), now.get(name)
        if old == new or path in HOW:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{path}.")
        else:
            lines.append(f"{path} {_shown(new)} (was {_shown(old)})")
    return lines


def _shown(value: Any) -> str:
    return "its default" if value is None else json.dumps(value, ensure_ascii=False)
