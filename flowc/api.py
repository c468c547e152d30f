"""The functions most users call: jit, grad, value_and_grad, interpret, verify.

Here: what they promise and how they are put together.  Not here: compiled functions (function.py, fastpath.py).
Read next: session.py for the graph layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flowc.backends.llvm.library  # noqa: F401  (begins to load LLVM while the rest is imported)
from flowc.check import Report
from flowc.compiled import check_device, compile_graph
from flowc.diag import FlowcTypeError, FlowcValueError, UnsupportedError, caller_loc
from flowc.fastpath import FastFunction
from flowc.function import CompiledFunction, Function, as_argument, normal, title
from flowc.graph import make
from flowc.passes.autodiff import vjp
from flowc.rewrite import splat
from flowc.trace import Tensor, lift, wrap
from flowc.tree import flatten


def jit(fn: Callable[..., Any] | None = None, *, static_argnums: int | Sequence[int] = (),
        static_argnames: str | Sequence[str] = (), device: str | None = None, dynamic: bool = False,
        donate_argnums: int | Sequence[int] = (), donate_argnames: str | Sequence[str] = ()) -> Any:
    """Compile ``fn`` at its first call: arrays, numbers and containers of them in, arrays out.

    static_argnums, static_argnames: arguments that are part of the program (hashable), not data.
    donate_argnums, donate_argnames: arguments whose arrays the caller gives away: results of the same type are written
      into them where that is possible, and such a result is the array that was passed.  What donated arrays hold after
      the call is unspecified otherwise.  Arrays that cannot be used, because they are read-only, not contiguous or
      share memory with another argument, are left as they are.
    device: cpu, cuda or interpreter; default: the setting.  dynamic: symbolic sizes from the first call.
    Also usable as a decorator with or without arguments.
    """
    nums, given = ((x,) if isinstance(x, int) else tuple(x) for x in (static_argnums, donate_argnums))
    names, given_names = ((x,) if isinstance(x, str) else tuple(x) for x in (static_argnames, donate_argnames))
    if fn is None:
        return lambda f: jit(f, static_argnums=nums, static_argnames=names, device=device, dynamic=dynamic,
                             donate_argnums=given, donate_argnames=given_names)
    if not callable(fn):
        raise FlowcTypeError("C026", f"jit needs a function, got a {type(fn).__name__}", loc=caller_loc(),
                             cure="write @flowc.jit above a def")
    if device is not None:
        check_device(device)
    return FastFunction.make(fn, nums, names, device, dynamic, given, given_names)


def value_and_grad(fn: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """A compiled function that returns ``(fn(*args), gradient)``.

    The gradient of the scalar result with respect to argument ``argnums`` has that argument's structure; for a
    sequence of numbers it is a tuple.  has_aux: ``fn`` returns (scalar, anything), and so does the first part.
    """
    base = fn.fn if isinstance(fn, Function) else fn
    many = not isinstance(argnums, int)
    which: tuple[int, ...] = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(base)
    def with_gradient(*args: Any, **kwargs: Any) -> Any:
        full = list(args)
        inputs, trees = [], []
        for i in which:
            if not -len(args) <= i < len(args):
                raise FlowcValueError("C030", f"argument {i} of {title(base)} is not among the {len(args)} passed",
                                      loc=caller_loc(), cure="pass it by position, or choose another argnums")
            leaves, tree = flatten(full[i])
            fresh = []
            for x in leaves:
                if not isinstance(x, Tensor):
                    x = lift(x)
                if not x.node.dtype.floating and x.node.dtype.kind != "c":
                    raise FlowcTypeError("C031", f"argument {i} of {title(base)} holds {x.node.type}: gradients need "
                                         "floating point", loc=caller_loc(), cure="convert it, or choose other argnums")
                # a node of its own, so that a value passed twice has two gradients
                fresh.append(wrap(make("reshape", (x.node,), {"shape": x.node.shape}, x.node.loc)))
            inputs.append([x.node for x in fresh])
            trees.append(tree)
            full[i] = tree.unflatten(fresh)
        out = base(*full, **kwargs)
        loss = out[0] if has_aux else out
        if not isinstance(loss, Tensor):
            loss = lift(loss)
        if loss.node.rank != 0 or not loss.node.dtype.floating:
            raise FlowcTypeError("C032", f"{title(base)} returns {loss.node.type}: a gradient needs one real number",
                                 loc=caller_loc(), cure="return a sum or mean")
        flat = [n for group in inputs for n in group]
        grads = vjp([loss.node], [splat(1.0, loss.node.type)], flat)
        values = [wrap(g if g is not None else splat(0.0, x.type)) for g, x in zip(grads, flat, strict=True)]
        parts, at = [], 0
        for tree, group in zip(trees, inputs, strict=True):
            parts.append(tree.unflatten(values[at:at + len(group)]))
            at += len(group)
        return out, (tuple(parts) if many else parts[0])
    return jit(with_gradient)


def grad(fn: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Any:
    """A compiled function that returns the gradient of the scalar ``fn``; see :func:`value_and_grad`.
    has_aux: returns (gradient, aux)."""
    both = value_and_grad(fn, argnums, has_aux).fn

    @functools.wraps(both)
    def only_gradient(*args: Any, **kwargs: Any) -> Any:
        value, g = both(*args, **kwargs)
        return (g, value[1]) if has_aux else g
    return jit(only_gradient)


def _as_function(fn: Any) -> Function:
    return fn if isinstance(fn, Function) else jit(fn)


def interpret(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Trace ``fn`` and run its graph node by node on NumPy: the reference that compiled code is checked against."""
    f = _as_function(fn)
    low = f.lower(*args, **kwargs)
    reference = CompiledFunction(low, compile_graph(low.graph, device="interpreter"))
    return reference(*_dynamic(f, args), **_dynamic_kw(f, kwargs))


def verify(fn: Callable[..., Any], *args: Any, device: str | None = None, **kwargs: Any) -> Report:
    """Compile ``fn`` for these arguments and check every kernel against the interpreter.

    The report is true if all agree, and prints as a table: worst error per kernel in units in the last place.
    """
    f = _as_function(fn)
    low = f.lower(*args, **kwargs)
    where = check_device(device or f.device)
    if where == "interpreter":
        raise UnsupportedError("C033", "the interpreter is what kernels are checked against; it has none itself",
                               cure="verify for cpu or cuda")
    compiled = compile_graph(low.graph, device=where)
    leaves, _ = flatten((_dynamic(f, args), _dynamic_kw(f, kwargs)))
    arrays = [normal(as_argument(x, "").array, t) for x, t in zip(leaves, low.types, strict=True)]
    return compiled.verify(arrays)


def _dynamic(f: Function, args: tuple) -> tuple:
    return tuple(a for i, a in enumerate(args) if i not in f.static_argnums
                 and (i >= len(f.names) or f.names[i] not in f.static_argnames))


def _dynamic_kw(f: Function, kwargs: Mapping[str, Any]) -> dict:
    return {k: v for k, v in kwargs.items() if k not in f.static_argnames}
