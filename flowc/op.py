"""The ``Op`` record and the registry: everything flowc knows about an operation stands in one record.

Here: the record, its lowering payloads, the registry.  Not here: the ops themselves (ops/), nodes (graph.py).
Read next: graph.py, then ops/elementwise.py for examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowc.dataclass import dataclass, field
from flowc.types import DType


@dataclass(frozen=True)
class Pointwise:
    """Lowering of an op whose result element is a scalar expression of operand elements.

    ``expr(b, idx, load, types, attrs) -> Expr``: ``b`` is the expression builder (kernel.py), ``idx`` the tuple of
    output indices (sizes: ints or Dims), ``load(k, idx, where=None, other=None) -> Expr`` reads operand ``k`` at
    ``idx``; with ``where`` (a bool Expr) the element is read only where it is true and is ``other`` elsewhere.
    ``movement`` marks ops without arithmetic, which cost nothing after fusion.
    """

    expr: Callable[..., Any]
    movement: bool = False


@dataclass(frozen=True)
class Reduction:
    """Lowering of a reduction over ``attrs["axes"]``: a monoid over a tuple of scalars.

    ``state(dtype) -> tuple[DType, ...]``: dtypes of the accumulators for an operand of ``dtype``;
    ``unit(dtype) -> tuple[number, ...]``: the neutral element;
    ``enter(b, x, pos) -> tuple[Expr, ...]``: the state of one element, ``pos`` its i64 position along the reduced
    axes in C order; ``combine(b, s, t) -> tuple[Expr, ...]``: associative up to rounding, ``s`` covers the earlier
    positions (used for exact tie rules such as argmax's first); ``leave(b, s) -> Expr``: the result;
    ``later(b, s, t)``: what ``combine`` gives where ``t`` is one element behind all of ``s``, if that takes less;
    ``position``: which of the state is a position, if one is: its unit is the largest of its dtype.
    """

    state: Callable[[DType], tuple]
    unit: Callable[[DType], tuple]
    enter: Callable[..., tuple]
    combine: Callable[..., tuple]
    leave: Callable[..., Any]
    later: Callable[..., tuple] | None = None
    position: int | None = None


@dataclass(frozen=True)
class Contraction:
    """Lowering of a sum of products of two operands: matmul, convolution, einsum.

    ``access(types, attrs) -> Access`` names the output and reduced extents and says where each operand is read.
    """

    access: Callable[..., Access]


@dataclass(frozen=True)
class Access:
    """``out[o] = sum over r of lhs[lhs_index(o, r)] * rhs[rhs_index(o, r)]``.

    ``out``: extents of the output indices, in the row-major order of the output tensor;
    ``reduce``: extents of the summed indices, in the order of summation;
    ``lhs``, ``rhs``: functions ``(o, r) -> (index tuple, conditions)`` of tuples of sizes.  The element exists where
    all conditions hold and is zero elsewhere (convolution padding and gaps): ``("range", i, n)`` for 0 <= i < n,
    ``("divisible", i, k)`` for i a multiple of k, where i may be negative;
    ``out_kinds``: one letter per output index: ``b`` both operands depend on it, ``m`` lhs only, ``n`` rhs only;
    ``place``: the index tuple of the output tensor at output indices ``o``.  It is ``o`` itself unless one axis of
    the tensor is cut into adjacent indices (the channels of a grouped convolution: group, channel in the group).
    """

    out: tuple
    reduce: tuple
    lhs: Callable[..., Any]
    rhs: Callable[..., Any]
    out_kinds: str
    place: Callable[[tuple], tuple] = lambda o: o


@dataclass(frozen=True)
class General:
    """Lowering of an op with loops of its own.  ``body(k, ins, out, types, attrs)`` builds statements with the
    kernel builder ``k``; ``ins`` are buffer names, ``out`` the output buffer name.  ``streams``: it reads every element
    of its operands about once, so what they are computed from may be computed on the way.  ``machine``: the only kind
    that the loops are for; elsewhere the host computes the op."""

    body: Callable[..., None]
    streams: bool = False
    machine: str = ""


@dataclass(frozen=True)
class HostCall:
    """No native lowering: the plan calls the op's NumPy meaning on the host."""


Lowering = Pointwise | Reduction | Contraction | General | HostCall


@dataclass(frozen=True, eq=False)
class Op:
    """One operation.  Adding an op is adding one record; tests, help and coverage enumerate the registry.

    name: as printed in IR text.  doc: one sentence.
    numpy: the meaning, ``(*arrays, **attrs) -> array`` with concrete integer sizes in attrs and ``out_type`` bound if
      it asks for it: the oracle of every test.
    infer: the type rule, ``(*types, **attrs) -> Type``; raises ValueError or TypeError with a plain message.
    attrs: attribute names in printing order.
    lower: one of the five lowering payloads, or HostCall.
    vjp: ``(g, y, *xs, **attrs) -> tuple`` of cotangent nodes (None: no gradient flows), symbol to symbol;
      None for ops without a derivative.
    jvp: ``(ts, y, *xs, **attrs) -> node`` from the tuple of tangent nodes (None: zero tangent); optional, linear ops
      and the elementwise ops have it derived from their parts.
    ulp: error bound of the compiled op by dtype name against the correctly rounded value; 0: bit-equal.
    dtypes: dtypes of the first operand that the op supports.
    samples: what generated tests draw: ``(draw-independent rng) -> list of (arrays, attrs)``.
    domain: (lo, hi) of finite operands for generated values.
    pure: False only for ops with effects.
    commutative: the first two operands may be swapped without changing a bit.
    """

    name: str
    doc: str
    numpy: Callable[..., Any]
    infer: Callable[..., Any]
    lower: Lowering
    attrs: tuple[str, ...] = ()
    vjp: Callable[..., Any] | None = None
    jvp: Callable[..., Any] | None = None
    ulp: dict[str, float] = field(default_factory=dict)
    dtypes: tuple[DType, ...] = ()
    samples: Callable[..., Any] | None = None
    domain: tuple[float, float] = (-8.0, 8.0)
    pure: bool = True
    commutative: bool = False
    arity: int | None = None  # None: any number of operands

    @property
    def family(self) -> str:
        if isinstance(self.lower, Pointwise):
            return "movement" if self.lower.movement else "elementwise"
        return {Reduction: "reduction", Contraction: "contraction", General: "general",
                HostCall: "host"}[type(self.lower)]

    def __repr__(self) -> str:
        return f"op {self.name}"

    def __reduce__(self):
        return (get, (self.name,))


REGISTRY: dict[str, Op] = {}


def register(op: Op) -> Op:
    if op.name in REGISTRY:
        raise ValueError(f"op {op.name} is declared twice")
    REGISTRY[op.name] = op
    return op


def get(name: str) -> Op:
    """The op called ``name``; KeyError if there is none.  Importing flowc.ops fills the registry."""
    return REGISTRY[name]
