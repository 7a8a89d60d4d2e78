"""Scores to decisions: exact values."""

import pandas as pd
import pytest

from data_schemas.errors import UserError
from pipeline.core.rules import decide, resolve_rules
from pipeline.core.stage import Rule

LOW = ("identity", Rule("similarity", "min", 0.5, "identity_low", "Too unlike."))
HIGH = ("semantics", Rule("extremity", "max", 0.8, "colour_extreme", "Too gaudy."))


def frames(similarity, extremity, status=("ok",)):
    count = len(similarity)
    base = {
        "sample_id": [f"s{i}" for i in range(count)],
        "status": list(status) * count if len(status) == 1 else list(status),
        "error_code": ["truncated"] * count,
        "error_message": ["cut short"] * count,
    }
    return {
        "semantics": pd.DataFrame({**base, "extremity": extremity}),
        "identity": pd.DataFrame({**base, "similarity": similarity, "status": "ok"}),
    }


def test_each_outcome():
    rows = decide(
        frames([0.5, 0.49, 0.2, None, 0.9], [0.8, 0.1, 0.9, 0.1, None], ["ok", "ok", "ok", "ok", "error"]), [LOW, HIGH]
    )
    assert [(r["decision"], r["reasons"]) for r in rows] == [
        ("kept", []),
        ("rejected", ["identity_low"]),
        ("rejected", ["identity_low", "colour_extreme"]),
        ("undecided", ["score_missing"]),
        ("error", ["semantics_error"]),
    ]
    assert rows[4]["error_code"] == "truncated"
    assert rows[0]["error_stage"] is None


def test_a_broken_rule_rejects_even_if_another_score_is_missing():
    (row,) = decide(frames([0.1], [None]), [LOW, HIGH])
    assert (row["decision"], row["reasons"]) == ("rejected", ["identity_low"])


def test_thresholds_of_the_config_are_checked():
    from pipeline.identity.compare import Identity

    stage = Identity()
    reason = stage.rules[0].reason
    resolved = {rule.reason: rule.threshold for _, rule in resolve_rules([stage], {reason: 0.25})}
    assert resolved[reason] == 0.25
    with pytest.raises(UserError, match=r"decide\.thresholds\.identity_hgih: no such reason; there is: "):
        resolve_rules([stage], {"identity_hgih": 0.5})
    with pytest.raises(UserError, match=rf"decide\.thresholds\.{reason}: 1\.5 is outside .* -1 to 1"):
        resolve_rules([stage], {reason: 1.5})
