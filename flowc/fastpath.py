"""Functions whose calls go straight to native code.

Here: the class of a jitted function, whose ``__call__`` is a native callable once a compiled variant fits the way it
is called.  Not here: what the native callable does (backends/llvm/callpath.py), signatures (function.py).

The native callable checks its arguments and hands anything else to the one before it, the last of which is the
general path of function.py.  While settings are overridden (``flowc.options``) every call takes the general path.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flowc import config
from flowc.function import Argument, Function, Variant
from flowc.trace import Traced
from flowc.tree import Kind, Tree, kind_of

CHAIN = 8  # native callables tried one after the other before the chain starts anew

_live: weakref.WeakSet[FastFunction] = weakref.WeakSet()


class FastFunction(Function):
    """A jitted function.  Each has a class of its own: Python looks ``__call__`` up in the class, and there a native
    callable runs without a Python frame."""

    def __init__(self, fn: Callable[..., Any], *options: Any):
        super().__init__(fn, *options)
        self._offered: list[tuple[Variant, tuple[str, ...]]] = []  # with the keywords of a call, in its order
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
        """Give calls like this one a native callable, if one can serve them.  Nobody waits for it: a first call ends
        while the native call of the process is being translated, and later ones offer again."""
        style = variant, tuple(kwargs)
        if config.overridden() or style in self._offered:
            return
        if not variant.compiled.executable.native_is_due():
            return
        spec = self._call_spec(variant, args, kwargs, found)
        with self.lock:
            self._offered.append(style)
            if spec is None:
                return
            base = self._slow if len(self._offered) % CHAIN == 0 else self._head
            self._head = variant.compiled.executable.native_callable(spec, base)
            self._connect()

    def _call_spec(self, variant: Variant, args: Sequence[Any], kwargs: dict, found: Sequence[Argument]) -> Any:
        """How the native callable is called; None if it cannot serve this call."""
        from flowc.backends.llvm.callpath import CallSpec, Same
        leaves = iter(found)
        kinds = [Same(a) if self._is_static(i) else _argument(a, leaves) for i, a in enumerate(args)]
        named = {n: Same(kwargs[n]) if n in self.static_argnames else _argument(kwargs[n], leaves)
                 for n in sorted(kwargs)}
        if None in kinds or None in named.values() or not variant.traced.graph.outputs:
            return None
        name = self.__name__ if hasattr(self, "__name__") else "compiled"
        return CallSpec(tuple(kinds), _result(variant.traced), tuple((n, named[n]) for n in kwargs), name,
                        self.__doc__ or "")

    def _is_static(self, position: int) -> bool:
        name = self.names[position] if position < len(self.names) else ""
        return position in self.static_argnums or name in self.static_argnames

    def _connect(self) -> None:
        """Let calls go to the newest native callable, or the general path while settings are overridden."""
        head = self._slow if config.overridden() else self._head
        type(self).__call__ = staticmethod(head)  # type: ignore[method-assign, assignment]


_SCALARS = {"f64": "float", "i64": "int", "bool": "bool"}


def _argument(a: Any, leaves: Iterator[Argument]) -> Any:
    """One argument as in ``CallSpec.args``; None if only Python can take it apart."""
    from flowc.backends.llvm.callpath import Container, Same
    kind = kind_of(a)
    if kind is None:
        leaf = next(leaves)
        return "array" if not leaf.weak else _SCALARS.get(leaf.type.dtype.name)
    children, meta = kind.split(a)
    items = tuple(_argument(c, leaves) for c in children)
    if kind.layout == "none":
        return Same(None)
    keys = _keys(kind, meta)
    if kind.layout == "fields":
        keys, items = kind.fields, (*items, *(Same(getattr(a, name)) for name in kind.fields[len(items):]))
    if not kind.layout or None in items or any(type(k) is not str for k in keys):
        return None
    return Container(kind.layout, items, keys, type(a))


def _keys(kind: Kind, meta: Any) -> tuple[Any, ...]:
    return meta if kind.layout == "dict" else ()


def _result(traced: Traced) -> Any:
    """The result of a traced function as in ``CallSpec.result``."""
    from flowc.backends.llvm.callpath import Container, Same
    places, outputs = itertools.count(), itertools.count()

    def part(tree: Tree) -> Any:
        if tree.kind is None:
            place = next(places)
            return Same(traced.static[place]) if place in traced.static else next(outputs)
        kind, meta = tree.kind, tree.meta
        items = tuple(map(part, tree.children))
        if kind.layout == "none":
            return Same(None)
        if kind.layout in ("tuple", "list", "dict"):
            return Container(kind.layout, items, _keys(kind, meta))
        return Container("call", items, cls=lambda *xs: kind.join(meta, xs))
    return part(traced.out_tree)


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
