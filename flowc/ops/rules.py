"""What the op records share: declaring, type rules with plain errors, node building for derivatives, error bounds.

Here: ``declare`` and the checks it adds to every rule, ``n`` (nodes by op name, Python scalars lifted), NumPy meanings
without warnings.  Not here: any op (the other files of this room), drawn operands (samples.py).
Read next: elementwise.py.

Derivatives of complex ops are transposes of the linear map of tangents under the pairing ``Re(g * t)``: a holomorphic
``f`` gives ``g * f'(x)`` without conjugation, so the direction of steepest descent of a real loss is the conjugate.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from flowc.dims import Dim, DimLike, dmax
from flowc.graph import Node, make
from flowc.kernel import Builder, Expr
from flowc.op import Lowering, Op, register
from flowc.proofs import known_eq, known_le, known_lt
from flowc.rewrite import splat
from flowc.types import ALL, FLOATS, DType, Type, bf16, bool_, f32

EXACT: dict[str, float] = {d.name: 0 for d in ALL}  # bit-equal to the NumPy meaning in every dtype


def bound(f32_ulp: float, f64_ulp: float | None = None) -> dict[str, float]:
    """Error bounds in ulp of a rounded function; 16-bit floats are computed in f32 and rounded once."""
    return {"f16": 1, "bf16": 1, "f32": f32_ulp, "f64": f32_ulp if f64_ulp is None else f64_ulp}


def exact_but_floats() -> dict[str, float]:
    """Bit-equal for integers and booleans; floats have no bound per element (sums, products)."""
    return {d.name: 0 for d in ALL if d.kind in "biu"}


# ---- declaring ------------------------------------------------------------------------------------------------------

def declare(name: str, doc: str, *, numpy: Callable[..., Any], infer: Callable[..., Type], lower: Lowering,
            arity: int | None = 1, attrs: tuple[str, ...] = (), dtypes: tuple[DType, ...] = ALL,
            **fields: Any) -> Op:
    """Register an op; its rule also refuses a wrong number of operands, unknown attributes and foreign dtypes, and
    its meaning runs without floating-point warnings and returns an array."""
    names = frozenset(attrs)

    @functools.wraps(infer)
    def checked(*types: Type, **given: Any) -> Type:
        if arity is not None and len(types) != arity:
            raise TypeError(f"takes {arity} operand{'' if arity == 1 else 's'}, got {len(types)}")
        if given.keys() != names:
            want = ", ".join(attrs) or "none"
            raise TypeError(f"attributes are {want}; got {', '.join(given) or 'none'}")
        if types and types[0].dtype not in dtypes:
            raise TypeError(f"{types[0].dtype} is not supported; it works on {', '.join(d.name for d in dtypes)}")
        return infer(*types, **given)

    @functools.wraps(numpy)
    def meaning(*arrays: Any, **given: Any) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(numpy(*arrays, **given))

    return register(Op(name, doc, meaning, checked, lower, attrs=attrs, arity=arity, dtypes=dtypes, **fields))


# ---- type rules -----------------------------------------------------------------------------------------------------

def same_size(a: DimLike, b: DimLike, what: str) -> None:
    """Refuse two sizes unless they have one normal form.  ``what`` begins the message."""
    if not known_eq(a, b):
        why = "" if isinstance(a, int) and isinstance(b, int) else ", which are not known to be equal"
        raise ValueError(f"{what}: sizes {a} and {b}{why}")


def same_shape(a: Sequence[DimLike], b: Sequence[DimLike], what: str = "operands") -> None:
    if len(a) != len(b):
        raise ValueError(f"{what} have shapes {shown(a)} and {shown(b)}: {len(a)} and {len(b)} axes")
    for axis, (m, k) in enumerate(zip(a, b, strict=True)):
        if m is not k and m != k:
            same_size(m, k, f"{what} have shapes {shown(a)} and {shown(b)}, axis {axis} differs")


def same_dtype(*types: Type) -> DType:
    first = types[0].dtype
    for t in types[1:]:
        if t.dtype is not first:
            raise TypeError(f"operands have dtypes {first} and {t.dtype}; they must be equal, cast one of them")
    return first


def same(*types: Type) -> Type:
    """The one type of all operands."""
    same_dtype(*types)
    for t in types[1:]:
        same_shape(types[0].shape, t.shape)
    return types[0]


def need_dtype(t: Type, want: DType, what: str) -> None:
    if t.dtype is not want:
        raise TypeError(f"{what} must be {want}, not {t.dtype}")


def need_rank(t: Type, rank: int, what: str) -> None:
    if t.rank != rank:
        raise ValueError(f"{what} must have {rank} axes, not {t.rank}: {t}")


def need_length(values: Sequence[Any], length: int, what: str) -> None:
    if not isinstance(values, tuple) or len(values) != length:
        raise ValueError(f"{what} must be a tuple of {length}, got {values!r}")


def need_axis(axis: Any, rank: int) -> int:
    if not isinstance(axis, int) or isinstance(axis, bool) or not 0 <= axis < rank:
        raise ValueError(f"axis {axis!r} is not one of the {rank} axes 0..{rank - 1}" if rank
                         else f"axis {axis!r}: a scalar has no axes")
    return axis


def need_axes(axes: Any, rank: int, increasing: bool = True) -> tuple[int, ...]:
    """Distinct axes of a tensor of ``rank`` axes, in increasing order if asked."""
    if not isinstance(axes, tuple):
        raise TypeError(f"axes must be a tuple, got {axes!r}")
    for a in axes:
        need_axis(a, rank)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axes {axes} name an axis twice")
    if increasing and list(axes) != sorted(axes):
        raise ValueError(f"axes {axes} must be in increasing order")
    return axes


def need_sizes(values: Any, length: int | None, what: str, least: int = 0) -> tuple[DimLike, ...]:
    """A tuple of sizes, none of them known to be below ``least``."""
    if not isinstance(values, tuple) or (length is not None and len(values) != length):
        raise ValueError(f"{what} must be a tuple{'' if length is None else f' of {length}'}, got {values!r}")
    for v in values:
        if isinstance(v, bool) or not isinstance(v, (int, Dim)):
            raise TypeError(f"{what} must be integers, got {v!r}")
        if known_lt(v, least):
            raise ValueError(f"{what} must be at least {least}, got {v}")
    return values


def need_static(values: Any, length: int, what: str, least: int) -> tuple[int, ...]:
    """A tuple of plain integers, each at least ``least``."""
    for v in need_sizes(values, length, what, least):
        if not isinstance(v, int):
            raise TypeError(f"{what} must be known integers, got the symbolic size {v}")
    return values


def need_inside(low: DimLike, high: DimLike, size: DimLike, what: str) -> None:
    """Refuse ``low..high`` where it is known to leave ``0..size``; what is unknown passes."""
    if known_lt(low, 0) or known_lt(size, high):
        raise ValueError(f"{what} {low}..{high} leaves an axis of size {size}")


def shown(shape: Iterable[DimLike]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def nonnegative(d: DimLike) -> DimLike:
    """``d``, or ``max(0, d)`` where ``d`` may be negative."""
    return d if known_le(0, d) else dmax(0, d)


# ---- nodes for derivatives ------------------------------------------------------------------------------------------

def full(value: Any, dtype: DType, shape: Sequence[DimLike]) -> Node:
    """A tensor of one value."""
    return splat(value, Type(dtype, tuple(shape)))


def like(value: Any, x: Node) -> Node:
    """``value`` in every element of the type of ``x``."""
    return full(value, x.dtype, x.shape)


class _Nodes:
    """``n.mul(x, 2.0)`` makes a node of op ``mul``; numbers take the type of the first operand that is a node, and
    a trailing underscore is dropped (``n.and_``)."""

    def __getattr__(self, name: str) -> Callable[..., Node]:
        op = name.rstrip("_")

        def call(*operands: Any, **attrs: Any) -> Node:
            node = next((x for x in operands if isinstance(x, Node)), None)
            return make(op, [x if isinstance(x, Node) else like(x, node) for x in operands], attrs)  # type: ignore[arg-type]
        return call


n = _Nodes()


def zeros(t: Type) -> Node:
    return full(0, t.dtype, t.shape)


def kept_axes(rank: int, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(a for a in range(rank) if a not in axes)


def spread(x: Node, shape: Sequence[DimLike], axes: Sequence[int]) -> Node:
    """Undo the disappearance of ``axes``: ``x`` repeated along them."""
    return n.broadcast(x, shape=tuple(shape), axes=kept_axes(len(shape), axes))


def collapse(x: Node, axes: Sequence[int]) -> Node:
    return n.reduce_sum(x, axes=tuple(axes)) if axes else x


def add_up(parts: Iterable[Node | None]) -> Node | None:
    """Sum of the parts that exist."""
    total: Node | None = None
    for p in parts:
        total = p if total is None else total if p is None else n.add(total, p)
    return total


def diagonal_jvp(vjp: Callable[..., tuple]) -> Callable[..., Node | None]:
    """The tangent rule of an elementwise op from its cotangent rule: each partial derivative is a number per element,
    so both are the same product."""
    def jvp(ts: Sequence[Node | None], y: Node, *xs: Node, **attrs: Any) -> Node | None:
        return add_up(vjp(t, y, *xs, **attrs)[i] for i, t in enumerate(ts) if t is not None)
    return jvp


def linear_jvp(name: str) -> Callable[..., Node | None]:
    """The tangent rule of an op that is linear in all of its operands together."""
    def jvp(ts: Sequence[Node | None], y: Node, *xs: Node, **attrs: Any) -> Node | None:
        if all(t is None for t in ts):
            return None
        return make(name, [zeros(x.type) if t is None else t for t, x in zip(ts, xs, strict=True)], attrs)
    return jvp


# ---- meanings and kernels in a wider dtype --------------------------------------------------------------------------

def is_half(a: np.ndarray) -> bool:
    return a.dtype.itemsize == 2 and a.dtype.kind not in "biu"  # bfloat16 has kind V or f, by version


def in_f32(fn: Callable[..., Any], same_dtype: bool = True) -> Callable[..., Any]:
    """``fn`` with 16-bit floats widened to f32, the result rounded once: what NumPy does for float16."""
    def wide(*arrays: np.ndarray, **attrs: Any) -> Any:
        halves = [a for a in arrays if is_half(a)]
        if not halves:
            return fn(*arrays, **attrs)
        out = np.asarray(fn(*[a.astype(np.float32) if is_half(a) else a for a in arrays], **attrs))
        return out.astype(halves[0].dtype) if same_dtype and out.dtype == np.float32 else out
    return wide


def in_f64(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` of narrower floats computed in f64 and rounded once: an oracle ahead of the bounds it judges."""
    def wide(*arrays: np.ndarray) -> Any:
        d = arrays[0].dtype
        if is_half(arrays[0]) or d == np.float32:
            out = np.asarray(fn(*[a.astype(np.float64) for a in arrays]))
            return out.astype(d) if out.dtype == np.float64 else out
        if d == np.complex64:
            out = np.asarray(fn(*[a.astype(np.complex128) for a in arrays]))
            return out.astype(d if out.dtype.kind == "c" else np.float32)
        return fn(*arrays)
    return wide


