"""The libraries that are compared, each as a way to compile a workload and call it.

Here: what each gets (its own preloaded arrays: no conversion is timed), what it makes of it, settings of threads and
caches.  Not here: namespaces (spaces.py), loops written by hand for numba (loops.py), timing (worker.py).

``load`` is not timed: arguments are converted and, for the inference runtimes, the model is exported.  ``build`` and
the first call are: that is what a user waits for.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as onp

from benchmarks import spaces
from benchmarks.cases import Workload
from benchmarks.spaces import Missing

SHORT_S = 15e-6  # work below this has no roof


class Peer:
    """One library.  package: what must be importable.  cached: it keeps compiled code on disk between processes."""

    name = ""
    package = ""
    cached = False

    def __init__(self, threads: int):
        self.threads = threads

    def warm(self) -> None:
        """Start-up that a process pays once."""
        importlib.import_module(self.package)

    def load(self, w: Workload, args: list[onp.ndarray]) -> None:
        self.w, self.args = w, args

    def build(self) -> Callable[[], Any]:
        raise NotImplementedError

    def arrays(self, result: Any) -> list[onp.ndarray]:
        return [onp.asarray(r) for r in flat(result)]

    def function(self, space: spaces.Space) -> Callable[..., Any]:
        return functools.partial(self.w.fn, space)


def flat(result: Any) -> list[Any]:
    """The arrays of a result, and of a list of results."""
    if isinstance(result, (tuple, list)):
        return [a for r in result for a in flat(r)]
    return [result]


def plain_dtype(w: Workload, args: list[onp.ndarray]) -> list[onp.ndarray]:
    if w.dtype == "bfloat16":
        raise Missing("no bfloat16")
    return args


def descend(w: Workload, value_and_grad: Callable[..., Any]) -> Callable[..., Any]:
    """One step of gradient descent: loss, new parameters."""
    def step(*args: Any) -> tuple:
        loss, grads = value_and_grad(*args)
        return (loss, *[p - w.rate * g for p, g in zip(args, grads)])
    return step


def each(w: Workload, fn: Callable[..., Any], args: list[Any]) -> Callable[[], Any]:
    """A call over the workload's lengths."""
    calls = w.calls(args)
    if len(calls) == 1:
        return functools.partial(fn, *calls[0])
    return lambda: [fn(*a) for a in calls]


class Numpy(Peer):
    name = package = "numpy"

    def warm(self) -> None:
        spaces.numpy_space()

    def build(self) -> Callable[[], Any]:
        args = plain_dtype(self.w, self.args)
        if not self.w.trained:
            return each(self.w, self.function(spaces.numpy_space()), args)
        if self.w.step is None:
            raise Missing("no step by hand")
        return functools.partial(self.w.step, onp.float32(self.w.rate), *args)


class Numexpr(Peer):
    name = package = "numexpr"

    def build(self) -> Callable[[], Any]:
        ne = importlib.import_module("numexpr")
        ne.set_num_threads(self.threads)
        if self.w.trained or any(a.shape != self.args[0].shape for a in self.args):
            raise Missing("elementwise only")
        numbers: dict[Any, str] = {}
        values = {f"x{i}": a for i, a in enumerate(self.args)}
        result = flat(self.function(spaces.formula_space())(*[spaces.Formula(n, numbers) for n in values]))
        values |= {name: self.args[0].dtype.type(v) for v, name in numbers.items()}
        texts = [r.text for r in result]
        return lambda: [ne.evaluate(t, values) for t in texts]


class Numba(Peer):
    name = package = "numba"
    cached = True

    def warm(self) -> None:
        loops = importlib.import_module("benchmarks.loops")
        importlib.import_module("numba").set_num_threads(self.threads)
        loops.LOOPS["tiny"](onp.ones(3, onp.float32), onp.ones(3, onp.float32))

    def build(self) -> Callable[[], Any]:
        table = importlib.import_module("benchmarks.loops").LOOPS
        if self.w.name not in table:
            raise Missing("no loops written for it")
        return functools.partial(table[self.w.name], *self.args)


class Jax(Peer):
    name = package = "jax"
    cached = True

    def warm(self) -> None:
        jax = importlib.import_module("jax")
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.jit(lambda x: x + 1)(1.0).block_until_ready()

    def load(self, w: Workload, args: list[onp.ndarray]) -> None:
        super().load(w, args)
        jax, np = importlib.import_module("jax"), importlib.import_module("jax.numpy")
        dtype = np.bfloat16 if w.dtype == "bfloat16" else None
        self.calls = [[jax.device_put(np.asarray(a, dtype)) for a in part] for part in w.calls(args)]

    def build(self) -> Callable[[], Any]:
        jax = importlib.import_module("jax")
        fn = self.function(spaces.jax_space())
        if self.w.trained:
            fn = descend(self.w, jax.value_and_grad(fn, argnums=tuple(range(self.w.trained))))
        step, calls = jax.jit(fn), self.calls
        if len(calls) == 1:
            return lambda: jax.block_until_ready(step(*calls[0]))
        return lambda: jax.block_until_ready([step(*a) for a in calls])


