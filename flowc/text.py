"""The three IRs as text that a person reads and the parser takes back.

Here: printers of graphs, kernels, plans and programs.  Not here: reading text (parse.py).  Read next: parse.py, which
holds the grammar.

Names that are no plain words stand in backquotes.  Big constants are printed by content hash: ``graph_text(graph,
constants)`` fills the dict ``constants`` with hash -> array, and the parser takes it; ``to_text`` prints them whole.
Inside kernels ``$1 = ...`` abbreviates an expression that is used more than once or is long; it is a name for the
expression, no statement.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from flowc.dataclass import replace
from flowc.diag import FlowcTypeError, Loc
from flowc.digest import digest
from flowc.dims import Dim, DimLike, Range, substitute, sym, symbols
from flowc.graph import Graph, Literal, Node
from flowc.kernel import INSTRS, Acc, Alloc, Barrier, Expr, Fold, If, Kernel, Let, Loop, Set, Stmt, Store, walk
from flowc.plan import ONCE, Plan, PlanBuffer, Program, Step
from flowc.types import DTYPES, DType, Type, bool_, dtype, f32, i64

Constants = MutableMapping[str, np.ndarray]
ALONE: Constants = {}  # in place of a side table: every constant stands in the text, big ones as base64

INLINE = 16          # elements of a constant that are printed in place when a side table takes the bigger ones
INLINE_ALONE = 64    # ... and when there is no side table
SPLAT = 1 << 20      # elements up to which one repeated value is printed as such
NESTING = 64         # depth of graphs and tuples inside attributes, and of brackets in text
LONGEST, DEEPEST = 160, 16  # expression text beyond this is cut by an abbreviation
WIDTH = 118

# infix instructions: sign and binding strength, weakest first; comparisons do not chain
INFIX: dict[str, tuple[str, int]] = {
    "eq": ("==", 1), "ne": ("!=", 1), "lt": ("<", 1), "le": ("<=", 1), "gt": (">", 1), "ge": (">=", 1),
    "or": ("|", 2), "xor": ("^", 3), "and": ("&", 4), "shl": ("<<", 5), "shr": (">>", 5),
    "add": ("+", 6), "sub": ("-", 6), "mul": ("*", 7), "div": ("/", 7), "idiv": ("//", 7), "imod": ("%", 7)}
COMPARE, UNARY, ATOM = 1, 8, 9
PREFIX = {"neg": "-", "not": "~"}
STATEMENTS = ("acc", "let", "for", "if", "fold", "alloc", "barrier")

KEYWORDS = frozenset((*STATEMENTS, "true", "false", "nan", "inf", "else", "where"))  # in scalar expressions
VALUES = frozenset((*DTYPES, "true", "false", "none", "nan", "inf", "dense", "splat", "blob", "bytes",
                    "graph"))  # attributes
_WORD = re.compile(r"[^\W\d]\w*(\.\w+)*")
_VALUE = re.compile(r"\w+(\.\w+)*")


# ---- small parts ----------------------------------------------------------------------------------------------------

def word_text(name: str) -> str:
    """A name where the grammar expects one: keywords do no harm."""
    return name if _WORD.fullmatch(name) else _quoted(name)


def name_text(name: str, keywords: frozenset[str] = KEYWORDS) -> str:
    """A name where keywords must be told apart."""
    return name if name not in keywords and _WORD.fullmatch(name) else _quoted(name)


def value_name(name: str, sign: str = "%") -> str:
    """``%name`` or ``@name``; digits may come first."""
    return sign + (name if _VALUE.fullmatch(name) else _quoted(name))


def _quoted(name: str) -> str:
    return "`" + json.dumps(name)[1:-1].replace("`", "\\u0060") + "`"


@lru_cache(maxsize=4096)
def _dim(d: Dim, keywords: frozenset[str]) -> str:
    strange = {s: sym(name_text(s, keywords)) for s in symbols(d) if name_text(s, keywords) != s}
    return str(substitute(d, strange) if strange else d)


def dim_text(d: DimLike, keywords: frozenset[str] = frozenset()) -> str:
    return _dim(d, keywords) if isinstance(d, Dim) else str(d)


def type_text(t: Type) -> str:
    return f"{t.dtype.name}[{', '.join(map(dim_text, t.shape))}]"


def float_text(x: float) -> str:
    """A number Python reads back exactly; a NaN with bits of its own as ``nan(0x7ff8000000000001)``."""
    if x != x:
        bits = struct.unpack("<Q", struct.pack("<d", x))[0]
        return "nan" if bits == 0x7FF8 << 48 else f"nan({bits:#x})"
    return repr(x)


def loc_text(loc: Loc | None) -> str:
    if loc is None:
        return ""
    file, line, col = loc.key()
    shown = file if re.fullmatch(r"[\w.<>/+-]+", file) else json.dumps(file)
    return f"@ {shown}:{line}" + (f":{col}" if col else "")


def where_text(ranges: Iterable[tuple[str, Range]], constraints: Iterable[tuple[DimLike, DimLike]] = ()) -> str:
    parts = [f"{word_text(n)} >= {dim_text(lo)}" if hi is None else
             f"{word_text(n)} in {dim_text(lo)}..{dim_text(hi)}" for n, (lo, hi) in ranges]
    parts += [f"{dim_text(a)} == {dim_text(b)}" for a, b in constraints]
    return f" where {', '.join(parts)}" if parts else ""


def comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}".rstrip() for line in text.splitlines()]


# ---- constants and attributes ---------------------------------------------------------------------------------------

def content_hash(a: np.ndarray) -> str:
    """Names an array by dtype, shape and bytes."""
    head = f"{dtype(a.dtype).name}{tuple(a.shape)}".encode()
    return digest(head + np.ascontiguousarray(a).tobytes()).hexdigest()[:32]


def _elements(a: np.ndarray, d: DType) -> list[str]:
    """One word per element; a float NaN with bits of its own is printed as its bits."""
    flat = a.reshape(-1)
    if d.kind == "b":
        return ["true" if x else "false" for x in flat]
    if d.integer:
        return [str(int(x)) for x in flat]
    if d.kind == "c":
        parts = _elements(flat.view(d.real.numpy), d.real)
        return [f"({re_}, {im})" for re_, im in zip(parts[::2], parts[1::2], strict=True)]
    usual = np.array(np.nan).astype(d.numpy).tobytes()
    bits = flat.view(f"u{d.bytes}")
    return [f"{int(b):#x}" if x != x and flat[i:i + 1].tobytes() != usual else repr(x)
            for i, (x, b) in enumerate(zip(flat.astype(np.float64).tolist(), bits))]


def literal_text(value: Literal, constants: Constants | None) -> str:
    a = value.array
    d = dtype(a.dtype)
    t = type_text(Type(d, a.shape))
    if a.size <= (INLINE_ALONE if constants is None or constants is ALONE else INLINE):
        return f"dense({t}, [{', '.join(_elements(a, d))}])"
    raw = a.reshape(-1).view(np.uint8).reshape(a.size, d.bytes)
    if a.size <= SPLAT and (raw == raw[0]).all():
        return f"splat({t}, {_elements(a.reshape(-1)[:1], d)[0]})"
    if constants is ALONE:
        return f'bytes({t}, "{base64.b64encode(a.tobytes()).decode()}")'
    key = content_hash(a)
    if constants is not None:
        constants[key] = a
    return f'blob({t}, "{key}")'


def attr_text(v: Any, constants: Constants | None = None, indent: str = "", depth: int = 0) -> str:
    """One attribute value.  FlowcTypeError P100 for a value that no attribute may have."""
    if depth > NESTING:
        raise FlowcTypeError("P100", f"attributes are nested more than {NESTING} deep", cure="nest less")
    if v is None or isinstance(v, bool):
        return {None: "none", True: "true", False: "false"}[v]
    if isinstance(v, (int, Dim)):
        return dim_text(v, VALUES)
    if isinstance(v, float):
        return float_text(v)
    if isinstance(v, str):
        return json.dumps(v)
    if isinstance(v, DType):
        return v.name
    if isinstance(v, Type):
        return type_text(v)
    if isinstance(v, Literal):
        return literal_text(v, constants)
    if isinstance(v, Graph):
        return "\n".join(_graph_lines(v, constants, indent, depth + 1)).lstrip()
    if isinstance(v, tuple):
        parts = [attr_text(x, constants, indent, depth + 1) for x in v]
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    raise FlowcTypeError("P100", f"an attribute of {type(v).__name__} has no text",
                         cure="use int, float, str, bool, None, dtypes, sizes, Literal, Graph and tuples of these")


def attrs_text(attrs: Mapping[str, Any], constants: Constants | None, indent: str, depth: int = 0) -> str:
    if not attrs:
        return ""
    inner = ", ".join(f"{word_text(k)} = {attr_text(v, constants, indent, depth)}" for k, v in attrs.items())
    return f" {{{inner}}}"


# ---- graphs ---------------------------------------------------------------------------------------------------------

def graph_text(graph: Graph, constants: Constants | None = None) -> str:
    """The graph, one node per line.  ``constants`` takes the constants of more than INLINE elements by hash; without
    it those of more than INLINE_ALONE elements are only named, and the text alone does not parse."""
    return "\n".join(_graph_lines(graph, constants, "", 0)) + "\n"


def node_names(graph: Graph) -> dict[Node, str]:
    """How the text calls each node: parameters by their names, the others by number."""
    out: dict[Node, str] = {}
    used: set[str] = set()
    for p in graph.params:
        name = str(p.attrs.get("name", "?"))
        while name in used:
            name += "_"
        used.add(name)
        out[p] = value_name(name)
    number = 0
    for n in graph.nodes:
        if n not in out:
            while str(number) in used:
                number += 1
            out[n] = f"%{number}"
            number += 1
    return out


def _graph_lines(graph: Graph, constants: Constants | None, indent: str, depth: int) -> list[str]:
    names = node_names(graph)
    params = [f"{names[p]}: {type_text(p.type)}" + (f" {loc_text(p.loc)}" if p.loc else "") for p in graph.params]
    types = [type_text(o.type) for o in graph.outputs]
    result = types[0] if len(types) == 1 else f"({', '.join(types)})"
    tail = f"-> {result}{where_text(graph.ranges.items(), graph.constraints)} {{"
    inner = indent + "  "
    own = set(graph.params)
    rows = []
    for n in graph.nodes:
        if n not in own:
            args = ", ".join(names.get(x, "%?") for x in n.inputs)
            text = f"{inner}{names[n]} = {word_text(n.op.name)}"
            text += (f" {args}" if args else "") + attrs_text(n.attrs, constants, inner, depth)
            rows.append((text, type_text(n.type), loc_text(n.loc)))
    ends = [len(t) - t.rfind("\n") - 1 for t, _, _ in rows]
    column = min(max(ends, default=0), 60)
    wide = min(max((len(t) for _, t, _ in rows), default=0), 24)
    lines = header_lines(f"{indent}graph {value_name(graph.name, '@')}", params, tail, inner + "  ")
    for (text, type_, loc), end in zip(rows, ends, strict=True):
        lines.append(f"{text}{' ' * (column - end)} : {type_.ljust(wide)} {loc}".rstrip())
    lines.append(f"{inner}return {', '.join(names[o] for o in graph.outputs)}".rstrip())
    lines.append(indent + "}")
    return lines


def header_lines(head: str, params: Sequence[str], tail: str, indent: str) -> list[str]:
    """``head(params) tail`` on one line, or a line per parameter where that is too long."""
    line = f"{head}({', '.join(params)}) {tail}"
    if len(line) <= WIDTH or not params:
        return [line]
    return [head + "(", *(indent + p + "," for p in params[:-1]), f"{indent}{params[-1]}) {tail}"]


# ---- scalar expressions ---------------------------------------------------------------------------------------------

def operand_hints(op: str, dtypes: Sequence[DType | None]) -> list[DType | None]:
    """The dtype a bare number takes at each operand of ``op``: that of the first typed operand it must agree with.
    ``dtypes``: of the operands, None for bare numbers.  None: the number's own default."""
    if op in ("cast", "bitcast"):
        return [None] * len(dtypes)
    if op == "select":
        like = next((d for d in dtypes[1:] if d is not None), None)
        return [bool_, like, like][:len(dtypes)]
    if op in INSTRS and INSTRS[op].operands:
        return list(INSTRS[op].operands)[:len(dtypes)]
    return [next((d for d in dtypes if d is not None), None)] * len(dtypes)


