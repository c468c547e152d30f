"""What every NumPy function of traced values is made of.

Here: values to nodes, result dtypes by NumPy 2's rules, broadcasting and casts made explicit, axes and sizes, the
table of NumPy functions and its decorator.  Not here: any NumPy function (numpy_elementwise.py and its neighbours).
Read next: numpy_elementwise.py.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from flowc.diag import FlowcError, FlowcIndexError, FlowcTypeError, FlowcValueError, caller_loc
from flowc.dims import Dim, DimLike, prod
from flowc.graph import CONSTANT, Node, constant, is_scalar_constant, make
from flowc.op import get as get_op
from flowc.proofs import known_eq
from flowc.size import SizeUnknownError, plain, ranges_now, rooms, stack
from flowc.tensor import Tensor, describe, outside, read, wrap
from flowc.trace import constant_node
from flowc.types import DType, bf16, bool_, c64, c128, f16, f32, f64, i64, promote, u64
from flowc.types import dtype as known_dtype

__all__ = ["DType", "DimLike", "bool_", "c64", "c128", "f32", "f64", "i64", "u64"]

# ---- nodes ----------------------------------------------------------------------------------------------------------


def emit(op: str, *inputs: Node, **attrs: Any) -> Node:
    """A node that carries the user's line.  Where sizes are not known to fit, SizeUnknownError names the symbols."""
    try:
        return make(op, inputs, attrs, caller_loc())
    except FlowcTypeError as e:
        sizes = [d for x in inputs for d in x.type.shape if isinstance(d, Dim)]
        if e.code != "T001" or not sizes:
            raise
        raise SizeUnknownError(e.text, sizes, e.cure, code="T001", notes=e.notes) from None


def _once(key: Any, build: Callable[[], Node]) -> Node:
    """A node of the current trace that depends on ``key`` only."""
    traces = stack.get()
    if not traces:
        return build()
    known = traces[-1].scalars
    node = known.get(key)
    if node is None:
        node = known[key] = build()
    return node


def scalar(value: Any, d: DType) -> Node:
    """A constant without axes; Python integers must fit (T004)."""
    return _once((type(value), repr(value), d), lambda: _scalar(value, d))


def _scalar(value: Any, d: DType) -> Node:
    if isinstance(value, float) and d.integer:
        if not math.isfinite(value):
            raise FlowcTypeError("T004", f"{value} has no value in {d.numpy}", loc=caller_loc(),
                                 cure="use a float dtype, or replace it with an integer")
        value = int(value)
    if type(value) is int and d.integer:
        info = np.iinfo(d.numpy)
        if not info.min <= value <= info.max:
            raise FlowcTypeError("T004", f"the number {value} does not fit into {d.numpy}", loc=caller_loc(),
                                 cure="make it an array of a wider dtype: np.int64(...), or cast the other operand")
    return constant(value, d, caller_loc())


def fill(value: Any, d: DType, shape: Sequence[DimLike]) -> Node:
    """A tensor of one Python number."""
    return spread(scalar(value, d), tuple(shape))


def size_node(d: DimLike, dtype: DType = i64) -> Node:
    """A size as a number of ``dtype``."""
    if isinstance(d, int):
        return scalar(d, dtype)
    return cast(emit("size", value=plain(d)), dtype)


def cast(node: Node, d: DType) -> Node:
    """``node`` in dtype ``d``; complex to real drops the imaginary part, constants are converted here."""
    have = node.type.dtype
    if have is d:
        return node
    if is_scalar_constant(node):
        with np.errstate(all="ignore"):
            value = node.attrs["value"].array
            return constant((value.real if have.kind == "c" and d.kind not in "bc" else value).astype(d.numpy), d,
                            node.loc)
    if have.kind == "c" and d.kind not in "bc":
        return cast(emit("real", node), d)
    return emit("cast", node, dtype=d)


def spread(node: Node, shape: tuple[DimLike, ...]) -> Node:
    """``node`` broadcast to ``shape`` by NumPy's rule, which is known to hold: missing axes in front, 1 to n."""
    have = node.type.shape
    if have == shape:
        return node
    if not have and node.op is CONSTANT:
        return _once((node, shape), lambda: emit("broadcast", node, shape=shape, axes=()))
    lead = len(shape) - len(have)
    axes = tuple(lead + k for k, n in enumerate(have) if n == shape[lead + k])
    if len(axes) < len(have):
        node = emit("reshape", node, shape=tuple(shape[a] for a in axes))
    return emit("broadcast", node, shape=shape, axes=axes) if len(axes) < len(shape) else node