class Torch(Peer):
    name = package = "torch"

    def warm(self) -> None:
        torch = importlib.import_module("torch")
        torch.set_num_threads(self.threads)
        torch.ones(4).sum()

    def load(self, w: Workload, args: list[onp.ndarray]) -> None:
        super().load(w, args)
        torch = importlib.import_module("torch")
        self.tensors = [torch.from_numpy(onp.ascontiguousarray(a)) for a in args]
        if w.dtype == "bfloat16":
            self.tensors = [t.to(torch.bfloat16) for t in self.tensors]

    def build(self) -> Callable[[], Any]:
        torch = importlib.import_module("torch")
        fn, w = self.function(spaces.torch_space()), self.w
        torch.set_grad_enabled(bool(w.trained))
        if not w.trained:
            return each(w, fn, self.tensors)
        parameters = [t.detach().clone().requires_grad_() for t in self.tensors[:w.trained]]
        rest = self.tensors[w.trained:]

        def step() -> tuple:
            loss = fn(*parameters, *rest)
            grads = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                return (loss.detach(), *[p - w.rate * g for p, g in zip(parameters, grads)])
        return step

    def arrays(self, result: Any) -> list[onp.ndarray]:
        torch = importlib.import_module("torch")
        return [r.detach().to(torch.float32).numpy() if r.dtype == torch.bfloat16 else r.detach().numpy()
                for r in flat(result)]


class TorchCompile(Torch):
    name = "torch.compile"
    cached = True

    def warm(self) -> None:
        super().warm()
        torch = importlib.import_module("torch")
        torch.set_grad_enabled(False)
        torch.compile(lambda x: x * 2 + 1)(torch.ones(64))

    def build(self) -> Callable[[], Any]:
        torch = importlib.import_module("torch")
        fn, w = self.function(spaces.torch_space()), self.w
        importlib.import_module("torch._dynamo").reset()
        torch.set_grad_enabled(False)

        def value_and_grad(*args: Any) -> tuple:
            grads, loss = torch.func.grad_and_value(lambda ps: fn(*ps, *args[w.trained:]))(tuple(args[:w.trained]))
            return loss, grads
        step = torch.compile(descend(w, value_and_grad) if w.trained else fn, dynamic=bool(w.lengths), fullgraph=True)
        return each(w, step, self.tensors)


def _exported(w: Workload, args: list[onp.ndarray]) -> tuple[str, dict[str, onp.ndarray]]:
    """An ONNX file of the workload and what to feed it."""
    torch = importlib.import_module("torch")
    if w.trained:
        raise Missing("inference only")
    if w.lengths:
        raise Missing("exported for one size")
    tensors = [torch.from_numpy(onp.ascontiguousarray(a)) for a in plain_dtype(w, args)]

    class Model(torch.nn.Module):
        def forward(self, *xs: Any) -> Any:
            return w.fn(spaces.torch_space(), *xs)
    path = os.path.join(tempfile.mkdtemp(), "model.onnx")
    names = [f"x{i}" for i in range(len(args))]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        torch.onnx.export(Model(), tuple(tensors), path, input_names=names, dynamo=False, opset_version=20)
    return path, dict(zip(names, args))


class OnnxRuntime(Peer):
    name = package = "onnxruntime"

    def warm(self) -> None:
        super().warm()
        importlib.import_module("torch")

    def load(self, w: Workload, args: list[onp.ndarray]) -> None:
        super().load(w, args)
        self.path, self.feed = _exported(w, args)

    def build(self) -> Callable[[], Any]:
        ort = importlib.import_module("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 4
        session = ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        feed = {i.name: self.feed[i.name] for i in session.get_inputs()}
        return lambda: session.run(None, feed)


class OpenVino(OnnxRuntime):
    name = package = "openvino"
    cached = True

    def build(self) -> Callable[[], Any]:
        ov = importlib.import_module("openvino")
        wanted = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY",
                  "INFERENCE_PRECISION_HINT": "f64" if self.w.dtype == "float64" else "f32"}
        if os.environ.get("BENCH_OPENVINO_CACHE"):
            wanted["CACHE_DIR"] = os.environ["BENCH_OPENVINO_CACHE"]
        model = ov.Core().compile_model(self.path, "CPU", wanted)
        request, known = model.create_infer_request(), {i.any_name for i in model.inputs}
        feed = {k: v for k, v in self.feed.items() if k in known}
        self.outputs = len(model.outputs)
        return lambda: request.infer(feed, share_inputs=True, share_outputs=True)

    def arrays(self, result: Any) -> list[onp.ndarray]:
        return [onp.array(result[i]) for i in range(self.outputs)]


