"""What a dataset's run.json says of how it was made, besides its config and fingerprints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pipeline.core.stage import Stage
from pipeline.references import cutouts
from pipeline.run import DECIDE_VERSION, PLAN_VERSION, SHARDS_VERSION, Run


def stated(run: Run) -> dict[str, Any]:
    """The version of every stage, the model and the settings that matter of those that make or score samples, and the
    rules with their thresholds.

    Unlike fingerprints they do not depend on the pool and the plan, so that runs over different pools can be compared.
    """
    stages: dict[str, dict[str, Any]] = {
        "references": {"version": cutouts.VERSION},
        "plan": {"version": PLAN_VERSION},
        **{
            stage.name: {
                "version": stage.version,
                "model": bare(stage.model_name()),
                "settings": stage.config.model_dump(mode="json", exclude=set(stage.config.how)),
            }
            for stage in run.stages()
        },
        "decide": {"version": DECIDE_VERSION},
        "shards": {"version": SHARDS_VERSION, "unfiltered": run.config.shards.unfiltered},
    }
    rules = [
        {"stage": stage, "column": rule.column, "bound": rule.bound, "threshold": rule.threshold, "reason": rule.reason}
        for stage, rule in run.rules
    ]
    return {"stages": stages, "rules": rules}


def licences(stages: Iterable[Stage]) -> list[tuple[str, str, str]]:
    """(stage, model, licence) of every model or method that made or scored samples, without folders of this machine."""
    return [
        (stage.name, bare(model), licence)
        for stage in stages
        for model, licence in [(w.name, w.licence) for w in stage.weights()] or [(stage.model_name(), stage.licence)]
    ]


def bare(model: str) -> str:
    """The names of models without the folders of this machine."""
    return re.sub(r"(^|(?<=, ))[~/]\S*/", "", model)
