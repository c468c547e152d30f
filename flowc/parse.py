"""Text back to IR: one lexer, one grammar for sizes and scalar expressions, the three IRs on top.

Here: ``parse_graph``, ``parse_kernel``, ``parse_plan``, ``parse_program``, ``parse_type``, ``parse_dim``.
Not here: tokens, sizes and attributes (lex.py), printing (text.py), the laws of the IR (verify.py): the parser refuses
what is no IR, not every IR that is wrong.  Read next: verify.py.

Whatever the text, the only exception is ParseError (codes P001 .. P010), with line, column and a caret.  Line breaks
mean no more than spaces; ``#`` begins a comment; the remainder sign needs a space after it (``%x`` is a value).

    graph @f(%x: f32[n, 4] @ m.py:1:2) -> f32[n] where n >= 1, m in 1..n, a == b {
      %0 = reduce_sum %x {axes = (1,)} : f32[n] @ m.py:12:9
      return %0
    }
    kernel @k(%a: in f32[n], %b: out f32[n]) dims (n) where n >= 1 {
      for i in n parallel { for j in 64 vector 16 { ... } }
      acc s: f32[64] = 0.0    let k: i64 in 0..n - 1 = ...    alloc %t: f32[n] local    barrier
      s[j] = fma(s[j], %a[i], 1.0)    %b[i] = load(%a[i], c, 0.0) where c    if c { ... } else { ... }
      fold r = s over 64 with (x), (y) -> x + y    $1 = exp(%a[i])
    }
    plan @p(%x) -> (%y) on cpu dims (n) where n >= 1 {
      arena 64*n    buffer %t: f32[n] arena at 0    buffer %x: f32[n] param 0
      wave 0 s0: @k(%x) -> (%t) dims (n) work 3*n    s1: host @sort(%t) -> (%y) {axis = 0}
    }
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flowc.diag import FlowcError
from flowc.dims import DimLike
from flowc.graph import Graph, Literal, Node, make, param
from flowc.kernel import (
    INSTRS,
    Acc,
    Alloc,
    Barrier,
    Buffer,
    Builder,
    Expr,
    Fold,
    If,
    Kernel,
    Let,
    Loop,
    Set,
    Stmt,
    Store,
)
from flowc.lex import Constants, Parser
from flowc.op import REGISTRY
from flowc.plan import ONCE, Place, Plan, PlanBuffer, Program, Step
from flowc.text import COMPARE, INFIX, KEYWORDS, default_dtype, operand_hints, result_dtype
from flowc.types import DType, Type, bool_, i64

T = TypeVar("T")

_SIGNS = {sign: (op, strength) for op, (sign, strength) in INFIX.items()}


class _Number:
    """A bare number in a scalar expression: its dtype comes from its neighbours."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value


