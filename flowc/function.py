"""Python functions as compiled functions: signatures and variants.

Here: arguments and specs, the choice and reuse of compiled variants, stages of one function.  Not here: tracing
(trace.py), compiling a graph (compiled.py), calls without Python (fastpath.py), the public functions (api.py).
Read next: fastpath.py.

Sizes.  The first call compiles for its sizes.  When a call comes with other sizes, one more variant is compiled in
which every size that has varied is a symbol; sizes that always were equal share one.  Rank, dtype and which sizes are
1 are part of the signature.  ``dynamic=True`` starts with symbols.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import RLock
from typing import Any, NamedTuple

import numpy as np

import flowc.numpy_api  # noqa: F401  (fills the tables that tensors look into)
from flowc import config
from flowc.compiled import Compiled, check_device, compile_graph
from flowc.dataclass import dataclass, field
from flowc.diag import FlowcTypeError, FlowcValueError, caller_loc
from flowc.dims import Dim, DimLike, Range, sym, symbols
from flowc.size import SizeUnknownError
from flowc.trace import Leaf, Tensor, Traced, current_trace, trace
from flowc.tree import Tree, exact, flatten
from flowc.types import Type, bool_, c128, dtype, f64, i64

MAX_VARIANTS = 16  # compiled variants of one rank and dtype signature; the next one makes every size a symbol


class Spec:
    """The type of an argument without its value, for ``lower`` and ahead-of-time compilation.

    Not a dataclass: those are containers of arguments.
    """

    __slots__ = ("type",)

    def __init__(self, type: Type):
        self.type = type

    def __repr__(self) -> str:
        return f"spec({str(self.type)!r})"


def spec(text: str | Type) -> Spec:
    """``spec("f32[n, 784]")``: an argument of that type; names are symbolic sizes, equal names equal sizes."""
    if isinstance(text, Type):
        return Spec(text)
    from flowc.parse import parse_type
    return Spec(parse_type(text))


@dataclass
class Argument:
    """One leaf of a call: its array (None for a Spec), type and whether it is a Python number."""

    array: np.ndarray | None
    type: Type
    weak: bool


_WEAK = {bool: bool_, int: i64, float: f64, complex: c128}


def as_argument(x: Any, path: str) -> Argument:
    """A call's leaf as an array.  Raises C020 for values that are no array, number or Spec."""
    if type(x) is np.ndarray:
        return Argument(x, Type(_known(x.dtype, path), x.shape), False)
    weak = _WEAK.get(type(x))
    if weak is not None:
        try:
            return Argument(np.asarray(x, weak.numpy), Type(weak, ()), True)
        except OverflowError:
            raise FlowcValueError("C021", f"argument {path} = {x} does not fit into 64 bits", loc=caller_loc(),
                                  cure="pass a float, or a smaller number") from None
    if isinstance(x, Spec):
        return Argument(None, x.type, False)
    if isinstance(x, np.ndarray) and not _plain(type(x)):
        raise FlowcTypeError("C020", f"argument {path} is a {type(x).__name__}, whose arithmetic is not that of arrays",
                             loc=caller_loc(), cure="convert it with numpy.asarray if its plain values are meant")
    if isinstance(x, (np.ndarray, np.generic)) or any(hasattr(x, a) for a in (
            "__array_interface__", "__array__", "__array_struct__")):
        a = np.asarray(x)
    elif hasattr(x, "__dlpack__"):
        a = np.from_dlpack(x)
    elif isinstance(x, (bytes, str)):
        a = None
    else:
        try:
            a = np.asarray(memoryview(x))
        except TypeError:
            a = None
    if a is None:
        raise FlowcTypeError("C020", f"argument {path} is a {type(x).__name__}, no array or number", loc=caller_loc(),
                             cure="pass arrays and numbers; name other arguments in static_argnames, or make the class "
                             "a container with register_pytree")
    return Argument(a, Type(_known(a.dtype, path), a.shape), False)


def _plain(cls: type) -> bool:
    """Does a subclass of arrays compute as they do?  Masked arrays, matrices and quantities do not."""
    return all(getattr(cls, name) is getattr(np.ndarray, name) for name in (
        "__array_ufunc__", "__array_function__", "__add__", "__mul__"))


def _known(d: np.dtype, path: str):
    try:
        return dtype(d.newbyteorder("=") if not d.isnative else d)
    except TypeError as e:
        raise FlowcTypeError("C022", f"argument {path}: {e}", loc=caller_loc(), cure="convert it with astype") from None


# ---- one variant ----------------------------------------------------------------------------------------------------

