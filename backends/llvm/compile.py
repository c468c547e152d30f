"""From a program to machine code.

Here: which modules a program is compiled into.  Not here: code of kernels (emit.py) and of the entry (entry.py), LLVM
(engine.py), running it (cpu.py).  Read next: entry.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowc import progress
from flowc.backends.llvm import pool
from flowc.backends.llvm.binary import Binary, Launch
from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit import emit_kernel
from flowc.backends.llvm.engine import OPT_LEVEL, QUICK, Code, Source, Store, compile_modules, content_name, host
from flowc.backends.llvm.entry import emit_entry, emit_sizes, parallel_extent
from flowc.backends.llvm.target import cpu_target
from flowc.kernel import Loop, Stmt, children
from flowc.plan import Program

MODULE = 300                         # lines from which on a module takes no further kernel
UNROLLED = 16                        # copies of the body of a loop that are counted
LONG_ENTRY = 30                      # lines from which on the code between the kernels is compiled quickly, on its own

_STAND_IN = "flowc_kernel_symbol"


def compile_binary(program: Program, store: Store | None = None) -> Binary:
    """Emit and compile a program.  Kernels are named by their content.  A large one is a module of its own, which
    programs share in memory and on disk, as they do the tiles of contractions (emit_tile.py); small ones are put
    together, since each module and function costs time whatever is in it.  ``@run`` and ``@sizes`` come last, with the
    small kernels if they are short, else on their own."""
    return _Compilation(program).run(store)


class _Compilation:
    def __init__(self, program: Program):
        self.program = program
        self.target = cpu_target(*host())
        self.symbols: dict[str, str] = {}    # of the kernels, by name
        self.modules: list[list[str]] = []   # symbols of the kernels of each module
        self.hosted = any(not s.kernel for s in program.plan.steps)

    def run(self, store: Store | None) -> Binary:
        kernels = self.program.kernels
        sources: list[Source] = []
        # the entry of a single kernel may be a second module
        codes = compile_modules(_noted(self.sources(), sources), store=store, late=len(kernels) == 1,
                                helpers=min(max(len(kernels), 2), pool.num_threads()) - 1)
        by_symbol: dict[str, Code] = {}
        for symbols, code in zip(self.modules, codes, strict=True):
            by_symbol.update(dict.fromkeys(symbols, code))
        launches = {name: Launch(self.symbols[name], parallel_extent(k), k.dims) for name, k in kernels.items()}
        objects = tuple(code.objects[source.text] for code, source in zip(codes, sources, strict=True))
        return Binary(self.program.plan, launches, by_symbol, codes[-1] if codes and not self.hosted else None, objects)

    def sources(self) -> Iterator[Source]:
        """The modules of the program, the one with the entry last.  The longest come first: what is left at the end,
        when a thread may have to wait for the other, is short."""
        module, symbols = Module(), list[str]()
        count, seen = len(self.program.kernels), set[str]()
        kernels = sorted(self.program.kernels.items(), key=lambda item: -_length(item[1].body))
        for i, (name, kernel) in enumerate(kernels):
            progress.at("kernel", i, count)
            alone = Module()
            emit_kernel(kernel, alone, self.target, _STAND_IN, tiles=True)
            final = content_name(alone.text(), _STAND_IN)[1]
            self.symbols[name] = final
            if final in seen:
                continue
            seen.add(final)
            for tile, text in alone.tiles.items():
                if tile not in seen:
                    seen.add(tile)
                    self.modules.append([])
                    yield Source(text)
            lines = alone.lines()
            target, mine = (Module(), []) if lines >= MODULE else (module, symbols)
            target.take(alone, _STAND_IN, final)
            mine.append(final)
            if target.lines() >= MODULE:
                self.modules.append(mine)
                yield Source(target.text())
                if target is module:
                    module, symbols = Module(), []
        yield from self._last(module, symbols)

    def _last(self, module: Module, symbols: list[str]) -> Iterator[Source]:
        """The small kernels that are left and the entry, which is apart if it is long."""
        entry = Module()
        if not self.hosted:
            emit_entry(self.program, entry, self.symbols)
            emit_sizes(self.program, entry)
        long = entry.lines() > LONG_ENTRY
        if not long:
            entry.define(module)
        elif module.functions:
            self.modules.append(symbols)
            yield Source(module.text())
        if entry.functions:
            self.modules.append([] if long else symbols)
            yield Source(entry.text(), QUICK if long else OPT_LEVEL)


def _length(stmts: Sequence[Stmt]) -> int:
    """How many instructions statements become, roughly."""
    n = 0
    for s in stmts:
        inside = sum(map(_length, children(s)))
        if isinstance(s, Loop) and s.kind in ("unroll", "vector") and isinstance(s.extent, int):
            inside *= min(UNROLLED, -(-s.extent // s.width))
        n += inside + 1
    return n


def _noted(sources: Iterator[Source], seen: list[Source]) -> Iterator[Source]:
    for source in sources:
        seen.append(source)
        yield source
