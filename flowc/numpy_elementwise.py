"""Elementwise functions: every NumPy ufunc flowc knows, Python's operators, in-place operators.

Here: the table ufunc -> node builder, the ufunc protocol (call, reduce, accumulate, outer, at; ``out=``, ``where=``),
``x[mask] += v``.  Not here: elementwise functions that are no ufuncs (numpy_more.py).  Read next: numpy_index.py.

A builder gets nodes of the dtypes of NumPy's own loop and of one shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError, UnsupportedError, caller_loc
from flowc.graph import Node
from flowc.numpy_core import (
    PUBLIC,
    api,
    argument_error,
    broadcast_shape,
    cast,
    check_cast,
    dtype_error,
    emit,
    fill,
    into,
    node_of,
    operand,
    resolve,
    shape_error,
    spec,
    spread,
    to_dtype,
)
from flowc.size import rooms, stack
from flowc.tensor import Tensor, outside, read, value_needed, wrap
from flowc.types import DType, bool_, f64, i64, u64

Builder = Callable[..., Any]

# ---- builders -------------------------------------------------------------------------------------------------------


def like(value: Any, x: Node) -> Node:
    return fill(value, x.type.dtype, x.type.shape)


def _op(name: str, on_bool: str = "") -> Builder:
    """The op of that name; ``on_bool``: the op that means the same for booleans."""
    def build(*xs: Node) -> Node:
        return emit(on_bool if on_bool and xs[0].type.dtype is bool_ else name, *xs)
    return build


def _rounding(name: str) -> Builder:
    return lambda x: emit(name, x) if x.type.dtype.kind in "f" else x


def _test(name: str, otherwise: bool) -> Builder:
    def build(x: Node) -> Node:
        return emit(name, x) if x.type.dtype.kind in "fc" else fill(otherwise, bool_, x.type.shape)
    return build


def _logical(name: str) -> Builder:
    return lambda *xs: emit(name, *[cast(x, bool_) for x in xs])


def _absolute(x: Node) -> Node:
    return x if x.type.dtype.kind in "bu" else emit("abs", x)


def _scaled(factor: float) -> Builder:
    return lambda x: emit("mul", x, like(factor, x))


def _reciprocal(x: Node) -> Node:
    if x.type.dtype.kind in "fc":
        return emit("div", like(1, x), x)
    unit = emit("eq", _absolute(x), like(1, x))
    return emit("select", unit, x, like(0, x))  # 1 / x towards zero


def _rint(x: Node) -> Node:
    if x.type.dtype.kind != "c":
        return emit("rint", x)
    return join_complex(emit("rint", emit("real", x)), emit("rint", emit("imag", x)), x.type.dtype)


def join_complex(re: Node, im: Node, d: DType) -> Node:
    """re + 1j * im."""
    turned = emit("mul", cast(im, d), fill(1j, d, im.type.shape))
    return emit("add", cast(re, d), turned)


def _ignoring_nan(name: str) -> Builder:
    def build(x: Node, y: Node) -> Node:
        if x.type.dtype.kind not in "fc":
            return emit(name, x, y)
        best = emit("select", emit("isnan", y), x, emit(name, x, y))
        return emit("select", emit("isnan", x), y, best)
    return build


def _hypot(x: Node, y: Node) -> Node:
    d = x.type.dtype
    if d is not f64:  # squares of narrower floats neither overflow nor vanish in f64
        a, b = cast(x, f64), cast(y, f64)
        root = cast(emit("sqrt", emit("add", emit("mul", a, a), emit("mul", b, b))), d)
    else:
        a, b = emit("abs", x), emit("abs", y)
        large, small = emit("max", a, b), emit("min", a, b)
        ratio = emit("div", small, large)
        scaled = emit("mul", large, emit("sqrt", emit("add", like(1, x), emit("mul", ratio, ratio))))
        root = emit("select", emit("eq", large, like(0, x)), large, scaled)
    infinite = emit("or", emit("isinf", x), emit("isinf", y))
    return emit("select", infinite, like(math.inf, x), root)


def _log_sum(exp: str, log: str, scale: float) -> Builder:
    """log(exp(x) + exp(y)) around the larger operand."""
    def build(x: Node, y: Node) -> Node:
        top = emit("max", x, y)
        gap = emit("neg", emit("abs", emit("sub", x, y)))
        tail = emit("log1p", emit(exp, gap))
        if scale != 1:
            tail = emit("mul", tail, like(scale, x))
        equal = emit("eq", x, y)  # also two equal infinities, whose difference is NaN
        return emit("select", equal, emit("add", x, like(math.log(2) * scale, x)), emit("add", top, tail))
    return build


def _heaviside(x: Node, at_zero: Node) -> Node:
    step = emit("select", emit("lt", x, like(0, x)), like(0, x), like(1, x))
    step = emit("select", emit("eq", x, like(0, x)), at_zero, step)
    return emit("select", emit("isnan", x), x, step)


def _signbit(x: Node) -> Node:
    if x.type.dtype.kind == "f":
        return emit("lt", emit("copysign", like(1, x), x), like(0, x))
    return emit("lt", x, like(0, x))


def _modf(x: Node) -> tuple[Node, Node]:
    whole = emit("trunc", x)
    rest = emit("select", emit("isinf", x), like(0, x), emit("sub", x, whole))
    return emit("copysign", rest, x), whole


def _compare(name: str) -> Builder:
    flipped = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}.get(name, name)

    def build(x: Node, y: Node) -> Node:
        if x.type.dtype is y.type.dtype:
            return emit(name, x, y)
        if x.type.dtype is u64:  # NumPy compares i64 and u64 by value
            return _signed_unsigned(flipped, y, x)
        return _signed_unsigned(name, x, y)
    return build


def _signed_unsigned(name: str, x: Node, y: Node) -> Node:
    below = emit("lt", x, like(0, x))
    rest = emit(name, cast(x, u64), y)
    if name in ("lt", "le", "ne"):
        return emit("or", below, rest)
    return emit("and", emit("not", below), rest)


def _conjugate(x: Node) -> Node:
    return emit("conj", x) if x.type.dtype.kind == "c" else x


UFUNCS: dict[np.ufunc, Builder] = {
    np.add: _op("add", "or"), np.subtract: _op("sub"), np.multiply: _op("mul", "and"), np.true_divide: _op("div"),
    np.floor_divide: _op("floor_divide"), np.remainder: _op("mod"), np.fmod: _op("fmod"), np.power: _op("pow"),
    np.float_power: _op("pow"), np.divmod: lambda x, y: (emit("floor_divide", x, y), emit("mod", x, y)),
    np.maximum: _op("max", "or"), np.minimum: _op("min", "and"),
    np.fmax: _ignoring_nan("max"), np.fmin: _ignoring_nan("min"),
    np.arctan2: _op("atan2"), np.copysign: _op("copysign"), np.hypot: _hypot,
    np.logaddexp: _log_sum("exp", "log", 1), np.logaddexp2: _log_sum("exp2", "log2", 1 / math.log(2)),
    np.heaviside: _heaviside,
    np.equal: _compare("eq"), np.not_equal: _compare("ne"), np.less: _compare("lt"), np.less_equal: _compare("le"),
    np.greater: _compare("gt"), np.greater_equal: _compare("ge"),
    np.bitwise_and: _op("and"), np.bitwise_or: _op("or"), np.bitwise_xor: _op("xor"), np.invert: _op("not"),
    np.left_shift: _op("shl"), np.right_shift: _op("shr"),
    np.logical_and: _logical("and"), np.logical_or: _logical("or"), np.logical_xor: _logical("xor"),
    np.logical_not: _logical("not"),
    np.negative: _op("neg"), np.positive: lambda x: x, np.absolute: _absolute, np.fabs: _absolute,
    np.sign: _op("sign"), np.signbit: _signbit, np.square: lambda x: emit("mul", x, x), np.reciprocal: _reciprocal,
    np.conjugate: _conjugate, np.sqrt: _op("sqrt"), np.cbrt: _op("cbrt"),
    np.exp: _op("exp"), np.exp2: _op("exp2"), np.expm1: _op("expm1"), np.log: _op("log"), np.log2: _op("log2"),
    np.log10: _op("log10"), np.log1p: _op("log1p"),
    np.sin: _op("sin"), np.cos: _op("cos"), np.tan: _op("tan"), np.arcsin: _op("asin"), np.arccos: _op("acos"),
    np.arctan: _op("atan"), np.sinh: _op("sinh"), np.cosh: _op("cosh"), np.tanh: _op("tanh"),
    np.arcsinh: _op("asinh"), np.arccosh: _op("acosh"), np.arctanh: _op("atanh"),
    np.degrees: _scaled(180 / math.pi), np.rad2deg: _scaled(180 / math.pi),
    np.radians: _scaled(math.pi / 180), np.deg2rad: _scaled(math.pi / 180),
    np.floor: _rounding("floor"), np.ceil: _rounding("ceil"), np.trunc: _rounding("trunc"), np.rint: _rint,
    np.isnan: _test("isnan", False), np.isinf: _test("isinf", False), np.isfinite: _test("isfinite", True),
    np.modf: _modf,
}



def _xlogy(x: Node, y: Node) -> Node:
    zero = emit("and", emit("eq", x, like(0, x)), emit("not", emit("isnan", y)))
    return emit("select", zero, like(0, x), emit("mul", x, emit("log", y)))


def _logit(x: Node) -> Node:
    return emit("sub", emit("log", x), emit("log1p", emit("neg", x)))


# Ufuncs of scipy.special, by name: the library is not loaded for them.
SCIPY: dict[str, Builder] = {"erf": _op("erf"), "erfc": _op("erfc"), "expit": _op("logistic"), "xlogy": _xlogy,
                             "logit": _logit, "ndtr": _op("ndtr")}

_COMPARISONS: dict[np.ufunc, tuple[bool, bool]] = {
    np.equal: (False, False), np.not_equal: (True, True), np.less: (False, True), np.less_equal: (False, True),
    np.greater: (True, False), np.greater_equal: (True, False)}


# ---- calls ----------------------------------------------------------------------------------------------------------

def ufunc_call(ufunc: np.ufunc, *given: Any, dtype: Any = None) -> Any:
    """A ufunc on traced values: promotion and broadcasting as nodes, then the op."""
    if not stack.get():
        return outside(lambda: ufunc_call(ufunc, *given, dtype=dtype), *given)
    build = UFUNCS.get(ufunc) or SCIPY.get(ufunc.__name__)
    if build is None:
        special = rooms.functions.get(ufunc)
        if special is None:
            raise unsupported(f"np.{ufunc.__name__}")
        return special(*given)
    xs = [operand(x) for x in given]
    if len(xs) != ufunc.nin:
        raise argument_error(f"np.{ufunc.__name__} takes {ufunc.nin} operands, got {len(xs)}", "pass them all")
    try:
        loop = resolve(ufunc, tuple(map(spec, xs)), None if dtype is None else to_dtype(dtype))
    except FlowcTypeError:
        raise
    except TypeError as e:
        raise dtype_error(ufunc.__name__, xs, " ".join(str(e).split())) from None
    if ufunc in _COMPARISONS and int in map(type, xs):
        decided = _beyond_dtype(ufunc, xs, loop)
        if decided is not None:
            return decided
    nodes = [node_of(x, d) for x, d in zip(xs, loop)]
    shapes = [x.type.shape for x in nodes]
    if shapes.count(shapes[0]) < len(shapes):
        shape = broadcast_shape(shapes, ufunc.__name__, xs)
        nodes = [spread(x, shape) for x in nodes]
    out = build(*nodes)
    corder = False not in [x._corder for x in xs if isinstance(x, Tensor)]
    if not isinstance(out, tuple):
        return wrap(cast(out, loop[ufunc.nin]), corder=corder)
    return tuple(wrap(cast(r, d), corder=corder) for r, d in zip(out, loop[ufunc.nin:]))


def _beyond_dtype(ufunc: np.ufunc, xs: Sequence[Any], loop: tuple[DType, ...]) -> Tensor | None:
    """A comparison with a Python integer that the other operand's dtype cannot hold is decided by its sign."""
    for k, x in enumerate(xs):
        if type(x) is int and loop[k].integer:
            info = np.iinfo(loop[k].numpy)
            if not info.min <= x <= info.max:
                small, large = _COMPARISONS[ufunc]  # the answer of `other OP x` for a tiny and for a huge x
                answer = large if (x > 0) == (k == 1) else small
                return wrap(fill(answer, bool_, node_of(xs[1 - k]).type.shape))
    return None


