"""The graph layer's nouns: graphs that are built once and run many times, placeholders, variables, operations.

Here: ``SessionGraph`` (public as ``flowc.Graph``), ``placeholder``, ``constant``, ``Variable``, ``Operation`` and how
they depend on each other.  Not here: running (session.py), gradients and optimizers (optim.py), what operators do
(the numpy_* rooms).  Read next: session.py.

A tensor of this layer is an ordinary traced value whose trace never ends.  Effects are values: an update operation
holds the node of a variable's new value, and a session stores it after the run.  So every read of a variable gives its
value from before the run; whoever needs the value after another operation asks for it inside
``control_dependencies`` with ``variable.read_value()``, which is that operation's own result.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from flowc import numpy_api, ops  # noqa: F401  (they fill the tables that operators of tensors look into)
from flowc.diag import FlowcError, FlowcTypeError, FlowcValueError, caller_loc
from flowc.dims import DimLike, sym
from flowc.graph import Node, make
from flowc.numpy_core import node_of, spec
from flowc.tensor import Tensor, Trace
from flowc.trace import lift
from flowc.types import DType, Type, dtype

BATCH = "n"  # the symbol of a first axis declared as None


class SessionTensor(Tensor):
    """A value of a session graph.  Usable as a key of ``feed_dict``: hashed by identity."""

    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment]

    @property
    def graph(self) -> SessionGraph:
        trace = self._trace
        assert isinstance(trace, SessionTrace)
        return trace.graph

    def __repr__(self) -> str:
        name = self._trace.names.get(self._node)
        return f"<{type(self).__name__} {name + ': ' if name else ''}{self._node.type}>"


class SessionTrace(Trace):
    """The endless trace behind a session graph."""

    def __init__(self, graph: SessionGraph):
        super().__init__("a session graph", {}, persistent=True, tensor_class=SessionTensor)
        self.graph = graph

    def read(self, x: Tensor) -> Node:
        if isinstance(x, SessionTensor) and x._trace is not self:
            raise other_graph(repr(x))
        return super().read(x)

    def wrap(self, node: Node, weak: bool = False, corder: bool = False, cell: bool = False) -> Tensor:
        self.graph._note(node)
        return super().wrap(node, weak, corder, cell)


def other_graph(what: str) -> FlowcError:
    return FlowcValueError("G002", f"{what} belongs to another graph", loc=caller_loc(),
                           cure="build all parts of one program inside one `with graph.as_default():`")


class Operation:
    """Something a session can run for its effect.

    update: the variable it writes and the node of the new value, or None.  after: operations that run with it.
    ``value``: the new value as a tensor (None without an update); fetching the operation gives that value.
    """

    def __init__(self, graph: SessionGraph, name: str, update: tuple[Variable, Node] | None = None,
                 after: Iterable[Operation] = ()):
        self.graph, self.name, self.update = graph, name, update
        self.after = (*graph.control, *after)
        self.loc = caller_loc()

    @property
    def value(self) -> Tensor | None:
        return None if self.update is None else self.graph.trace.wrap(self.update[1])

    def closure(self) -> dict[Operation, None]:
        """This operation and all that run with it, in the order in which they were made."""
        return closure([self])

    def run(self, session: Any = None, feed_dict: Any = None) -> Any:
        """Run it in ``session``."""
        return session.run(self, feed_dict)

    def __repr__(self) -> str:
        return f"<Operation {self.name}>"


def closure(operations: Iterable[Operation]) -> dict[Operation, None]:
    """The operations and all that run with them, earlier ones first."""
    found: set[Operation] = set()
    stack = list(operations)
    while stack:
        op = stack.pop()
        if op not in found:
            found.add(op)
            stack.extend(op.after)
    return dict.fromkeys(op for op in sorted(found, key=lambda op: op.graph.number(op)))


class SessionGraph:
    """A graph to which placeholders, variables and operations are added, run by a ``Session``."""

    def __init__(self) -> None:
        self.trace = SessionTrace(self)
        self.placeholders: dict[Node, str] = {}
        self.variables: dict[Node, Variable] = {}
        self.control: tuple[Operation, ...] = ()
        self.after: dict[Node, tuple[Operation, ...]] = {}  # nodes made inside control_dependencies
        self.finalized = False
        self._numbers: dict[Operation, int] = {}
        self._seen: weakref.WeakSet[Node] = weakref.WeakSet()  # wrapped before: not made inside a later control block
        self._sizes = 0

    @contextlib.contextmanager
    def as_default(self) -> Iterator[SessionGraph]:
        """Make this the graph that ``placeholder``, ``Variable`` and the others add to."""
        token = _defaults.set((*_defaults.get(), self))
        try:
            with self.trace.active():
                yield self
        finally:
            _defaults.reset(token)

    def control_dependencies(self, operations: Iterable[Operation]) -> contextlib.AbstractContextManager[None]:
        """A block: what is made inside it runs together with ``operations``, and reads their results with
        ``variable.read_value()``.  Tensors made outside keep their values from before the run."""
        given = tuple(operations)
        for op in given:
            if not isinstance(op, Operation):
                raise FlowcTypeError("G001", f"control_dependencies takes operations, got a {type(op).__name__}",
                                     loc=caller_loc(), cure="pass what assign, group or minimize return")
            if op.graph is not self:
                raise other_graph(repr(op))
        return self._controlled(given)

    @contextlib.contextmanager
    def _controlled(self, operations: tuple[Operation, ...]) -> Iterator[None]:
        before = self.control
        self.control = (*before, *operations)
        try:
            yield
        finally:
            self.control = before

    def finalize(self) -> None:
        """Refuse further nodes (G012): finds loops that grow the graph, and compile, at every step."""
        self.finalized = True

    def number(self, op: Operation) -> int:
        """The place of an operation in the order of making."""
        return self._numbers.setdefault(op, len(self._numbers))

    def _note(self, node: Node) -> None:
        """A node is wrapped as a value of this graph."""
        if self.finalized and node not in self.placeholders and node not in self.variables and node.inputs:
            raise FlowcValueError("G012", f"the graph is finalized and takes no further nodes, such as {node.op.name}",
                                  loc=caller_loc(), cure="build the whole graph before the loop that runs it")
        if self.control and node not in self._seen and node.inputs:
            self.after[node] = self.control
        self._seen.add(node)

    def add_placeholder(self, type_: Type, name: str) -> Tensor:
        tensor = self.trace.add_param(type_, name)
        node = tensor.node
        node.loc = caller_loc()
        self.placeholders[node] = self.trace.names[node] = node.attrs["name"]
        return tensor

    def add_operation(self, name: str, update: tuple[Variable, Node] | None = None,
                      after: Iterable[Operation] = ()) -> Operation:
        op = Operation(self, name, update, after)
        self.number(op)
        return op

    def fresh_size(self) -> DimLike:
        self._sizes += 1
        return sym(f"d{self._sizes}")

    def build(self, fn: Callable[[], Any]) -> Any:
        """``fn()`` with this graph's trace active."""
        with self.trace.active():
            return fn()

    def __repr__(self) -> str:
        return f"<Graph with {len(self.placeholders)} placeholders and {len(self.variables)} variables>"