def default_dtype(value: Any) -> DType:
    return bool_ if isinstance(value, bool) else i64 if isinstance(value, int) else f32


def result_dtype(op: str, dtypes: Sequence[DType]) -> DType | None:
    """Dtype of an instruction by its row in INSTRS; None where the row leaves it to the attribute."""
    row = INSTRS.get(op)
    if row is None or row.result == "attr" or not dtypes:
        return None
    return bool_ if row.result == "bool" else dtypes[1] if op == "select" and len(dtypes) > 1 else dtypes[0]


class _KernelPrinter:
    """Lines of one kernel.  ``dtypes``: what the parser will know of bindings (by name) and buffers (by %name)."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.dtypes: dict[str, DType] = {}
        self.short: dict[int, str] = {}  # id of an expression -> its abbreviation
        self.count = 0

    def exprs(self, indent: str, roots: Sequence[tuple[Expr, DType | None]]) -> list[str]:
        """Texts of expressions, each with the dtype its place gives a bare number; abbreviations go to ``lines``."""
        uses: dict[int, int] = {}
        order: list[Expr] = []
        stack: list[tuple[Expr, bool]] = [(e, False) for e, _ in reversed(roots)]
        while stack:
            e, done = stack.pop()
            if done:
                order.append(e)
                continue
            uses[id(e)] = uses.get(id(e), 0) + 1
            if uses[id(e)] == 1 and id(e) not in self.short:
                stack.append((e, True))
                stack += [(a, False) for a in reversed(e.args)]
        table: dict[int, tuple[str, int, int]] = {}  # text, binding strength, depth
        for e in order:
            text, strength = self.one(e, table)
            depth = 1 + max((table[id(a)][2] for a in e.args if id(a) in table), default=0)
            if e.args and (uses[id(e)] > 1 or len(text) > LONGEST or depth > DEEPEST):
                self.count += 1
                self.short[id(e)] = f"${self.count}"
                self.lines.append(f"{indent}${self.count} = {text}")
            else:
                table[id(e)] = text, strength, depth
        return [self.operand(e, hint, table, 0) for e, hint in roots]

    def operand(self, e: Expr, hint: DType | None, table: Mapping[int, tuple[str, int, int]], least: int) -> str:
        """``e`` where something binding at least as strongly as ``least`` is needed."""
        if id(e) in self.short:
            return self.short[id(e)]
        if e.op == "const":
            return self.const(e, hint)
        text, strength, _ = table[id(e)]
        return text if strength >= least else f"({text})"

    def const(self, e: Expr, hint: DType | None) -> str:
        v = e.attr
        text = ("true" if v else "false") if isinstance(v, bool) else float_text(v) if isinstance(v, float) else str(v)
        return text if (hint or default_dtype(v)) is e.dtype else f"{text}:{e.dtype.name}"

    def one(self, e: Expr, table: Mapping[int, tuple[str, int, int]]) -> tuple[str, int]:
        """Text and binding strength of ``e`` from its operands' texts."""
        if e.op == "const":
            return "", ATOM  # printed where it stands
        if e.op == "index":
            return self.typed(f"index({dim_text(e.attr)})", e, i64)
        if e.op == "ref":
            name, at = e.attr
            inside = f"[{', '.join(map(dim_text, at))}]" if at else ""
            return self.typed(name_text(name) + inside, e, self.dtypes.get(name))
        if e.op == "load":
            name = value_name(e.attr[0])
            text = f"{name}[{dim_text(e.attr[1])}]"
            if e.args:
                where = self.operand(e.args[0], bool_, table, 0)
                text = f"load({text}, {where}, {self.operand(e.args[1], e.dtype, table, 0)})"
            return self.typed(text, e, self.dtypes.get(name))
        hints = operand_hints(e.op, [None if a.op == "const" else a.dtype for a in e.args])
        parts = list(zip(e.args, hints, strict=True))
        if e.op in INFIX and len(parts) == 2:
            sign, strength = INFIX[e.op]
            left = self.operand(*parts[0], table, strength + (strength == COMPARE))
            text = f"{left} {sign} {self.operand(*parts[1], table, strength + 1)}"
        elif e.op in PREFIX and len(parts) == 1 and e.args[0].op != "const":
            text, strength = PREFIX[e.op] + self.operand(*parts[0], table, UNARY), UNARY
        else:
            inner = ", ".join(self.operand(a, h, table, 0) for a, h in parts)
            if e.op in ("cast", "bitcast"):
                return f"{e.op}({inner}, {e.dtype.name})", ATOM
            text, strength = f"{e.op}({inner})", ATOM
        want = result_dtype(e.op, [a.dtype for a in e.args])
        return (text, strength) if want is e.dtype else self.typed(text if strength == ATOM else f"({text})", e, want)

    def typed(self, text: str, e: Expr, known: DType | None) -> tuple[str, int]:
        return (text if known is e.dtype else f"{text}:{e.dtype.name}"), ATOM

    # -- statements

    def block(self, stmts: Iterable[Stmt], indent: str) -> None:
        for s in stmts:
            _PRINT[type(s)](self, s, indent)

    def let(self, s: Let, indent: str) -> None:
        (value,) = self.exprs(indent, [(s.value, s.value.dtype)])
        inside = ""
        if s.range is not None:
            lo, hi = s.range
            inside = f" in {dim_text(lo)}..{'' if hi is None else dim_text(hi)}"
        self.lines.append(f"{indent}let {word_text(s.name)}: {s.value.dtype.name}{inside} = {value}")
        self.dtypes[s.name] = s.value.dtype

    def acc(self, s: Acc, indent: str) -> None:
        (init,) = self.exprs(indent, [(s.init, s.dtype)])
        shape = f"[{', '.join(map(str, s.shape))}]" if s.shape else ""
        self.lines.append(f"{indent}acc {word_text(s.name)}: {s.dtype.name}{shape} = {init}")
        self.dtypes[s.name] = s.dtype

    def set(self, s: Set, indent: str) -> None:
        (value,) = self.exprs(indent, [(s.value, self.dtypes.get(s.name))])
        at = f"[{', '.join(map(dim_text, s.index))}]" if s.index else ""
        self.lines.append(f"{indent}{name_text(s.name)}{at} = {value}")

    def store(self, s: Store, indent: str) -> None:
        name = value_name(s.buffer)
        roots = [(s.value, self.dtypes.get(name))] + ([] if s.where is None else [(s.where, bool_)])
        value, *where = self.exprs(indent, roots)
        tail = f" where {where[0]}" if where else ""
        self.lines.append(f"{indent}{name}[{dim_text(s.index)}] = {value}{tail}")

    def fold(self, s: Fold, indent: str) -> None:
        own = [self.dtypes.get(a, v.dtype) for a, v in zip(s.accs, s.values)]
        for n, d in zip((*s.left, *s.right), own * 2):
            self.dtypes[n] = d
        mark = len(self.lines)
        values = self.exprs(indent + "  ", list(zip(s.values, [*own, *[None] * len(s.values)])))
        short, self.lines[mark:] = self.lines[mark:], []  # they name left and right: they stand inside
        names, accs, left, right = (", ".join(map(word_text, x)) for x in (s.names, s.accs, s.left, s.right))
        head = f"{indent}fold {names} = {accs} over {s.extent} with ({left}), ({right}) ->"
        result = ", ".join(values)
        self.lines += [head, *short, f"{indent}  {result}"] if short else [f"{head} {result}"]
        self.dtypes.update(zip(s.names, (v.dtype for v in s.values)))

    def alloc(self, s: Alloc, indent: str) -> None:
        name = value_name(s.name)
        self.lines.append(f"{indent}alloc {name}: {s.dtype.name}[{dim_text(s.size)}] {word_text(s.space)}")
        self.dtypes[name] = s.dtype

    def if_(self, s: If, indent: str) -> None:
        (cond,) = self.exprs(indent, [(s.cond, bool_)])
        self.lines.append(f"{indent}if {cond} {{")
        self.block(s.then, indent + "  ")
        if s.other:
            self.lines.append(indent + "} else {")
            self.block(s.other, indent + "  ")
        self.lines.append(indent + "}")

    def barrier(self, s: Barrier, indent: str) -> None:
        self.lines.append(indent + "barrier")

    def loop(self, s: Loop, indent: str) -> None:
        wide = f" {s.width}" if s.width != 1 else ""
        self.lines.append(f"{indent}for {word_text(s.var)} in {dim_text(s.extent)} {word_text(s.kind)}{wide} {{")
        self.block(s.body, indent + "  ")
        self.lines.append(indent + "}")


