"""GPU drivers: the CUDA driver library through ctypes, and the PTX interpreter.

Here: the ``Driver`` protocol, both drivers, which one is used.  Not here: programs (runtime.py), what PTX means (sim/).
Read next: runtime.py.

The library is NVIDIA's libcuda, which comes with the kernel driver: no toolkit is needed.  Its primary context is
shared with other users of the process.  Everything runs on the default stream, so copies see what kernels wrote.
Freed memory is kept and reused; when the device is full it is given back once, then MemoryError.  A fault inside a
kernel poisons the context: every later call fails with the same message, and programs on the CPU go on.

Entry points and numbers: CUDA Driver API reference, version 13.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from flowc import config
from flowc.diag import FlowcError, UnsupportedError

LIBRARIES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
CURE = "set FLOWC_GPU=sim to use the PTX interpreter, or device='cpu'"
OLDEST = (8, 0)          # compute capability
NEWEST = (9, 0)          # for which there is PTX of its own; newer devices run that
OUT_OF_MEMORY, CONTEXT_LOST = 2, frozenset({4, 700, 702, 708, 709, 710, 714, 715, 716, 717, 718, 719})
# why a driver that is there cannot be used
REASONS = {3: "the process was forked after CUDA had been initialised; start children by spawn",
           35: "the driver is older than the library", 100: "no device is visible",
           101: "the device number is not valid", 802: "the system is not ready",
           803: "driver and library have different versions", 804: "the driver is too old for this device",
           999: "the driver does not answer; is the container set up for GPUs?"}


class Driver(Protocol):
    """What running programs needs of a GPU.  Addresses are integers.

    name: of the device.  arch: what PTX is compiled for.
    """

    name: str
    arch: str

    def load(self, ptx: str, entry: str) -> Any:
        """The kernel ``entry`` of a module; keep the result to keep the module."""

    def alloc(self, nbytes: int) -> int:
        """MemoryError if there is no room."""

    def free(self, address: int, nbytes: int) -> None: ...

    def copy_in(self, address: int, array: np.ndarray) -> None:
        """A contiguous array to the device."""

    def copy_out(self, array: np.ndarray, address: int) -> None:
        """From the device into a contiguous array, after all launches so far."""

    def launch(self, kernel: Any, grid: int, threads: int, args: Sequence[int]) -> None:
        """Start ``grid`` blocks of ``threads``; args are 8-byte integers."""

    def synchronise(self) -> None:
        """Wait for all launches; errors of kernels show here at the latest."""


def unavailable(reason: str) -> UnsupportedError:
    return UnsupportedError("C340", f"backend unavailable: {reason}", cure=CURE)


# ---- the interpreter ------------------------------------------------------------------------------------------------

class SimDriver:
    """The PTX interpreter as a device."""

    MEMORY = 1 << 31  # bytes; pages are taken from the system when touched

    def __init__(self, arch: str):
        from flowc.backends.cuda.sim import Device, Module
        self.name, self.arch = f"PTX interpreter ({arch})", arch
        self.device = Device(self.MEMORY)
        self._module = Module
        self._lock = threading.RLock()

    def load(self, ptx: str, entry: str) -> Any:
        return self._module(ptx), entry

    def alloc(self, nbytes: int) -> int:
        with self._lock:
            return self.device.alloc(nbytes)

    def free(self, address: int, nbytes: int) -> None:
        with self._lock:
            self.device.free(address)

    def copy_in(self, address: int, array: np.ndarray) -> None:
        with self._lock:
            self.device.copy_in(address, array)

    def copy_out(self, array: np.ndarray, address: int) -> None:
        with self._lock:
            self.device.copy_out(array, address)

    def launch(self, kernel: Any, grid: int, threads: int, args: Sequence[int]) -> None:
        module, entry = kernel
        with self._lock:
            self.device.launch(module, entry, (grid,), (threads,), 0, args)

    def synchronise(self) -> None:
        """Launches return when they are done."""


# ---- libcuda --------------------------------------------------------------------------------------------------------

_P, _I, _U, _N, _V = ctypes.c_uint64, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p
_OUT = ctypes.POINTER
# name in the library -> types of the arguments; the result is always a CUresult
ENTRIES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_U,),
    "cuDeviceGetCount": (_OUT(_I),),
    "cuDeviceGet": (_OUT(_I), _I),
    "cuDeviceGetName": (ctypes.c_char_p, _I, _I),
    "cuDeviceGetAttribute": (_OUT(_I), _I, _I),
    "cuDevicePrimaryCtxRetain": (_OUT(_V), _I),
    "cuCtxSetCurrent": (_V,),
    "cuCtxSynchronize": (),
    "cuModuleLoadDataEx": (_OUT(_V), ctypes.c_char_p, _U, _OUT(_I), _OUT(_V)),
    "cuModuleUnload": (_V,),
    "cuModuleGetFunction": (_OUT(_V), _V, ctypes.c_char_p),
    "cuMemAlloc_v2": (_OUT(_P), _N),
    "cuMemFree_v2": (_P,),
    "cuMemcpyHtoD_v2": (_P, _V, _N),
    "cuMemcpyDtoH_v2": (_V, _P, _N),
    "cuLaunchKernel": (_V, _U, _U, _U, _U, _U, _U, _U, _V, _OUT(_V), _OUT(_V)),
    "cuGetErrorName": (_I, _OUT(ctypes.c_char_p)),
    "cuGetErrorString": (_I, _OUT(ctypes.c_char_p)),
}
_MAJOR, _MINOR = 75, 76                      # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_ERROR_LOG, _ERROR_LOG_SIZE = 5, 6           # CU_JIT_ERROR_LOG_BUFFER, ..._SIZE_BYTES
_LOG_BYTES = 16 << 10


class _Kernel:
    """A function and the module that it lives in, unloaded with the last reference."""

    def __init__(self, driver: CudaDriver, module: ctypes.c_void_p, function: ctypes.c_void_p):
        self._driver, self._module, self.function = driver, module, function

    def __del__(self) -> None:
        self._driver.unload(self._module)


class CudaDriver:
    """One device of libcuda.  Usable from several threads."""

    KEEP = 1 << 30  # bytes of freed memory kept for reuse

    def __init__(self, ordinal: int = 0):
        self._library = _open()
        self._pid, self._lost = os.getpid(), ""
        self._lock = threading.RLock()
        self._kept: dict[int, list[int]] = {}  # block size -> addresses
        self._kept_bytes = 0
        self._must_be_usable("cuInit", 0)
        count, device, self._context = _I(), _I(), _V()
        self._must_be_usable("cuDeviceGetCount", ctypes.byref(count))
        if count.value <= ordinal:
            raise unavailable(f"{count.value} devices are visible")
        self._must_be_usable("cuDeviceGet", ctypes.byref(device), ordinal)
        capability = tuple(self._attribute(device, a) for a in (_MAJOR, _MINOR))
        if capability < OLDEST:
            raise unavailable(f"the device has compute capability {capability[0]}.{capability[1]}; "
                              f"{OLDEST[0]}.{OLDEST[1]} is the least")
        major, minor = min(capability, NEWEST)
        self.arch = f"sm_{major}{minor}"
        text = ctypes.create_string_buffer(256)
        self._must_be_usable("cuDeviceGetName", text, 256, device)
        self.name = f"{text.value.decode()} (compute capability {capability[0]}.{capability[1]})"
        self._must_be_usable("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)

    def _attribute(self, device: ctypes.c_int, which: int) -> int:
        value = _I()
        self._must_be_usable("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    # -- calling

    def _raw(self, name: str, *args: Any) -> int:
        return int(getattr(self._library, name)(*args))

    def _must_be_usable(self, name: str, *args: Any) -> None:
        status = self._raw(name, *args)
        if status:
            raise unavailable(REASONS.get(status) or f"{name} failed: {self._describe(status)}")

    def _describe(self, status: int) -> str:
        parts = []
        for entry in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            if self._raw(entry, status, ctypes.byref(text)) == 0 and text.value:
                parts.append(text.value.decode())
        return ": ".join(parts) or f"error {status}"

    def _call(self, name: str, *args: Any) -> None:
        """A call in this device's context.  FlowcError C341, or C342 once a fault has made the context useless."""
        self._enter()
        status = self._raw(name, *args)
        if status == OUT_OF_MEMORY:
            raise MemoryError("the GPU has no memory left")
        if status in CONTEXT_LOST:
            self._lost = f"a kernel has failed before: {self._describe(status)}"
            self._enter()
        if status:
            raise FlowcError("C341", f"{name} failed: {self._describe(status)}", cure=CURE)

    def _enter(self) -> None:
        if self._lost:
            raise FlowcError("C342", f"the GPU cannot be used any more, {self._lost}",
                             cure="start the process anew; check the program with FLOWC_GPU=sim")
        if os.getpid() != self._pid:
            raise unavailable(REASONS[3])
        status = self._raw("cuCtxSetCurrent", self._context)
        if status:
            raise unavailable(f"the context cannot be entered: {self._describe(status)}")

    # -- modules

    def load(self, ptx: str, entry: str) -> _Kernel:
        self._enter()
        log = ctypes.create_string_buffer(_LOG_BYTES)
        options = (_I * 2)(_ERROR_LOG, _ERROR_LOG_SIZE)
        values = (_V * 2)(ctypes.cast(log, _V), _V(_LOG_BYTES))
        module, function = _V(), _V()
        status = self._raw("cuModuleLoadDataEx", ctypes.byref(module), ptx.encode(), 2, options, values)
        if status:
            raise FlowcError("C343", f"the driver refuses the code: {self._describe(status)}",
                             notes=log.value.decode(errors="replace").strip().splitlines()[:20],
                             cure="update the driver, or " + CURE)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, entry.encode())
        return _Kernel(self, module, function)

    def unload(self, module: ctypes.c_void_p) -> None:
        if not self._lost and os.getpid() == self._pid and self._raw("cuCtxSetCurrent", self._context) == 0:
            self._raw("cuModuleUnload", module)

    # -- memory

    def alloc(self, nbytes: int) -> int:
        size = _rounded(nbytes)
        with self._lock:
            kept = self._kept.get(size)
            if kept:
                self._kept_bytes -= size
                return kept.pop()
        address = _P()
        try:
            self._call("cuMemAlloc_v2", ctypes.byref(address), size)
        except MemoryError:
            self._release()
            self._call("cuMemAlloc_v2", ctypes.byref(address), size)
        return address.value

    def free(self, address: int, nbytes: int) -> None:
        size = _rounded(nbytes)
        with self._lock:
            if self._kept_bytes + size <= self.KEEP:
                self._kept.setdefault(size, []).append(address)
                self._kept_bytes += size
                return
        if not self._lost:
            self._call("cuMemFree_v2", _P(address))

    def _release(self) -> None:
        with self._lock:
            kept, self._kept, self._kept_bytes = self._kept, {}, 0
        for addresses in kept.values():
            for a in addresses:
                self._call("cuMemFree_v2", _P(a))

    def copy_in(self, address: int, array: np.ndarray) -> None:
        if array.nbytes:
            self._call("cuMemcpyHtoD_v2", _P(address), _V(array.ctypes.data), array.nbytes)

    def copy_out(self, array: np.ndarray, address: int) -> None:
        if array.nbytes:
            self._call("cuMemcpyDtoH_v2", _V(array.ctypes.data), _P(address), array.nbytes)

    # -- running

    def launch(self, kernel: _Kernel, grid: int, threads: int, args: Sequence[int]) -> None:
        values = (ctypes.c_int64 * max(1, len(args)))(*(a - (1 << 64) if a >= 1 << 63 else a for a in args))
        first = ctypes.addressof(values)
        pointers = (_V * max(1, len(args)))(*(first + 8 * i for i in range(len(args))))
        self._call("cuLaunchKernel", kernel.function, grid, 1, 1, threads, 1, 1, 0, None, pointers, None)

    def synchronise(self) -> None:
        self._call("cuCtxSynchronize")


