"""Every setting, in one table: name, environment variable, type, default, help.

Here: the table, reading (when used, not at import), setting from Python, a context manager.
Not here: what the settings do.  Read next: the rooms that ask ``config.get``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from flowc.dataclass import dataclass
from flowc.diag import FlowcValueError


@dataclass(frozen=True)
class Setting:
    name: str
    env: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    in_key: bool = False  # does the compiled code depend on it


def _flag(text: str) -> bool:
    low = text.strip().lower()
    if low in ("1", "true", "yes", "on"):
        return True
    if low in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("want 0 or 1")


def _words(text: str) -> tuple[str, ...]:
    return tuple(w.strip() for w in text.split(",") if w.strip())


SETTINGS: dict[str, Setting] = {s.name: s for s in (
    Setting("num_threads", "FLOWC_NUM_THREADS", int, 0, "threads of the CPU pool; 0: what affinity, the container "
            "and OMP_NUM_THREADS allow"),
    Setting("log", "FLOWC_LOG", _words, (), "comma list of passes, rules, recompiles, fusion, kernels"),
    Setting("dump_dir", "FLOWC_DUMP_DIR", str, "", "write every stage of every compile into this folder"),
    Setting("replay_dir", "FLOWC_REPLAY_DIR", str, "", "a file NN-name.flow in this folder replaces the result of that "
            "stage", True),
    Setting("fast_math", "FLOWC_FAST_MATH", _flag, False, "use laws that hold for real numbers but not for all floats",
            True),
    Setting("cache_dir", "FLOWC_CACHE_DIR", str, "", "folder of the compile cache; default: the user cache folder"),
    Setting("cache", "FLOWC_CACHE", _flag, True, "keep compiled code on disk"),
    Setting("cache_size", "FLOWC_CACHE_SIZE", int, 512 << 20, "bytes the disk cache may hold"),
    Setting("warm_memory", "FLOWC_WARM_MEMORY", int, -1, "bytes of freed results kept for the next ones; -1: an eighth "
            "of the machine's memory, at most 1 GiB"),
    Setting("check", "FLOWC_CHECK", _flag, False, "verify the IR after every pass"),
    Setting("fuel", "FLOWC_FUEL", int, -1, "stop optional rewriting after this many decisions; -1: no limit", True),
    Setting("fuse", "FLOWC_FUSE", _flag, True, "fuse operations into common kernels", True),
    Setting("disable_jit", "FLOWC_DISABLE_JIT", _flag, False, "run everything on the NumPy interpreter"),
    Setting("device", "FLOWC_DEVICE", str, "cpu", "device of jit functions that name none: cpu, cuda, interpreter"),
    Setting("gpu", "FLOWC_GPU", str, "auto", "auto: the GPU driver; sim: the PTX interpreter"),
    Setting("gpu_arch", "FLOWC_GPU_ARCH", str, "sm_80", "architecture PTX is emitted for on the interpreter", True),
    Setting("progress", "FLOWC_PROGRESS", _flag, True, "show a line on the terminal while a compile takes long"),
    Setting("tuned", "FLOWC_TUNED", _flag, True, "use what `flowc tune` measured on this processor", True),
    Setting("schedules", "FLOWC_SCHEDULES", str, "", "how kernels are cut, by problem: `dot f32 *: mr=8 nr=48; map *: "
            "width=16`; `flowc tune --list` names the problems", True),
    Setting("minimal_filtering", "FLOWC_MINIMAL_FILTERING", _flag, True, "convolutions of three taps by Winograd's "
            "algorithm where it is faster; its rounding differs from that of the sums as written", True),
    Setting("debug_nans", "FLOWC_DEBUG_NANS", _flag, False, "raise where a kernel first produces a NaN"),
)}

_overrides: ContextVar[dict[str, Any]] = ContextVar("flowc_settings")
_global: dict[str, Any] = {}
_depth = [0]  # how many overrides of settings that calls depend on are in force, in all threads
_listeners: list[Callable[[], None]] = []
_CALLS = ("device", "disable_jit", "debug_nans")  # settings that a compiled function looks at in every call


def overridden() -> bool:
    """Are settings that calls depend on overridden anywhere now?"""
    return _depth[0] > 0


def on_override(fn: Callable[[], None]) -> None:
    """Call ``fn`` whenever :func:`overridden` may have changed."""
    _listeners.append(fn)


def _override(change: int, names: Iterable[str]) -> None:
    if any(SETTINGS[n].in_key or n in _CALLS for n in names):
        _depth[0] += change
        for fn in _listeners:
            fn()


def get(name: str) -> Any:
    """The value of a setting now: innermost ``options`` block, then ``set_option``, then environment, then default."""
    local = _overrides.get(None)
    if local is not None and name in local:
        return local[name]
    if name in _global:
        return _global[name]
    s = SETTINGS[name]
    text = os.environ.get(s.env)
    if text is None:
        return s.default
    try:
        return s.parse(text)
    except ValueError as e:
        raise FlowcValueError("C001", f"{s.env}={text!r} is not a valid value: {e}",
                              cure=f"set {s.env} as follows: {s.help}") from None


def _known(name: str) -> None:
    if name not in SETTINGS:
        raise FlowcValueError("C002", f"there is no setting {name!r}", cure=f"use one of {', '.join(SETTINGS)}")


def set_option(name: str, value: Any) -> None:
    """Set a setting for the whole process."""
    _known(name)
    if name not in _global:
        _override(1, [name])
    _global[name] = value


@contextlib.contextmanager
def options(**values: Any) -> Iterator[None]:
    """Settings for the duration of a ``with`` block, in this thread or task only."""
    for name in values:
        _known(name)
    token = _overrides.set({**_overrides.get({}), **values})
    _override(1, values)
    try:
        yield
    finally:
        _overrides.reset(token)
        _override(-1, values)


def cache_key() -> tuple:
    """The settings that compiled code depends on."""
    return tuple((n, get(n)) for n, s in SETTINGS.items() if s.in_key)