_PRINT: dict[type, Any] = {
    Let: _KernelPrinter.let, Acc: _KernelPrinter.acc, Set: _KernelPrinter.set, Store: _KernelPrinter.store,
    Fold: _KernelPrinter.fold, Alloc: _KernelPrinter.alloc, If: _KernelPrinter.if_, Barrier: _KernelPrinter.barrier,
    Loop: _KernelPrinter.loop}


def kernel_text(kernel: Kernel) -> str:
    """The kernel with its notes as comments."""
    k = _KernelPrinter()
    for p in kernel.params:
        k.dtypes[value_name(p.name)] = p.dtype
    k.block(kernel.body, "  ")
    params = [f"{value_name(p.name)}: {word_text(p.role)} {type_text(Type(p.dtype, p.shape))}" for p in kernel.params]
    dims = f"dims ({', '.join(map(word_text, kernel.dims))})" if kernel.dims else ""
    tail = f"{dims}{where_text(kernel.ranges)} {{".lstrip()
    head = header_lines(f"kernel {value_name(kernel.name, '@')}", params, tail, "    ")
    notes = [line for n in kernel.notes for line in comment(n, "  ")]
    return "\n".join([*head, *notes, *k.lines, "}"]) + "\n"


def statement_text(kernel: Kernel, s: Stmt) -> str:
    """The first lines of one statement of ``kernel``, for messages."""
    k = _KernelPrinter()
    for p in kernel.params:
        k.dtypes[value_name(p.name)] = p.dtype
    for x in walk(kernel.body):
        if isinstance(x, (Acc, Alloc)):
            k.dtypes[value_name(x.name) if isinstance(x, Alloc) else x.name] = x.dtype
        elif isinstance(x, Let):
            k.dtypes[x.name] = x.value.dtype
        elif isinstance(x, Fold):
            k.dtypes.update((n, v.dtype) for names in (x.names, x.left, x.right) for n, v in zip(names, x.values))
    if isinstance(s, Loop):
        s = replace(s, body=())
    elif isinstance(s, If):
        s = replace(s, then=(), other=())
    k.block((s,), "")
    return "; ".join(k.lines).replace(" {; }", "")[:400]


