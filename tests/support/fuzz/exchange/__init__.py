"""Hostile inputs for ``instructar import``, ``export`` and ``select``."""

from __future__ import annotations

from fuzz.exchange import beside, examples, exports, pairs, selections

CASES = [*examples.CASES, *beside.CASES, *pairs.CASES, *exports.CASES, *selections.CASES]
