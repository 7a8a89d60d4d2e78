"""Where things lie, whatever folder a test is in."""

from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"
"""Golden data and field cases, beside the project and not in it."""