# ---- plans and programs ---------------------------------------------------------------------------------------------

def plan_text(plan: Plan) -> str:
    """The plan: memory first, then steps wave by wave, each with its note as a comment."""
    params, outputs = (", ".join(map(value_name, names)) for names in (plan.params, plan.outputs))
    dims = f" dims ({', '.join(map(word_text, plan.symbols))})" if plan.symbols else ""
    tail = f"on {word_text(plan.device)}{dims}{where_text(plan.ranges, plan.constraints)} {{"
    lines = [f"plan {value_name(plan.name, '@')}({params}) -> ({outputs}) {tail}", f"  arena {dim_text(plan.arena)}"]
    lines += [_buffer_line(b) for b in plan.buffers]
    wave = None
    for s in plan.steps:
        if s.wave != wave:
            lines.append("  once" if s.wave == ONCE else f"  wave {s.wave}")
            wave = s.wave
        lines.append(_step_line(s))
    return "\n".join([*lines, "}"]) + "\n"


def _buffer_line(b: PlanBuffer) -> str:
    p = b.place
    index = f" {p.index}" if p.index or p.kind != "arena" else ""
    offset = f" at {dim_text(p.offset)}" if p.kind == "arena" or p.offset != 0 else ""
    over = f" over {p.over}" if p.over >= 0 else ""
    return f"  buffer {value_name(b.name)}: {type_text(b.type)} {word_text(p.kind)}{index}{offset}{over}"