@dataclass(eq=False)
class Variant:
    """A compiled instance of a function: argument types with symbols where sizes vary."""

    types: tuple[Type, ...]
    traced: Traced
    compiled: Compiled

    def matches(self, args: Sequence[Argument]) -> bool:
        seen: dict[Any, Any] = {}
        for a, t in zip(args, self.types, strict=True):
            for have, want in zip(a.type.shape, t.shape, strict=True):
                if isinstance(want, int):
                    if have != want:
                        return False
                elif seen.setdefault(want, have) != have:
                    return False
        return not beyond(list(seen), list(seen.values()), self.traced.graph.ranges)

    def __call__(self, args: Sequence[Argument]) -> Any:
        arrays = [normal(a.array, t) for a, t in zip(args, self.types, strict=True)]
        return self.traced.assemble(self.compiled(arrays))


def normal(a: np.ndarray | None, t: Type) -> np.ndarray:
    """C order, aligned, native byte order, the dtype of ``t``: as kernels read it."""
    assert a is not None
    return np.require(a, t.dtype.numpy, ("C", "A"))


@dataclass
class Family:
    """Variants of one signature: tree, static values, ranks, dtypes, which sizes are 1."""

    variants: list[Variant] = field(default_factory=list)
    seen: list[tuple[DimLike, ...]] = field(default_factory=list)  # all sizes of each compiled call, flat
    rigid: set[int] = field(default_factory=set)               # positions that the function needs as numbers


class Split(NamedTuple):
    """A call taken apart: static values, leaves of the other arguments, their tree and names, the numbers of those
    leaves that are donated."""

    static: tuple
    leaves: list[Any]
    tree: Tree
    paths: list[str]
    donated: frozenset[int]