class _GraphParser(Parser):
    """Graphs."""

    def graph(self, check: bool = True) -> Graph:
        self.expect("graph")
        name = self.at_name()
        self.expect("(")
        values: dict[str, Node] = {}

        def define(at: int, key: str, node: Node) -> Node:
            if key in values:
                raise self.error("P009", f"%{key} is defined twice", "rename one", at)
            values[key] = node
            return node

        def parameter() -> Node:
            at, key = self.i, self.value_name()
            self.expect(":")
            t = self.type()
            return define(at, key, param(key, t, self.loc()))

        def use() -> Node:
            at, key = self.i, self.value_name()
            if key not in values:
                raise self.error("P003", f"%{key} is not defined before this line", "define it, or fix the name", at)
            return values[key]

        params = self.comma_list(")", parameter)
        self.expect("->")
        at, types = self.i, self.types()
        ranges, constraints = self.where()
        self.expect("{")
        while self.kinds[self.i] == "VALUE":
            start, key = self.i, self.value_name()
            self.expect("=")
            define(start, key, self._node(use, check))
        self.expect("return")
        outputs = [use()] if self.kinds[self.i] == "VALUE" else []
        while outputs and self.accept(","):
            outputs.append(use())
        self.expect("}")
        if [o.type for o in outputs] != types:
            raise self.error("P005", f"the results have types {', '.join(str(o.type) for o in outputs) or 'none'}",
                             "write these types after ->", at)
        return Graph(name, params, outputs, dict(ranges), constraints)

    def _node(self, use: Callable[[], Node], check: bool) -> Node:
        at, name = self.i, self.word("an operation")
        op = REGISTRY.get(name)
        if op is None:
            raise self.error("P004", f"there is no operation {name}", "fix the name; flowc.ops must be imported", at)
        inputs = [use()] if self.kinds[self.i] == "VALUE" else []
        while inputs and self.accept(","):
            inputs.append(use())
        attrs = self.attrs()
        typed = self.i
        want = self.type() if self.accept(":") else None
        loc = self.loc()
        if not check and want is not None:
            return Node(op, tuple(inputs), attrs, want, loc)
        try:
            node = make(op, inputs, attrs, loc)
        except Exception as e:  # a type rule sees attributes of any kind here
            text = e.text if isinstance(e, FlowcError) else f"{name}: {type(e).__name__}: {e}"
            raise self.error("P005", text, "give operands and attributes that the operation accepts", at) from None
        if want is not None and node.type != want:
            raise self.error("P005", f"{name} gives {node.type}, not {want}", f"write {node.type}", typed + 1)
        return node


