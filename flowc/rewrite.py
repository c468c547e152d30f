"""Rewriting graphs by named laws.

Here: patterns as data, ``Rule``, the matcher indexed by root op, the driver.  Not here: the laws themselves
(passes/rules_*.py), fuel and logs (passes/manager.py).  Read next: passes/simplify.py.

A pattern reads like the formula it matches: ``x * 1``, ``-(-x)``, ``P.transpose(x, perm=attr("p"))``.  The same
notation on the right-hand side is a template.  A scalar constant is a rank-0 ``constant`` or a ``broadcast`` of one:
the matcher sees through the broadcast, templates rebuild it in the shape and dtype of the place where it stands.

The driver visits every node once, inputs first, and tries the laws of its op in their order until none fires.  What
a law builds is visited in the same way.  Work is linear in the number of nodes and hits; nothing recurses on graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from flowc.dataclass import dataclass, field
from flowc.diag import Loc, VerifyError
from flowc.dims import DimLike, Ranges
from flowc.graph import CONSTANT, PARAM, Graph, Literal, Node, make
from flowc.op import REGISTRY, Op, Pointwise
from flowc.types import Type

PER_NODE = 100  # hits that one node of the input graph may cause: a guard against laws that feed each other

# ---- scalar constants -----------------------------------------------------------------------------------------------


def splat_value(node: Node) -> Any:
    """The NumPy scalar that every element of ``node`` is, if that can be read off; else None."""
    if node.op.name == "broadcast":
        node = node.inputs[0]
    if node.op is CONSTANT and not node.type.shape:
        return node.attrs["value"].array[()]
    return None


def splat(value: Any, type: Type, loc: Loc | None = None) -> Node:
    """A node of ``type`` with every element ``value``: a scalar constant, broadcast unless the rank is 0.

    Integers wrap into the dtype; the caller gives numbers that a float dtype rounds as intended."""
    if type.dtype.integer and isinstance(value, int):
        value = value & ((1 << type.dtype.bits) - 1)
        if type.dtype.kind == "i" and value >> (type.dtype.bits - 1):
            value -= 1 << type.dtype.bits
    scalar = make(CONSTANT, (), {"value": Literal(np.asarray(value, type.dtype.numpy))}, loc)
    return scalar if not type.shape else make("broadcast", (scalar,), {"shape": type.shape, "axes": ()}, loc)


def equals_literal(value: Any, literal: bool | int | float) -> bool:
    """Is the NumPy scalar the number ``literal``?  0 means +0.0 among floats; -0.0 is its own number there and plain
    zero among integers.  Complex scalars equal none: laws of reals seldom hold for them."""
    kind = np.dtype(value.dtype).kind
    if isinstance(literal, bool) or kind == "b":
        return kind == "b" and isinstance(literal, bool) and bool(value) == literal
    if kind in "iu":
        return int(value) == literal
    if kind == "c":
        return False
    number = float(value)
    return number == literal and bool(np.signbit(number)) == bool(np.signbit(float(literal)))


# ---- patterns -------------------------------------------------------------------------------------------------------

class Pattern:
    """A shape of nodes.  Operators build patterns of the named ops; plain numbers become literals."""

    def __add__(self, o: Any) -> Pattern:
        return Apply("add", (self, lift(o)))

    def __radd__(self, o: Any) -> Pattern:
        return Apply("add", (lift(o), self))

    def __sub__(self, o: Any) -> Pattern:
        return Apply("sub", (self, lift(o)))

    def __rsub__(self, o: Any) -> Pattern:
        return Apply("sub", (lift(o), self))

    def __mul__(self, o: Any) -> Pattern:
        return Apply("mul", (self, lift(o)))

    def __rmul__(self, o: Any) -> Pattern:
        return Apply("mul", (lift(o), self))

    def __truediv__(self, o: Any) -> Pattern:
        return Apply("div", (self, lift(o)))

    def __rtruediv__(self, o: Any) -> Pattern:
        return Apply("div", (lift(o), self))

    def __neg__(self) -> Pattern:
        return Apply("neg", (self,))


@dataclass(frozen=True)
class Var(Pattern):
    """Any node; a name that occurs twice must be one and the same node."""

    name: str
    where: Callable[[Node], bool] | None = None


@dataclass(frozen=True)
class Const(Pattern):
    """Any scalar constant, also broadcast; ``where`` asks its NumPy scalar."""

    name: str
    where: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class Lit(Pattern):
    """The scalar constant of this value, of any dtype."""

    value: bool | int | float


@dataclass(frozen=True)
class Rest(Pattern):
    """All remaining operands, as a tuple.  Stands last."""

    name: str


@dataclass(frozen=True)
class AttrVar:
    """Captures an attribute; twice the same name: the values must be equal."""

    name: str


@dataclass(frozen=True)
class Apply(Pattern):
    """An op applied to patterns.  ``op``: its name, or a predicate on ops."""

    op: str | Callable[[Op], bool]
    args: tuple[Pattern, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def accepts(self, op: Op) -> bool:
        return op.name == self.op if isinstance(self.op, str) else self.op(op)


def var(name: str, where: Callable[[Node], bool] | None = None) -> Var:
    return Var(name, where)


def const(name: str, where: Callable[[Any], bool] | None = None) -> Const:
    return Const(name, where)


def rest(name: str) -> Rest:
    return Rest(name)


def attr(name: str) -> AttrVar:
    return AttrVar(name)


def lift(x: Any) -> Pattern:
    return x if isinstance(x, Pattern) else Lit(x)


def any_op(accepts: Callable[[Op], bool], *args: Any) -> Pattern:
    """An application of any op that ``accepts`` says yes to; ``m.root.op`` tells which it was."""
    return Apply(accepts, tuple(map(lift, args)))


class _Ops:
    """``P.exp(x)``, ``P.cast(x, dtype=attr("d"))``: patterns of ops by name; ``P["and"](x, y)`` for keywords."""

    def __getattr__(self, name: str) -> Callable[..., Pattern]:
        name = name.rstrip("_")
        return lambda *args, **attrs: Apply(name, tuple(map(lift, args)), attrs)

    __getitem__ = __getattr__


P = _Ops()


def names(p: Pattern) -> Iterator[str]:
    """All names that a pattern binds."""
    if isinstance(p, (Var, Const, Rest)):
        yield p.name
    elif isinstance(p, Apply):
        for a in p.args:
            yield from names(a)
        yield from (v.name for v in p.attrs.values() if isinstance(v, AttrVar))


def elementwise(op: Op) -> bool:
    """Does element i of the result depend on element i of each operand alone, whatever the shape?"""
    return isinstance(op.lower, Pointwise) and not op.lower.movement and bool(op.arity) and set(op.attrs) <= {"dtype"}


# ---- rules ----------------------------------------------------------------------------------------------------------

class Match:
    """What a pattern found: ``m.x`` is what stands at ``var("x")``, ``m.p`` a captured attribute, ``m.root`` the
    matched node, ``m.ranges`` the bounds of symbolic sizes.  Builds nodes that carry the matched location."""

    __slots__ = ("bound", "ranges", "root")

    def __init__(self, root: Node, bound: dict[str, Any], ranges: Ranges):
        self.root, self.bound, self.ranges = root, bound, ranges

    def __getattr__(self, name: str) -> Any:
        try:
            return self.bound[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def loc(self) -> Loc | None:
        """The root's location, else that of the first matched operand that has one."""
        return next((n.loc for n in (self.root, *self.root.inputs) if n.loc is not None), None)

    def value(self, name: str) -> Any:
        """The NumPy scalar of ``const(name)``."""
        return splat_value(self.bound[name])

    def make(self, op: Op | str, *inputs: Node, **attrs: Any) -> Node:
        return make(op, inputs, attrs, self.loc)

    def again(self, op: Op | str, *inputs: Node) -> Node:
        """A node with the root's attributes."""
        return make(op, inputs, self.root.attrs, self.loc)

    def splat(self, value: Any, type: Type | None = None) -> Node:
        return splat(value, type or self.root.type, self.loc)

    def broadcast(self, x: Node, shape: tuple[DimLike, ...], axes: tuple[int, ...]) -> Node:
        return x if not axes and not shape else self.make("broadcast", x, shape=shape, axes=axes)


