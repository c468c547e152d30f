"""Nested arguments and results: containers taken apart into leaves and put together again.

Here: ``flatten``, ``Tree`` (the shape of the nesting: hashable, comparable, printable), ``register_pytree``, and
``exact``, by which static values are compared.
Not here: what a leaf may be (jit.py, trace.py).  Read next: trace.py.

Containers are ``None`` (no leaves), list, tuple, namedtuple, dict and OrderedDict (sorted keys), dataclass instances
(a field with ``metadata={"static": True}`` is part of the tree, not a leaf) and registered classes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowc.diag import FlowcTypeError, FlowcValueError


class Kind(NamedTuple):
    """How one container class is taken apart.

    split: container -> (children, meta), meta hashable.  join: (meta, children) -> container.
    labels: (meta, number of children) -> how each child is written behind the container's name: ``[0]``, ``.bias``.
    layout: how the children lie in the object itself, for those who read it without Python: ``none``, ``tuple``,
      ``namedtuple``, ``list``, ``dict`` (``meta`` are its keys), ``fields`` (plain attributes) or "".
    fields: names of the attributes that hold the children, then of those that hold ``meta``.
    """

    name: str
    split: Callable[[Any], tuple[Sequence[Any], Hashable]]
    join: Callable[[Any, Sequence[Any]], Any]
    labels: Callable[[Any, int], list[str]]
    layout: str = ""
    fields: tuple[str, ...] = ()


def exact(value: Any) -> Hashable:
    """A key that is equal for values a program cannot tell apart: 1, True and 1.0 differ, 0.0 and -0.0 differ, inside
    tuples and frozensets too, and NaN equals itself.  TypeError if ``value`` has no hash."""
    cls = type(value)
    if cls is float:
        return cls, value.hex()
    if cls is complex:
        return cls, value.real.hex(), value.imag.hex()
    if isinstance(value, np.generic):
        return cls, value.dtype, value.tobytes()
    if isinstance(value, tuple):
        return cls, tuple(map(exact, value))
    if cls is frozenset:
        return cls, frozenset(map(exact, value))
    hash(value)
    return cls, value


class Tree:
    """The nesting of a value without its leaves.  ``kind`` is None for a leaf."""

    __slots__ = ("_hash", "_key", "children", "kind", "leaves", "meta")

    def __init__(self, kind: Kind | None, meta: Hashable = None, children: tuple[Tree, ...] = ()):
        self.kind, self.meta, self.children = kind, meta, children
        self.leaves: int = 1 if kind is None else sum(c.leaves for c in children)
        self._key = exact(meta)
        self._hash = hash((kind.name if kind else None, self._key, children))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (isinstance(other, Tree) and self._hash == other._hash and self.kind is other.kind
                and self._key == other._key and self.children == other.children)

    def __hash__(self) -> int:
        return self._hash

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """The container with ``leaves`` in place.  FlowcValueError (T009) if their number differs."""
        leaves = list(leaves)
        if len(leaves) != self.leaves:
            raise FlowcValueError("T009", f"the tree {self} has {self.leaves} leaves, got {len(leaves)}",
                                  cure="pass one value per leaf")
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind is None:
            return next(leaves)
        return self.kind.join(self.meta, [c._build(leaves) for c in self.children])

    def paths(self, prefix: str = "") -> list[str]:
        """How a user would write each leaf: ``params['w'][0]`` for the prefix ``params``."""
        if self.kind is None:
            return [prefix]
        labels = self.kind.labels(self.meta, len(self.children))
        return [p for label, c in zip(labels, self.children) for p in c.paths(prefix + label)]

    def __str__(self) -> str:
        if self.kind is None:
            return "*"
        labels = self.kind.labels(self.meta, len(self.children))
        inner = ", ".join(f"{label.strip('[].')}: {c}" if not label[1:-1].isdigit() else str(c)
                          for label, c in zip(labels, self.children))
        return f"{self.kind.name}({inner})"

    __repr__ = __str__


LEAF = Tree(None)


def _positions(meta: Any, count: int) -> list[str]:
    return [f"[{i}]" for i in range(count)]


def _keys(meta: tuple, count: int) -> list[str]:
    return [f"[{k!r}]" for k in meta]


def _sorted_keys(d: dict) -> tuple:
    try:
        return tuple(sorted(d))
    except TypeError:  # keys of several types: any fixed order will do
        return tuple(sorted(d, key=lambda k: (type(k).__name__, repr(k))))


def _split_dict(d: dict) -> tuple[Sequence[Any], Hashable]:
    keys = _sorted_keys(d)
    return [d[k] for k in keys], keys


_KINDS: dict[type, Kind] = {
    type(None): Kind("None", lambda x: ((), None), lambda meta, xs: None, _positions, "none"),
    list: Kind("list", lambda x: (x, None), lambda meta, xs: list(xs), _positions, "list"),
    tuple: Kind("tuple", lambda x: (x, None), lambda meta, xs: tuple(xs), _positions, "tuple"),
    dict: Kind("dict", _split_dict, lambda meta, xs: dict(zip(meta, xs)), _keys, "dict"),
    OrderedDict: Kind("OrderedDict", lambda d: (list(d.values()), tuple(d)),
                      lambda meta, xs: OrderedDict(zip(meta, xs)), _keys),
}


def _namedtuple_kind(cls: type) -> Kind:
    fields: tuple[str, ...] = cls._fields  # type: ignore[attr-defined]
    return Kind(cls.__name__, lambda x: (x, None), lambda meta, xs: cls(*xs),
                lambda meta, count: [f".{f}" for f in fields], "namedtuple")


def _dataclass_kind(cls: type) -> Kind:
    fields = dataclasses.fields(cls)
    live = tuple(f.name for f in fields if not f.metadata.get("static"))
    fixed = tuple(f.name for f in fields if f.metadata.get("static"))

    def join(meta: Any, xs: Sequence[Any]) -> Any:
        new: Any = object.__new__(cls)  # not through __init__: leaves may be tracers, types or names
        for name, value in zip(live + fixed, [*xs, *meta]):
            object.__setattr__(new, name, value)
        return new

    return Kind(cls.__name__, lambda x: ([getattr(x, f) for f in live], tuple(getattr(x, f) for f in fixed)), join,
                lambda meta, count: [f".{f}" for f in live],
                "fields" if _plain(cls, live + fixed) else "", live + fixed)


def _plain(cls: type, names: Sequence[str]) -> bool:
    """Do objects hold these attributes themselves, so that reading them runs no code of the class?"""
    def stored(name: str) -> bool:
        found = inspect.getattr_static(cls, name, None)
        return inspect.ismemberdescriptor(found) or not hasattr(type(found), "__get__")
    return cls.__getattribute__ is object.__getattribute__ and not hasattr(cls, "__getattr__") and all(
        map(stored, names))


def register_pytree(cls: type, split: Callable[[Any], tuple[Sequence[Any], Hashable]],
                    join: Callable[[Any, Sequence[Any]], Any],
                    labels: Callable[[Any, int], list[str]] | None = None) -> type:
    """Make instances of ``cls`` containers.

    ``split(x)`` returns (children, meta) with a hashable ``meta``; ``join(meta, children)`` builds an instance again;
    ``labels(meta, count)`` says how each child is written behind the instance's name (default ``[0]``, ``[1]``, ...).
    """
    if cls in _KINDS:
        raise FlowcValueError("T009", f"{cls.__name__} is a container already", cure="register each class once")
    _KINDS[cls] = Kind(cls.__name__, split, join, labels or _positions)
    return cls


def kind_of(x: Any) -> Kind | None:
    """How ``x`` is taken apart; None for a leaf."""
    cls = type(x)
    kind = _KINDS.get(cls)
    if kind is None:
        if isinstance(x, tuple) and hasattr(cls, "_fields"):
            kind = _KINDS.setdefault(cls, _namedtuple_kind(cls))
        elif dataclasses.is_dataclass(cls) and cls not in _PLAIN:
            kind = _KINDS.setdefault(cls, _dataclass_kind(cls))
    return kind


_PLAIN: set[type] = set()  # dataclasses that are leaves


def leaf_class(cls: type) -> type:
    """Keep instances of a dataclass whole: they are leaves, not containers."""
    _PLAIN.add(cls)
    return cls


def flatten(obj: Any) -> tuple[list[Any], Tree]:
    """All leaves of ``obj`` from left to right, and its tree.  ``tree.unflatten(leaves)`` gives an equal object."""
    leaves: list[Any] = []
    return leaves, _flatten(obj, leaves)


def _flatten(obj: Any, leaves: list[Any]) -> Tree:
    kind = kind_of(obj)
    if kind is None:
        leaves.append(obj)
        return LEAF
    children, meta = kind.split(obj)
    try:
        return Tree(kind, meta, tuple(_flatten(c, leaves) for c in children))
    except TypeError as e:
        if "unhashable" not in str(e):
            raise
        raise FlowcTypeError("T009", f"a {kind.name} has the static part {meta!r}, which is not hashable",
                             cure="keep only hashable values in static fields and dict keys") from None


def tree_map(fn: Callable[..., Any], first: Any, *rest: Any) -> Any:
    """``fn`` applied leaf by leaf to containers of one nesting.  FlowcValueError (T009) if they differ."""
    leaves, tree = flatten(first)
    columns = [leaves]
    for other in rest:
        more, shape = flatten(other)
        if shape != tree:
            raise FlowcValueError("T009", f"containers differ: {tree} and {shape}",
                                  cure="pass containers with the same keys and lengths")
        columns.append(more)
    return tree.unflatten([fn(*xs) for xs in zip(*columns)])
