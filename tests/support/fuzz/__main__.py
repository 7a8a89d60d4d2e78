"""All cases, or those whose names hold one of the words given; one line a failure, one at the end."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from fuzz import all_cases
from fuzz.good import make_good
from fuzz.runner import check, entries


def main(words: list[str]) -> int:
    cases = [case for case in all_cases() if not words or any(word in case.name for word in words)]
    commands, began, failed = entries(), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        good = make_good(Path(folder) / "good", commands)
        for case in cases:
            if found := check(case, commands, good, Path(folder) / "cases"):
                failed += 1
                print(f"FAILED {case.name} ({case.command}): " + "; ".join(f for f in found if f[0] != " "))
                print("\n".join(f for f in found if f[0] == " "), flush=True)
    print(f"{len(cases) - failed} passed, {failed} failed, {time.monotonic() - began:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