_ON_MATCHES = frozenset(dir(Match))
Template = Pattern | Callable[[Match], "Node | None"]


@dataclass(frozen=True)
class Rule:
    """A law: where ``lhs`` matches and ``when`` holds, ``rhs`` may stand instead.

    rhs: a template, or a function of the match that returns the new node or None where the law does not apply.
    fast: holds for real numbers only, tried where the user allowed it.  ulp: 0 means the same bits for NaN,
    infinities and both zeros (contractions and sums: for every order of summation); else how far the two sides may lie
    apart because the right one rounds better.
    """

    name: str
    lhs: Apply
    rhs: Template
    when: Callable[[Match], bool] | None = None
    fast: bool = False
    ulp: float = 0


def rule(name: str, lhs: Any, rhs: Any, when: Callable[[Match], bool] | None = None, fast: bool = False,
         ulp: float = 0) -> Rule:
    if not isinstance(lhs, Apply):
        raise TypeError(f"rule {name}: the left side must apply an op")
    taken = _ON_MATCHES.intersection(names(lhs))
    if taken:
        raise ValueError(f"rule {name}: {', '.join(sorted(taken))} means something else on a match")
    return Rule(name, lhs, rhs if callable(rhs) else lift(rhs), when, fast, ulp)


Matcher = Callable[[Node, dict[str, Any]], bool]


