"""Dataclasses whose methods are made when they are first called.

Here: ``dataclass`` with the meaning of the standard library's, ``field``, ``replace``.  Not here: records of one
room (NamedTuple there).  Read next: nothing, this stands alone.

The standard decorator writes and compiles the text of up to six methods for each class: for a compiler of many small
records, of which a program needs some, that was a third of what importing it took.  Here a class gets each of them
on its first call.  To ``dataclasses`` the classes are dataclasses, to type checkers too.
"""

from __future__ import annotations

import dataclasses
import reprlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:
    field = dataclasses.field

    def dataclass(cls=None, /, *, frozen=False, eq=True):
        """As ``dataclasses.dataclass``."""
        return _complete(cls, frozen, eq) if cls is not None else lambda cls: _complete(cls, frozen, eq)

    def replace(record, /, **changes):
        """As ``dataclasses.replace``."""
        cls = type(record)
        values = {name: getattr(record, name) for name, f in cls.__dataclass_fields__.items() if f.init}
        values.update(changes)
        return cls(**values)


def _complete(cls: type, frozen: bool, eq: bool) -> type:
    methods: dict[str, Any] = {"__init__": _init(frozen), "__repr__": None}
    if eq:
        methods |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
    for name, source in methods.items():
        if cls.__dict__.get(name) is None:  # a class with __eq__ and no __hash__ has None there
            setattr(cls, name, _repr if name == "__repr__" else source and _late(cls, name, source))
    if frozen:
        cls.__setattr__, cls.__delattr__ = _refuse_set, _refuse_delete  # type: ignore[method-assign,assignment]
    for name in ("__dataclass_fields__", "__match_args__"):
        setattr(cls, name, _LateFields(cls, name))
    return cls


class _LateFields:
    """What the standard decorator notes about the fields, noted when somebody asks."""

    lock = threading.RLock()

    def __init__(self, cls: type, name: str):
        self.cls, self.name = cls, name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        with self.lock:
            if self.cls.__dict__[self.name] is self:
                del self.cls.__match_args__  # type: ignore[attr-defined]  # the decorator keeps one that is there
                self.cls.__doc__ = self.cls.__doc__ or self.cls.__name__  # else it writes one, which takes long
                dataclasses.dataclass(init=False, repr=False, eq=False)(self.cls)
            return self.cls.__dict__[self.name]


def _late(cls: type, name: str, source: Callable[[Any, dict[str, Any]], str]) -> Callable[..., Any]:
    """A method that makes the real one when it is called, and takes its place."""
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        names: dict[str, Any] = {"__put": object.__setattr__, "__absent": _ABSENT}
        exec(source(cls, names), names)
        made = names[name]
        made.__qualname__, made.__module__ = f"{cls.__qualname__}.{name}", cls.__module__
        setattr(cls, name, made)
        return made(self, *args, **kwargs)
    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
    return method


# ---- the text of methods; ``names`` is filled with what it refers to -------------------------------------------------

_ABSENT = object()


def _init(frozen: bool) -> Callable[[Any, dict[str, Any]], str]:
    def source(cls: Any, names: dict[str, Any]) -> str:
        given, body = ["self"], list[str]()
        for name, f in cls.__dataclass_fields__.items():
            value = name
            if f.default_factory is not dataclasses.MISSING:
                names[f"__make_{name}"] = f.default_factory
                given += [f"{name}=__absent"] if f.init else []
                value = f"__make_{name}() if {name} is __absent else {name}" if f.init else f"__make_{name}()"
            elif not f.init:
                continue  # the class has it
            elif f.default is not dataclasses.MISSING:
                names[f"__default_{name}"] = f.default
                given.append(f"{name}=__default_{name}")
            else:
                given.append(name)
            body.append(f"__put(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
        if hasattr(cls, "__post_init__"):
            body.append("self.__post_init__()")
        return f"def __init__({', '.join(given)}):\n " + "\n ".join(body or ["pass"])
    return source


def _values(cls: Any, of: str, use: Callable[[Any], bool]) -> str:
    names = [name for name, f in cls.__dataclass_fields__.items() if use(f)]
    return f"({''.join(f'{of}.{name},' for name in names)})"


def _eq(cls: Any, names: dict[str, Any]) -> str:
    mine, others = (_values(cls, of, lambda f: f.compare) for of in ("self", "other"))
    return ("def __eq__(self, other):\n"
            f" return {mine} == {others} if other.__class__ is self.__class__ else NotImplemented")


def _hash(cls: Any, names: dict[str, Any]) -> str:
    values = _values(cls, "self", lambda f: f.compare if f.hash is None else f.hash)
    return f"def __hash__(self):\n return hash({values})"


# ---- methods that all share -----------------------------------------------------------------------------------------

@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    shown = [f"{name}={getattr(self, name)!r}" for name, f in self.__dataclass_fields__.items() if f.repr]
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse_set(self: Any, name: str, value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
