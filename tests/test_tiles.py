"""Register tiles as shared functions: the same bits as in line, one function for all contractions of a form."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowc
import flowc.numpy as fnp
from flowc.backends.llvm import compile as compiling
from flowc.backends.llvm import emit_nest, engine
from flowc.backends.llvm.binary import pack, unpack
from flowc.backends.llvm.builder import Module
from flowc.backends.llvm.emit import emit_kernel
from flowc.backends.llvm.target import cpu_target
from flowc.compiled import compile_graph
from flowc.dataclass import replace
from flowc.dims import dmin, sym
from flowc.kernel import Acc, Alloc, Builder, Kernel, Let, Loop, Set, Store
from flowc.kernel import Buffer as KernelBuffer
from flowc.passes import register_tile
from flowc.types import f32

TARGET = cpu_target(*engine.host())
LAYOUTS = [(False, False), (True, False), (False, True), (True, True)]  # is an operand turned?
PACKED = "dot * *: form=packed mr=8 nr=32 kc=64"


def drawn(shape, dtype, seed):
    x = np.random.default_rng(seed).standard_normal(shape) * 4
    return x.astype(dtype)


def product(m, k, n, dtype="float32"):
    with flowc.options(schedules=PACKED):
        return compile_graph(flowc.jit(lambda a, b: fnp.maximum(a @ b, 0)).lower(
            drawn((m, k), dtype, 1), drawn((k, n), dtype, 2)).graph)


def f_in_numpy(a, b, layout):
    return np.maximum((a.T if layout[0] else a) @ (b.T if layout[1] else b), 0)


def tiles(compiled):
    out = {}
    for kernel in compiled.program.kernels.values():
        module = Module()
        emit_kernel(kernel, module, TARGET, "k", tiles=True)
        out |= {name: tile.text() for name, tile in module.tiles.items()}
    return out


@settings(max_examples=12)
@given(st.integers(1, 60), st.integers(65, 200), st.integers(30, 120), st.sampled_from(["float32", "float64", "int32"]),
       st.sampled_from(LAYOUTS))
def test_same_bits_as_in_line(m, k, n, dtype, layout):
    """Whatever lies how in memory, with loops around tiles as functions as well."""
    args = [np.ascontiguousarray(x.T) if turned else x for x, turned in
            zip([drawn((m, k), dtype, 1), drawn((k, n), dtype, 2)], layout, strict=True)]

    def f(a, b):
        return fnp.maximum((a.T if layout[0] else a) @ (b.T if layout[1] else b), 0)
    results = []
    with pytest.MonkeyPatch.context() as patch, flowc.options(schedules=PACKED):
        for name in ("PRODUCT", "COPY", "LEAST"):
            patch.setattr(emit_nest, name, 1)
        patch.setattr(register_tile, "LITTLE", 0)
        for shared in (True, False):
            patch.setattr(compiling, "emit_kernel", partial(_emit, shared))
            results.append(compile_graph(flowc.jit(f).lower(*args).graph)(args)[0])
    assert results[0].tobytes() == results[1].tobytes()
    np.testing.assert_allclose(results[0], f_in_numpy(*args, layout), rtol=1e-3, atol=1e-2)


def _emit(shared, kernel, module, target, symbol, tiles):
    emit_kernel(kernel, module, target, symbol, tiles=tiles and shared)


def test_contractions_of_one_form_share_a_function():
    one, other = tiles(product(128, 512, 512)), tiles(product(256, 1024, 704))
    assert len(one) == 4 and one == other  # packing of both operands, the tile, the epilogue
    # where not all rows and columns of a tile exist
    assert tiles(product(301, 512, 701)).keys() == tiles(product(250, 1024, 650)).keys()
    for name, text in one.items():
        assert engine.exported(text) == [name] and not engine.foreign(text)
    assert tiles(product(128, 512, 512, "float64")).keys().isdisjoint(one)


def test_programs_share_the_loaded_functions(monkeypatch):
    """Also small ones, which are in one module; a program that is kept has all that it takes."""
    one, translate, new = product(128, 512, 512), engine._object, []
    monkeypatch.setattr(engine, "_object", lambda text, level: new.append(text) or translate(text, level))
    other = product(256, 1024, 704)
    assert not any("(ptr %p0" in text for text in new)
    for c, (m, k, n) in (one, (128, 512, 512)), (other, (256, 1024, 704)):
        assert c.verify([drawn((m, k), "float32", 1), drawn((k, n), "float32", 2)])
    kept, _ = unpack(pack(other.executable.binary, None))
    assert kept.entry is not None and kept.entry.address("run")


b, i, j, k, r, t = Builder(), *map(sym, ("i", "j", "k", "r", "t"))


def tiled(index):
    """A kernel with one tile that reads its rows at ``index``."""
    body = (Acc("a", f32, (8, 48), b.const(0.0, f32)),
            Loop("k", 200, "seq", (Loop("i", 8, "unroll", (Loop("j", 48, "vector", (
                Set("a", (i, j), b.fma(b.load("x", index, f32), b.load("y", 48 * k + j, f32), b.ref("a", f32, i, j))),
            ), 16),)),)),
            Loop("i", 8, "unroll", (Loop("j", 48, "vector", (
                Store("z", 384 * t + 48 * i + j, b.ref("a", f32, i, j)),), 16),)))
    return Kernel("k", (KernelBuffer("x", f32, (4000,)), KernelBuffer("y", f32, (9600,)),
                        KernelBuffer("o", f32, (384,), "out")), (), (
        Alloc("z", f32, 768), Loop("t", 2, "seq", body),
        Loop("i", 384, "vector", (Store("o", i, b.load("z", i, f32)),), 16)))


def found(module):
    """How many tiles are functions of their own: what goes on around them is, too."""
    return sum("fma" in tile.text() for tile in module.tiles.values())


@pytest.mark.parametrize(("index", "shared"), [
    (8 * k + i + 1600 * t, True), (8 * k + i, True), (7 * k + i + 3, True), ((k + t) // 2 + i, False),
    (t * k + i, True), (80 * k + i + 70, True)])
def test_what_is_a_tile(index, shared):
    module = Module()
    emit_kernel(tiled(index), module, TARGET, "k", tiles=True)
    assert found(module) == shared
    emit_kernel(tiled(index), plain := Module(), TARGET, "k")
    assert not plain.tiles and ("fma" in module.text()) != shared


def test_a_value_from_outside_is_no_part_of_a_tile():
    kernel = tiled(8 * k + i)
    loop = kernel.body[1]
    body = (Acc("a", f32, (8, 48), b.ref("v", f32)), *loop.body[1:])
    kernel = replace(kernel, body=(kernel.body[0], Let("v", b.load("x", 0, f32)), Loop("t", 2, "seq", body),
                                   kernel.body[2]))
    emit_kernel(kernel, module := Module(), TARGET, "k", tiles=True)
    assert not found(module)


def test_memory_of_a_tile_is_the_callers_and_later_uses_keep_it_in_line():
    """The tile is put into memory that is declared after its registers; what reads them later is no part of it."""
    kernel = tiled(8 * k + i)
    acc, loop, put = kernel.body[1].body
    memory, last = kernel.body[0], kernel.body[2]
    body = (acc, loop, memory, put)
    emit_kernel(replace(kernel, body=(Loop("t", 2, "seq", (*body, last)),)), module := Module(), TARGET, "k",
                tiles=True)
    assert found(module) == 1 and "alloca [768 x float]" in module.text()
    late = Loop("i", 384, "vector", (Store("o", i, b.exp(b.ref("a", f32, 0, 0))),), 16)
    emit_kernel(replace(kernel, body=(Loop("t", 2, "seq", (*body, last, late)),)), module := Module(), TARGET, "k",
                tiles=True)
    assert not found(module)
    loose = replace(memory, size=768 * sym("d"))
    emit_kernel(replace(kernel, dims=("d",), body=(Loop("t", 2, "seq", (acc, loop, loose, put, last)),)),
                module := Module(), TARGET, "k", tiles=True)
    assert not found(module)


@pytest.mark.parametrize(("row", "shared"), [(16 * sym("p") + i, True), (dmin(16 * sym("p"), 44) + i, True),
                                             (dmin(16 * sym("p") + i, 59), False)])
def test_lanes_that_are_held_back_stay_where_sizes_are_known(row, shared):
    """With the bound as an argument they would be gathered one by one."""
    p, at = sym("p"), sym("k")
    body = Store("t", 16 * (400 * p + at) + i, b.load("x", 60 * at + row, f32))
    nest = Loop("p", 4, "seq", (Loop("k", 400, "seq", (Loop("i", 16, "vector", (body,), 16),)),))
    kernel = Kernel("c", (KernelBuffer("x", f32, (24100,)), KernelBuffer("t", f32, (25600,), "out")), (), (nest,))
    emit_kernel(kernel, module := Module(), TARGET, "k", tiles=True)
    assert bool(module.tiles) == shared