class _KernelParser(_GraphParser):
    """Scalar expressions and statements.  ``known``: dtypes of bindings (by name) and of buffers (by %name)."""

    def start(self) -> None:
        self.b = Builder()
        self.known: dict[str, DType] = {}
        self.short: dict[str, Expr] = {}

    # -- expressions

    def expr(self, hint: DType | None = None) -> Expr:
        return self.lift(self._binary(COMPARE), hint)

    def lift(self, x: Expr | _Number, hint: DType | None) -> Expr:
        return x if isinstance(x, Expr) else self.b.make("const", (), hint or default_dtype(x.value), x.value)

    def instr(self, op: str, operands: list[Expr | _Number], at: int) -> Expr:
        if len(operands) != INSTRS[op].arity:
            raise self.error("P002", f"{op} takes {INSTRS[op].arity} operands, not {len(operands)}", "fix them", at)
        hints = operand_hints(op, [None if isinstance(x, _Number) else x.dtype for x in operands])
        args = tuple(self.lift(x, h) for x, h in zip(operands, hints, strict=True))
        d = result_dtype(op, [a.dtype for a in args])
        assert d is not None
        return self.b.make(op, args, d)

    def _binary(self, least: int) -> Expr | _Number:
        self.deeper()
        left = self._unary()
        while self.kinds[self.i] == "OP":
            op, strength = _SIGNS.get(self.texts[self.i], ("", 0))
            if strength < least or not op:
                break
            at = self.i
            self.i += 1
            left = self.instr(op, [left, self._binary(strength + 1)], at)
            if strength == COMPARE:
                if _SIGNS.get(self.texts[self.i], ("", 0))[1] == COMPARE:
                    raise self.error("P002", "comparisons do not chain", "write (a < b) & (b < c)")
                break
        self.depth -= 1
        return left

    def _unary(self) -> Expr | _Number:
        self.deeper()
        at, text = self.i, self.texts[self.i]
        op = {"-": "neg", "~": "not"}.get(text) if self.kinds[self.i] == "OP" else None
        out: Expr | _Number
        number = self.number()
        if number is not None:
            out = _Number(number)
        elif op is not None:
            self.i += 1
            out = self.instr(op, [self._unary()], at)
        else:
            out = self._atom()
        if self.accept(":"):
            d = self.dtype()
            out = self.lift(out, d) if isinstance(out, _Number) else self.b.make(out.op, out.args, d, out.attr)
        elif isinstance(out, Expr) and out.dtype is _UNKNOWN:
            raise self.error("P003", f"{text} is not defined before this line", "define it, or write its dtype behind "
                             "it (x:f32)", at)
        self.depth -= 1
        return out

    def _atom(self) -> Expr | _Number:
        at, kind, text = self.i, self.kinds[self.i], self.texts[self.i]
        if kind == "SHORT":
            self.i += 1
            if text not in self.short:
                raise self.error("P003", f"{text} is not defined before this line", "define it, or fix the name", at)
            return self.short[text]
        if kind == "VALUE":
            return self._load()
        if self.accept("("):
            out = self._binary(COMPARE)
            self.expect(")")
            return out
        if kind == "NAME" and self.texts[self.i + 1] == "(":
            self.i += 2
            return self._call(text, at)
        if kind == "QUOTED" or kind == "NAME" and text not in KEYWORDS:
            name = self.word()
            index = self.dims("]") if self.accept("[") else ()
            return self.b.make("ref", (), self.known.get(name, _UNKNOWN), (name, index))
        raise self.unexpected("a value")

    def _load(self) -> Expr:
        text = self.texts[self.i]
        name = self.value_name()
        self.expect("[")
        index = self.dim()
        self.expect("]")
        return self.b.make("load", (), self.known.get(text, _UNKNOWN), (name, index))

    def _call(self, name: str, at: int) -> Expr:
        if name == "index":
            d = self.dim()
            self.expect(")")
            return self.b.make("index", (), i64, d)
        if name == "load":
            plain = self._load()
            self.expect(",")
            where = self.expr(bool_)
            self.expect(",")
            other = self.expr(plain.dtype)
            self.expect(")")
            return self.b.make("load", (where, other), plain.dtype, plain.attr)
        if name in ("cast", "bitcast"):
            x = self.expr()
            self.expect(",")
            to = self.dtype()
            self.expect(")")
            return self.b.make(name, (x,), to)
        if name not in INSTRS or INSTRS[name].result == "attr":
            raise self.error("P004", f"there is no instruction {name}", f"use one of {', '.join(INSTRS)}", at)
        return self.instr(name, self.comma_list(")", lambda: self._binary(COMPARE)), at)

    # -- statements

    def block(self) -> tuple[Stmt, ...]:
        self.deeper()
        self.expect("{")
        out: list[Stmt] = []
        while not self.accept("}"):
            s = self.statement()
            if s is not None:
                out.append(s)
        self.depth -= 1
        return tuple(out)

    def statement(self) -> Stmt | None:
        kind, text = self.kinds[self.i], self.texts[self.i]
        if kind == "SHORT":
            at, self.i = self.i, self.i + 1
            if text in self.short:
                raise self.error("P009", f"{text} is defined twice", "rename one", at)
            self.expect("=")
            self.short[text] = self.expr()
            return None
        if kind == "VALUE":
            name = self.value_name()
            self.expect("[")
            index = self.dim()
            self.expect("]")
            self.expect("=")
            value = self.expr(self.known.get(text))
            return Store(name, index, value, self.expr(bool_) if self.accept("where") else None)
        if kind == "NAME" and text in _STATEMENTS:
            self.i += 1
            return _STATEMENTS[text](self)
        name = self.word("a statement")
        place = self.dims("]") if self.accept("[") else ()
        self.expect("=")
        return Set(name, place, self.expr(self.known.get(name)))

    def let(self) -> Let:
        name = self.word()
        self.expect(":")
        d = self.dtype()
        rng = self.range() if self.at("in") else None
        self.expect("=")
        value = self.expr(d)
        self.known[name] = d
        return Let(name, value, rng)

    def acc(self) -> Acc:
        name = self.word()
        self.expect(":")
        d = self.dtype()
        shape = tuple(self.comma_list("]", self.integer)) if self.accept("[") else ()
        self.expect("=")
        init = self.expr(d)
        self.known[name] = d
        return Acc(name, d, shape, init)

    def loop(self) -> Loop:
        var = self.word()
        self.expect("in")
        extent = self.dim()
        kind = self.word("a kind of loop")
        width = self.integer() if self.kinds[self.i] in ("INT", "OP") and not self.at("{") else 1
        return Loop(var, extent, kind, self.block(), width)

    def if_(self) -> If:
        cond = self.expr(bool_)
        then = self.block()
        return If(cond, then, self.block() if self.accept("else") else ())

    def names(self, close: str | None = None) -> tuple[str, ...]:
        if close is not None:
            return tuple(self.comma_list(close, self.word))
        out = [self.word()] if self.kinds[self.i] in ("NAME", "QUOTED") else []
        while out and self.accept(","):
            out.append(self.word())
        return tuple(out)

    def fold(self) -> Fold:
        names = self.names()
        self.expect("=")
        accs = self.names()
        self.expect("over")
        extent = self.integer()
        self.expect("with")
        self.expect("(")
        left = self.names(")")
        self.expect(",")
        self.expect("(")
        right = self.names(")")
        self.expect("->")
        own = [self.known.get(a) for a in accs]
        for n, d in zip((*left, *right), own * 2):
            if d is not None:
                self.known[n] = d
        while self.kinds[self.i] == "SHORT" and self.texts[self.i + 1] == "=":
            self.statement()
        values = [self.expr(own[0] if own else None)]
        while self.accept(","):
            values.append(self.expr(own[len(values)] if len(values) < len(own) else None))
        self.known.update(zip(names, (v.dtype for v in values)))
        return Fold(names, accs, extent, left, right, tuple(values))

    def alloc(self) -> Alloc:
        text, name = self.texts[self.i], self.value_name()
        self.expect(":")
        d = self.dtype()
        self.expect("[")
        size = self.dim()
        self.expect("]")
        self.known[text] = d
        return Alloc(name, d, size, self.word("local or shared"))

    def kernel(self) -> Kernel:
        self.start()
        self.expect("kernel")
        name = self.at_name()
        self.expect("(")

        def parameter() -> Buffer:
            text, key = self.texts[self.i], self.value_name()
            self.expect(":")
            role = self.word("in, out or inout")
            t = self.type()
            self.known[text] = t.dtype
            return Buffer(key, t.dtype, t.shape, role)
        params = tuple(self.comma_list(")", parameter))
        dims = self.names_in_brackets("dims")
        ranges, _ = self.where()
        return Kernel(name, params, dims, self.block(), tuple(ranges))

    def names_in_brackets(self, keyword: str) -> tuple[str, ...]:
        if not self.accept(keyword):
            return ()
        self.expect("(")
        return self.names(")")

    # -- plans

    def plan(self) -> Plan:
        self.expect("plan")
        name = self.at_name()
        self.expect("(")
        params = tuple(self.comma_list(")", self.value_name))
        self.expect("->")
        outputs = self.values()
        self.expect("on")
        device = self.word("a device")
        symbols = self.names_in_brackets("dims")
        ranges, constraints = self.where()
        self.expect("{")
        self.expect("arena")
        arena = self.dim()
        buffers, steps, wave = [], [], 0
        while self.accept("buffer"):
            buffers.append(self._plan_buffer())
        while not self.accept("}"):
            if self.at("once") and self.kinds[self.i + 1] != "OP":
                self.i += 1
                wave = ONCE
            if self.at("wave") and self.kinds[self.i + 1] == "INT":
                self.i += 1
                wave = self.integer()
            steps.append(self._step(wave))
        return Plan(name, device, params, outputs, tuple(buffers), tuple(steps), arena, symbols, tuple(ranges),
                    tuple(constraints))

    def values(self) -> tuple[str, ...]:
        if self.kinds[self.i] == "VALUE":
            return (self.value_name(),)
        self.expect("(")
        return tuple(self.comma_list(")", self.value_name))

    def _plan_buffer(self) -> PlanBuffer:
        name = self.value_name()
        self.expect(":")
        t = self.type()
        kind = self.word("a place")
        index = self.integer() if self.kinds[self.i] in ("INT", "OP") and not self.at("}") else 0
        offset = self.dim() if self.accept("at") else 0
        return PlanBuffer(name, t, Place(kind, index, offset, self.integer() if self.accept("over") else -1))

    def _step(self, wave: int) -> Step:
        name = self.word("a step")
        self.expect(":")
        host = self.accept("host")
        target = self.at_name()
        self.expect("(")
        ins = tuple(self.comma_list(")", self.value_name))
        self.expect("->")
        outs = self.values()
        dims: tuple[DimLike, ...] = ()
        if self.accept("dims"):
            self.expect("(")
            dims = self.dims(")")
        work = self.dim() if self.accept("work") else 0
        attrs = self.attrs()
        kernel, op = ("", target) if host else (target, self.at_name() if self.accept("host") else "")
        return Step(name, kernel, (*ins, *outs), dims, len(outs), wave, work, op, attrs)

    def program(self) -> Program:
        plan = self.plan()
        kernels: dict[str, Kernel] = {}
        while self.at("kernel"):
            at, k = self.i, self.kernel()
            if k.name in kernels:
                raise self.error("P009", f"@{k.name} is defined twice", "rename one", at)
            kernels[k.name] = k
        constants: dict[str, Literal] = {}
        while self.accept("constant"):
            at, name = self.i, self.value_name()
            self.expect("=")
            if name in constants:
                raise self.error("P009", f"%{name} is defined twice", "rename one", at)
            constants[name] = self.literal()
        return Program(plan, kernels, constants)


