"""The Graph IR: typed tensor values, one result per node.

Here: ``Node``, ``Graph``, ``make`` (the only way to build a node) and rebuilding.  Not here: op records (op.py, ops/),
text (text.py), checks (verify.py), Python tracing (trace.py).  Read next: kernel.py.

The graph is strict: operands of elementwise ops have one dtype and shape; broadcasts and casts are nodes.
Nodes are immutable and equal by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError, Loc
from flowc.dims import DimLike, Range
from flowc.op import HostCall, Op, get, register
from flowc.types import DType, Type, array_type


class Attrs(dict):
    """Attributes of a node: a dict that is hashable and never changed.  Values: int, float, str, bool, None, DType,
    sizes, Literal, Graph, and tuples of these."""

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:  # type: ignore[override]
        try:
            return self._hash
        except AttributeError:
            self._hash = hash(tuple(sorted((k, _hashed(v)) for k, v in self.items())))
            return self._hash

    def __reduce__(self):  # hashes of names differ from process to process
        return Attrs, (dict(self),)

    def __eq__(self, other: object) -> bool:
        return self is other or isinstance(other, dict) and self.keys() == other.keys() and all(
            _same(v, other[k]) for k, v in self.items())

    def __ne__(self, other: object) -> bool:
        return not self == other


def _hashed(v: Any) -> int:
    if isinstance(v, float):
        return hash(np.float64(v).tobytes())  # two NaNs are one attribute; Python hashes them by identity
    if isinstance(v, tuple):
        return hash(tuple(map(_hashed, v)))
    return hash((bool, v)) if isinstance(v, bool) else hash(v)


def _same(a: Any, b: Any) -> bool:
    # 0.0 == -0.0, 1 == True and 1 == 1.0 in Python; as attributes they differ
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes()
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class Literal:
    """A constant array as an attribute: read-only, C order, compared by dtype, shape and bytes."""

    __slots__ = ("_hash", "array")

    def __init__(self, value: Any):
        a = np.array(value, order="C")
        a.setflags(write=False)
        self.array = a
        self._hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash((self.array.dtype.str, self.array.shape, self.array.tobytes()))
        return self._hash

    def __reduce__(self):
        return Literal, (self.array,)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Literal) and self.array.dtype == other.array.dtype
                                 and self.array.shape == other.array.shape
                                 and self.array.tobytes() == other.array.tobytes())

    def __repr__(self) -> str:
        return f"Literal({self.array!r})"


class Node:
    """One typed value: ``op`` applied to ``inputs`` with ``attrs``.  ``loc``: the user's line it came from."""

    __slots__ = ("__weakref__", "attrs", "inputs", "loc", "op", "type")

    def __init__(self, op: Op, inputs: tuple[Node, ...], attrs: Attrs, type: Type, loc: Loc | None):
        self.op, self.inputs, self.attrs, self.type, self.loc = op, inputs, attrs, type, loc

    @property
    def shape(self) -> tuple[DimLike, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    def __repr__(self) -> str:
        return f"<{self.op.name} : {self.type}>"


def make(op: Op | str, inputs: Sequence[Node] = (), attrs: Mapping[str, Any] | None = None,
         loc: Loc | None = None) -> Node:
    """A new node; its type comes from the op's own rule.  Raises FlowcTypeError (T001) naming op and operand types."""
    op = get(op) if isinstance(op, str) else op
    table = Attrs(attrs or {})
    try:
        type_ = op.infer(*[x.type for x in inputs], **table)
    except (TypeError, ValueError) as e:
        if isinstance(e, FlowcTypeError):
            raise
        notes = [f"operand {i}: {x.type}" + (f" ({x.loc})" if x.loc else "") for i, x in enumerate(inputs)]
        raise FlowcTypeError("T001", f"{op.name}: {e}", loc=loc, notes=notes,
                             cure="give operands of types that the operation accepts") from None
    return Node(op, tuple(inputs), table, type_, loc)


# The two leaves belong to the noun itself: every graph has them.

def _param_type(*, name: str, type: Type) -> Type:
    return type


def _constant_type(*, value: Literal) -> Type:
    return array_type(value.array)


def _no_value(**_: Any):
    raise TypeError("a parameter has no value of its own")


PARAM = register(Op("param", "An input of the graph.", _no_value, _param_type, HostCall(), attrs=("name", "type"),
                    arity=0))
CONSTANT = register(Op("constant", "A literal array.", lambda *, value: value.array, _constant_type, HostCall(),
                       attrs=("value",), arity=0))


def param(name: str, type: Type, loc: Loc | None = None) -> Node:
    return make(PARAM, (), {"name": name, "type": type}, loc)


def constant(value: Any, dtype: DType | None = None, loc: Loc | None = None) -> Node:
    return make(CONSTANT, (), {"value": Literal(np.asarray(value, dtype.numpy if dtype else None))}, loc)


def is_scalar_constant(node: Node) -> bool:
    return node.op is CONSTANT and node.type.rank == 0


class Graph:
    """Parameters, outputs and everything between.

    params: the ``param`` nodes in call order, used or not.  outputs: one node per result; repeats are allowed.
    ranges: bounds of symbolic sizes by name, inclusive.  constraints: pairs (lhs, rhs) of sizes that the caller
    checks to be equal.  ``nodes`` lists every node once, inputs before uses, in a deterministic order.
    """

    def __init__(self, name: str, params: Sequence[Node], outputs: Sequence[Node],
                 ranges: Mapping[str, Range] | None = None,
                 constraints: Sequence[tuple[DimLike, DimLike]] = ()):
        self.name, self.params, self.outputs = name, tuple(params), tuple(outputs)
        self.ranges: dict[str, Range] = dict(ranges or {})
        self.constraints = tuple(constraints)
        self._nodes: list[Node] | None = None

    @property
    def nodes(self) -> list[Node]:
        if self._nodes is None:
            self._nodes = topological(self.outputs, self.params)
        return self._nodes

    def users(self) -> dict[Node, list[Node]]:
        """Consumers of every node, one entry per use."""
        out: dict[Node, list[Node]] = {n: [] for n in self.nodes}
        for n in self.nodes:
            for x in n.inputs:
                out[x].append(n)
        return out

    def with_outputs(self, outputs: Sequence[Node]) -> Graph:
        return Graph(self.name, self.params, outputs, self.ranges, self.constraints)

    def map(self, fn: Callable[[Node], Node]) -> Graph:
        """Rebuild bottom-up: ``fn`` sees each node with already mapped inputs and returns its replacement.
        Parameters are passed through ``fn`` too but must be kept."""
        done: dict[Node, Node] = {}
        for n in self.nodes:
            inputs = tuple(done[x] for x in n.inputs)
            same = all(a is b for a, b in zip(inputs, n.inputs, strict=True))
            done[n] = fn(n if same else Node(n.op, inputs, n.attrs, n.type, n.loc))
        return Graph(self.name, [done[p] for p in self.params], [done[o] for o in self.outputs],
                     self.ranges, self.constraints)

    def __len__(self) -> int:
        return len(self.nodes)

    def __repr__(self) -> str:
        return f"<graph @{self.name}: {len(self.params)} params, {len(self.nodes)} nodes>"


def topological(outputs: Iterable[Node], first: Iterable[Node] = ()) -> list[Node]:
    """All nodes that ``outputs`` need, inputs before uses, depth first from left to right; ``first`` in front.
    Iterative: a chain of any length is fine."""
    order: list[Node] = []
    seen: set[Node] = set()
    for p in first:
        if p not in seen:
            seen.add(p)
            order.append(p)
    for root in outputs:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(root.inputs))]
        while stack:
            node, rest = stack[-1]
            for x in rest:
                if x not in seen:
                    seen.add(x)
                    stack.append((x, iter(x.inputs)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order
