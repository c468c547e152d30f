"""Sessions: run parts of a graph, keep the variables.

Here: ``Session``: from what is fetched and fed to a compiled piece of the graph, checks of what is fed, storing of
updates.  Not here: placeholders, variables and operations (symbolic.py), compiling (compiled.py), runs that were done
before (routine.py).
Read next: optim.py.

A run takes the piece of the graph between what is fed and what is fetched, compiled once per such pair: fed nodes and
variables become its parameters.  All variables are read before the piece runs and stored after it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import numpy as np

from flowc import config
from flowc.compiled import Compiled, check_device, compile_graph
from flowc.diag import FlowcError, FlowcTypeError, FlowcValueError, caller_loc
from flowc.dims import Dim, evaluate, linear, symbols
from flowc.graph import PARAM, Graph, Node, param
from flowc.routine import PASSED_ON, Routine, native
from flowc.symbolic import (
    Operation,
    SessionGraph,
    SessionTensor,
    Variable,
    closure,
    get_default_graph,
    last_write,
    other_graph,
)
from flowc.tree import flatten
from flowc.types import Type, dtype


class Piece:
    """A compiled part of the graph.

    params: the nodes whose values it takes, in order; outputs: the nodes whose values it gives.
    """

    def __init__(self, graph: Graph, params: Sequence[Node], outputs: Sequence[Node], device: str):
        self.params, self.outputs = tuple(params), tuple(outputs)
        self.compiled: Compiled | None = compile_graph(graph, device=device) if outputs else None

    def __call__(self, values: Mapping[Node, np.ndarray]) -> dict[Node, np.ndarray]:
        if self.compiled is None:
            return {}
        arrays = [np.require(values[p], requirements=("C", "A")) for p in self.params]
        return dict(zip(self.outputs, self.compiled(arrays), strict=True))


def cut(name: str, outputs: Sequence[Node], fed: Sequence[Node], source: SessionGraph) -> tuple[Graph, list[Node]]:
    """The graph from ``fed`` nodes and free parameters to ``outputs``, and the nodes that its parameters stand for.

    Only fed nodes that the outputs need become parameters, or whose sizes they need.
    """
    border = set(fed)
    order = _between(outputs, border)
    taken: set[str] = set()
    done: dict[Node, Node] = {}
    stands_for: list[Node] = []
    params: list[Node] = []
    for n in order:
        if n in border or n.op is PARAM:
            done[n] = param(_fresh(source.trace.names.get(n, "fed"), taken), n.type, n.loc)
            params.append(done[n])
            stands_for.append(n)
        else:
            inputs = tuple(done[x] for x in n.inputs)
            same = all(a is b for a, b in zip(inputs, n.inputs, strict=True))
            done[n] = n if same else Node(n.op, inputs, n.attrs, n.type, n.loc)
    missing = _symbols_of(done.values()) - _symbols_of(params)
    for n in fed:
        if n not in done and missing & _symbols_of([n]):
            params.append(param(_fresh(source.trace.names.get(n, "fed"), taken), n.type, n.loc))
            stands_for.append(n)
            missing -= _symbols_of([n])
    for n in source.placeholders:
        if missing & _symbols_of([n]):
            raise FlowcValueError("G003", f"the size {min(missing)} is not known, since placeholder {n.attrs['name']} "
                                  f": {n.type} is not fed", loc=caller_loc(),
                                  cure="add it to feed_dict, or feed another tensor that has this size")
    return Graph(name, params, [done[o] for o in outputs], source.trace.ranges), stands_for


def _symbols_of(nodes: Iterable[Node]) -> set[str]:
    """The symbolic sizes in types and attributes."""
    out: set[str] = set()
    stack: list[Any] = [v for n in nodes for v in (n.type, *n.attrs.values())]
    while stack:
        v = stack.pop()
        if isinstance(v, Dim):
            out |= symbols(v)
        elif isinstance(v, Type):
            stack.extend(v.shape)
        elif isinstance(v, tuple):
            stack.extend(v)
    return out


def _between(outputs: Iterable[Node], border: set[Node]) -> list[Node]:
    """Nodes that ``outputs`` need, inputs first; what lies behind ``border`` is left out."""
    order: list[Node] = []
    seen: set[Node] = set()
    for root in outputs:
        stack = [(root, False)]
        while stack:
            n, ready = stack.pop()
            if ready:
                order.append(n)
            elif n not in seen:
                seen.add(n)
                stack.append((n, True))
                if n not in border:
                    stack.extend((x, False) for x in reversed(n.inputs) if x not in seen)
    return order


def _fresh(name: str, taken: set[str]) -> str:
    unique, k = name, 1
    while unique in taken:
        k += 1
        unique = f"{name}_{k}"
    taken.add(unique)
    return unique


_REBUILD: dict[type | None, Callable[[list[Any]], Any]] = {None: lambda xs: xs[0], list: list, tuple: tuple}


class Session:
    """Runs a graph and holds the values of its variables.  Usable as a ``with`` block, which also makes the graph the
    default one."""

    def __init__(self, graph: SessionGraph | None = None, device: str | None = None):
        self.graph = graph or get_default_graph()
        self.device = None if device is None else check_device(device)
        self._values: dict[Node, np.ndarray] = {}
        self._pieces: dict[Any, Piece] = {}
        self._routines: dict[Any, Routine | None] = {}
        self._lock = threading.RLock()
        self._closed = False
        self._blocks: list[ExitStack] = []

    def __enter__(self) -> Session:
        block = ExitStack()
        block.enter_context(self.graph.as_default())
        self._blocks.append(block)
        return self

    def __exit__(self, *error: Any) -> None:
        self._blocks.pop().close()
        if not self._blocks:
            self.close()

    def close(self) -> None:
        """Drop all values and compiled code."""
        self._closed = True
        self._values.clear()
        self._pieces.clear()
        self._routines.clear()

    # -- running

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Any:
        """The values of ``fetches``: a tensor, a variable, an operation, or containers of them.

        feed_dict: values of placeholders and of any other tensors, which then are not computed.  Operations fetched
        give the new value of their variable, or None.  Arrays that are returned belong to the caller.
        """
        style = None if self._closed or config.overridden() else self._style(fetches, feed_dict)
        routine = self._routines.get(style)
        if routine is not None:
            result = routine.run([*feed_dict.values()] if feed_dict else (), self._values)
            if result is not PASSED_ON:
                return result
        result = self._run(fetches, feed_dict)
        if style is not None and style not in self._routines:
            self._learn(style, fetches, feed_dict or {})
        return result

    def _style(self, fetches: Any, feed_dict: Any) -> Any:
        """What a run has in common with others that do the same; None for unusual ones."""
        many = type(fetches) in (list, tuple)
        if feed_dict is not None and type(feed_dict) is not dict or not all(
                isinstance(x, (SessionTensor, Operation)) for x in (fetches if many else (fetches,))):
            return None
        return (type(fetches) if many else None, tuple(fetches) if many else fetches, tuple(feed_dict or ()),
                len(self.graph.after))

    def _learn(self, style: Any, fetches: Any, feed_dict: Mapping[Any, Any]) -> None:
        """Note what :meth:`_run` just did, for the next time: a Routine, or None if it is not to be had."""
        leaves = flatten(fetches)[0]
        targets = [self._target(x, "") for x in leaves]
        fed = [self._key(k) for k in feed_dict]
        updates = self._updates(leaves, [t for t in targets if t is not None], set(fed))
        outputs = dict.fromkeys([*[t for t in targets if t is not None], *updates.values()])
        piece = self._piece([n for n in outputs if n not in fed and n not in self.graph.variables], fed)
        self._routines[style] = None
        if piece.compiled is None or piece.compiled.executable is None:
            return
        if set(fed) - set(piece.params) or set(piece.outputs) != set(outputs):
            return  # something that is fed or fetched is not part of the code
        if not piece.compiled.executable.native_is_due():
            del self._routines[style]  # not yet
            return
        sources = [fed.index(p) if p in fed else p for p in piece.params]
        given = [*feed_dict.values()]
        call = native(piece.compiled, [given[x] if isinstance(x, int) else self._values[x] for x in sources])
        if call is not None:
            place = {n: i for i, n in enumerate(piece.outputs)}
            owned = set(updates.values())  # by variables, or handed out already
            results: list[tuple[int, bool] | None] = []
            for t in targets:
                results.append(None if t is None else (place[t], t in owned))
                owned.update(() if t is None else (t,))
            self._routines[style] = Routine(call, sources, results, {v._node: place[n] for v, n in updates.items()},
                                            _REBUILD[style[0]], self._lock)

    def _run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None) -> Any:
        if self._closed:
            raise FlowcValueError("G011", "the session is closed", loc=caller_loc(), cure="make a new Session")
        leaves, tree = flatten(fetches)
        targets = [self._target(x, path) for x, path in zip(leaves, tree.paths("fetches"), strict=True)]
        feeds = self._feeds(feed_dict or {})
        updates = self._updates(leaves, [t for t in targets if t is not None], set(feeds))
        with self._lock if updates else nullcontext():  # from reading to storing, no other run may store
            wanted = dict.fromkeys([*[t for t in targets if t is not None], *updates.values()])
            results = self._compute(list(wanted), feeds)
            for variable, node in updates.items():
                self._values[variable._node] = results[node]
            return tree.unflatten([None if t is None else results[t].copy() for t in targets])

    def compile(self, fetches: Any, feeds: Iterable[Any] = ()) -> Compiled:
        """The compiled piece that ``run`` uses for these fetches and fed tensors, for its texts and reports."""
        leaves, tree = flatten(fetches)
        targets = [self._target(x, path) for x, path in zip(leaves, tree.paths("fetches"), strict=True)]
        fed = [self._key(f) for f in feeds]
        nodes = [t for t in targets if t is not None]
        updates = self._updates(leaves, nodes, set(fed))
        piece = self._piece(list(dict.fromkeys([*nodes, *updates.values()])), fed)
        if piece.compiled is None:
            raise FlowcValueError("G001", "there is nothing to compile in these fetches", loc=caller_loc(),
                                  cure="fetch a tensor or an update operation")
        return piece.compiled

    def load(self, values: Mapping[Variable, Any]) -> None:
        """Store values of variables now."""
        checked = {v._node: self._checked(v, value) for v, value in values.items()}
        with self._lock:
            self._values.update({n: a.copy() for n, a in checked.items()})

    def _target(self, x: Any, path: str) -> Node | None:
        """The node whose value is the result for a fetch; None for an operation without a value."""
        if not isinstance(x, (SessionTensor, Operation)):
            raise FlowcTypeError("G001", f"{path} is a {type(x).__name__}, which cannot be fetched", loc=caller_loc(),
                                 cure="fetch tensors, variables, operations, or containers of them")
        if x.graph is not self.graph:
            raise other_graph(repr(x))
        if isinstance(x, SessionTensor):
            return x.node
        return None if x.update is None else x.update[1]

    def _updates(self, leaves: Sequence[Any], nodes: Sequence[Node], fed: set[Node]) -> dict[Variable, Node]:
        """New values of variables: what fetched operations, and those that fetched tensors hang on, store."""
        operations = [x for x in leaves if isinstance(x, Operation)]
        done: set[Operation] = set()
        reached: set[Node] = set()
        while True:
            found = closure(operations)
            fresh = [op for op in found if op not in done]
            done.update(fresh)
            roots = [op.update[1] for op in fresh if op.update is not None]
            more = [a for n in _between([*nodes, *roots], fed) if n not in reached
                    for a in self._after(n, reached, fed) if a not in found] if self.graph.after else []
            if not more:
                break
            operations += more
        writes: dict[Variable, list[Operation]] = {}
        for op in found:
            if op.update is not None:
                writes.setdefault(op.update[0], []).append(op)
        return {v: (ops[0] if len(ops) == 1 else last_write(ops)).update[1]  # type: ignore[index]
                for v, ops in writes.items()}

    def _after(self, n: Node, reached: set[Node], fed: set[Node]) -> tuple[Operation, ...]:
        reached.add(n)
        return () if n in fed else self.graph.after.get(n, ())

    def _compute(self, outputs: list[Node], feeds: Mapping[Node, np.ndarray]) -> dict[Node, np.ndarray]:
        """Values of ``outputs``, in arrays of their own."""
        values = dict(feeds)
        with self._lock:
            piece = self._piece([n for n in outputs if n not in feeds and n not in self.graph.variables], list(feeds))
            for n in (*piece.params, *outputs):
                if n not in values and n.op is PARAM:
                    values[n] = self._held(n)
        self._check_sizes({p: values[p] for p in piece.params})
        results = piece(values)
        return {n: results[n] if n in results else values[n].copy() for n in outputs}

    def _piece(self, outputs: list[Node], fed: list[Node]) -> Piece:
        device = check_device(self.device)
        key = (tuple(outputs), frozenset(fed), device, config.cache_key())
        piece = self._pieces.get(key)
        if piece is None:
            for n in outputs:
                if n.op is PARAM and n not in fed and n not in self.graph.variables:
                    self._held(n)
            graph, params = cut("run", outputs, fed, self.graph)
            piece = self._pieces[key] = Piece(graph, params, outputs, device)
        return piece

    def _held(self, n: Node) -> np.ndarray:
        """The value of a variable; errors for placeholders that are not fed and variables without a value."""
        if n in self._values:
            return self._values[n]
        name = n.attrs["name"]
        where = [f"{name} is declared at {n.loc}"]
        if n in self.graph.variables:
            raise FlowcValueError("G006", f"variable {name} has no value in this session", loc=caller_loc(),
                                  notes=where, cure="run global_variables_initializer() first, or load a value")
        if n not in self.graph.placeholders:
            raise other_graph(f"{name} : {n.type}")
        raise FlowcValueError("G003", f"placeholder {name} : {n.type} is not fed", loc=caller_loc(), notes=where,
                              cure=f"add it to feed_dict, or feed a tensor between {name} and what is fetched")

    # -- what is fed

    def _key(self, x: Any) -> Node:
        if not isinstance(x, SessionTensor):
            raise FlowcTypeError("G001", f"a {type(x).__name__} cannot be fed", loc=caller_loc(),
                                 cure="the keys of feed_dict are placeholders or other tensors of the graph")
        if x.graph is not self.graph:
            raise other_graph(repr(x))
        return x.node

    def _feeds(self, feed_dict: Mapping[Any, Any]) -> dict[Node, np.ndarray]:
        if not isinstance(feed_dict, Mapping):
            raise FlowcTypeError("G001", f"feed_dict is a {type(feed_dict).__name__}", loc=caller_loc(),
                                 cure="pass a dict from tensors to values")
        return {self._key(k): self._checked(k, v) for k, v in feed_dict.items()}

    def _checked(self, x: SessionTensor, value: Any) -> np.ndarray:
        """A fed value as an array of the right dtype and shape.  Python numbers and lists are converted where nothing
        is lost; arrays are not."""
        want, name = x.node.type, self._name(x.node)

        def wrong(code: str, found: str, cure: str) -> FlowcError:
            return FlowcTypeError(code, f"{name} : {want} was fed {found}", loc=caller_loc(),
                                  notes=[f"{name} is declared at {x.node.loc}"], cure=cure)
        if isinstance(value, SessionTensor):
            raise wrong("G004", f"the tensor {value!r}", "feed arrays and numbers")
        plain = isinstance(value, (bool, int, float, complex, list, tuple)) and not isinstance(value, np.generic)
        try:
            a = np.asarray(value)
            if plain and a.dtype != want.dtype.numpy and (
                    a.size == 0 or np.can_cast(a.dtype, want.dtype.numpy, "same_kind")):
                a = np.asarray(value, want.dtype.numpy)
            found = Type(dtype(a.dtype.newbyteorder("=")), a.shape)
        except (TypeError, ValueError, OverflowError) as e:
            raise wrong("G004", f"a {type(value).__name__}: {e}", f"feed an array of {want.dtype.numpy}") from None
        if found.dtype is not want.dtype:
            raise wrong("G004", str(found), f"convert it with .astype('{want.dtype.numpy}')")
        if a.ndim != want.rank or any(isinstance(n, int) and n != m for n, m in zip(want.shape, a.shape, strict=True)):
            raise wrong("G005", str(found), f"feed an array of shape ({', '.join(map(str, want.shape))})")
        return np.require(a, want.dtype.numpy, ("A",))

    def _name(self, n: Node) -> str:
        kind = "placeholder " if n in self.graph.placeholders else "variable " if n in self.graph.variables else ""
        return kind + self.graph.trace.names.get(n, n.op.name)

    def _check_sizes(self, values: Mapping[Node, np.ndarray]) -> None:
        """Equal symbols have equal sizes; G005 names the two tensors that disagree."""
        known: dict[str, tuple[int, str]] = {}
        for n, a in values.items():
            for axis, d in enumerate(n.type.shape):
                if isinstance(d, int) or len(symbols(d)) != 1:
                    continue
                (s,) = symbols(d)
                line = linear(d, s)
                if line is None or not isinstance(line[0], int) or not isinstance(line[1], int):
                    continue
                gap = a.shape[axis] - line[1]
                here = f"{self._name(n)} has {a.shape[axis]} on axis {axis} (declared at {n.loc})"
                if s not in known and gap % line[0] == 0:
                    known[s] = (gap // line[0], here)
                elif s not in known or evaluate(d, {s: known[s][0]}) != a.shape[axis]:
                    raise FlowcValueError(
                        "G005", f"the size {s} has two values in one run", loc=caller_loc(),
                        notes=[here, *([known[s][1]] if s in known else [f"the axis is declared as {d}"])],
                        cure="feed arrays that agree, or give the sizes names of their own: placeholder(..., ['m'])")

