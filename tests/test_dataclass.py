"""Dataclasses with late methods: the same values, texts and refusals as the standard library's, for drawn classes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowc import dataclass as late

FIELDS = st.lists(st.tuples(st.sampled_from(["plain", "value", "made", "apart", "hidden"]), st.integers(0, 3)),
                  min_size=1, max_size=5)
MAKES = {"value": lambda v, field: v, "made": lambda v, field: field(default_factory=lambda: (v,)),
         "apart": lambda v, field: field(default=v, compare=False),
         "hidden": lambda v, field: field(default=v, init=False, repr=False)}


def drawn(module: Any, fields: list[tuple[str, int]], **kinds: bool) -> Any:
    """A class of ``module``'s dataclasses: fields without a default come first."""
    body: dict[str, Any] = {"__annotations__": {}, "__module__": __name__, "__qualname__": "Drawn", "__doc__": "text"}
    for i, (kind, value) in enumerate(sorted(fields, key=lambda f: f[0] != "plain")):
        body["__annotations__"][f"x{i}"] = "Any"
        if kind != "plain":
            body[f"x{i}"] = MAKES[kind](value, module.field)
    return module.dataclass(**kinds)(type("Drawn", (), body))


@given(FIELDS, st.booleans(), st.booleans(), st.lists(st.integers(0, 2), min_size=5, max_size=5), st.integers(0, 4))
def test_as_the_standard_ones(fields, frozen, eq, numbers, more):
    both = [drawn(m, fields, frozen=frozen, eq=eq) for m in (dataclasses, late)]
    plain = sum(kind == "plain" for kind, _ in fields)
    room = sum(kind != "hidden" for kind, _ in fields)
    args = numbers[:min(plain + more, room)]
    (a, c), (b, d) = ((cls(*args), cls(*reversed(args))) for cls in both)
    assert repr(a) == repr(b) and dataclasses.astuple(a) == dataclasses.astuple(b)
    assert (a == c) == (b == d) and (a == a) == (b == b) and a != b
    assert (type(a).__hash__ is None) == (type(b).__hash__ is None)
    if frozen and eq:
        assert (hash(a) == hash(c)) == (hash(b) == hash(d))
    assert repr(dataclasses.replace(a)) == repr(late.replace(b)) == repr(dataclasses.replace(b))
    if plain:
        assert repr(late.replace(b, x0=7)) == repr(dataclasses.replace(a, x0=7))
    for change in (lambda x: setattr(x, "x0", 1), lambda x: delattr(x, "x0"), lambda x: setattr(x, "other", 1)):
        seen = []
        for x in (copy.copy(a), copy.copy(b)):
            try:
                change(x)
                seen.append(repr({f.name: getattr(x, f.name, None) for f in dataclasses.fields(x)}))
            except AttributeError as e:
                seen.append(type(e).__name__)
        assert seen[0] == seen[1]


@late.dataclass(frozen=True)
class Pair:
    """Two."""

    left: int
    right: Any = None

    def __repr__(self) -> str:
        return "pair"


def test_own_methods_stay_and_bytes_come_back():
    assert repr(Pair(1)) == "pair" and pickle.loads(pickle.dumps(Pair(1, 2))) == Pair(1, 2) != Pair(2, 2)
    with pytest.raises(TypeError, match="left"):
        Pair()  # type: ignore[call-arg]
    match Pair(3, 4):
        case Pair(a, b):
            assert (a, b) == (3, 4)


def test_a_method_is_made_once_even_through_an_old_reference():
    late = Pair.__dict__["__hash__"]
    assert hash(Pair(1, 2)) == late(Pair(1, 2)) == hash(Pair(1, 2))
