"""LLVM's options for the whole process, in force while flowc translates.

Here: which, why, and switching them.  Not here: passes and target machines (engine.py).  Read next: engine.py.

Others that generate code with llvmlite in this process share these options.  Where Numba is loaded it is given LLVM's
usual values back after every compile; elsewhere that time is saved (0.1 ms an option: LLVM goes through all it has).
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

# Name, value here, LLVM's own.
#
# dag-maps-huge-region: the scheduler compares every memory access of a block with every other one, which in the long
#   blocks of unrolled loops takes most of the time; beyond this many it goes by the most recent ones.
# disable-lsr, enable-misched: a third of the code generator's time.  The emitter writes addresses as it wants them and
#   instructions in the order of a register tile, so that nothing is gained by them (1 % faster without).
# fast-isel: what the quick selector knows, branches and addresses mostly, it takes from the ends of blocks, and what is
#   left goes the usual way: a seventh of the time, and code that runs as fast.
# grow-region-complexity-budget: how far the register allocator looks for regions to split a value's life at.  Live
#   ranges of a tile are as long as its loop: looking takes time and finds nothing.
OPTIONS = (
    ("dag-maps-huge-region", "100", "1000"),
    ("disable-lsr", "true", "false"),
    ("enable-misched", "false", "true"),
    ("fast-isel", "true", "false"),
    ("grow-region-complexity-budget", "0", "10000"),
)
VERSIONS = range(20, 23)  # of LLVM that have them: an unknown option would end the process
OTHERS = "numba"          # who would miss the usual ones

_lock = threading.Lock()
_users = 0
_ours = False


@contextlib.contextmanager
def in_force(llvm: Any) -> Iterator[None]:
    """Have the options set meanwhile.  llvm: llvmlite's binding.  Any number of threads at a time."""
    _change(llvm, 1)
    try:
        yield
    finally:
        _change(llvm, -1)


def _change(llvm: Any, by: int) -> None:
    global _users, _ours
    with _lock:
        _users += by
        wanted = _users > 0 or (_ours and OTHERS not in sys.modules)
        if wanted != _ours and llvm.llvm_version_info[0] in VERSIONS:
            _ours = wanted
            for name, here, usual in OPTIONS:
                llvm.set_option("flowc", f"-{name}={here if wanted else usual}")


def renew_lock() -> None:
    """In a forked child: another thread may have held it, and those that translated are gone."""
    global _lock, _users
    _lock, _users = threading.Lock(), 0