def _orders(p: Pattern, top: bool = True) -> Iterator[Pattern]:
    """``p`` with the operands of commutative ops in every order that matters."""
    if not isinstance(p, Apply):
        yield p
        return
    choices: list[tuple[Pattern, ...]] = [()]
    for a in p.args:
        choices = [(*c, x) for c in choices for x in _orders(a, False)]
    commutes = isinstance(p.op, str) and p.op in REGISTRY and REGISTRY[p.op].commutative
    for args in choices:
        yield Apply(p.op, args, p.attrs)
        if commutes and len(args) == 2 and args[0] != args[1] and not _one_order(args, top):
            yield Apply(p.op, (args[1], args[0]), p.attrs)


def _one_order(args: tuple[Pattern, ...], top: bool) -> bool:
    """Constants stand right already.  Two variables at the root match in any order; below it one of them may be bound
    by its neighbours: the inner x of ``max(x, max(x, y))`` can stand left or right."""
    return any(isinstance(a, (Lit, Const)) for a in args) or top and all(isinstance(a, Var) for a in args)


def _renamed(p: Pattern, numbers: dict[str, int]) -> tuple:
    """A key that two patterns share if they match the same nodes: names count by their first occurrence."""
    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))
    if isinstance(p, (Var, Const)):
        return (type(p), number(p.name), p.where)
    if isinstance(p, Rest):
        return (Rest, number(p.name))
    if isinstance(p, Lit):
        return (Lit, repr(p.value))
    assert isinstance(p, Apply)
    args = tuple(_renamed(a, numbers) for a in p.args)
    return (p.op, args, tuple((k, number(v.name) if isinstance(v, AttrVar) else repr(v)) for k, v in p.attrs.items()))


def _matcher(p: Pattern) -> Matcher:
    """A closure that tells whether a node fits and binds the names."""
    if isinstance(p, Var):
        return _var_matcher(p.name, p.where)
    if isinstance(p, Const):
        return _const_matcher(p.name, p.where)
    if isinstance(p, Lit):
        literal = p.value

        def is_literal(n: Node, bound: dict[str, Any]) -> bool:
            value = splat_value(n)
            return value is not None and equals_literal(value, literal)
        return is_literal
    assert isinstance(p, Apply)
    inner = _operands_matcher(p)
    if isinstance(p.op, str):
        name = p.op
        return lambda n, bound: n.op.name == name and inner(n, bound)
    accepts = p.op
    return lambda n, bound: accepts(n.op) and inner(n, bound)


def _var_matcher(name: str, where: Callable[[Node], bool] | None) -> Matcher:
    def is_var(n: Node, bound: dict[str, Any]) -> bool:
        if name in bound:
            return bound[name] is n
        if where is not None and not where(n):
            return False
        bound[name] = n
        return True
    return is_var


def _const_matcher(name: str, where: Callable[[Any], bool] | None) -> Matcher:
    def is_const(n: Node, bound: dict[str, Any]) -> bool:
        value = splat_value(n)
        if value is None or where is not None and not where(value):
            return False
        bound[name] = n
        return True
    return is_const