def reshape(node: Node, shape: Sequence[DimLike]) -> Node:
    shape = tuple(shape)
    return node if node.type.shape == shape else emit("reshape", node, shape=shape)


def transpose(node: Node, perm: Sequence[int]) -> Node:
    perm = tuple(perm)
    return node if perm == tuple(range(len(perm))) else emit("transpose", node, perm=perm)


def same_size(a: DimLike, b: DimLike) -> bool:
    """Are two sizes proved equal."""
    return a == b or known_eq(a, b, ranges_now()) is True


def to_dtype(x: Any) -> DType:
    """A dtype argument.  T004 for dtypes flowc does not have."""
    try:
        return known_dtype(x)
    except TypeError as e:
        raise FlowcTypeError("T004", str(e), loc=caller_loc(), cure="use one of these dtypes") from None


# ---- values to nodes ------------------------------------------------------------------------------------------------

def operand(x: Any) -> Any:
    """``x`` as a Tensor, a Python number or a NumPy array: what every function here works on.

    Lists may hold tensors, which are stacked.  T004 for values that are no arrays.
    """
    if isinstance(x, Tensor) or type(x) in (int, float, complex, bool):
        return x
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, np.generic):
        return np.asarray(x)
    if isinstance(x, Dim):
        return wrap(emit("size", value=plain(x)), weak=True)
    if isinstance(x, (list, tuple)):
        if any(isinstance(leaf, (Tensor, Dim)) for leaf in _flat(x)):
            return rooms.functions[np.stack](list(x))
        return np.asarray(x)
    if isinstance(x, (int, float, complex)):  # subclasses: enum members and the like
        return x.__index__() if isinstance(x, int) else float(x) if isinstance(x, float) else complex(x)
    if hasattr(x, "__array__") or hasattr(x, "__array_interface__"):
        return np.asarray(x)
    if hasattr(x, "__dlpack__"):
        return np.from_dlpack(x)
    raise FlowcTypeError("T004", f"a {type(x).__name__} is no array", loc=caller_loc(), notes=[describe(x)],
                         cure="pass arrays and numbers")


def _flat(x: Any) -> Iterable[Any]:
    stack_ = [x]
    while stack_:
        v = stack_.pop()
        if isinstance(v, (list, tuple)):
            stack_.extend(v)
        else:
            yield v


def tensor(x: Any) -> Tensor:
    """``x`` as a tensor of the current trace."""
    x = operand(x)
    return x if isinstance(x, Tensor) else wrap(node_of(x), weak=type(x) in _WEAK, corder=True)


def node_of(x: Any, d: DType | None = None) -> Node:
    """The node of an operand, in dtype ``d`` if given."""
    if isinstance(x, Tensor):
        node = read(x)
        return node if d is None else cast(node, d)
    if type(x) in _WEAK or type(x) is bool:
        if d is None:
            return scalar(x, _WEAK_DTYPE[type(x)])
        if type(x) is int and not d.integer and d is not bool_:
            return scalar(_in_range(x), d)
        return scalar(x, d) if not (isinstance(x, complex) and d.kind != "c") else cast(scalar(x, c128), d)
    x = operand(x)
    if isinstance(x, np.ndarray):
        node = constant_node(x)
        return node if d is None else cast(node, d)
    return node_of(x, d)


def _in_range(x: int) -> int | float:
    return x if abs(x) < 2 ** 63 else float(x)


_WEAK = {int, float, complex}
_WEAK_DTYPE = {bool: bool_, int: i64, float: f64, complex: c128}
_WEAK_KIND: dict[str, type] = {"i": int, "f": float, "c": complex}


def spec(x: Any) -> Any:
    """What decides the result dtype: a DType, or int, float, complex for weak operands."""
    if isinstance(x, Tensor):
        d = x._node.type.dtype
        return _WEAK_KIND.get(d.kind, d) if x.weak else d
    t = type(x)
    if t in _WEAK:
        return t
    if t is bool:
        return bool_
    return to_dtype(x.dtype)


