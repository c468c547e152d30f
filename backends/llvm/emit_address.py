"""Sizes and addresses: integer expressions as instructions, for all lanes or one for each.

Here: taking an index apart, pointers to what it names.  Not here: scopes and sharing (emit_code.py), loads and stores
(emit_expr.py, emit.py).  Read next: emit_expr.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit_code import MEMORY, Code, Mem, Place, Val
from flowc.backends.llvm.target import Target
from flowc.dims import Call, Dim, DimLike, Range, apply, evaluate, floordiv, map_atoms, substitute, sym, symbols
from flowc.proofs import bounds, simplify


class Addresses(Code):
    """Code that knows its symbols."""

    __slots__ = ("_positive", "_sizes")

    def __init__(self, module: Module, target: Target, name: str, args: str, attrs: str):
        super().__init__(module, name=name, target=target, args=args, attrs=attrs)
        self._sizes = _Symbols(self)
        self._positive: dict[Call, bool] = {}  # quotients of what is never negative

    # -- sizes

    def int_of(self, name: str) -> str | int:
        """The scalar i64 value of a symbol."""
        v = self.env[name]
        return v.number if v.number is not None else int(v.text) if v.constant else v.text

    def varying(self, d: DimLike) -> bool:
        """Does the size depend on the lane?"""
        if isinstance(d, int):
            return False
        return any(s in self.lane_base or self.env[s].wide for s in symbols(d))

    def size(self, d: DimLike) -> str | int:
        """A size that is the same for all lanes."""
        with self.index_arithmetic():
            return self.dim(d, self._sizes)  # type: ignore[arg-type]

    def _dim_call(self, atom: Call, env: dict[str, str | int]) -> str | int:
        divisor = atom.args[-1]
        if atom.fn in ("floordiv", "mod") and isinstance(divisor, int) and divisor & (divisor - 1) and divisor > 0:
            if atom not in self._positive:
                low = bounds(atom.args[0], self.ranges)[0]
                self._positive[atom] = low is not None and low >= 0
            if self._positive[atom]:
                return self.op(f"{'udiv' if atom.fn == 'floordiv' else 'urem'} i64 {self.dim(atom.args[0], env)}, "
                               f"{divisor}")
        return super()._dim_call(atom, env)

    def place(self, d: DimLike) -> Place:
        """Take an index apart; see Place."""
        if isinstance(d, int):
            return Place([], d, 0, None)
        affine = d.affine()
        if affine is None:
            return self._general_place(d)
        const, factors = affine
        stride = 0
        products: list[tuple[str | int, str | int]] = []
        lane_base, env = self.lane_base, self.env
        for name, c in factors:
            if name in lane_base:
                base = lane_base[name]
                stride += c
                if isinstance(base, int):
                    const += c * base
                else:
                    products.append((c, base))
                continue
            v = env[name]
            if v.number is not None:
                const += c * v.number
            elif v.wide:  # another in every lane
                return self._general_place(d)
            elif v.text[0] == "%":
                products.append((v.text, c))
            else:
                const += c * int(v.text)
        terms = self._products(products) if products else []
        return Place(terms, const, stride, None)

    def _products(self, pairs: Sequence[tuple[str | int, str | int]]) -> list[str]:
        sums, key = self.scopes[-1].sums, tuple(pairs)
        terms = sums.get(key)
        if terms is None:
            with self.index_arithmetic():
                terms = sums[key] = [self.mul(a, b) for a, b in pairs]
        return terms

    def _general_place(self, d: DimLike) -> Place:
        with self.index_arithmetic():
            d = self._resolve(d)
            const, wide = 0, []
            terms, strides = list[str | int](), list[str | int]()
            known: list[tuple[int, ...]] = []
            for mono, c in d.terms if isinstance(d, Dim) else (((), d),):
                if not mono:
                    const += c
                    continue
                simple = self._simple_term(mono, c, strides)
                if simple is not None:
                    terms.append(simple)
                    continue
                one = Dim(((mono, c),))
                if not self.varying(one):
                    terms.append(self.size(one))
                    continue
                split = self._lane_coefficient(mono, c)
                if split is None:
                    values = self._lane_values(one)
                    if values is None:
                        wide.append(self._wide_term(mono, c))
                    else:
                        known.append(values)
                    continue
                factor, base = split
                strides.append(factor)
                terms.append(self.mul(factor, base))
            const += sum(t for t in terms if isinstance(t, int))
            stride: str | int = 0
            for f in strides:
                stride = self.add(stride, f)
            pattern = None
            if isinstance(stride, int) and known and not wide and self.lanes > 1:
                pattern = tuple(map(sum, zip([stride * k for k in range(self.lanes)], *known, strict=True)))
            if known:
                wide.append(f"<{', '.join(f'i64 {sum(column)}' for column in zip(*known, strict=True))}>")
            offsets = wide[0] if wide else None
            for w in wide[1:]:
                offsets = self.op(f"add {self.vec('i64')} {offsets}, {w}")
            return Place([t for t in terms if isinstance(t, str)], const, stride, offsets, pattern)

    def _simple_term(self, mono, c: int, strides: list) -> str | int | None:
        """The scalar part of a symbol times a number, as nearly all terms are; None for other terms."""
        (name, power) = mono[0]
        if len(mono) > 1 or power != 1 or not isinstance(name, str):
            return None
        base = self.lane_base.get(name)
        if base is not None:
            strides.append(c)
            return self.mul(c, base)
        v = self.env[name]
        if v.wide:
            return None
        return self.mul(v.text, c) if v.text[0] == "%" else int(v.text) * c

    def _lane_values(self, d: Dim) -> tuple[int, ...] | None:
        """The size in every lane, if the lane alone decides it."""
        names = symbols(d)
        if len(names) != 1:
            return None
        (name,) = names
        base = self.lane_base.get(name)
        return tuple(evaluate(d, {name: base + k}) for k in range(self.lanes)) if isinstance(base, int) else None

    def _lane_coefficient(self, mono, c: int) -> tuple[str | int, str | int] | None:
        """(factor, value in lane 0) of a term that is the loop variable of the lanes times a uniform factor."""
        lane = [a for a, p in mono if a in self.lane_base and p == 1]
        rest = tuple((a, p) for a, p in mono if a not in lane)
        if len(lane) != 1 or rest and self.varying(Dim(((rest, 1),))):
            return None
        return self.size(Dim(((rest, c),)) if rest else c), self.lane_base[lane[0]]

    def _resolve(self, d: DimLike) -> DimLike:
        """Divisions of a lane index resolved where whole vectors lie inside one quotient.

        The variable is written as lanes*t + lane; ``(lanes*t + lane) // (m*lanes)`` is ``t // m``."""
        if isinstance(d, int):
            return d
        calls = [a for m, _ in d.terms for a, _ in m if not isinstance(a, str)]
        if not calls or not any(symbols(Dim(((((a, 1),), 1),))) & self.lane_base.keys() for a in calls):
            return d
        name, base = next(iter(self.lane_base.items()))
        lane, step = f"{name}.lane", f"{name}.step"
        first: DimLike
        if isinstance(base, int):
            first = base
        elif step in self.ranges:
            first = sym(step) * self.lanes
            if step not in self.env:
                self.env[step] = Val(self.op(f"ashr i64 {base}, {self.lanes.bit_length() - 1}"))
        else:
            return d
        self.lane_base[lane] = 0
        ranges = {**self.ranges, lane: (0, self.lanes - 1)}
        return _by_lanes(simplify(substitute(d, {name: first + sym(lane)}), ranges), self.lanes, lane, ranges)

    def _wide_term(self, mono, c: int) -> str:
        ty = self.vec("i64")
        total = f"splat (i64 {c})"
        for atom, p in mono:
            v = self.wide_symbol(atom) if isinstance(atom, str) else self._wide_call(atom)
            for _ in range(p):
                total = v if total == "splat (i64 1)" else self.op(f"mul {ty} {v}, {total}")
        return total

    def wide_symbol(self, name: str) -> str:
        """A symbol as a vector of i64."""
        base = self.lane_base.get(name)
        if base is None:
            return self.splat(self.env[name], "i64")
        if isinstance(base, int):
            return f"<{', '.join(f'i64 {base + k}' for k in range(self.lanes))}>"
        return self.op(f"add {self.vec('i64')} {self.splat(Val(base), 'i64')}, {self.iota()}")

    def wide_size(self, d: DimLike) -> str:
        """Any size as a vector of i64."""
        p = self.place(d)
        with self.index_arithmetic():
            ty, out = self.vec("i64"), p.offsets
            if not (isinstance(p.stride, int) and p.stride == 0):
                step = (self.iota("i64", p.stride) if isinstance(p.stride, int) else
                        self.op(f"mul {ty} {self.splat(Val(p.stride), 'i64')}, {self.iota()}"))
                out = step if out is None else self.op(f"add {ty} {out}, {step}")
            base = self._sum(p)
            if base == 0 and out is not None:
                return out
            first = self.splat(Val(str(base)), "i64")
            return first if out is None else self.op(f"add {ty} {out}, {first}")

    def _sum(self, p: Place) -> str | int:
        return self.add(self.whole(p.terms), p.const)

    def whole(self, terms: Sequence[str]) -> str | int:
        """The sum of the terms of a place, outer ones first."""
        total: str | int = 0
        for t in sorted(terms, key=self.level.__getitem__):
            total = self.add(total, t)
        return total

    def _wide_call(self, call: Call) -> str:
        ty = self.vec("i64")
        args = [self.wide_size(a) for a in call.args]
        if call.fn in ("min", "max"):
            out = args[0]
            for a in args[1:]:
                out = self.intrinsic(f"s{call.fn}", ty, f"{ty} {out}", f"{ty} {a}")
            return out
        a, b = args
        divisor = call.args[1]
        if isinstance(divisor, int) and divisor & (divisor - 1) == 0:
            return self.op(f"ashr {ty} {a}, splat (i64 {divisor.bit_length() - 1})" if call.fn == "floordiv"
                           else f"and {ty} {a}, splat (i64 {divisor - 1})")
        if not isinstance(divisor, int):
            positive = self.op(f"icmp sgt {ty} {b}, zeroinitializer")
            b = self.op(f"select {self.vec('i1')} {positive}, {ty} {b}, {ty} splat (i64 1)")
        lo = bounds(call.args[0], self.ranges)[0]
        q = self.op(f"sdiv {ty} {a}, {b}")
        whole = self.op(f"mul {ty} {q}, {b}")
        r = self.op(f"sub {ty} {a}, {whole}")
        if lo is not None and lo >= 0:
            return q if call.fn == "floordiv" else r
        neg = self.op(f"icmp slt {ty} {r}, zeroinitializer")
        if call.fn == "mod":
            back = self.op(f"select {self.vec('i1')} {neg}, {ty} {b}, {ty} zeroinitializer")
            return self.op(f"add {ty} {r}, {back}")
        borrow = self.op(f"zext {self.vec('i1')} {neg} to {ty}")
        return self.op(f"sub {ty} {q}, {borrow}")

    # -- addresses

    def address(self, mem: Mem, p: Place, extra: int = 0) -> str:
        """Pointer to the element of lane 0, ``extra`` elements further: outer terms first, the constant last."""
        scale = mem.lanes or 1
        const = (p.const + extra) * scale
        sums, key = self.scopes[-1].sums, (mem.pointer, const, *p.terms)
        out = sums.get(key)
        if out is None:
            out = self._base(mem, p.terms, scale) if p.terms else mem.pointer
            if const:
                out = self.index_op(f"getelementptr {MEMORY[mem.dtype]}, {mem.type} {out}, i64 {const}")
            sums[key] = out
        return out

    def _base(self, mem: Mem, terms: Sequence[str], scale: int) -> str:
        """``mem.pointer`` and the terms of an address."""
        sums, key = self.scopes[-1].sums, (mem.pointer, 0, *terms)
        out = sums.get(key)
        if out is not None:
            return out
        by_level: dict[int, str | int] = {}
        with self.index_arithmetic():
            for t in terms:
                at = self.level[t]
                by_level[at] = self.add(by_level[at], t) if at in by_level else t
            out = mem.pointer
            for at in sorted(by_level):
                step = by_level[at] if scale == 1 else self.mul(by_level[at], scale)
                out = self.op(f"getelementptr {MEMORY[mem.dtype]}, {mem.type} {out}, i64 {step}")
        sums[key] = out
        return out

    def addresses(self, mem: Mem, p: Place) -> str:
        """A vector of pointers, one per lane."""
        base = self.address(mem, p)
        with self.index_arithmetic():
            ty, vector = MEMORY[mem.dtype], f"<{self.lanes} x {mem.type}>"
            if p.offsets is None and isinstance(p.stride, int) and abs(p.stride) < 1 << 24:
                return self.op(f"getelementptr {ty}, {mem.type} {base}, {self.vec('i32')} {self.iota('i32', p.stride)}")
            steps = None
            if not (isinstance(p.stride, int) and p.stride == 0):
                steps = (self.iota("i64", p.stride) if isinstance(p.stride, int) else
                         self.op(f"mul {self.vec('i64')} {self.splat(Val(p.stride), 'i64')}, {self.iota()}"))
            if p.offsets is not None:
                steps = p.offsets if steps is None else self.op(f"add {self.vec('i64')} {steps}, {p.offsets}")
            if steps is None:
                one = self.op(f"insertelement {vector} poison, {mem.type} {base}, i64 0")
                return self.op(f"shufflevector {vector} {one}, {vector} poison, <{self.lanes} x i32> zeroinitializer")
            return self.op(f"getelementptr {ty}, {mem.type} {base}, {self.vec('i64')} {steps}")


class _Symbols(Mapping[str, "str | int"]):
    """The environment as Function.dim wants it."""

    def __init__(self, code: Addresses):
        self._code = code

    def __getitem__(self, name: str) -> str | int:
        return self._code.int_of(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._code.env)

    def __len__(self) -> int:
        return len(self._code.env)


def _by_lanes(d: DimLike, lanes: int, lane: str, ranges: Mapping[str, Range]) -> DimLike:
    """Quotients by a multiple of ``lanes`` taken in two steps, the first of which removes the lane."""
    return map_atoms(d, lambda atom: sym(atom) if isinstance(atom, str) else _call_by_lanes(atom, lanes, lane, ranges))


def _call_by_lanes(call: Call, lanes: int, lane: str, ranges: Mapping[str, Range]) -> DimLike:
    args = [_by_lanes(a, lanes, lane, ranges) for a in call.args]
    a, b = args[0], args[-1]
    if call.fn in ("floordiv", "mod") and isinstance(b, int) and b % lanes == 0 and lane in symbols(a):
        whole = simplify(floordiv(a, lanes), ranges)
        if lane not in symbols(whole):
            q = floordiv(whole, b // lanes)
            return q if call.fn == "floordiv" else a - q * b
    return apply(call.fn, args)