def _step_line(s: Step) -> str:
    split = len(s.buffers) - s.outputs
    ins, outs = (", ".join(map(value_name, part)) for part in (s.buffers[:split], s.buffers[split:]))
    what = value_name(s.kernel, "@") if s.kernel or not s.op else f"host {value_name(s.op, '@')}"
    text = f"    {word_text(s.name)}: {what}({ins}) -> ({outs})"
    if s.dims:
        text += f" dims ({', '.join(map(dim_text, s.dims))})"
    if s.work != 0:
        text += f" work {dim_text(s.work)}"
    text += attrs_text(s.attrs, None, "    ")
    if s.kernel and s.op:
        text += f" host {value_name(s.op, '@')}"
    note = " ".join(s.note.split())
    return f"{text}  # {note}" if note else text


def program_text(program: Program, constants: Constants | None = None) -> str:
    """The plan, every kernel, every constant by buffer name."""
    parts = [plan_text(program.plan), *(kernel_text(k) for k in program.kernels.values())]
    parts += [f"constant {value_name(n)} = {literal_text(v, constants)}\n" for n, v in program.constants.items()]
    return "\n".join(parts)


def to_text(ir: Graph | Kernel | Plan | Program) -> str:
    """The text of any of the IRs; it parses without a side table."""
    if isinstance(ir, Graph):
        return graph_text(ir, ALONE)
    if isinstance(ir, Kernel):
        return kernel_text(ir)
    return plan_text(ir) if isinstance(ir, Plan) else program_text(ir, ALONE)
