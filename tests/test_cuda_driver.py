"""The driver for libcuda against a stand-in for the library that has the PTX interpreter inside."""

from __future__ import annotations

import ctypes
import os
import re

import numpy as np
import pytest
from test_cuda import layer, rng, scaled

import flowc
import flowc.ops
from flowc import config
from flowc.backends.cuda import driver as drivers
from flowc.backends.cuda.ptx import compile_kernel
from flowc.backends.cuda.sim import Device, LaunchError, Module
from flowc.diag import FlowcError, UnsupportedError
from flowc.kernel import Loop, Store


@pytest.fixture(autouse=True)
def simulated():
    with config.options(gpu="sim"):
        yield


class FakeCuda:
    """libcuda's functions over the PTX interpreter.  ``fail``: name -> result code, or a list of codes in turn."""

    def __init__(self, capability=(9, 0), devices=1):
        self.device, self.capability, self.devices = Device(1 << 22), capability, devices
        self.fail: dict = {}
        self.calls: list[str] = []
        self.modules: dict[int, Module] = {}
        self.functions: dict[int, tuple[Module, str]] = {}

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*args):
            self.calls.append(name)
            code = self.fail.get(name, 0)
            if isinstance(code, list):
                code = code.pop(0) if code else 0
            if code:
                return code
            args = [getattr(a, "_obj", a) for a in args]
            return getattr(self, "_" + name.removesuffix("_v2"), lambda *a: 0)(*args) or 0
        return call

    def _cuDeviceGetCount(self, out):
        out.value = self.devices

    def _cuDeviceGetAttribute(self, out, which, device):
        out.value = dict(zip((75, 76), self.capability))[which]

    def _cuDeviceGetName(self, text, size, device):
        text.value = b"Stand-in"

    def _cuDevicePrimaryCtxRetain(self, out, device):
        out.value = 77

    def _cuModuleLoadDataEx(self, out, text, count, options, values):
        if b"add.rn.f99" in text:
            message = b"line 3: error: unknown type f99"
            ctypes.memmove(values[0], message + b"\0", len(message) + 1)
            return 218
        out.value = 1000 + len(self.modules)
        self.modules[out.value] = Module(text.decode())
        return 0

    def _cuModuleUnload(self, module):
        del self.modules[module.value]

    def _cuModuleGetFunction(self, out, module, name):
        out.value = 5000 + len(self.functions)
        self.functions[out.value] = self.modules[module.value], name.decode()

    def _cuMemAlloc(self, out, size):
        out.value = self.device.alloc(size)

    def _cuMemFree(self, address):
        self.device.free(address.value)

    def _cuMemcpyHtoD(self, to, source, size):
        self.device.copy_in(to.value, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(source.value)))

    def _cuMemcpyDtoH(self, to, source, size):
        self.device.copy_out(np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(to.value)), source.value)

    def _cuLaunchKernel(self, function, gx, gy, gz, bx, by, bz, shared, stream, params, extra):
        module, name = self.functions[function.value]
        count = len(module.text.entries[name].params)
        args = [ctypes.c_int64.from_address(params[i]).value for i in range(count)]
        self.device.launch(module, name, (gx, gy, gz), (bx, by, bz), shared, args)

    def _cuGetErrorName(self, code, out):
        out.value = b"CUDA_ERROR_%d" % code

    _cuGetErrorString = _cuGetErrorName


@pytest.fixture
def fake(monkeypatch):
    library = FakeCuda()
    monkeypatch.setattr(drivers, "_open", lambda: library)
    monkeypatch.setattr(drivers, "_DRIVERS", {})
    with config.options(gpu="auto"):
        yield library


def test_programs_through_the_driver(fake):
    x, w = rng.normal(size=(20, 30)).astype("f4"), rng.normal(size=(30, 10)).astype("f4")
    assert np.allclose(flowc.jit(layer, device="cuda")(x, w), layer(x, w), rtol=1e-5)
    assert drivers.get_driver().arch == "sm_90" and "Stand-in" in drivers.describe()
    assert "cuCtxSetCurrent" in fake.calls