_defaults: ContextVar[tuple[SessionGraph, ...]] = ContextVar("flowc_default_graphs", default=())
_global = [SessionGraph()]


def get_default_graph() -> SessionGraph:
    """The graph of the innermost ``as_default`` block, else the process's own."""
    inner = _defaults.get()
    return inner[-1] if inner else _global[0]


def reset_default_graph() -> None:
    """Start the process's own graph afresh."""
    _global[0] = SessionGraph()


# ---- placeholders and constants -------------------------------------------------------------------------------------

def _declared(value: Any, what: str) -> DType:
    try:
        return dtype(value)
    except TypeError as e:
        raise FlowcTypeError("G008", f"{what}: {e}", loc=caller_loc(), cure="name one of these dtypes") from None


def placeholder(dtype: Any, shape: Sequence[int | str | None] = (), name: str = "placeholder") -> Any:
    """A value to be fed.

    shape: per axis a size, None for any size, or a name for a size that equal names share.  A first axis of None is
    the batch: one symbol, ``n``, for all placeholders of the graph; give names where first axes differ.
    """
    graph = get_default_graph()
    d = _declared(dtype, f"placeholder {name}")
    if shape is None or isinstance(shape, (str, int)):
        raise FlowcTypeError("G008", f"placeholder {name}: the shape must list one size per axis, got {shape!r}",
                             loc=caller_loc(), cure="write None for each size that is not known: [None, 784]")
    sizes: list[DimLike] = []
    for axis, n in enumerate(shape):
        if n is None:
            sizes.append(graph.fresh_size() if axis else sym(BATCH))
        elif isinstance(n, str) and re.fullmatch(r"[A-Za-z_]\w*", n):
            sizes.append(sym(n))
        elif isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 0:
            sizes.append(int(n))
        else:
            raise FlowcTypeError("G008", f"placeholder {name}: {n!r} is no size", loc=caller_loc(),
                                 cure="give integers from 0, names such as 'n', or None")
    return graph.add_placeholder(Type(d, tuple(sizes)), name)


def constant(value: Any, dtype: Any = None) -> Any:
    """A fixed array.  A Python number without ``dtype`` takes the dtype of what it meets, as in NumPy."""
    graph = get_default_graph()
    if dtype is not None:
        value = np.asarray(value, _declared(dtype, "constant").numpy)
    elif not isinstance(value, (bool, int, float, complex)):
        value = np.asarray(value)
    return graph.build(lambda: lift(value))


def identity(x: Any) -> Any:
    """The value of ``x`` as a node of its own, which inside ``control_dependencies`` runs the operations too."""
    graph = x.graph if isinstance(x, SessionTensor) else get_default_graph()

    def build() -> Tensor:
        node = node_of(x)
        return graph.trace.wrap(make("reshape", (node,), {"shape": node.type.shape}, caller_loc()))
    return graph.build(build)


# ---- variables ------------------------------------------------------------------------------------------------------