def each(fn: Callable[[float], float]) -> Callable[[Any], np.ndarray]:
    """A function of the C library, element by element: NumPy has no error function."""
    whole = np.frompyfunc(fn, 1, 1)
    return lambda x: np.asarray(whole(x), dtype=np.float64)


def ndtr(x: float) -> float:
    """The normal distribution.  Far below 0 the rounding of x / sqrt(2) would count: what it takes from the square is
    given back."""
    t = x * -math.sqrt(0.5)
    if not 0 < t < 30:
        return 0.5 * math.erfc(t)
    (a, a_low), (c, c_low) = _split(x), _split(t)
    lost = (0.5 * a * a - c * c) + (a * a_low - 2.0 * c * c_low) + (0.5 * a_low * a_low - c_low * c_low)
    return 0.5 * math.erfc(t) * math.exp(-lost)


def _split(x: float) -> tuple[float, float]:
    """x as the sum of two numbers whose squares are exact (Veltkamp 1968)."""
    c = x * 134217729.0
    high = c - (c - x)
    return high, x - high


def half_in_f32(fn: Callable[..., Expr]) -> Callable[..., Expr]:
    """A scalar expression of several instructions, computed in f32 for 16-bit floats and rounded once."""
    def expr(b: Builder, *xs: Expr) -> Expr:
        d = next((x.dtype for x in xs if x.dtype is not bool_), bool_)
        if d.bits != 16 or not d.floating:
            return fn(b, *xs)
        y = fn(b, *[b.cast(x, f32) if x.dtype is d else x for x in xs])
        return y if y.dtype is bool_ else b.cast(y, d)
    return expr


def convert(b: Builder, x: Expr, d: DType) -> Expr:
    """``x`` in dtype ``d`` as NumPy converts: anything but zero is true; bfloat16 is reached through f32."""
    if x.dtype is d:
        return x
    if d is bool_:
        return b.ne(x, 0)
    if d is bf16 and x.dtype not in FLOATS[:3]:
        return b.cast(b.cast(x, f32), d)
    return b.cast(x, d)