def test_freed_blocks_are_used_again(fake):
    d = drivers.get_driver()
    a = d.alloc(1000)
    d.free(a, 1000)
    assert d.alloc(900) == a and fake.calls.count("cuMemAlloc_v2") == 1
    d.free(a, 900)
    fake.fail["cuMemAlloc_v2"] = [2]
    assert d.alloc(1 << 16) and "cuMemFree_v2" in fake.calls  # what was kept goes back to the device first
    fake.fail["cuMemAlloc_v2"] = 2
    with pytest.raises(MemoryError):
        d.alloc(1 << 18)
    fake.fail.clear()
    assert d.alloc(1 << 18)


def test_modules_go_with_their_kernels(fake):
    d = drivers.get_driver()
    code = compile_kernel(scaled())
    kernel = d.load(code.text, code.entry)
    assert len(fake.modules) == 1
    del kernel
    assert not fake.modules


def test_the_drivers_log_is_in_the_error(fake):
    text = compile_kernel(scaled()).text.replace("add.rn.f32", "add.rn.f99")
    with pytest.raises(FlowcError, match=r"C343(.|\n)*unknown type f99"):
        drivers.get_driver().load(text, "scaled")


@pytest.mark.parametrize("entry, code, words", [("cuInit", 100, "no device"), ("cuInit", 803, "different versions"),
                                                ("cuInit", 999, "container"),
                                                ("cuDeviceGetCount", 12, "CUDA_ERROR_12")])
def test_unusable_drivers_say_why(fake, entry, code, words):
    fake.fail[entry] = code
    with pytest.raises(UnsupportedError, match=rf"backend unavailable: .*{words}(.|\n)*FLOWC_GPU=sim"):
        drivers.get_driver()
    assert words in drivers.describe()


def test_old_or_missing_devices(fake):
    fake.capability = (7, 5)
    with pytest.raises(UnsupportedError, match=r"7\.5"):
        drivers.get_driver()
    fake.devices = 0
    with pytest.raises(UnsupportedError, match="0 devices"):
        drivers.get_driver()
    fake.devices, fake.capability = 1, (12, 0)
    assert drivers.get_driver().arch == "sm_90"


def test_a_fault_poisons_the_device(fake):
    d = drivers.get_driver()
    fake.fail["cuCtxSynchronize"] = [700]
    for _ in range(2):
        with pytest.raises(FlowcError, match=r"C342(.|\n)*CUDA_ERROR_700"):
            d.synchronise()
    with pytest.raises(FlowcError, match="C342"):
        d.alloc(10)
    assert (flowc.jit(lambda x: x + 1, device="cpu")(np.ones(3, "f4")) == 2).all()


def test_other_errors_keep_the_device(fake):
    d = drivers.get_driver()
    fake.fail["cuCtxSynchronize"] = [1]
    with pytest.raises(FlowcError, match="C341"):
        d.synchronise()
    d.synchronise()


def test_a_forked_child_is_refused(fake, monkeypatch):
    d = drivers.get_driver()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(UnsupportedError, match="forked"):
        d.alloc(100)


def test_without_a_library(monkeypatch):
    monkeypatch.setattr(drivers, "LIBRARIES", ("libno-such-driver.so",))
    monkeypatch.setattr(drivers, "_DRIVERS", {})
    missing = pytest.raises(UnsupportedError, match="backend unavailable: there is no CUDA driver library")
    with config.options(gpu="auto"), missing:
        flowc.jit(lambda x: x + 1, device="cuda")(np.ones(3, "f4"))
    with config.options(gpu="vulkan"), pytest.raises(UnsupportedError, match="vulkan"):
        drivers.get_driver()


def test_the_table_of_entry_points_is_that_of_the_calls():
    """Every function that is called has its argument types declared."""
    with open(drivers.__file__, encoding="utf-8") as f:
        called = set(re.findall(r'"(cu[A-Z]\w+)"', f.read()))
    assert called == set(drivers.ENTRIES)


def test_launches_that_fail_are_errors():
    d = drivers.get_driver()
    code = compile_kernel(scaled())
    with pytest.raises(LaunchError):
        d.launch(d.load(code.text, code.entry), 1, code.threads + 1, [0, 0, 0])


__all__ = ["Loop", "Store"]