class Flowc(Peer):
    name = package = "flowc"
    cached = True

    def warm(self) -> None:
        flowc = importlib.import_module("flowc")
        flowc.jit(lambda x: x + 1)(onp.ones(64, onp.float32))

    def load(self, w: Workload, args: list[onp.ndarray]) -> None:
        if w.dtype == "bfloat16":
            args = [a.astype(importlib.import_module("ml_dtypes").bfloat16) for a in args]
        super().load(w, args)

    def build(self) -> Callable[[], Any]:
        flowc = importlib.import_module("flowc")
        fn = self.function(spaces.flowc_space())
        if self.w.trained:
            fn = descend(self.w, flowc.value_and_grad(fn, argnums=tuple(range(self.w.trained))))
        return each(self.w, flowc.jit(fn, dynamic=bool(self.w.lengths)), self.args)

    def arrays(self, result: Any) -> list[onp.ndarray]:
        found = flat(result)
        if not all(isinstance(r, (onp.ndarray, onp.generic)) for r in found):
            raise TypeError("results are not finished arrays")
        return [r.astype(onp.float32) if r.dtype.kind == "V" or r.dtype.name == "bfloat16" else r
                for r in map(onp.asarray, found)]


class Roof(Peer):
    """No library: the compulsory operations done, or the compulsory bytes moved, at this moment's speed."""

    name = "roof"
    package = "flowc"

    def warm(self) -> None:
        from flowc.backends.llvm.measure import Meter
        self.meter = Meter()
        self.limits = self.meter.limits(effort=0.3)

    def build(self) -> Callable[[], Any]:
        m = self.meter
        dtype = "f64" if self.w.dtype == "float64" else "f32"
        flops, read, written = self.work
        seconds, bound = self.limits.seconds(flops, read, written, dtype)
        if seconds < SHORT_S:
            raise Missing("too short to tell from waking the threads")
        if bound == "flops":
            return lambda: m.flops(flops, dtype)
        both = min(read, written)
        rest, more = ("read", read - both) if read > both else ("write", written - both)
        past = {k: min(("", "_past"), key=lambda s, k=k, n=n: self.time(f"{k}{s}", n))  # type: ignore[misc]
                for k, n in (("copy", both), ("write", more)) if n}

        def move() -> None:
            if both:
                m.move("copy" + past["copy"], both)
            if more:
                m.move(rest + (past["write"] if rest == "write" else ""), more)
        return move

    def time(self, kind: str, nbytes: float) -> float:
        from flowc.backends.llvm.measure import best
        return best(lambda: self.meter.move(kind, nbytes), 3)

    def arrays(self, result: Any) -> list[onp.ndarray]:
        return []


PEERS: dict[str, type[Peer]] = {p.name: p for p in (
    Roof, Flowc, Numpy, Numexpr, Numba, Jax, Torch, TorchCompile, OnnxRuntime, OpenVino)}

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS",
                    "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS", "FLOWC_NUM_THREADS")
KEPT_HEAP = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "16000000000"}


def environment(threads: int, heap: str, cache: str) -> dict[str, str]:
    """Variables of a worker's process.  heap: ``default``, or ``kept``: freed memory stays in the process.
    cache: folder for compiled code; "" for none."""
    env = dict.fromkeys(THREAD_VARIABLES, str(threads))
    env |= {"PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1",
            "TORCHINDUCTOR_COMPILE_THREADS": "1", "OPENVINO_TELEMETRY_ENABLE": "0"}
    if threads == 1:
        env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if heap == "kept":
        env |= KEPT_HEAP
    if cache:
        env |= {"FLOWC_CACHE_DIR": os.path.join(cache, "flowc"), "NUMBA_CACHE_DIR": os.path.join(cache, "numba"),
                "JAX_COMPILATION_CACHE_DIR": os.path.join(cache, "jax"),
                "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "torch"),
                "BENCH_OPENVINO_CACHE": os.path.join(cache, "openvino")}
    else:
        env |= {"FLOWC_CACHE": "0", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    return env