@functools.lru_cache(maxsize=4096)
def result_dtype(*specs: Any) -> DType:
    """NumPy's result dtype.  bfloat16 with a Python number stays bfloat16 (complex for complex), as float16 does."""
    if bf16 not in specs:
        return to_dtype(np.result_type(*[s() if isinstance(s, type) else s.numpy for s in specs]))
    out = functools.reduce(promote, [s for s in specs if isinstance(s, DType)])
    if complex in specs and out.kind != "c":
        return c128 if out is f64 else c64
    return out


def common_dtype(*xs: Any) -> DType:
    return result_dtype(*[spec(x) for x in xs])


@functools.lru_cache(maxsize=4096)
def resolve(ufunc: np.ufunc, specs: tuple[Any, ...], dtype: DType | None = None) -> tuple[DType, ...]:
    """Dtypes of the loop NumPy would run: inputs, then outputs.  TypeError as NumPy words it."""
    if bf16 in specs:
        common = result_dtype(*specs)
        out = resolve(ufunc, (f16 if common is bf16 else common,) * ufunc.nin, dtype)
        return tuple(bf16 if d is f16 and common is bf16 else d for d in out)
    given = [s if isinstance(s, type) else s.numpy for s in specs]
    asked: Any = {} if dtype is None else {"signature": (None,) * ufunc.nin + (dtype.numpy,) * ufunc.nout}
    return tuple(to_dtype(d) for d in ufunc.resolve_dtypes((*given, *[None] * ufunc.nout), **asked))


# ---- broadcasting ---------------------------------------------------------------------------------------------------

def broadcast_shape(shapes: Sequence[tuple[DimLike, ...]], what: str, xs: Sequence[Any]) -> tuple[DimLike, ...]:
    """NumPy's common shape.  T003 naming ``xs`` unless sizes are equal or 1; symbolic sizes are taken not to be 1."""
    out: list[DimLike] = []
    for k in range(1, max(map(len, shapes), default=0) + 1):
        size: DimLike = 1
        for s in shapes:
            if k > len(s) or s[-k] == 1 or s[-k] == size:
                continue
            if size != 1 and not same_size(size, s[-k]):
                raise shape_error(what, xs, size, s[-k])
            size = s[-k]
        out.append(size)
    return tuple(reversed(out))


def shape_error(what: str, xs: Sequence[Any], a: DimLike, b: DimLike, ones: bool = True) -> FlowcTypeError:
    """T003 for sizes ``a`` and ``b`` of the operands ``xs``; ``ones``: a size of 1 would have been fine too."""
    types = " and ".join(str(x._node.type) if isinstance(x, Tensor) else _type_text(x) for x in xs)
    rule = "sizes must be equal or 1" if ones else "sizes must be equal"
    insert = ", or insert an axis of size 1 with x[:, None]" if ones else ""
    if isinstance(a, int) and isinstance(b, int):
        why, cure = f"sizes {a} and {b} differ: {rule}", f"make the sizes equal{insert}"
    elif _is_symbol(a) and _is_symbol(b):
        why = f"{a} and {b} are different symbols: {rule}"
        cure = f"use one symbol for both if {a} and {b} are always equal{insert}"
    else:
        why = f"{a} and {b} are not known to be equal: {rule}"
        symbol, value = (a, b) if _is_symbol(a) else (b, a)
        cure = (f"declare {symbol} as {value} if they are always equal{insert}" if _is_symbol(symbol)
                else f"declare the sizes so that they are equal{insert}")
    return _size_error(f"cannot {what.replace('_', ' ')} {types}", [*map(describe, xs), why], cure, a, b)


def rank_error(what: str, xs: Sequence[Tensor]) -> FlowcTypeError:
    return FlowcTypeError("T003", f"cannot {what} {' and '.join(str(x._node.type) for x in xs)}", loc=caller_loc(),
                          notes=[*map(describe, xs), f"they have {' and '.join(str(x.ndim) for x in xs)} axes"],
                          cure="give them the same number of axes: x[None] adds one")


def _size_error(text: str, notes: list[str], cure: str, *sizes: DimLike) -> FlowcTypeError:
    """T003; with symbolic sizes of the kind that tracing again with known sizes may get past."""
    if any(isinstance(d, Dim) for d in sizes):
        return SizeUnknownError(text, sizes, cure, code="T003", notes=notes)
    return FlowcTypeError("T003", text, loc=caller_loc(), notes=notes, cure=cure)


def _is_symbol(d: DimLike) -> bool:
    return isinstance(d, Dim) and isinstance(d.atom(), str)