def _operands_matcher(p: Apply) -> Matcher:
    """Matches operands and attributes of a node whose op fits already; the most selective operands first."""
    tail = p.args[-1].name if p.args and isinstance(p.args[-1], Rest) else None
    fixed = p.args[:-1] if tail else p.args
    count = len(fixed)
    rank = {Apply: 0, Lit: 1, Const: 2, Var: 3}
    parts = [(i, _matcher(a)) for i, a in sorted(enumerate(fixed), key=lambda t: (rank[type(t[1])], t[0]))]
    attrs = [(k, v.name if isinstance(v, AttrVar) else None, v) for k, v in p.attrs.items()]

    def fits(n: Node, bound: dict[str, Any]) -> bool:
        inputs = n.inputs
        if len(inputs) != count and (tail is None or len(inputs) < count):
            return False
        for i, part in parts:
            if not part(inputs[i], bound):
                return False
        for key, name, want in attrs:
            have = n.attrs[key]
            if name is None or name in bound:
                if have != (want if name is None else bound[name]):
                    return False
            else:
                bound[name] = have
        if tail is not None:
            bound[tail] = inputs[count:]
        return True
    return fits


def _template(p: Pattern) -> Callable[[Match, Type], Node]:
    """A closure that builds ``p``; the type says what a literal becomes."""
    if isinstance(p, (Var, Const)):
        name = p.name
        return lambda m, t: m.bound[name]
    if isinstance(p, Lit):
        value = p.value
        return lambda m, t: splat(value, t, m.loc)
    if not isinstance(p, Apply) or not isinstance(p.op, str):
        raise TypeError(f"{p} cannot stand in a template")
    op, attrs = p.op, dict(p.attrs)
    parts = [(_template(a), isinstance(a, Lit)) for a in p.args]

    def build(m: Match, t: Type) -> Node:
        inputs: list[Node | None] = [None if literal else part(m, t) for part, literal in parts]
        like = next((x.type for x in inputs if x is not None), t)
        full = [part(m, like) if x is None else x for (part, _), x in zip(parts, inputs, strict=True)]
        table = {k: m.bound[v.name] if isinstance(v, AttrVar) else v for k, v in attrs.items()}
        return make(op, full, table, m.loc)
    return build


@dataclass(frozen=True)
class _Compiled:
    rule: Rule
    pattern: Apply
    fits: Matcher
    build: Callable[[Match], Node | None]

    def possible(self, operands: tuple[Op, ...]) -> bool:
        """Can a node whose first operands are of these ops fit?"""
        return all(op.name in ("broadcast", "constant") if isinstance(a, (Lit, Const)) else
                   not isinstance(a, Apply) or a.accepts(op) for a, op in zip(self.pattern.args, operands))


def _compile(r: Rule) -> list[_Compiled]:
    build: Callable[[Match], Node | None]
    if isinstance(r.rhs, Pattern):
        template = _template(r.rhs)

        def build(m: Match) -> Node:
            return template(m, m.root.type)
    else:
        build = r.rhs
    distinct = {_renamed(p, {}): p for p in reversed(list(_orders(r.lhs))) if isinstance(p, Apply)}
    return [_Compiled(r, p, _operands_matcher(p), build) for p in reversed(distinct.values())]


class RuleSet:
    """Laws in the order in which they are tried, found by root op.  A set with a name shows up in ``coverage``."""

    def __init__(self, rules: Iterable[Rule], name: str = ""):
        self.name = name
        self.rules: dict[str, Rule] = {}
        for r in rules:
            if r.name in self.rules:
                raise ValueError(f"two rules are called {r.name}")
            self.rules[r.name] = r
        self._compiled: dict[str, list[_Compiled]] = {}  # by rule, of those whose op some graph has had
        self.of, self.near = lru_cache(maxsize=None)(self._of), lru_cache(maxsize=1 << 12)(self._near)
        if name:
            _NAMED[name] = self

    def _of(self, op: Op, fast: bool) -> tuple[_Compiled, ...]:
        return tuple(c for r in self.rules.values() if (fast or not r.fast) and r.lhs.accepts(op)
                     for c in self._compiled.get(r.name) or self._compiled.setdefault(r.name, _compile(r)))

    def _near(self, op: Op, fast: bool, *operands: Op) -> tuple[_Compiled, ...]:
        """Those of them that operands of these ops do not rule out: most laws want something of an operand."""
        return tuple(c for c in self.of(op, fast) if c.possible(operands))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules.values())

    def __getitem__(self, name: str) -> Rule:
        return self.rules[name]

    def __len__(self) -> int:
        return len(self.rules)


_NAMED: dict[str, RuleSet] = {}
_HITS: Counter[str] = Counter()


def coverage() -> dict[str, int]:
    """Hits in this process of every rule of every named set that is loaded."""
    return {name: _HITS[name] for s in _NAMED.values() for name in s.rules}


# ---- the driver -----------------------------------------------------------------------------------------------------

