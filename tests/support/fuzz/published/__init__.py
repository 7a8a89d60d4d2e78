"""Hostile inputs for ``tokenar-import``, ``tokenar-export`` and commands that read a published checkpoint."""

from __future__ import annotations

from fuzz.published import files, options, weights

CASES = [*files.CASES, *weights.CASES, *options.CASES]