def _type_text(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return f"{to_dtype(x.dtype)}[{', '.join(map(str, x.shape))}]"
    return repr(x)


def dtype_error(what: str, xs: Sequence[Any], why: str) -> FlowcTypeError:
    types = " and ".join(str(x._node.type) if isinstance(x, Tensor) else _type_text(x) for x in xs)
    return FlowcTypeError("T004", f"cannot {what.replace('_', ' ')} {types}", loc=caller_loc(),
                          notes=[*map(describe, xs), why],
                          cure="cast the operands with x.astype(...) to a dtype that the operation takes")


# ---- arguments ------------------------------------------------------------------------------------------------------

def argument_error(text: str, cure: str, kind: type[FlowcError] = FlowcValueError) -> FlowcError:
    return kind("T009", text, loc=caller_loc(), cure=cure)


def axis_of(axis: Any, rank: int) -> int:
    """An axis from 0..rank-1.  FlowcIndexError (T008) outside; axes must be known integers."""
    try:
        a = operator.index(axis)
    except TypeError:
        raise argument_error(f"an axis must be an integer, not {axis!r}", "pass an int", FlowcTypeError) from None
    if not -rank <= a < rank:
        raise FlowcIndexError("T008", f"axis {a} is out of bounds for a tensor of {rank} axes", loc=caller_loc(),
                              cure=f"use an axis from {-rank} to {rank - 1}" if rank else "a scalar has no axes")
    return a % rank


def axes_of(axis: Any, rank: int) -> tuple[int, ...]:
    """Sorted distinct axes; None means all."""
    if axis is None:
        return tuple(range(rank))
    axes = [axis_of(a, rank) for a in axis] if isinstance(axis, (tuple, list)) else [axis_of(axis, rank)]
    if len(set(axes)) != len(axes):
        raise argument_error(f"an axis appears twice in {axis!r}", "name each axis once")
    return tuple(sorted(axes))


def as_dim(d: Any) -> DimLike:
    """A size argument as int or Dim."""
    if isinstance(d, Dim):
        return plain(d)
    try:
        return operator.index(d)
    except TypeError:
        raise argument_error(f"a size must be an integer, not {d!r}", "pass ints or sizes from x.shape",
                             FlowcTypeError) from None


def as_shape(shape: Any) -> tuple[DimLike, ...]:
    return tuple(as_dim(d) for d in shape) if isinstance(shape, (tuple, list, np.ndarray)) else (as_dim(shape),)


def static_int(x: Any, what: str) -> int:
    """An argument that must be a number while tracing."""
    if isinstance(x, Dim):
        raise SizeUnknownError(f"{what} must be a number, not the symbolic size {x}", [x], "pass an integer")
    try:
        return operator.index(x)
    except TypeError:
        raise argument_error(f"{what} must be an integer, not {x!r}", "pass an int", FlowcTypeError) from None


def resolve_reshape(shape: tuple[DimLike, ...], total: DimLike, x: Tensor) -> tuple[DimLike, ...]:
    """A target shape with -1 filled in.  T003 if the number of elements differs."""
    if sum(1 for d in shape if isinstance(d, int) and d == -1) > 1:
        raise argument_error("only one size of a reshape may be -1", "give the other sizes")
    if -1 in [d for d in shape if isinstance(d, int)]:
        rest = prod(d for d in shape if not (isinstance(d, int) and d == -1))
        if isinstance(rest, int) and rest == 0:
            raise argument_error(f"cannot infer -1 in the shape {shape} with a size of 0", "give all sizes")
        missing, left = total // rest, total % rest
        if not (isinstance(left, int) and left == 0):
            known = "not a multiple" if isinstance(left, int) else "not known to be a multiple"
            raise _reshape_error(x, shape, f"{total} elements are {known} of {rest}", total)
        shape = tuple(missing if isinstance(d, int) and d == -1 else d for d in shape)
    if not same_size(prod(shape), total):
        raise _reshape_error(x, shape, f"{total} elements and {prod(shape)}", total)
    return shape


def _reshape_error(x: Tensor, shape: tuple[DimLike, ...], why: str, total: DimLike) -> FlowcTypeError:
    return _size_error(f"cannot reshape {x.type} to [{', '.join(map(str, shape))}]", [describe(x), why],
                       "give sizes whose product is the number of elements; with symbolic sizes write them with "
                       "x.shape", total, *shape)


# ---- the table of NumPy functions -----------------------------------------------------------------------------------

PUBLIC: dict[str, Callable[..., Any]] = {}  # name in flowc.numpy -> function of traced and of plain arrays


def counts_to(node: Node, n: DimLike) -> bool:
    """Are these positions 0..n-1 by construction?"""
    while node.op.name in ("reshape", "broadcast"):
        node = node.inputs[0]
    return node.op.name == "iota" and node.attrs["shape"][node.attrs["axis"]] == n


def has_tensor(args: Iterable[Any]) -> bool:
    for a in args:
        if isinstance(a, (Tensor, Dim)):
            return True
        if isinstance(a, (list, tuple)) and has_tensor(a):
            return True
    return False


def _public_name(fn: Any) -> str:
    return f"linalg.{fn.__name__}" if getattr(fn, "__module__", "") == "numpy.linalg" else fn.__name__


def api(*targets: Any, names: str = "", method: str = "", eager: Callable[..., Any] | None = None) -> Any:
    """Enter a builder into the one table of functions.

    targets: the NumPy functions it serves on tensors.  names: further public names (space separated) besides the
    targets' own.  method: names of Tensor methods.  eager: what flowc.numpy calls outside a trace; default: targets[0].
    """
    def enter(build: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(build)
        def traced(*args: Any, **kwargs: Any) -> Any:
            if not stack.get() and has_tensor((*args, *kwargs.values())):
                return outside(lambda: build(*args, **kwargs), *_flat((*args, *kwargs.values())))
            return build(*args, **kwargs)

        served = [t for t in targets if t is not None]  # a NumPy older than the function lacks it
        plain_fn = eager or (served[0] if served else None)

        @functools.wraps(build)
        def public(*args: Any, **kwargs: Any) -> Any:
            if plain_fn is None or stack.get() or has_tensor((*args, *kwargs.values())):
                return traced(*args, **kwargs)
            return plain_fn(*args, **kwargs)

        for t in served:
            rooms.functions[t] = traced
        for name in (*map(_public_name, served), *names.split()):
            public.__name__ = name.rpartition(".")[2]
            PUBLIC[name] = public
        for name in method.split():
            setattr(Tensor, name, traced)
        return traced
    return enter


def into(out: Any, result: Any, where: Any = True) -> Any:
    """``result``, or ``out`` with the result written into it (NumPy's ``out=``, ``where=``)."""
    if isinstance(out, tuple):
        out = out[0] if len(out) == 1 else out
    if out is None:
        if where is not True:
            raise argument_error("where= without out= leaves elements without a value",
                                 "pass out=, or choose with flowc.numpy.where")
        return result
    if not isinstance(out, Tensor):
        raise FlowcTypeError("T005", "a traced value cannot be written into a NumPy array", loc=caller_loc(),
                             notes=[describe(out), describe(result)],
                             cure="make the array with flowc.numpy.zeros or np.zeros_like(x), or write a = a + x")
    check_cast(result, out, "write")
    if where is not True:
        old = read(out)
        new = spread(cast(node_of(result), old.type.dtype), old.type.shape)
        result = wrap(emit("select", spread(node_of(where, bool_), old.type.shape), new, old))
    rooms.setitem(out, Ellipsis, result)
    return out


def check_cast(value: Any, target: Tensor, what: str) -> None:
    """NumPy's same_kind rule of in-place operations.  T004."""
    have, want = spec(value), target.type.dtype
    if isinstance(have, type):
        have = _WEAK_DTYPE[have]
    order = "biufc"
    same_kind = order.index(have.kind) <= order.index(want.kind) and not (have.kind == "i" and want.kind == "u")
    if not same_kind:
        raise dtype_error(f"{what} in place:", [target, value], f"the result is {have.numpy} and does not convert to "
                          f"{want.numpy} by NumPy's same_kind rule")


# ---- ops by name ----------------------------------------------------------------------------------------------------

def op_call(name: str, *xs: Any, **attrs: Any) -> Any:
    """One op on values of the dtypes it takes: a node inside a trace, its NumPy meaning on plain arrays outside."""
    if stack.get():
        return wrap(emit(name, *[node_of(operand(x)) for x in xs], **attrs))
    if has_tensor(xs):
        return outside(lambda: op_call(name, *xs, **attrs), *xs)
    return get_op(name).numpy(*[np.asarray(x) for x in xs], **attrs)
