"""The laws of the three IRs, each with a code.

Here: the table of codes, graphs, plans, programs.  Not here: kernels (verify_kernel.py).  Read next: verify_kernel.py.

``verify_*`` raise VerifyError for the first broken law and return nothing otherwise.  ``strict`` also refuses what can
neither be proved nor refuted; without it only what is certainly wrong is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowc.diag import FlowcError, VerifyError
from flowc.dims import SIZE_RANGE, Dim, DimLike, Range, dmax, substitute, symbols
from flowc.facts import Facts
from flowc.graph import PARAM, Graph, Literal, Node
from flowc.kernel import Kernel
from flowc.op import REGISTRY
from flowc.plan import ONCE, Plan, PlanBuffer, Program, Step
from flowc.proofs import known_le, simplify
from flowc.types import DType, Type, array_type
from flowc.verify_kernel import check_kernel

CODES: dict[str, str] = {
    # graphs
    "V001": "a node's operation is not in the registry",
    "V002": "a node has a wrong number of operands",
    "V003": "the operation's type rule refuses the operands or attributes",
    "V004": "a node's type is not what the operation's rule gives",
    "V005": "a node is needed for its own operands",
    "V006": "a parameter node is not listed, or what is listed is no parameter",
    "V007": "two parameters have one name, or a name is empty",
    "V008": "a symbol is declared by no parameter's type and no range",
    "V009": "a node's attributes are not those that the operation has",
    "V010": "an attribute has a value that no attribute may have",
    "V011": "a range or constraint of sizes cannot hold",
    # kernels
    "V101": "a name is defined twice",
    "V102": "a name is used where it is not defined",
    "V103": "an expression breaks the rule of its instruction",
    "V104": "an instruction or statement that does not exist",
    "V105": "a constant that its dtype does not hold",
    "V106": "an access outside of a buffer",
    "V107": "strict: an access that is not proved to stay inside of its buffer",
    "V108": "independent iterations write one place",
    "V109": "strict: independent iterations that are not proved to touch different places",
    "V110": "a barrier that not all threads of the block reach together",
    "V111": "the lanes of a vector loop set one element of a register array",
    "V112": "an extent that must be a known number and is not",
    "V113": "a store to a buffer that is only read",
    "V114": "an output is read before it is written",
    "V115": "a kind of loop, its width, or its place among other loops",
    "V116": "an index of a register array outside of its extents",
    "V117": "a value of another dtype than the place that takes it",
    "V118": "a fold whose parts do not fit",
    "V119": "working memory in a space that does not exist where it stands",
    "V120": "a role that buffers do not have",
    "V121": "a binding outside of its range; strict: or not proved to lie in it",
    "V122": "a register that parallel iterations share is set",
    # plans
    "V201": "a buffer or step name is used twice or not defined",
    "V202": "a step reads a buffer that no earlier wave wrote",
    "V203": "steps of one wave do not leave each other alone",
    "V204": "two buffers that live at the same time share memory",
    "V205": "strict: two living buffers that are not proved to be apart",
    "V206": "a buffer does not lie inside the arena, or is not aligned",
    "V207": "a step writes a parameter, a constant, or a buffer that has been written",
    "V208": "a result that no step writes, or a place whose number does not fit",
    "V209": "a wave that is no number from 0 on, nor the one before all calls",
    "V210": "a size uses a symbol that the plan does not declare",
    "V211": "a kind of place that does not exist",
    # programs
    "V301": "a step names a kernel or operation that does not exist",
    "V302": "a step's buffers or dims do not fit the kernel's parameters",
    "V303": "a step's results are not what the kernel writes",
    "V304": "a constant is missing or has another type than its buffer",
    "V305": "a host step's operation does not give the type of its result",
    # found by running (backends/spmd.py, backends/interp.py)
    "V401": "a kernel accessed a buffer outside of its bounds",
    "V402": "a binding had a value outside of its range",
    "V403": "parallel iterations wrote different values to one place",
    "V404": "a kernel was called with arrays that do not fit its parameters",
    "V405": "an operation gave a value of another type than its rule says",
    "V406": "a buffer did not fit into the arena",
}
_REPORT = "the pass that built it is wrong; report it with its text"


# ---- graphs ---------------------------------------------------------------------------------------------------------

def verify_graph(graph: Graph, declared: Iterable[str] = ()) -> None:
    """Raise VerifyError V001 .. V011 if ``graph`` breaks a law.  ``declared``: symbols known from outside."""
    known = frozenset(declared) | graph.ranges.keys()
    known |= {s for p in graph.params for d in p.shape for s in symbols(d)}
    _params(graph)
    _size_conditions(graph.ranges, graph.constraints, known, f"graph @{graph.name}")
    place = {n: i for i, n in enumerate(graph.nodes)}
    listed = set(graph.params)
    fine: set[DimLike] = set()
    for i, n in enumerate(graph.nodes):
        if any(place.get(x, len(place)) >= i for x in n.inputs):
            raise _bad(n, "V005", f"{n} is among the values it is computed from")
        if n.op is PARAM and n not in listed:
            raise _bad(n, "V006", f"the parameter {n.attrs.get('name')} is used, and is no parameter of @{graph.name}")
        _node(n, known)
        for d in n.shape:
            if isinstance(d, Dim) and d not in fine:
                _declared(d, known, n)
                fine.add(d)


def _bad(n: Node, code: str, text: str) -> VerifyError:
    notes = [f"operand {i}: {x.type}" + (f" ({x.loc})" if x.loc else "") for i, x in enumerate(n.inputs)]
    return VerifyError(code, text, loc=n.loc, notes=notes, cure=_REPORT)


def _params(graph: Graph) -> None:
    names: set[str] = set()
    for p in graph.params:
        if p.op is not PARAM:
            raise _bad(p, "V006", f"{p} is listed as a parameter of @{graph.name}")
        name = p.attrs.get("name")
        if not isinstance(name, str) or not name or name in names:
            raise _bad(p, "V007", f"a second parameter of @{graph.name} is called {name!r}")
        names.add(name)


def _node(n: Node, known: frozenset[str]) -> None:
    op = n.op
    if REGISTRY.get(op.name) is not op:
        raise _bad(n, "V001", f"{op.name} is not the registered operation of that name")
    if op.arity is not None and len(n.inputs) != op.arity:
        raise _bad(n, "V002", f"{op.name} takes {op.arity} operands, not {len(n.inputs)}")
    if n.attrs.keys() != set(op.attrs):
        raise _bad(n, "V009", f"{op.name} has the attributes {', '.join(op.attrs) or 'none'}, the node "
                   f"{', '.join(n.attrs) or 'none'}")
    for k, v in n.attrs.items():
        _attr(n, k, v, known)
    try:
        want = op.infer(*[x.type for x in n.inputs], **n.attrs)
    except (TypeError, ValueError) as e:
        raise _bad(n, "V003", f"{op.name}: {e.text if isinstance(e, FlowcError) else e}") from None
    if want != n.type:
        raise _bad(n, "V004", f"{op.name} gives {want}, the node says {n.type}")


def _attr(n: Node, name: str, value: Any, known: frozenset[str]) -> None:
    stack = [value]
    while stack:
        v = stack.pop()
        if isinstance(v, tuple):
            stack += v
        elif isinstance(v, Dim):
            _declared(v, known, n)
        elif isinstance(v, Type):
            stack += v.shape
        elif isinstance(v, Graph):
            try:
                verify_graph(v, known)
            except VerifyError as e:
                e.add_note(f"in the graph {name} of {n}")
                raise
        elif v is not None and not isinstance(v, (bool, int, float, str, DType, Literal)):
            raise _bad(n, "V010", f"{n.op.name}: {name} holds a {type(v).__name__}")


def _declared(d: DimLike, known: frozenset[str], n: Node) -> None:
    lost = symbols(d) - known
    if lost:
        raise _bad(n, "V008", f"the symbol {sorted(lost)[0]} in {n.type} is declared by no parameter and no range")


def _size_conditions(ranges: Mapping[str, Range], constraints: Iterable[tuple[DimLike, DimLike]],
                     known: frozenset[str], what: str) -> None:
    for name, (lo, hi) in ranges.items():
        used = symbols(lo) | (frozenset() if hi is None else symbols(hi))
        if name in used or used - known:
            raise VerifyError("V011", f"{what}: the range of {name} uses {sorted(used)[0]}", cure=_REPORT)
        if hi is not None and known_le(lo, hi, ranges) is False:
            raise VerifyError("V011", f"{what}: {name} lies in {lo}..{hi}, which is empty", cure=_REPORT)
    for a, b in constraints:
        lost = (symbols(a) | symbols(b)) - known
        if lost or isinstance(a - b, int) and a != b:
            raise VerifyError("V011", f"{what}: {a} == {b} cannot hold" + (f": no {sorted(lost)[0]}" if lost else ""),
                              cure=_REPORT)


# ---- kernels --------------------------------------------------------------------------------------------------------

def verify_kernel(kernel: Kernel, strict: bool = False) -> None:
    """Raise VerifyError V101 .. V122 if ``kernel`` breaks a law."""
    check_kernel(kernel, strict)


# ---- plans ----------------------------------------------------------------------------------------------------------

KINDS = ("param", "output", "arena", "constant")
ALIGN = 64


def verify_plan(plan: Plan, strict: bool = False) -> None:
    """Raise VerifyError V201 .. V211, V011 if ``plan`` breaks a law."""
    _Plan(plan, strict).run()


class _Plan:
    def __init__(self, plan: Plan, strict: bool):
        self.plan, self.strict = plan, strict
        self.table: dict[str, PlanBuffer] = {}
        self.facts = Facts()
        given = dict(plan.ranges)
        for s in plan.symbols:
            self.facts.define(s, given.get(s, SIZE_RANGE))
        for a, b in plan.constraints:
            self.facts.known += [a - b, b - a]

    def fail(self, code: str, text: str) -> VerifyError:
        return VerifyError(code, f"plan {self.plan.name}: {text}", cure=_REPORT)

    def run(self) -> None:
        plan = self.plan
        known = frozenset(plan.symbols)
        _size_conditions(dict(plan.ranges), plan.constraints, known | {n for n, _ in plan.ranges}, f"plan {plan.name}")
        self.sizes((plan.arena,), "the arena")
        for b in plan.buffers:
            if b.name in self.table:
                raise self.fail("V201", f"two buffers are called {b.name}")
            self.table[b.name] = b
            self.place(b)
        self.ends()
        self.steps()
        self.apart()
        self.donations()

    def sizes(self, ds: Iterable[DimLike], what: str) -> None:
        for d in ds:
            lost = symbols(d) - set(self.plan.symbols)
            if lost:
                raise self.fail("V210", f"{what} uses the symbol {sorted(lost)[0]}")

    def buffer(self, name: str) -> PlanBuffer:
        if name not in self.table:
            raise self.fail("V201", f"there is no buffer {name}")
        return self.table[name]

    def place(self, b: PlanBuffer) -> None:
        p, plan = b.place, self.plan
        self.sizes((*b.type.shape, p.offset), f"buffer {b.name}")
        if p.kind not in KINDS:
            raise self.fail("V211", f"buffer {b.name} lies in {p.kind}; there are {', '.join(KINDS)}")
        names = {"param": plan.params, "output": plan.outputs}.get(p.kind)
        if names is not None and not (0 <= p.index < len(names) and names[p.index] == b.name):
            raise self.fail("V208", f"buffer {b.name} is {p.kind} {p.index}, which it is not")
        if p.kind != "arena":
            return
        end = p.offset + b.type.nbytes
        if not (self.facts.nonnegative(p.offset) and self.facts.le(end, plan.arena)):
            self.refute((p.offset, plan.arena - end), "V206",
                        f"buffer {b.name} at {p.offset}..{end} leaves the arena of {plan.arena}")
        off = simplify(p.offset % ALIGN, self.facts.ranges)
        if isinstance(off, int) and off:
            raise self.fail("V206", f"buffer {b.name} at {p.offset} is not aligned to {ALIGN}")

    def refute(self, claims: Sequence[DimLike], code: str, text: str) -> None:
        """Some claim ``>= 0`` is not proved: an error if it is refuted, and one if ``strict``."""
        example = self.facts.refuted(claims, always=False)
        if example is not None:
            shown = ", ".join(f"{k} = {v}" for k, v in example.items())
            raise self.fail(code, f"{text}, for {shown}" if shown else text)
        if self.strict:
            raise self.fail("V205" if code == "V204" else code, f"not proved that not: {text}")

    def ends(self) -> None:
        plan = self.plan
        for name in (*plan.params, *plan.outputs):
            self.buffer(name)
        for i, name in enumerate(plan.params):
            p = self.table[name].place
            if p.kind != "param" or p.index != i:
                raise self.fail("V208", f"parameter {i} is {name}, which lies in {p.kind} {p.index}")

    def steps(self) -> None:
        """Every read after its write, every buffer written once, waves without conflicts."""
        writer: dict[str, Step] = {}
        names: set[str] = set()
        for s in self.plan.steps:
            if s.name in names:
                raise self.fail("V201", f"two steps are called {s.name}")
            names.add(s.name)
            if not isinstance(s.wave, int) or s.wave < ONCE or s.wave == ONCE and not s.kernel:
                raise self.fail("V209", f"step {s.name} runs in wave {s.wave}")
            home = "constant" if s.wave == ONCE else ""  # where a step may write that others must not
            self.sizes((*s.dims, s.work), f"step {s.name}")
            for b in s.buffers[len(s.buffers) - s.outputs:]:
                kind = self.buffer(b).place.kind
                if kind != home and (home or kind in ("param", "constant")) or b in writer and (
                        writer[b].wave != s.wave):
                    raise self.fail("V207", f"step {s.name} writes {b}, a {kind} or written before")
                if b in writer:
                    raise self.fail("V203", f"steps {writer[b].name} and {s.name} of wave {s.wave} both write {b}")
                writer[b] = s
        for s in self.plan.steps:
            for b in s.buffers[:len(s.buffers) - s.outputs]:
                kind, w = self.buffer(b).place.kind, writer.get(b)
                if s.wave == ONCE and kind != "constant" or w is not None and w.wave == ONCE == s.wave and (
                        self.plan.steps.index(w) >= self.plan.steps.index(s)):
                    raise self.fail("V202", f"step {s.name}, which runs once, reads {b}, which is not known by then")
                if kind in ("param", "constant"):
                    continue
                if w is not None and w.wave == s.wave:
                    raise self.fail("V203", f"step {s.name} reads {b}, which step {w.name} of the same wave writes")
                if w is None or w.wave > s.wave:
                    raise self.fail("V202", f"step {s.name} reads {b}, which nothing has written by then")
        for name in self.plan.outputs:
            if name not in writer and self.table[name].place.kind not in ("param", "constant"):
                raise self.fail("V208", f"no step writes the result {name}")

    def apart(self) -> None:
        """Arena buffers that live in a common wave do not overlap.  Only neighbours by wave are compared."""
        life: dict[str, tuple[int, int]] = {}
        for s in self.plan.steps:
            for b in s.buffers:
                if self.table[b].place.kind == "arena":
                    first, last = life.get(b, (s.wave, s.wave))
                    life[b] = min(first, s.wave), max(last, s.wave)
        for name in self.plan.outputs:  # results are read when all waves are over
            if name in life:
                life[name] = life[name][0], max(s.wave for s in self.plan.steps)
        living: list[str] = []
        for b in sorted(life, key=lambda n: life[n]):
            living = [x for x in living if life[x][1] >= life[b][0]]
            for x in living:
                self.disjoint(self.table[x], self.table[b])
            living.append(b)

    def donations(self) -> None:
        """A param is read no later than the result that takes its memory over is written, and given to one."""
        given: set[int] = set()
        for b in self.plan.buffers:
            if b.place.over == -1:
                continue
            if b.place.kind != "output" or not 0 <= b.place.over < len(self.plan.params) or b.place.over in given:
                raise self.fail("V212", f"buffer {b.name} cannot take over param {b.place.over}")
            given.add(b.place.over)
            param = self.plan.params[b.place.over]
            first = min((s.wave for s in self.plan.steps if b.name in s.buffers), default=0)
            late = [s.name for s in self.plan.steps if param in s.buffers and s.wave >= first]
            if late or param in self.plan.outputs or self.table[param].type != b.type:
                raise self.fail("V212", f"{b.name} takes over {param}: {self.table[param].type}, which is needed by "
                                f"{late[0] if late else 'the caller'}")

    def disjoint(self, a: PlanBuffer, b: PlanBuffer) -> None:
        (a0, a1), (b0, b1) = ((x.place.offset, x.place.offset + x.type.nbytes) for x in (a, b))
        facts = self.facts.copy()
        for x in (a, b):
            facts.add(x.type.nbytes - 1)  # an empty buffer is apart from everything
        if facts.le(a1, b0) or facts.le(b1, a0):
            return
        text = f"{a.name} at {a0}..{a1} and {b.name} at {b0}..{b1} live at the same time and overlap"
        example = facts.refuted((dmax(b0 - a1, a0 - b1),), always=False)
        if example is not None:
            raise self.fail("V204", f"{text}, for {', '.join(f'{k} = {v}' for k, v in example.items())}")
        if self.strict:
            raise self.fail("V205", f"not proved that not: {text}")


# ---- programs -------------------------------------------------------------------------------------------------------

def verify_program(program: Program, strict: bool = False) -> None:
    """Verify the plan, every kernel, and how the steps use the kernels (V301 .. V305)."""
    plan = program.plan
    verify_plan(plan, strict)
    for k in program.kernels.values():
        verify_kernel(k, strict)
    table = plan.table()
    made = {b for s in plan.once() for b in s.buffers[len(s.buffers) - s.outputs:]}
    for b in plan.buffers:
        if b.place.kind == "constant" and b.name not in made:
            value = program.constants.get(b.name)
            if value is None or array_type(value.array) != b.type:
                have = "nothing" if value is None else str(array_type(value.array))
                raise VerifyError("V304", f"the constant {b.name} of type {b.type} holds {have}", cure=_REPORT)
    for s in plan.steps:
        if s.kernel:
            _kernel_step(program, s, table)
        else:
            _host_step(s, table)


def _kernel_step(program: Program, s: Step, table: Mapping[str, PlanBuffer]) -> None:
    k = program.kernels.get(s.kernel)
    if k is None or k.name != s.kernel:
        raise VerifyError("V301", f"step {s.name} runs the kernel {s.kernel}, which is not there", cure=_REPORT)
    if len(s.buffers) != len(k.params) or len(s.dims) != len(k.dims):
        raise VerifyError("V302", f"step {s.name} gives {len(s.buffers)} buffers and {len(s.dims)} dims to kernel "
                          f"{k.name}, which takes {len(k.params)} and {len(k.dims)}", cure=_REPORT)
    actual = dict(zip(k.dims, s.dims, strict=True))
    for p, b in zip(k.params, s.buffers, strict=True):
        t = table[b].type
        shape = tuple(substitute(d, actual) for d in p.shape)
        if p.dtype is not t.dtype or shape != t.shape:
            raise VerifyError("V302", f"step {s.name} gives {b}: {t} to %{p.name}: {Type(p.dtype, shape)} of kernel "
                              f"{k.name}", cure=_REPORT)
    writes = [p.role != "in" for p in k.params]
    if writes != [False] * (len(writes) - s.outputs) + [True] * s.outputs:
        raise VerifyError("V303", f"step {s.name} has {s.outputs} results, kernel {k.name} writes "
                          f"{', '.join(p.name for p in k.params if p.role != 'in') or 'nothing'}", cure=_REPORT)


def _host_step(s: Step, table: Mapping[str, PlanBuffer]) -> None:
    op = REGISTRY.get(s.op)
    if op is None:
        raise VerifyError("V301", f"step {s.name} calls the operation {s.op!r}, which is not there", cure=_REPORT)
    if s.outputs != 1 or not s.buffers:
        raise VerifyError("V303", f"host step {s.name} has {s.outputs} results, not one", cure=_REPORT)
    *inputs, out = (table[b].type for b in s.buffers)
    try:
        want = op.infer(*inputs, **s.attrs)
    except (TypeError, ValueError) as e:
        raise VerifyError("V305", f"step {s.name}, {s.op}: {e}", cure=_REPORT) from None
    if want != out:
        raise VerifyError("V305", f"step {s.name}: {s.op} gives {want}, the buffer is {out}", cure=_REPORT)
