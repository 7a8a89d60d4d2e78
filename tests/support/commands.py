"""Commands without an interpreter of their own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable


def run_here(main: Callable[[], None], name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command in this process: exit code, stdout and stderr as a finished process has them."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [name, *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    finally:
        sys.argv = before
    return subprocess.CompletedProcess([name, *arguments], code, out.getvalue(), err.getvalue())
