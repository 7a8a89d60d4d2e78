"""The settings that a run was last curated with: kept beside it, taken up again, and compared with new ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_schemas.io.storage import read_facts, url_to_fs, write_file
from pipeline.config import CurationConfig

FILE = "settings.json"
NOT_COMPARED = ("workers",)
"""Settings that change nothing in a run."""


def remember(config: CurationConfig) -> None:
    """Keep the settings in the run's folder."""
    fs, root = url_to_fs(config.run_url)
    text = json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True)
    write_file(fs, f"{root}/{FILE}", text.encode())


def remembered(config: CurationConfig) -> dict[str, Any] | None:
    """The settings, as plain values, with which the run that a config names was last curated; None if it never was.

    The run may have been moved since: name and root are the config's.
    """
    fs, root = url_to_fs(config.run_url)
    before = read_facts(fs, f"{root}/{FILE}")
    return None if before is None else before | {"name": config.name, "root": config.root}


def taken_up(config: CurationConfig) -> CurationConfig:
    """The settings of the run that a config names, with what was set in the config on top; of a run that was never
    curated the embedded profile's."""
    before = remembered(config)
    if before is None:
        return config.on_profile("embedded")
    return config.laid_on(before, f"{config.run_url}/{FILE}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], key: str = "") -> list[str]:
    """Where two sets of settings differ, one ``key value (was value)`` each."""
    told = []
    for name in sorted(before.keys() | now.keys()):
        path, old, new = f"{key}{name}", before.get(name), now.get(name)
        if old == new or path in NOT_COMPARED:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            told += differences(old, new, f"{path}.")
        else:
            told.append(f"{path} {_shown(new)} (was {_shown(old)})")
    return told


def _shown(value: Any) -> str:
    return "its default" if value is None else json.dumps(value, ensure_ascii=False)
