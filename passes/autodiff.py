"""Derivatives, symbols to symbols.

Here: ``vjp`` (reverse mode), ``jvp`` (forward mode), tensors of zeros and ones.  Not here: the derivative of any op
(its own record, flowc/ops), what users call (jit.py).  Read next: bisect.py.

Both modes walk once over the nodes that lie between ``wrt`` and the outputs.  An op says how a cotangent passes
through it; forward mode uses the op's own tangent rule where it has one, else transposes its cotangent rule: that
rule is linear in the cotangent, so the reverse derivative with respect to the cotangent is the forward derivative.
Under the pairing of cotangents and tangents that the ops use, this holds for complex values too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flowc.diag import FlowcTypeError, UnsupportedError, VerifyError
from flowc.graph import PARAM, Graph, Node, make, param, topological
from flowc.rewrite import splat

# Cotangents and tangents of one op: a node per operand, or None where nothing flows.
Parts = Sequence["Node | None"]


def zeros_like(x: Node) -> Node:
    """Zeros of the type of ``x``, whatever its sizes."""
    return splat(0, x.type, x.loc)


def ones_like(x: Node) -> Node:
    """Ones of the type of ``x``: the cotangent that starts a gradient."""
    return splat(1, x.type, x.loc)


def differentiable(x: Node) -> bool:
    """Do derivatives flow through values of this dtype?  Through floats and complex numbers only."""
    return x.dtype.kind in "fc"


def _between(outputs: Iterable[Node], wrt: Iterable[Node]) -> list[Node]:
    """Nodes on a path of differentiable values from ``wrt`` to ``outputs``, operands first."""
    order = topological(outputs)
    active = {w for w in wrt if differentiable(w)}
    for n in order:
        if n not in active and differentiable(n) and any(x in active for x in n.inputs):
            active.add(n)
    return [n for n in order if n in active]


def _check_types(what: str, given: Sequence[Node], wanted: Sequence[Node]) -> None:
    if len(given) != len(wanted):
        raise FlowcTypeError("A002", f"{len(given)} {what}s for {len(wanted)} values",
                             cure=f"give one {what} for each value")
    for g, w in zip(given, wanted, strict=True):
        if g.type != w.type:
            raise FlowcTypeError("A002", f"a {what} of type {g.type} for a value of type {w.type}", loc=w.loc,
                                 cure=f"give a {what} of the type of its value")


def _no_derivative(n: Node) -> UnsupportedError:
    return UnsupportedError("A001", f"{n.op.name} has no derivative", loc=n.loc,
                            notes=[f"{n.op.name}: {', '.join(str(x.type) for x in n.inputs)} -> {n.type}"],
                            cure="wrap its operands in stop_gradient if nothing should flow through it")


class _Locate:
    """Gives nodes that derivative rules make the location of the node they belong to."""

    def __init__(self, known: Iterable[Node]):
        self.seen = set(known)

    def __call__(self, made: Parts, n: Node) -> None:
        stack = [x for x in made if x is not None]
        while stack:
            x = stack.pop()
            if x in self.seen:
                continue
            self.seen.add(x)
            if x.loc is None:  # not shared with anyone yet: the rule has just made it
                x.loc = n.loc
            stack.extend(x.inputs)


def _pull(n: Node, g: Node) -> Parts:
    """Cotangents of the operands of ``n`` from that of its result.  Raises A001 for an op without a rule."""
    if n.op.vjp is None:
        raise _no_derivative(n)
    parts = n.op.vjp(g, n, *n.inputs, **n.attrs)
    if len(parts) != len(n.inputs):
        raise VerifyError("A003", f"the derivative of {n.op.name} gives {len(parts)} cotangents for "
                          f"{len(n.inputs)} operands", loc=n.loc, cure="correct the op's record")
    for part, x in zip(parts, n.inputs, strict=True):
        if part is not None and part.type != x.type:
            raise VerifyError("A003", f"the derivative of {n.op.name} gives a cotangent {part.type} for an operand "
                              f"{x.type}", loc=n.loc, cure="correct the op's record")
    return parts


def vjp(outputs: Sequence[Node], cotangents: Sequence[Node], wrt: Sequence[Node]) -> list[Node | None]:
    """Reverse mode: for every node of ``wrt`` the sum over outputs of cotangent times derivative.

    cotangents: one node per output, of its type.  The result has one node per ``wrt``, of its type, or None where no
    derivative flows: the outputs do not depend on it, or only through integers, booleans or stop_gradient.
    ``wrt`` may hold inner nodes; derivatives are total.  Raises UnsupportedError A001, naming the op and the user's
    line, if the only way leads through an op without a derivative.

    Equal nodes are gone back through once, with the sum of what flows into them: a product written twice has one
    product for each gradient.
    """
    _check_types("cotangent", cotangents, outputs)
    path = _between(outputs, wrt)
    active = set(path)
    sums: dict[Node, Node] = {}
    locate = _Locate(topological([*outputs, *cotangents, *wrt]))
    first = _firsts(path, set(wrt))

    def flow(x: Node, part: Node, at: Node) -> None:
        x = first[x]
        have = sums.get(x)
        sums[x] = part if have is None else make("add", (have, part), loc=at.loc)

    for o, g in zip(outputs, cotangents, strict=True):
        if o in active:
            flow(o, g, o)
    for n in reversed(path):
        total = sums.get(n)
        if total is None or not any(x in active for x in n.inputs):
            continue
        parts = _pull(n, total)
        locate(parts, n)
        for x, part in zip(n.inputs, parts, strict=True):
            if part is not None and x in active:
                flow(x, part, n)
    return [sums.get(w) for w in wrt]


def _firsts(path: Iterable[Node], apart: set[Node]) -> dict[Node, Node]:
    """For every node the first that computes the same.  Nodes ``apart`` are themselves: their derivatives are asked
    for one by one."""
    seen: dict[tuple, Node] = {}
    out: dict[Node, Node] = {}
    for n in path:
        key = (n.op, tuple(out.get(x, x) for x in n.inputs), n.attrs)
        out[n] = n if n in apart or n.op is PARAM or not n.op.pure else seen.setdefault(key, n)
    return out


def jvp(outputs: Sequence[Node], wrt: Sequence[Node], tangents: Sequence[Node]) -> list[Node | None]:
    """Forward mode: for every output the derivative along ``tangents``.

    tangents: one node per ``wrt``, of its type.  The result has one node per output, of its type, or None where the
    output does not move.  Works for every op that has a derivative of either kind; errors as for ``vjp``.
    """
    _check_types("tangent", tangents, wrt)
    moves: dict[Node, Node] = {}
    for w, start in zip(wrt, tangents, strict=True):
        if differentiable(w):
            moves[w] = start if w not in moves else make("add", (moves[w], start), loc=w.loc)
    given = set(moves)
    locate = _Locate(topological([*outputs, *tangents, *wrt]))
    for n in _between(outputs, wrt):
        ts = tuple(moves.get(x) for x in n.inputs)
        if all(t is None for t in ts):
            continue
        t = _push(n, ts)
        if t is None:
            continue
        if t.type != n.type:
            raise VerifyError("A003", f"the derivative of {n.op.name} gives a tangent {t.type} for a result {n.type}",
                              loc=n.loc, cure="correct the op's record")
        locate((t,), n)
        moves[n] = make("add", (moves[n], t), loc=n.loc) if n in given else t
    return [moves.get(o) for o in outputs]


def _push(n: Node, ts: tuple[Node | None, ...]) -> Node | None:
    """The tangent of ``n`` from those of its operands."""
    if n.op.jvp is not None:
        return n.op.jvp(ts, n, *n.inputs, **n.attrs)
    probe = param("cotangent", n.type)
    pulled = _pull(n, probe)
    pairs = [(p, t) for p, t in zip(pulled, ts, strict=True) if p is not None and t is not None]
    if not pairs:
        return None
    (moved,) = vjp([p for p, _ in pairs], [t for _, t in pairs], [probe])
    return moved


def value_and_grad(graph: Graph, wrt: Sequence[int] = (0,)) -> Graph:
    """The graph that also gives the gradient of its first output, a scalar, with respect to the parameters ``wrt``.

    Outputs: those of ``graph``, then one gradient per entry of ``wrt``, zeros where nothing flows.
    """
    loss = graph.outputs[0]
    if loss.type.rank or not differentiable(loss):
        raise FlowcTypeError("A004", f"the gradient of a value of type {loss.type} was asked for", loc=loss.loc,
                             cure="return one float, for instance a mean; for other results use vjp")
    params = [graph.params[i] for i in wrt]
    for p in params:
        if not differentiable(p):
            raise FlowcTypeError("A005", f"gradient with respect to {p.attrs['name']} of type {p.type}", loc=p.loc,
                                 cure="derive with respect to floats; cast integer arguments before the call")
    found = vjp([loss], [ones_like(loss)], params)
    grads = [zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True)]
    return graph.with_outputs([*graph.outputs, *grads])
