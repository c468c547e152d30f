"""The machine code of a program as a value: everything that running it takes, also as bytes.

Here: that, writing it and reading it back.  Not here: making it (compile.py), running it (cpu.py), under which key
the bytes are kept (flowc/image.py).  Read next: compile.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping

from flowc.backends.llvm.engine import Code, Object
from flowc.dataclass import dataclass
from flowc.dims import DimLike
from flowc.plan import Plan


@dataclass(frozen=True)
class Launch:
    """How a kernel is called: its symbol, the iterations of its parallel nest (None: there is none) over its dims."""

    symbol: str
    extent: DimLike | None
    dims: tuple[str, ...]


@dataclass(eq=False)
class Binary:
    """What running a program takes besides its constants.

    launches: by kernel.  codes: by symbol.  entry: the code with ``@run`` and ``@sizes``, None for a plan with host
    steps.  objects: of all modules; a kernel that other programs have too may be loaded from an object of theirs."""

    plan: Plan
    launches: Mapping[str, Launch]
    codes: Mapping[str, Code]
    entry: Code | None
    objects: tuple[Object, ...]

    def loaded(self) -> list[Code]:
        """All loaded code, the entry last."""
        every = [*self.codes.values(), *([self.entry] if self.entry is not None else [])]
        return list({id(c): c for c in every}.values())


def pack(binary: Binary, rest: object) -> bytes:
    """The binary, and ``rest`` with it.  The bytes are as trustworthy as machine code: they may only be read back from
    where nobody else can write."""
    objects = dict.fromkeys(binary.objects)  # kernels of one module come with one object
    return pickle.dumps((binary.plan, dict(binary.launches), binary.entry is not None, tuple(objects), rest), 5)


def unpack(data: bytes) -> tuple[Binary, object]:
    """What :func:`pack` was given, with its code loaded.  FlowcError C103 if that is not possible."""
    plan, launches, has_entry, objects, rest = pickle.loads(data)
    code = Code(objects) if objects else None
    codes = {launch.symbol: code for launch in launches.values()} if code is not None else {}
    return Binary(plan, launches, codes, code if has_entry else None, objects), rest

