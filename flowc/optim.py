"""Gradients and optimizers of the graph layer.

Here: ``gradients`` and the optimizers, whose updates are nodes of the graph like everything else.  Not here: the
derivative of any op (its own record), variables and operations (symbolic.py), functions' gradients (jit.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowc.diag import FlowcTypeError, FlowcValueError, caller_loc
from flowc.passes.autodiff import ones_like, vjp
from flowc.symbolic import Operation, SessionGraph, SessionTensor, Variable, group, other_graph


def _tensors(given: Any, what: str) -> list[SessionTensor]:
    many = list(given) if isinstance(given, (list, tuple)) else [given]
    for x in many:
        if not isinstance(x, SessionTensor):
            raise FlowcTypeError("G001", f"gradients: {what} holds a {type(x).__name__}", loc=caller_loc(),
                                 cure="pass tensors or variables of one graph")
        if x.graph is not many[0].graph:
            raise other_graph(repr(x))
    return many


def gradients(ys: Any, xs: Any, grad_ys: Any = None) -> list[Any]:
    """Per tensor of ``xs`` the derivative of the sum of all elements of ``ys``, as new nodes of the graph.

    xs: any tensors of the graph.  grad_ys: weights of the elements, one tensor per tensor of ``ys``.  The entry of a
    tensor on which no ``ys`` depends is None.
    """
    outputs, wrt = _tensors(ys, "ys"), _tensors(xs, "xs")
    if not outputs:
        raise FlowcValueError("G001", "gradients: ys is empty", loc=caller_loc(), cure="pass the loss")
    graph = outputs[0].graph
    if wrt and wrt[0].graph is not graph:
        raise other_graph(repr(wrt[0]))

    def build() -> list[Any]:
        nodes = [y.node for y in outputs]
        weights = [ones_like(n) for n in nodes] if grad_ys is None else [g.node for g in _tensors(grad_ys, "grad_ys")]
        found = vjp(nodes, weights, [x.node for x in wrt])
        return [None if g is None else graph.trace.wrap(g) for g in found]
    return graph.build(build)


class Optimizer(ABC):
    """The base of all optimizers: which gradients, and one update operation for all variables."""

    def __init__(self, learning_rate: Any):
        self.learning_rate = learning_rate

    def compute_gradients(self, loss: Any, var_list: Sequence[Variable] | None = None) -> list[tuple[Any, Variable]]:
        """(gradient, variable) for every trainable variable, or for those of ``var_list``."""
        (y,) = _tensors(loss, "loss")
        if y.node.rank or y.node.dtype.kind != "f":
            raise FlowcTypeError("G013", f"the loss is {y.node.type}: optimizers need one real number",
                                 loc=caller_loc(), cure="take a sum or mean")
        chosen = [v for v in y.graph.variables.values() if v.trainable] if var_list is None else list(var_list)
        return list(zip(gradients(y, chosen), chosen, strict=True))

    def apply_gradients(self, grads_and_vars: Sequence[tuple[Any, Variable]]) -> Operation:
        """The operation that changes the variables; pairs whose gradient is None are left out."""
        pairs = [(g, v) for g, v in grads_and_vars if g is not None]
        if not pairs:
            raise FlowcValueError("G013", "there is no gradient for any variable", loc=caller_loc(),
                                  cure="let the loss depend on a trainable variable through float operations")
        graph = pairs[0][1].graph
        with graph.as_default():
            shared = self._shared(graph, pairs[0][1])
            updates = [op for g, v in pairs for op in self._update(g, v, *shared)]
            return group(*updates, *self._finish(*shared))

    def minimize(self, loss: Any, var_list: Sequence[Variable] | None = None) -> Operation:
        """The operation that makes one step against the gradient of ``loss``."""
        return self.apply_gradients(self.compute_gradients(loss, var_list))

    def _shared(self, graph: SessionGraph, like: Variable) -> tuple:
        """Values that the updates of all variables use."""
        return ()

    @abstractmethod
    def _update(self, g: Any, v: Variable, *shared: Any) -> list[Operation]:
        """The operations that change ``v`` and what the optimizer keeps for it, given its gradient ``g``."""

    def _finish(self, *shared: Any) -> list[Operation]:
        """Updates that belong to no variable of the program."""
        return []


def _slot(v: Variable, name: str) -> Variable:
    """A variable of the optimizer, zero at first, of the type of ``v``."""
    zeros = np.zeros([int(n) for n in v.type.shape], v.dtype)  # type: ignore[arg-type]
    return Variable(zeros, trainable=False, name=f"{v.name}_{name}")


class GradientDescentOptimizer(Optimizer):
    """v <- v - rate * gradient."""

    def _update(self, g: Any, v: Variable, *shared: Any) -> list[Operation]:
        return [v.assign_sub(self.learning_rate * g)]


class MomentumOptimizer(Optimizer):
    """a <- momentum * a + gradient; v <- v - rate * a, or v - rate * (gradient + momentum * a) with Nesterov's
    look-ahead."""

    def __init__(self, learning_rate: Any, momentum: float, use_nesterov: bool = False):
        super().__init__(learning_rate)
        self.momentum, self.use_nesterov = momentum, use_nesterov

    def _update(self, g: Any, v: Variable, *shared: Any) -> list[Operation]:
        slot = _slot(v, "momentum")
        speed = self.momentum * slot + g
        step = g + self.momentum * speed if self.use_nesterov else speed
        return [slot.assign(speed), v.assign_sub(self.learning_rate * step)]


class AdamOptimizer(Optimizer):
    """Kingma and Ba, "Adam: a method for stochastic optimization", 2015, in the form of the end of their section 2:
    the corrections of both moments' bias are part of the rate."""

    def __init__(self, learning_rate: Any = 0.001, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8):
        super().__init__(learning_rate)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon

    def _shared(self, graph: SessionGraph, like: Variable) -> tuple:
        d = np.dtype(np.float64 if like.dtype == np.float64 else np.float32)
        powers = [Variable(np.ones((), d), trainable=False, name=f"beta{i}_power") for i in (1, 2)]
        after = [p * b for p, b in zip(powers, (self.beta1, self.beta2), strict=True)]
        rate = self.learning_rate * np.sqrt(1 - after[1]) / (1 - after[0])
        return powers, after, rate

    def _update(self, g: Any, v: Variable, *shared: Any) -> list[Operation]:
        rate = shared[2]
        mean, square = _slot(v, "mean"), _slot(v, "square")
        m = self.beta1 * mean + (1 - self.beta1) * g
        s = self.beta2 * square + (1 - self.beta2) * g * g
        step = rate.astype(v.dtype) * m / (np.sqrt(s) + self.epsilon)
        return [mean.assign(m), square.assign(s), v.assign_sub(step)]

    def _finish(self, *shared: Any) -> list[Operation]:
        powers, after, _ = shared
        return [p.assign(a) for p, a in zip(powers, after, strict=True)]

