"""A line on the terminal while something takes long.

Here: the line, when it appears and goes.  Not here: who has progress to report.  Read next: config.py.

Nothing is written before ``PATIENCE`` seconds have passed, and nothing at all unless standard error is a terminal and
the setting ``progress`` is on.  Only the thread that opened the line writes to it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from flowc import config

PATIENCE = 2.0   # seconds
EVERY = 0.1      # seconds between two changes of the line


class _Line:
    def __init__(self, title: str):
        self.title = title
        self.start = self.last = time.monotonic()
        self.shown = False

    def show(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.start < PATIENCE or self.shown and now - self.last < EVERY:
            return
        self.last = now
        text = f"flowc: compiling {self.title}: {stage} {done} of {total} ({now - self.start:.0f} s)"
        import shutil  # as this line is: seldom
        self._write(text[:max(20, shutil.get_terminal_size().columns - 1)])
        self.shown = True

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a terminal that went away is no reason to fail
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def close(self) -> None:
        if self.shown:
            self._write("")


_state = threading.local()


def _wanted() -> bool:
    try:
        return bool(config.get("progress")) and sys.stderr is not None and sys.stderr.isatty()
    except (AttributeError, ValueError):  # a closed or strange stream
        return False


@contextlib.contextmanager
def line(title: str) -> Iterator[None]:
    """While the block runs, :func:`at` in this thread may show a line about ``title``.  Inner blocks have no line of
    their own."""
    if getattr(_state, "line", None) is not None or not _wanted():
        yield
        return
    _state.line = _Line(title)
    try:
        yield
    finally:
        _state.line.close()
        _state.line = None


def at(stage: str, done: int, total: int) -> None:
    """``done`` of ``total`` things of a stage are finished."""
    shown = getattr(_state, "line", None)
    if shown is not None:
        shown.show(stage, done, total)