_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.invert)


def python_operator(ufunc: np.ufunc, *xs: Any) -> Any:
    """``x + y`` and its kin.  Numbers of Python's own stay numbers: the result of weak operands is weak."""
    weak = True
    for x in xs:
        if type(x) is Selection:
            return x.apply(ufunc, xs)
        weak = weak and (x.weak if isinstance(x, Tensor) else type(x) in (int, float, complex, bool))
    if not stack.get():
        return outside(lambda: python_operator(ufunc, *xs), *xs)
    if ufunc is np.matmul:
        return rooms.functions[np.matmul](*xs)
    if weak and ufunc not in _BITWISE and ufunc not in _COMPARISONS:  # True + True is 2 in Python
        xs = tuple(wrap(cast(read(x), i64), weak=True) if isinstance(x, Tensor) and x.type.dtype is bool_ else x
                   for x in xs)
    if ufunc is np.power and len(xs) == 2:
        short = _short_power(*xs)
        if short is not None:
            return short
    out = ufunc_call(ufunc, *xs)
    if weak:
        for t in out if isinstance(out, tuple) else (out,):
            t.weak = t.type.dtype.kind != "b"
    return out


def _short_power(x: Any, p: Any) -> Tensor | None:
    """The exponents that NumPy's ``**`` computes without pow."""
    if type(p) not in (int, float) or not isinstance(x, Tensor):
        return None
    kind = x.type.dtype.kind
    if type(p) is int and p < 0 and kind in "iu":
        if not x.weak:
            raise dtype_error("raise", [x, p], "integers to negative integer powers are not allowed")
        return python_operator(np.power, x, float(p))
    if kind in "fc" and p in _SHORT_POWERS:
        short = _SHORT_POWERS[p]
        out = wrap(like(1, read(x))) if short is None else ufunc_call(short, x)
    elif kind in "iub" and type(p) is int and p == 2:
        out = ufunc_call(np.square, x)
    else:
        return None
    out.weak = x.weak
    return out


