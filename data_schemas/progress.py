"""Progress on stderr, always with the time left: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm


def clock(seconds: float) -> str:
    """Seconds as text: m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _counted(done: int, total: int, unit: int) -> str:
    return f"{done // unit}/{total // unit}"


_FORMAT = "{l_bar}{bar}| {counted} [{elapsed}<{remaining}{postfix}]"


class _Bar(tqdm):
    """A tqdm bar that shows its count in whole multiples of ``scale``; tqdm's own scaling would show 48.0 of 48."""

    def __init__(self, *, scale: int, **options: Any):
        self.scale = scale
        super().__init__(**options)

    @property
    def format_dict(self) -> Any:
        shown = super().format_dict
        return shown | {"counted": _counted(int(shown["n"]), int(shown["total"]), self.scale)}


def tell(text: str, show: bool = True) -> None:
    """Print a line on stderr about work that has no count, unless ``show`` is false."""
    if show:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """A count of ``total`` units of the work ``name`` on stderr.

    It starts at ``initial`` and is silent if ``show`` is false.

    If stderr is not a terminal, one line is written every ``every`` units and one at the end. Work that is counted in
    small steps is displayed divided by ``unit``.
    """

    def __init__(self, name: str, total: int, *, every: int = 1, initial: int = 0, unit: int = 1, show: bool = True):
        self.name, self.total, self.every, self.done, self.show = name, total, every, initial, show
        self.unit = unit
        self.begun, self.initial = time.monotonic(), initial
        terminal = show and sys.stderr.isatty()
        shown = {"total": total, "initial": initial, "desc": name, "dynamic_ncols": True, "bar_format": _FORMAT}
        self.bar = _Bar(**shown, scale=unit) if terminal else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, note: str = "", by: int = 1) -> None:
        """Count ``by`` finished units and show ``note`` beside the count."""
        before, self.done = self.done, self.done + by
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(by)
        elif self.show and (self.done // self.every > before // self.every or self.done == self.total):
            spent = time.monotonic() - self.begun
            left = spent / (self.done - self.initial) * (self.total - self.done)
            counted = _counted(self.done, self.total, self.unit)
            self.line(f"{self.name} {counted}{'  ' + note if note else ''}  {clock(left)} left")

    def line(self, text: str) -> None:
        """Write a separate line, above the bar if there is one."""
        if not self.show:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)
