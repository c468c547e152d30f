"""The instruction table, second part: memory, address spaces, threads that work together.

Here: loads, stores, atomics, shuffles, votes, hints.  Not here: arithmetic and the protocol of rows (instructions.py),
what the calls of ``M`` do (machine.py).  Read next: translate.py.
"""

from __future__ import annotations

from flowc.backends.cuda.sim.instructions import PRED, U32, U64, Writer, row, unknown
from flowc.backends.cuda.sim.parse import TYPES, Addr, Both, Instruction, Not, Operand, Sink, Sym, Vec


@row("cvta")
def _cvta(w: Writer, i: Instruction) -> None:
    """To and from generic addresses; spaces have windows of their own in the generic space."""
    to = i.parts[1] == "to"
    space = i.parts[2] if to else i.parts[1]
    if space.split("::")[0] not in ("global", "shared", "local", "const"):
        raise unknown(i)
    x = w.read(i.operands[1], U64)
    if space.startswith(("global", "const")):
        w.write(i.operands[0], x, U64)
    else:
        base = f"np.uint64(WINDOWS['{space.split('::')[0]}'])"
        w.write(i.operands[0], f"({x} {'-' if to else '+'} {base})", U64)


@row("isspacep")
def _isspacep(w: Writer, i: Instruction) -> None:
    x = w.read(i.operands[1], U64)
    w.write(i.operands[0], f"(space_of({x}) == '{i.parts[1].split('::')[0]}')", PRED)


# ---- memory ---------------------------------------------------------------------------------------------------------

SPACES = ("global", "shared", "local", "const", "param")
_CACHE_HINTS = {"nc", "relaxed", "volatile", "weak", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "v2", "v4", "gpu", "cta",
                "sys", "acquire", "release", "L1", "L2", "evict_first", "evict_last", "no_allocate", "evict_normal"}


def _space(i: Instruction) -> str:
    """The state space of an access, "generic" if none is named."""
    found = "generic"
    for p in i.parts[1:-1]:
        name = p.split("::")[0]
        if name in SPACES:
            found = name
        elif name not in _CACHE_HINTS and p not in _CACHE_HINTS:
            raise unknown(i)
    return found


def _items(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Vec) else (operand,)


@row("ld", "ldu")
def _ld(w: Writer, i: Instruction) -> None:
    t, to, place = i.type, _items(i.operands[0]), i.operands[1]
    space, size = _space(i), i.type.bits // 8
    if space == "param":
        assert isinstance(place, Addr)
        if not isinstance(place.base, Sym) or place.base.name not in w.params:
            raise unknown(i, "parameters are read by their names")
        start = w.params[place.base.name].offset + place.offset
        for k, item in enumerate(to):
            w.write(item, f"M.param({start + k * size}, '{t.numpy}')", t)
        return
    text = w.constant(i.text)
    x = w.name(f"M.load('{space}', {w.address(place)}, {size}, {len(to)}, {w.mask}, {text})")
    for k, item in enumerate(to):
        e = f"{x}[{k}]"
        w.write(item, e if t.numpy[0] == "u" else f"{e}.view('{t.numpy}')", t)


@row("st")
def _st(w: Writer, i: Instruction) -> None:
    t, place, items = i.type, i.operands[0], _items(i.operands[1])
    raw = TYPES[f"b{t.bits}"]
    values = ", ".join(w.read(x, raw) for x in items)
    w.line(f"M.store('{_space(i)}', {w.address(place)}, [{values}], {t.bits // 8}, {w.mask}, {w.constant(i.text)})")


_ATOMS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


@row("atom", "red")
def _atom(w: Writer, i: Instruction) -> None:
    t = i.type
    kind = next((p for p in i.parts[1:-1] if p in _ATOMS), None)
    space = next((p.split("::")[0] for p in i.parts[1:-1] if p.split("::")[0] in ("global", "shared")), "generic")
    if kind is None or t.lanes == 2:
        raise unknown(i)
    operands = i.operands if i.base == "red" else i.operands[1:]
    values = ", ".join(w.read(x, t) for x in operands[1:])
    wanted = i.base == "atom" and not isinstance(i.operands[0], Sink)
    call = (f"M.atomic('{space}', '{kind}', {w.address(operands[0])}, [{values}], '{t.numpy}', {t.kind == 'bf'}, "
            f"{wanted}, {w.mask}, {w.constant(i.text)})")
    if wanted:
        w.write(i.operands[0], call, t)
    else:
        w.line(call)


# ---- threads together -----------------------------------------------------------------------------------------------

@row("shfl")
def _shfl(w: Writer, i: Instruction) -> None:
    if i.parts[1] != "sync" or i.parts[2] not in ("idx", "bfly", "up", "down"):
        raise unknown(i)
    to = i.operands[0]
    first, second = (to.first, to.second) if isinstance(to, Both) else (to, Sink())
    x, n, c, members = (w.read(o, TYPES["b32"]) for o in i.operands[1:5])
    r = w.name(f"M.shuffle('{i.parts[2]}', {x}, {n}, {c}, {members}, {w.mask}, {w.constant(i.text)})")
    w.write(first, f"{r}[0]", TYPES["b32"])
    w.write(second, f"{r}[1]", PRED)


@row("vote")
def _vote(w: Writer, i: Instruction) -> None:
    if i.parts[1] != "sync":
        raise unknown(i)
    p = i.operands[1]
    e = f"(~{w.read(p.value, PRED)})" if isinstance(p, Not) else w.read(p, PRED)
    out = TYPES["b32"] if i.parts[2] == "ballot" else PRED
    members = w.read(i.operands[2], U32)
    w.write(i.operands[0], f"M.vote('{i.parts[2]}', {e}, {members}, {w.mask}, {w.constant(i.text)})", out)


@row("activemask")
def _activemask(w: Writer, i: Instruction) -> None:
    w.write(i.operands[0], f"M.active({w.mask})", TYPES["b32"])


@row("redux")
def _redux(w: Writer, i: Instruction) -> None:
    t, kind = i.type, i.parts[2]
    if kind not in ("add", "min", "max", "and", "or", "xor") or t.floating:
        raise unknown(i)
    x, members = w.read(i.operands[1], t), w.read(i.operands[2], U32)
    w.write(i.operands[0], f"M.reduce('{kind}', {x}, {members}, {w.mask}, {w.constant(i.text)})", t)


@row("membar", "fence", "prefetch", "prefetchu", "nanosleep", "discard", "applypriority")
def _nothing(w: Writer, i: Instruction) -> None:
    """Ordering and hints: memory here is ordered already."""


@row("bar", "barrier")
def _warp_barrier(w: Writer, i: Instruction) -> None:
    """Only the warp's barrier comes here; those of a block end a basic block (flow.py)."""
    if i.parts[:3] != ("bar", "warp", "sync"):
        raise unknown(i)
    w.line(f"M.warp_barrier({w.read(i.operands[0], U32)}, {w.mask}, {w.constant(i.text)})")


@row("trap")
def _trap(w: Writer, i: Instruction) -> None:
    w.line(f"M.trap({w.mask}, {w.constant(i.text)})")