_SHORT_POWERS: dict[float, np.ufunc | None] = {2: np.square, 1: np.positive, 0.5: np.sqrt, -1: np.reciprocal, 0: None}


def inplace(ufunc: np.ufunc, target: Tensor, value: Any) -> Any:
    """``target += value``: what the name is bound to afterwards."""
    if type(value) is Selection:
        raise value._refuse("in-place operator with")
    result = python_operator(ufunc, target, value)
    if result.ndim == 0 and target.ndim == 0 and not target._cell:
        return result  # a scalar, as in NumPy: nothing is written
    check_cast(result, target, f"{ufunc.__name__}")
    node = cast(read(result), target.type.dtype)
    if node.type.shape != target.type.shape:
        a, b = next(((a, b) for a, b in zip(reversed(target.type.shape), reversed(node.type.shape)) if a != b),
                    (target.ndim, result.ndim))
        raise shape_error(f"{ufunc.__name__} in place", [target, operand(value)], a, b)
    target.write(node)
    return target


def array_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """NumPy's ufunc protocol."""
    kwargs = dict(kwargs)
    for x in inputs:
        if type(x) is Selection:
            return x.apply(ufunc, inputs)
    if method == "__call__":
        out, where = kwargs.pop("out", None), kwargs.pop("where", True)
        dtype = kwargs.pop("dtype", None)
        for name in ("casting", "order", "subok"):
            kwargs.pop(name, None)
        if kwargs:
            return _ufunc_rest(ufunc, inputs, kwargs, out)
        result = ufunc_call(ufunc, *inputs, **({} if dtype is None else {"dtype": dtype}))
        if isinstance(result, tuple):
            targets = out if isinstance(out, tuple) else (None,) * len(result)
            return tuple(into(t, r, where) for t, r in zip(targets, result))
        return into(out, result, where)
    builder = METHODS.get((ufunc, method)) or METHODS.get((None, method))
    if builder is None:
        raise unsupported(f"np.{ufunc.__name__}.{method}")
    if (None, method) in METHODS and (ufunc, method) not in METHODS:
        return builder(ufunc, *inputs, **kwargs)
    return builder(*inputs, **kwargs)


