"""From a program to machine code.

Here: which modules a program is compiled into.  Not here: code of kernels (emit.py) and of the entry (entry.py), LLVM
(engine.py), running it (cpu.py).  Read next: entry.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from flowc.backends.llvm import pool
from flowc.backends.llvm.binary import Binary, Launch
from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit import emit_kernel
from flowc.backends.llvm.engine import (
    OPT_LEVEL,
    QUICK,
    Code,
    Source,
    Store,
    compile_modules,
    content_name,
    host,
    loaded,
)
from flowc.backends.llvm.entry import emit_entry, emit_sizes, parallel_extent
from flowc.backends.llvm.target import cpu_target
from flowc.dataclass import dataclass, field
from flowc.kernel import Kernel
from flowc.plan import Program, Unfinished

MODULE = 300                         # lines from which on a module takes no further kernel
APART = 200                          # lines of a function that kernels share from which on it is alone in a module
REMEMBERED = 1 << 10                 # functions whose modules are known
LONG_ENTRY = 30                      # lines from which on the code between the kernels is compiled quickly

_STAND_IN = "flowc_kernel_symbol"


def compile_binary(program: Program | Unfinished, store: Store | None = None) -> Binary:
    """Emit and compile a program; of one that is still being made the first kernels are translated by other threads
    while the last are lowered.  Kernels are named by their content.  A large one is a module of its own, which
    programs share in memory and on disk, as they do the tiles of contractions and the loops around them (emit_tile.py,
    emit_nest.py); small ones are put together, since each module and function costs time whatever is in it.  Kernels
    that do little but to call such functions are compiled quickly.  ``@run`` and ``@sizes`` come last, with small
    kernels: with the quick ones if there are any or the two are long."""
    return _Compilation(program).run(store)


@dataclass
class _Group:
    """A module of small functions, and their symbols."""

    module: Module = field(default_factory=Module)
    symbols: list[str] = field(default_factory=list)


class _Home(NamedTuple):
    """The text of a module of functions that kernels share, and their symbols."""

    text: str
    symbols: tuple[str, ...]


_HOMES: dict[str, _Home] = {}        # by symbol


class _Compilation:
    def __init__(self, program: Program | Unfinished):
        self.making = program if isinstance(program, Unfinished) else Unfinished(lambda: iter(()), lambda: program)
        self.target = cpu_target(*host())
        self.symbols: dict[str, str] = {}    # of the kernels, by name
        self.modules: list[list[str]] = []   # symbols of the kernels of each module
        self.emitted: set[str] = set()       # symbols of kernels and of functions that they share
        self.small: dict[int, _Group] = {}   # kernels by level of the code generator
        self.common = _Group()               # functions that kernels share
        self.kept: list[Code] = []           # what is used of other programs

    def run(self, store: Store | None) -> Binary:
        sources: list[Source] = []
        codes = compile_modules(_noted(self.sources(), sources), store=store, helpers=pool.num_threads() - 1)
        program, by_symbol = self.making.program(), dict[str, Code]()
        for symbols, code in zip(self.modules, codes, strict=True):
            by_symbol.update(dict.fromkeys(symbols, code))
        launches = {name: Launch(self.symbols[name], parallel_extent(k), k.dims) for name, k in program.kernels.items()}
        objects = tuple(code.objects[source.text] for code, source in zip(codes, sources, strict=True))
        return Binary(program.plan, launches, by_symbol, codes[-1] if codes and not _hosted(program) else None, objects)

    def sources(self) -> Iterator[Source]:
        """The modules of the program, the one with the entry last."""
        ahead: dict[str, Kernel] = {}
        for kernel in self.making.kernels():
            ahead[kernel.name] = kernel
            yield from self.kernel(kernel)
        program = self.making.program()
        for name, kernel in program.kernels.items():
            if ahead.get(name) is not kernel:
                yield from self.kernel(kernel)
        yield from self.last(program)

    def kernel(self, kernel: Kernel) -> Iterator[Source]:
        """Emit a kernel, with the modules that are ready then."""
        alone = Module()
        emit_kernel(kernel, alone, self.target, _STAND_IN, tiles=True)
        final = content_name(alone.text(), _STAND_IN)[1]
        self.symbols[kernel.name] = final
        if final in self.emitted:
            return
        self.emitted.add(final)
        for name, shared in alone.tiles.items():
            yield from self.shared(name, shared)
        yield from self.put(alone, QUICK if alone.brief else OPT_LEVEL, final)

    def put(self, part: Module, level: int, symbol: str) -> Iterator[Source]:
        """A kernel into a module of its own if it is large, else into one of small ones."""
        group = _Group() if part.lines() >= MODULE else self.small.setdefault(level, _Group())
        group.module.take(part, _STAND_IN, symbol)
        group.symbols.append(symbol)
        if group.module.lines() >= MODULE:
            if group is self.small.get(level):
                del self.small[level]
            self.modules.append(group.symbols)
            yield Source(group.module.text(), level)

    def shared(self, symbol: str, module: Module) -> Iterator[Source]:
        """A function that kernels share: a large one is a module of its own, a small one is where the program left it
        that was the first to have it.  No function is in two modules of a program."""
        if symbol in self.emitted:
            return
        home = _HOMES.get(symbol)
        if module.lines() >= APART:
            home = _Home(module.text(), (symbol,))
        elif home is not None and not (self.emitted.isdisjoint(home.symbols) and self.keep(home)):
            home = None
        if home is not None:
            self.emitted.update(home.symbols)
            self.modules.append([])
            yield Source(home.text)
            return
        self.emitted.add(symbol)
        self.common.module.take(module)
        self.common.symbols.append(symbol)
        if self.common.module.lines() >= MODULE:
            yield from self.common_done()

    def keep(self, home: _Home) -> bool:
        """Is the code of the module in use?"""
        code = loaded(Source(home.text))
        self.kept += [code] if code is not None else []
        return code is not None

    def common_done(self) -> Iterator[Source]:
        """The module of shared functions is complete."""
        group, self.common = self.common, _Group()
        if group.symbols:
            home = _Home(group.module.text(), tuple(group.symbols))
            if len(_HOMES) + len(group.symbols) > REMEMBERED:
                _HOMES.clear()
            _HOMES.update(dict.fromkeys(group.symbols, home))
            self.modules.append([])
            yield Source(home.text)

    def last(self, program: Program) -> Iterator[Source]:
        """The small kernels that are left and the entry, which is compiled quickly if it is long or such kernels are
        left."""
        entry = Module()
        if not _hosted(program):
            emit_entry(program, entry, self.symbols)
            emit_sizes(program, entry)
        yield from self.common_done()
        level = OPT_LEVEL if QUICK not in self.small and self.small and entry.lines() <= LONG_ENTRY else QUICK
        for other, group in self.small.items():
            if other != level:
                self.modules.append(group.symbols)
                yield Source(group.module.text(), other)
        if entry.functions or level in self.small:
            group = self.small.get(level, _Group())
            entry.define(group.module)
            self.modules.append(group.symbols)
            yield Source(entry.text(), level, last=True)


def _hosted(program: Program) -> bool:
    """Are there steps that the host does?  Then there is no native entry."""
    return any(not s.kernel for s in program.plan.steps)


def _noted(sources: Iterator[Source], seen: list[Source]) -> Iterator[Source]:
    for source in sources:
        seen.append(source)
        yield source