class Function:
    """A function compiled on demand.  Call it like the function it wraps."""

    def __init__(self, fn: Callable[..., Any], static_argnums: Sequence[int] = (),
                 static_argnames: Sequence[str] = (), device: str | None = None, dynamic: bool = False,
                 donate_argnums: Sequence[int] = (), donate_argnames: Sequence[str] = ()):
        functools.update_wrapper(self, fn)
        self.fn, self.device, self.dynamic = fn, device, dynamic
        self.static_argnums, self.static_argnames = tuple(static_argnums), tuple(static_argnames)
        self.donate_argnums, self.donate_argnames = tuple(donate_argnums), tuple(donate_argnames)
        self.families: dict[Any, Family] = {}
        self.lock = RLock()
        self.names = _parameter_names(fn)
        for n in (*self.static_argnames, *self.donate_argnames):
            if self.names and n not in self.names and not _has_var_keywords(fn):
                raise FlowcValueError("C023", f"{title(fn)} has no argument {n!r}", loc=caller_loc(),
                                      cure=f"name one of {', '.join(self.names)}")

    # -- calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(args, kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def call(self, args: tuple, kwargs: dict) -> Any:
        """The general path: flatten, find or compile a variant, run it.  Inside a trace the function is inlined."""
        parts = self.split(args, kwargs)
        if current_trace() is not None and any(isinstance(x, (Tensor, Dim)) for x in parts.leaves):
            return self.fn(*args, **kwargs)
        found = [as_argument(x, p) for x, p in zip(parts.leaves, parts.paths, strict=True)]
        for a, p in zip(found, parts.paths, strict=True):
            if a.array is None:
                raise FlowcTypeError("C024", f"argument {p} is a spec, which has no value", loc=caller_loc(),
                                     cure="use .lower(...) with specs and call with arrays")
        variant = self.variant(parts, found)
        out = variant(found)
        if variant.compiled.device == "cpu":
            self._offer(variant, args, kwargs, found)
        return out

    def _offer(self, variant: Variant, args: Sequence[Any], kwargs: dict, found: Sequence[Argument]) -> None:
        """Hook for the native call path (fastpath.py)."""

    def split(self, args: tuple, kwargs: dict) -> Split:
        static: list[tuple[Any, Any]] = []
        rest: list[Any] = []
        names: list[str] = []
        given = {*self.donate_argnames, *(self.names[i] for i in self.donate_argnums if i < len(self.names)),
                 *(f"args[{i}]" for i in self.donate_argnums)}
        for i, a in enumerate(args):
            name = self.names[i] if i < len(self.names) else f"args[{i}]"
            if i in self.static_argnums or name in self.static_argnames:
                static.append((i, _hashable(a, name)))
            else:
                rest.append(a)
                names.append(name)
        kw = {}
        for n in sorted(kwargs):
            if n in self.static_argnames:
                static.append((n, _hashable(kwargs[n], n)))
            else:
                kw[n] = kwargs[n]
        leaves, tree = flatten((tuple(rest), kw))
        paths: list[str] = []
        donated: list[int] = []
        for name, a in (*zip(names, rest, strict=True), *kw.items()):
            more = flatten(a)[1].paths(name)
            if name in given:
                donated += range(len(paths), len(paths) + len(more))
            paths += more
        return Split(tuple(static), leaves, tree, paths, frozenset(donated))

    def variant(self, parts: Split, args: Sequence[Argument]) -> Variant:
        """The compiled variant for these arguments, compiled now if there is none."""
        where = check_device(self.device)
        ones = tuple(n == 1 for a in args for n in a.type.shape)
        kinds = tuple((a.type.dtype, a.type.rank, a.weak) for a in args)
        key = (where, config.cache_key(), parts.static, parts.tree, kinds, ones)
        with self.lock:
            family = self.families.setdefault(key, Family())
            for v in family.variants:
                if v.matches(args):
                    return v
            return self._compile(family, where, parts, args)

    def _compile(self, family: Family, where: str, parts: Split, args: Sequence[Argument]) -> Variant:
        sizes = tuple(n for a in args for n in a.type.shape)
        history = [*family.seen, sizes]
        given = any(not isinstance(n, int) for n in sizes)
        everything = self.dynamic or len(family.variants) >= MAX_VARIANTS
        fixed: set[int] = set()  # positions that stay numbers in this variant only
        while True:
            shapes = args_shapes(args) if given else symbolic_shapes(args, history, everything, family.rigid | fixed)
            types = tuple(Type(a.type.dtype, s) for a, s in zip(args, shapes, strict=True))
            flat = [n for s in shapes for n in s]
            try:
                traced = self.trace(types, [a.weak for a in args], parts)
            except SizeUnknownError as e:
                stuck = {i for i, n in enumerate(flat) if not isinstance(n, int) and symbols(n) & e.symbols}
                if given or not stuck:
                    raise
                family.rigid |= stuck  # the function needs these as numbers: compiled for each value
                continue
            outside = set() if given else beyond(flat, sizes, traced.graph.ranges)
            if not outside:
                break
            fixed |= outside  # what was traced is for larger sizes: this one is compiled on its own
        self._explain(family, sizes, parts.paths, args)
        bound = {name: n for t, a in zip(types, args, strict=True) for d, n in zip(t.shape, a.type.shape, strict=True)
                 if isinstance(d, Dim) and isinstance(n, int) for name in symbols(d)}
        variant = Variant(types, traced, compile_graph(traced.graph, device=where, donated=parts.donated, sizes=bound))
        family.variants.insert(0, variant)
        family.seen.append(sizes)
        return variant

    def _explain(self, family: Family, sizes: tuple, paths: Sequence[str], args: Sequence[Argument]) -> None:
        if "recompiles" not in config.get("log"):
            return
        who = title(self.fn)
        if not family.seen:
            text = f"{who}: compiled for {', '.join(f'{p}: {a.type}' for p, a in zip(paths, args, strict=True))}"
        else:
            where = [(p, i) for p, a in zip(paths, args, strict=True) for i in range(a.type.rank)]
            changed = [f"axis {i} of {p} was {old}, is {new}" for (p, i), old, new in
                       zip(where, family.seen[-1], sizes, strict=True) if old != new]
            text = f"{who}: compiled again because {'; '.join(changed)}"
        import sys
        print(f"flowc: {text}", file=sys.stderr)

    def trace(self, types: Sequence[Type], weak: Sequence[bool], parts: Split) -> Traced:
        leaves = [Leaf(t, w, p) for t, w, p in zip(types, weak, parts.paths, strict=True)]
        positions = dict(parts.static)

        def run(*args: Any, **kwargs: Any) -> Any:
            full = list(args)
            for i in sorted(k for k in positions if isinstance(k, int)):
                full.insert(i, positions[i].value)
            named = {k: v.value for k, v in positions.items() if isinstance(k, str)}
            return self.fn(*full, **kwargs, **named)
        run.__name__ = getattr(self.fn, "__name__", type(self.fn).__name__)
        return trace(run, leaves, parts.tree, name=run.__name__, ranges={})

    # -- stages

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Trace for these arguments (arrays, numbers or specs) without compiling."""
        parts = self.split(args, kwargs)
        found = [as_argument(x, p) for x, p in zip(parts.leaves, parts.paths, strict=True)]
        shapes = args_shapes(found)
        if self.dynamic:
            shapes = symbolic_shapes(found, [tuple(n for s in shapes for n in s)], True, set())
        types = [Type(a.type.dtype, s) for a, s in zip(found, shapes, strict=True)]
        traced = self.trace(types, [a.weak for a in found], parts)
        return Lowered(traced, self.device, tuple(types), parts.donated)

    def __repr__(self) -> str:
        return f"<flowc.jit {title(self.fn)}>"


@dataclass
class Lowered:
    """A traced function: ``as_text("graph")``, ``compile(device=...)``."""

    traced: Traced
    device: str | None
    types: tuple[Type, ...]
    donated: frozenset[int] = frozenset()

    @property
    def graph(self):
        return self.traced.graph

    def as_text(self, stage: str = "graph") -> str:
        from flowc import text
        if stage not in ("graph", "trace"):
            return self.compile().as_text(stage)
        return text.graph_text(self.traced.graph)

    def compile(self, device: str | None = None) -> CompiledFunction:
        return CompiledFunction(self, compile_graph(self.traced.graph, device=device or self.device,
                                                    donated=self.donated))


@dataclass
class CompiledFunction:
    """A function compiled for given types: callable with the same arguments; ``as_text`` for every stage."""

    lowered: Lowered
    compiled: Compiled

    def as_text(self, stage: str = "graph") -> str:
        return self.compiled.as_text(stage)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, tree = flatten((args, kwargs))
        found = [as_argument(x, p) for x, p in zip(leaves, tree.paths(""), strict=True)]
        if len(found) != len(self.lowered.types):
            raise FlowcTypeError("C010", f"{len(found)} array arguments, compiled for {len(self.lowered.types)}",
                                 loc=caller_loc(), cure="call it with the arguments it was lowered with")
        arrays = []
        for a, t in zip(found, self.lowered.types, strict=True):
            if a.type.dtype is not t.dtype and not a.weak:
                raise FlowcTypeError("C011", f"argument of type {a.type}, compiled for {t}", loc=caller_loc(),
                                     cure=f"pass an array of type {t}")
            arrays.append(normal(a.array, t))
        return self.lowered.traced.assemble(self.compiled(arrays))


class _Static:
    """A static argument as part of a key; compared by ``exact``."""

    __slots__ = ("key", "value")

    def __init__(self, value: Any):
        self.value, self.key = value, exact(value)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self.key == other.key


def _hashable(value: Any, name: str) -> _Static:
    try:
        return _Static(value)
    except TypeError:
        raise FlowcTypeError("C025", f"static argument {name} is a {type(value).__name__}, which has no hash",
                             loc=caller_loc(), cure="pass a hashable value, a tuple instead of a list") from None


def _parameter_names(fn: Callable[..., Any]) -> list[str]:
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD,
                 inspect.Parameter.KEYWORD_ONLY)
        return [p.name for p in inspect.signature(fn).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        return []


def _has_var_keywords(fn: Callable[..., Any]) -> bool:
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(fn).parameters.values())


def title(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", type(fn).__name__)


def args_shapes(args: Iterable[Argument]) -> list[tuple[DimLike, ...]]:
    return [a.type.shape for a in args]


def symbolic_shapes(args: Sequence[Argument], history: Sequence[tuple[DimLike, ...]], everything: bool,
                    rigid: set[int]) -> list[tuple[DimLike, ...]]:
    """The shapes with a symbol for every size that differs within ``history`` (all sizes but 1 if ``everything``),
    except at ``rigid`` positions.  Sizes that were equal in every call share a symbol."""
    names: dict[tuple[DimLike, ...], Dim] = {}
    flat: list[DimLike] = []
    for i, column in enumerate(zip(*history, strict=True)):
        n = column[-1]
        if i in rigid or n == 1 or (len(set(column)) == 1 and not everything):
            flat.append(n)
        else:
            flat.append(names.setdefault(column, sym(_symbol_name(len(names)))))
    out, at = [], 0
    for a in args:
        out.append(tuple(flat[at:at + a.type.rank]))
        at += a.type.rank
    return out


def beyond(flat: Sequence[DimLike], sizes: Sequence[DimLike], ranges: Mapping[str, Range]) -> set[int]:
    """Positions whose symbol cannot take its value: it is outside the symbol's range."""
    out = set()
    for i, (n, value) in enumerate(zip(flat, sizes, strict=True)):
        if not isinstance(n, int) and isinstance(value, int):
            lo, hi = ranges.get(str(n), (0, None))
            if (isinstance(lo, int) and value < lo) or (isinstance(hi, int) and value > hi):
                out.add(i)
    return out


def _symbol_name(i: int) -> str:
    letters = "nmkpqrst"
    return letters[i] if i < len(letters) else f"n{i}"