def _rounded(nbytes: int) -> int:
    """Allocation sizes: few different ones, so that blocks are reused; at most an eighth is wasted."""
    n = max(512, nbytes)
    step = max(512, 1 << max(0, n.bit_length() - 4))
    return -(-n // step) * step


def _open() -> Any:
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        for entry, types in ENTRIES.items():
            try:
                fn = getattr(library, entry)
            except AttributeError:
                raise unavailable(f"the driver library has no {entry}; it is too old") from None
            fn.argtypes, fn.restype = types, _I
        return library
    raise unavailable("there is no CUDA driver library")


# ---- choosing -------------------------------------------------------------------------------------------------------

_DRIVERS: dict[tuple[str, str], Driver] = {}
_LOCK = threading.Lock()


def get_driver() -> Driver:
    """The driver that the setting ``gpu`` asks for: ``sim`` or ``auto``.  UnsupportedError C340 where there is no GPU
    and the interpreter is not asked for."""
    mode = config.get("gpu")
    if mode not in ("auto", "sim"):
        raise UnsupportedError("C340", f"backend unavailable: {mode!r} is no value of the setting gpu",
                               cure="use auto or sim")
    key = (mode, config.get("gpu_arch") if mode == "sim" else "")
    with _LOCK:
        if key not in _DRIVERS:
            _DRIVERS[key] = SimDriver(key[1]) if mode == "sim" else CudaDriver()
        return _DRIVERS[key]


def describe() -> str:
    """One line about the GPU for people."""
    try:
        d = get_driver()
    except FlowcError as e:
        return e.text
    return f"{d.name}, code for {d.arch}"
