"""Nobody looks for cyclic garbage meanwhile.

Here: a pause of Python's search for cyclic garbage, shared by threads.  Not here: who asks for it (flowc/__init__.py
while rooms are loaded, compiled.py while code is made).

Loading and compiling make many objects that live until their end or longer, which the search would look through again
and again: a twentieth of a first call.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

_pauses = 0             # under way
_collected = False      # was garbage collected before them
_lock = threading.Lock()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """A pause; it ends with the last of those that overlap."""
    global _pauses, _collected
    with _lock:
        if not _pauses:
            _collected = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if not _pauses and _collected:
                if not gc.get_freeze_count():  # all there is joins the oldest objects, not looked through for garbage
                    gc.freeze()
                    gc.unfreeze()
                gc.enable()


def _forked() -> None:
    """In a forked child: the pauses of other threads stayed in the parent."""
    global _pauses, _lock
    _lock = threading.Lock()
    if _pauses and _collected:
        gc.enable()
    _pauses = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