_UNKNOWN = DType("unknown", "void", "?", 0)
_STATEMENTS: dict[str, Callable[[_KernelParser], Stmt]] = {
    "let": _KernelParser.let, "acc": _KernelParser.acc, "for": _KernelParser.loop, "if": _KernelParser.if_,
    "fold": _KernelParser.fold, "alloc": _KernelParser.alloc, "barrier": lambda p: Barrier()}


def _whole(text: str, filename: str, constants: Constants | None, rule: Callable[[_KernelParser], T]) -> T:
    p = _KernelParser(text, filename, constants)
    try:
        out = rule(p)
    except RecursionError:
        raise p.error("P007", "nested too deep", "nest less") from None
    if p.kinds[p.i] != "EOF":
        raise p.unexpected("the end of the text")
    return out


def parse_graph(text: str, filename: str = "<text>", constants: Constants | None = None, *,
                check: bool = True) -> Graph:
    """The graph that :func:`flowc.text.graph_text` printed.  The registry must hold its operations (import
    flowc.ops).  ``constants``: hash -> array of what the text only names.  With ``check`` every type is compared with
    what the operation's rule gives; types may then also be left out."""
    return _whole(text, filename, constants, lambda p: p.graph(check))


def parse_kernel(text: str, filename: str = "<text>") -> Kernel:
    return _whole(text, filename, None, _KernelParser.kernel)


def parse_plan(text: str, filename: str = "<text>") -> Plan:
    return _whole(text, filename, None, _KernelParser.plan)


def parse_program(text: str, filename: str = "<text>", constants: Constants | None = None) -> Program:
    return _whole(text, filename, constants, _KernelParser.program)


def parse_type(text: str, filename: str = "<type>") -> Type:
    """A type such as ``f32[n, 784]`` or ``float32[n + 1]``."""
    return _whole(text, filename, None, Parser.type)


def parse_dim(text: str, filename: str = "<size>") -> DimLike:
    """A size such as ``4*n + min(m, 8)``."""
    return _whole(text, filename, None, Parser.dim)