def _ufunc_rest(ufunc: np.ufunc, inputs: tuple, kwargs: dict[str, Any], out: Any) -> Any:
    """Generalised ufuncs (matmul, vecdot) take axes; elementwise ones take nothing more."""
    special = rooms.functions.get(ufunc)
    if special is None:
        raise unsupported(f"np.{ufunc.__name__} with {', '.join(kwargs)}=")
    return into(out, special(*inputs, **kwargs))


METHODS: dict[tuple[np.ufunc | None, str], Callable[..., Any]] = {}  # (ufunc, reduce/accumulate/outer/at) -> builder


def _outer(ufunc: np.ufunc, a: Any, b: Any, **kwargs: Any) -> Any:
    a, b = operand(a), operand(b)
    x, y = node_of(a), node_of(b)
    left = emit("reshape", x, shape=(*x.type.shape, *[1] * y.rank)) if x.rank and y.rank else x
    return array_ufunc(ufunc, "__call__", (wrap(left, weak=getattr(a, "weak", False)), b), kwargs)


METHODS[(None, "outer")] = _outer


def unsupported(name: str) -> UnsupportedError:
    """T006 with the names that come nearest."""
    short = name.split(".", 1)[1] if "." in name else name
    names = {n.rpartition(".")[2]: n for n in PUBLIC}
    import difflib
    near = [names[n] for n in difflib.get_close_matches(short.rpartition(".")[2], names, 3, 0.7)]
    hint = f"nearest supported names: {', '.join(near)}; " if near else ""
    data = short in ("nonzero", "unique", "argwhere", "flatnonzero", "extract", "compress", "unique_values")
    cure = ("the size of the result depends on data, which a graph cannot express: keep all elements and choose with "
            "flowc.numpy.where" if data else
            f"{hint}call it outside the traced function, or write it with functions of flowc.numpy")
    return UnsupportedError("T006", f"{name} on traced values is not supported", loc=caller_loc(), cure=cure)


