"""Functions whose calls go straight to native code.

Here: the class of a jitted function, whose ``__call__`` is a native callable once a compiled variant fits the way it
is called.  Not here: what the native callable does (backends/llvm/callpath.py), signatures (function.py).

The native callable checks its arguments and hands anything else to the one before it, the last of which is the
general path of function.py.  While settings are overridden (``flowc.options``) every call takes the general path.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from flowc import config
from flowc.function import Argument, Function, Variant
from flowc.trace import Traced
from flowc.tree import flatten

CHAIN = 8  # native callables tried one after the other before the chain starts anew

_live: weakref.WeakSet[FastFunction] = weakref.WeakSet()


class FastFunction(Function):
    """A jitted function.  Each has a class of its own: Python looks ``__call__`` up in the class, and there a native
    callable runs without a Python frame."""

    def __init__(self, fn: Callable[..., Any], *options: Any):
        super().__init__(fn, *options)
        self._offered: list[Variant] = []
        self._slow: Callable[..., Any] = _general(weakref.ref(self))
        self._head = self._slow
        _live.add(self)
        self._connect()

    @staticmethod
    def make(fn: Callable[..., Any], *options: Any) -> FastFunction:
        """``fn`` with the options of ``Function``, as an instance of a new class."""
        cls = type("JitFunction", (FastFunction,), {"__doc__": getattr(fn, "__doc__", None)})
        return cls(fn, *options)

    def _offer(self, variant: Variant, args: Sequence[Any], kwargs: dict, found: Sequence[Argument]) -> None:
        """Give calls like this one a native callable, if one can serve them."""
        if kwargs or config.overridden() or variant in self._offered:
            return
        spec = self._call_spec(variant, args, found)
        with self.lock:
            self._offered.append(variant)
            if spec is None:
                return
            base = self._slow if len(self._offered) % CHAIN == 0 else self._head
            self._head = variant.compiled.executable.native_callable(spec, base)
            self._connect()

    def _call_spec(self, variant: Variant, args: Sequence[Any], found: Sequence[Argument]) -> Any:
        """How the native callable is called; None if it cannot serve this call."""
        from flowc.backends.llvm.callpath import CallSpec, Same
        kinds: list[Any] = []
        leaves = iter(found)
        for i, a in enumerate(args):
            name = self.names[i] if i < len(self.names) else ""
            if i in self.static_argnums or name in self.static_argnames:
                kinds.append(Same(a))
                continue
            parts, _ = flatten(a)
            if a is None:
                kinds.append(Same(a))
                continue
            if len(parts) != 1 or parts[0] is not a:
                return None  # a container, also an empty one, which may be filled before the next call
            leaf = next(leaves)
            kinds.append("array" if not leaf.weak else {"f64": "float", "i64": "int", "bool": "bool"}.get(
                leaf.type.dtype.name))
        if None in kinds:
            return None
        traced = variant.traced
        plain = not traced.static and len(traced.graph.outputs) > 0
        sample = traced.out_tree.unflatten(list(range(traced.out_tree.leaves))) if plain else None
        if plain and sample == 0:
            result: Any = "array"
        elif plain and type(sample) is tuple and sample == tuple(range(len(traced.graph.outputs))):
            result = "tuple"
        else:
            result = _pack(traced)
        return CallSpec(tuple(kinds), result, self.__name__ if hasattr(self, "__name__") else "compiled",
                        self.__doc__ or "")

    def _connect(self) -> None:
        """Let calls go to the newest native callable, or the general path while settings are overridden."""
        head = self._slow if config.overridden() else self._head
        type(self).__call__ = staticmethod(head)  # type: ignore[method-assign, assignment]


def _pack(traced: Traced) -> Callable[..., Any]:
    return lambda *outputs: traced.assemble(outputs)


def _general(ref: weakref.ref[FastFunction]) -> Callable[..., Any]:
    """The general path as a plain function, which does not keep the jitted function alive."""
    def call(*args: Any, **kwargs: Any) -> Any:
        function = ref()
        assert function is not None  # whoever calls holds it
        return function.call(args, kwargs)
    return call


def _reconnect() -> None:
    for f in list(_live):
        with f.lock:
            f._connect()


config.on_override(_reconnect)