class Variable(SessionTensor):
    """A value that a session keeps between runs.  In expressions it is its value from before the run.

    initial_value: an array, a number, a tensor, or a function without arguments that returns one.
    """

    __slots__ = ("initial", "initializer", "name", "trainable")

    def __init__(self, initial_value: Any, trainable: bool = True, name: str = "variable", dtype: Any = None):
        graph = get_default_graph()
        d = None if dtype is None else _declared(dtype, f"variable {name}")

        def initial() -> Node:
            value = initial_value() if callable(initial_value) else initial_value
            return node_of(value if isinstance(value, Tensor) else np.asarray(value), d)
        self.initial = graph.build(initial)
        if any(not isinstance(n, int) for n in self.initial.type.shape):
            raise FlowcTypeError("G008", f"variable {name}: the initial value has the type {self.initial.type}",
                                 loc=caller_loc(), cure="variables have sizes that are numbers")
        node = graph.trace.add_param(self.initial.type, name).node
        super().__init__(graph.trace, node)
        node.loc = caller_loc()
        self.name = graph.trace.names[node] = node.attrs["name"]
        self.trainable = trainable
        graph.variables[node] = self
        self.initializer = graph.add_operation(f"{self.name}.initializer", (self, self.initial))

    def write(self, new: Node) -> None:
        raise FlowcTypeError("G009", f"variable {self.name} cannot be written in place", loc=caller_loc(),
                             cure=f"make an operation and run it: {self.name}.assign(...)")

    def _renew(self, kind: str, value: Any, combine: str = "") -> Operation:
        graph, want = self.graph, self.type
        if isinstance(value, SessionTensor) and value.graph is not graph:
            raise other_graph(repr(value))

        def new() -> Node:
            given = value if isinstance(value, Tensor) or type(value) in (int, float, complex) else np.asarray(value)
            kept = spec(given)
            node = node_of(given, want.dtype) if isinstance(kept, type) else node_of(given)
            if node.type != want:
                raise FlowcTypeError("G010", f"variable {self.name} is {want}, {kind} was given {node.type}",
                                     loc=caller_loc(), notes=[f"{self.name} is declared at {self._node.loc}"],
                                     cure=f"give a value of type {want}")
            return make(combine, (self.read_value().node, node), loc=caller_loc()) if combine else node
        scalar = type(value) in (int, float, complex) and want.shape
        if scalar:
            number = np.asarray(value, want.dtype.numpy)
            value = np.broadcast_to(number, [int(n) for n in want.shape])  # type: ignore[arg-type]
        return graph.add_operation(f"{self.name}.{kind}", (self, graph.build(new)))

    def assign(self, value: Any) -> Operation:
        """The operation that stores ``value`` after the run."""
        return self._renew("assign", value)

    def assign_add(self, value: Any) -> Operation:
        """The operation that adds ``value``; inside ``control_dependencies`` to what those operations store."""
        return self._renew("assign_add", value, "add")

    def assign_sub(self, value: Any) -> Operation:
        """The operation that subtracts ``value``."""
        return self._renew("assign_sub", value, "sub")

    def read_value(self) -> Any:
        """The value as a tensor: inside ``control_dependencies`` the one that those operations store."""
        graph = self.graph
        writes = [op for op in closure(graph.control) if op.update is not None and op.update[0] is self]
        return graph.trace.wrap(last_write(writes).update[1] if writes else self._node)  # type: ignore[index]

    def load(self, value: Any, session: Any) -> None:
        """Store ``value`` in ``session`` now."""
        session.load({self: value})


def last_write(writes: Sequence[Operation]) -> Operation:
    """The one of several updates of a variable that comes after all others; G007 if their order is not given."""
    for op in reversed(writes):
        before = op.closure()
        if all(w in before for w in writes):
            return op
    variable = writes[0].update[0]  # type: ignore[index]
    places = [f"{op.name} is made at {op.loc}" for op in writes]
    raise FlowcValueError("G007", f"variable {variable.name} is updated by {len(writes)} operations in one run",
                          loc=caller_loc(), notes=places, cure="run them one after the other, or order them: make the "
                          "later one inside `with graph.control_dependencies([earlier]):`")


def group(*operations: Operation) -> Operation:
    """One operation that runs all of them."""
    for op in operations:
        if not isinstance(op, Operation):
            raise FlowcTypeError("G001", f"group takes operations, got a {type(op).__name__}", loc=caller_loc(),
                                 cure="pass what assign, group or minimize return")
    graph = operations[0].graph if operations else get_default_graph()
    if any(op.graph is not graph for op in operations):
        raise other_graph("an operation of the group")
    return graph.add_operation("group", None, operations)


def global_variables() -> list[Variable]:
    """All variables of the default graph, in the order of making."""
    return list(get_default_graph().variables.values())


def trainable_variables() -> list[Variable]:
    """The variables of the default graph that optimizers change unless told otherwise."""
    return [v for v in global_variables() if v.trainable]


def global_variables_initializer() -> Operation:
    """The operation that gives every variable made so far its initial value."""
    return group(*[v.initializer for v in global_variables()])