class Decisions(Protocol):
    """What the driver asks of a pass context: may this law be used here; may inexact laws be used; counters."""

    fast: bool
    hits: Counter[str]
    visits: int
    final: dict[str, set[Node]]  # by rule set: nodes that no law applies to, nor ever will, as nodes do not change

    def allow(self, kind: str, name: str, node: Node) -> bool: ...


class Always:
    """Every law, everywhere; for tests and one-off rewriting."""

    def __init__(self, fast: bool = False):
        self.fast = fast
        self.hits: Counter[str] = Counter()
        self.visits, self.final = 0, dict[str, set[Node]]()

    def allow(self, kind: str, name: str, node: Node) -> bool:
        return True


class Rewriter:
    """One run over one graph.  ``done`` maps every visited node to its final form."""

    def __init__(self, rules: RuleSet, ctx: Decisions, ranges: Ranges):
        self.rules, self.ctx, self.ranges = rules, ctx, ranges
        self.done: dict[Node, Node] = {}
        self.final = ctx.final.setdefault(rules.name, set()) if rules.name else set()

    def fire(self, node: Node) -> tuple[Node, Rule] | None:
        """The replacement by the first law that applies to ``node``, whose operands are final."""
        ctx = self.ctx
        ctx.visits += 1
        for c in () if node in self.final else self.rules.near(node.op, ctx.fast, *[x.op for x in node.inputs[:3]]):
            bound: dict[str, Any] = {}
            if not c.fits(node, bound):
                continue
            m = Match(node, bound, self.ranges)
            if c.rule.when is not None and not c.rule.when(m):
                continue
            new = c.build(m)
            if new is None:
                continue
            if new.type != node.type:
                raise VerifyError("R001", f"rule {c.rule.name} turned {node.op.name} : {node.type} into {new.type}",
                                  loc=m.loc, cure="a rule must keep the type; correct it, or set FLOWC_FUEL=0")
            if not ctx.allow("rule", c.rule.name, node):
                continue
            ctx.hits[c.rule.name] += 1
            _HITS[c.rule.name] += 1
            return new, c.rule
        self.final.add(node)
        return None

    def settle(self, root: Node, hit: tuple[Node, Rule]) -> None:
        """Bring what replaces ``root``, and what that needs, into final form."""
        done, fired = self.done, 1
        replaced = {root: hit}
        stack = [root, hit[0]]
        while stack:
            n = stack[-1]
            if n in done:
                stack.pop()
                continue
            if n in replaced:
                target, by = replaced[n]
                if target not in done:
                    raise VerifyError("R002", f"rule {by.name} keeps the {n.op.name} that it replaces", loc=n.loc,
                                      cure="build the right side from operands, never from the matched node")
                done[n] = done[target]
                stack.pop()
                continue
            waiting = [x for x in n.inputs if x not in done]
            if waiting:
                stack.extend(waiting)
                continue
            node = rebuilt(n, done)
            more = self.fire(node) if fired < PER_NODE else None
            if more is None:
                done[n] = done[node] = node
                stack.pop()
            else:
                fired += 1
                replaced[n] = more
                stack.append(more[0])

    def run(self, graph: Graph) -> Graph:
        done = self.done
        for n in graph.nodes:
            if n.op is PARAM:
                done[n] = n
                continue
            node = rebuilt(n, done)
            hit = self.fire(node)
            if hit is None:
                done[n] = done[node] = node
            else:
                self.settle(n, hit)
        return rewired(graph, done)


def rewired(graph: Graph, done: Mapping[Node, Node]) -> Graph:
    """``graph`` with its outputs replaced by their final forms; the very same object if nothing changed."""
    outputs = [done[o] for o in graph.outputs]
    same = all(a is b for a, b in zip(outputs, graph.outputs, strict=True))
    return graph if same else graph.with_outputs(outputs)


def rebuilt(n: Node, done: Mapping[Node, Node]) -> Node:
    """``n`` over the final forms of its operands; ``n`` itself if they are what it has."""
    for x in n.inputs:
        if done[x] is not x:
            return Node(n.op, tuple([done[x] for x in n.inputs]), n.attrs, n.type, n.loc)
    return n


def rewrite(graph: Graph, rules: RuleSet, ctx: Decisions | None = None) -> Graph:
    """``graph`` with ``rules`` applied until none fires; the very same object if none did."""
    return Rewriter(rules, ctx or Always(), graph.ranges).run(graph)