# ---- x[mask] with a traced mask -------------------------------------------------------------------------------------

class Selection:
    """``x[mask]`` with a traced mask: how many elements it has is not known, but elementwise work on it is work on all
    of ``x`` until it is written back: ``x[mask] += 1``, ``y[mask] = np.sqrt(x[mask])``."""

    __array_priority__ = 2000
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, whole: Tensor, mask: tuple[Node, int]):
        self.whole, self.mask = whole, mask  # mask: its node and the first axis it covers

    def apply(self, ufunc: np.ufunc, xs: Sequence[Any]) -> Selection:
        wholes = []
        for x in xs:
            if type(x) is Selection:
                if x.mask != self.mask:
                    raise self._refuse("operation with another mask on")
                wholes.append(x.whole)
            elif np.ndim(x) if not isinstance(x, Tensor) else x.ndim:
                raise self._refuse("operation with an array on")
            else:
                wholes.append(x)
        return Selection(python_operator(ufunc, *wholes), self.mask)

    def _refuse(self, what: str = "use of") -> FlowcTypeError:
        return value_needed(f"{what} x[mask]: how many elements a traced mask selects is not known while the function "
                            "is traced", self.whole, "keep all elements: flowc.numpy.where(mask, x, 0), or a "
                            "reduction with where=mask; x[mask] = v and x[mask] += v are fine")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Selection:
        if method != "__call__" or kwargs:
            raise self._refuse(f"np.{ufunc.__name__}.{method} of")
        return self.apply(ufunc, inputs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise self._refuse(f"np.{func.__name__} of")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refuse(f".{name} of")

    def _stop(self, *args: Any) -> Any:
        raise self._refuse()

    __bool__ = __int__ = __float__ = __index__ = __len__ = __iter__ = __getitem__ = __setitem__ = __array__ = _stop


def _selection_operators() -> None:
    names: dict[str, np.ufunc] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "pow": np.power,
        "floordiv": np.floor_divide, "mod": np.remainder, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor}
    for name, ufunc in names.items():
        setattr(Selection, f"__{name}__", lambda a, b, u=ufunc: python_operator(u, a, b))
        setattr(Selection, f"__i{name}__", lambda a, b, u=ufunc: python_operator(u, a, b))
        setattr(Selection, f"__r{name}__", lambda a, b, u=ufunc: python_operator(u, b, a))
    unary: dict[str, np.ufunc] = {"neg": np.negative, "abs": np.absolute, "invert": np.invert}
    for name, ufunc in unary.items():
        setattr(Selection, f"__{name}__", lambda a, u=ufunc: python_operator(u, a))


_selection_operators()


# ---- entering the table ---------------------------------------------------------------------------------------------

def _enter() -> None:
    def public(ufunc: np.ufunc) -> Builder:
        def call(*xs: Any, **kwargs: Any) -> Any:
            return array_ufunc(ufunc, "__call__", xs, kwargs)
        call.__name__ = call.__qualname__ = ufunc.__name__
        call.__doc__ = f"np.{ufunc.__name__} of traced or plain arrays."
        return call

    aliases: dict[np.ufunc, str] = {
               np.absolute: "abs", np.arcsin: "asin", np.arccos: "acos", np.arctan: "atan", np.arctan2: "atan2",
               np.arcsinh: "asinh", np.arccosh: "acosh", np.arctanh: "atanh", np.conjugate: "conj", np.power: "pow",
               np.invert: "bitwise_invert bitwise_not", np.left_shift: "bitwise_left_shift", np.remainder: "mod",
               np.right_shift: "bitwise_right_shift", np.true_divide: "true_divide"}
    methods: dict[np.ufunc, str] = {np.conjugate: "conj conjugate"}
    for ufunc in UFUNCS:
        api(ufunc, names=aliases.get(ufunc, ""), method=methods.get(ufunc, ""))(public(ufunc))


_enter()
rooms.ufunc, rooms.array_ufunc, rooms.operator, rooms.inplace = ufunc_call, array_ufunc, python_operator, inplace
rooms.unsupported = unsupported
