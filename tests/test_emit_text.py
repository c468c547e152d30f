"""The text of compiled kernels: what stays in registers, what is written once, what GPUs get.

Whether the code is right is the matter of test_emit.py, whose helpers are used here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_emit import FUNCTIONS, SUM, TARGET, b, compiled, dot_tile, map_kernel, text_of

from flowc.backends.llvm import emit_outline, engine
from flowc.backends.llvm.target import cpu_target, nvptx_target
from flowc.diag import UnsupportedError
from flowc.dims import ceildiv, sym
from flowc.kernel import INSTRS, Acc, Alloc, Barrier, Buffer, Expr, Fold, If, Kernel, Let, Loop, Set, Store
from flowc.types import bf16, f16, f32, f64, i32

NARROW = cpu_target(engine.host()[0], "x86-64-v3", "", 256)  # no masks in registers, no scaling instruction
n, i, j, k = sym("n"), sym("i"), sym("j"), sym("k")


def test_the_register_tile_stays_in_registers():
    if "+avx512f" not in engine.host()[2]:
        pytest.skip("needs AVX-512")
    asm = compiled(dot_tile()).asm
    loop = max(re.split(r"^\.L\w+:", asm, flags=re.M), key=lambda t: t.count("vfmadd"))
    loop = loop[:re.search(r"^\s*j\w+\s", loop, re.M).end()]
    assert loop.count("vfmadd231ps") == 24
    assert "(%rsp)" not in asm and "(%rbp)" not in asm
    assert len(re.findall(r"vbroadcastss|\{1to16\}", loop)) == 8
    assert len(re.findall(r"vmovup?s?\S*\s+[-\w]*\(.*zmm", loop)) == 3


def test_packed_columns_need_no_scatter():
    kernel = Kernel("k", (Buffer("x", f32, (12, 64)), Buffer("z", f32, (64, 12), "out")), (), (
        Loop("i", 12, "seq", (Loop("k", 64, "vector", (Store("z", 12 * k + i, b.load("x", 64 * i + k, f32)),), 16),)),))
    assert "scatter" not in text_of(kernel)


def test_transposed_rows_need_no_gather():
    kernel = Kernel("k", (Buffer("x", f32, (32, 64)), Buffer("z", f32, (64, 32), "out")), (), (
        Loop("k", 64, "seq", (Loop("j", 32, "vector", (Store("z", 32 * k + j, b.load("x", 64 * j + k, f32)),), 16),)),))
    assert "gather" not in text_of(kernel)


def test_a_deep_expression_needs_no_recursion():
    e = b.load("x0", i, f32)
    for m in range(20000):
        e = Expr("add", (e, b.const(float(m % 7), f32)), f32)
    text = text_of(map_kernel(lambda x: e, f32, out=f32))
    assert text.count("fadd") == 20000


def test_copies_of_a_loop_count_the_functions_that_they_write_out():
    """The order of an expression is found once; how often a function is written out is counted per use."""
    kernel = Kernel("k", (Buffer("x", f32, (64,)), Buffer("z", f32, (64,), "out")), (), (
        Loop("i", 4, "unroll", (Store("z", i, b.tanh(b.load("x", i, f32))),)),))
    text = text_of(kernel)
    assert text.count("call float @flowc.tanh.f32") == 4 - emit_outline.FEW
    rare = Kernel("k", kernel.params, (), (Loop("i", 4, "unroll", (
        Store("z", i, b.exp(b.load("x", i, f32)), b.gt(b.exp(b.load("x", i, f32)), 1.0)),)),))
    assert text_of(rare).count("call float @flowc.exp.f32") == 4 - emit_outline.FEW


def test_what_lanes_bind_does_not_outlive_them():
    """The same loop runs as lanes, then a part of its body by elements."""
    inner = Loop("j", 16, "vector", (Let("v", b.load("x", 16 * i + j, f32)), Store("z", 16 * i + j, b.neg(
        b.ref("v", f32)))), 16)
    last = Loop("j", 3, "seq", (Let("v", b.load("x", j, f32)), Store("z", 64 + j, b.ref("v", f32))))
    kernel = Kernel("k", (Buffer("x", f32, (64,)), Buffer("z", f32, (67,), "out")), (),
                    (Loop("i", 4, "unroll", (inner,)), last))
    text = text_of(kernel)
    assert text.count("fneg <16 x float>") == 4
    assert len(re.findall(r"load float, ptr", text)) == 1


def inner_loop(text: str) -> list[str]:
    """Lines of the block that branches to itself and is the longest."""
    blocks = re.findall(r"^(body\d+):\n((?:  .*\n)+)", text, re.M)
    own = [body.splitlines() for name, body in blocks if f"label %{name}," in body]
    return max(own, key=len)


def test_index_arithmetic_is_done_outside_the_inner_loop():
    m = sym("m")
    kernel = Kernel("k", (Buffer("x", f32, (n, m, 7)), Buffer("z", f32, (n, m), "inout")), ("n", "m"), (
        Loop("i", n, "seq", (Loop("j", m, "vector", (
            Store("z", m * i + j, b.load("x", 7 * (m * (n - 1 - i) + 5 * n * m) + j + n * m, f32)),), 16),)),))
    lines = inner_loop(text_of(kernel))
    assert not any(" mul " in line for line in lines)
    fetched = {line.split("(ptr ")[1].split(",")[0] for line in lines if "@llvm.prefetch" in line}
    assert sum(" = " in line and line.split(" = ")[0].strip() not in fetched for line in lines) <= 6


def test_equal_expressions_are_computed_once():
    x = b.load("x0", i, f32)
    text = text_of(map_kernel(lambda x: b.add(b.exp(x), b.mul(b.exp(x), b.exp(x))), f32, out=f32))
    one = text_of(map_kernel(lambda x: b.exp(x), f32, out=f32))
    assert text.count("llvm.fma.v16f32(<") == one.count("llvm.fma.v16f32(<") and x is not None


def test_scalars_stay_scalar():
    scalar = b.load("x", 0, f32)
    kernel = Kernel("k", (Buffer("x", f32, (1,)), Buffer("z", f32, (n,), "out")), ("n",), (
        Loop("i", n, "vector", (Store("z", i, b.mul(b.exp(scalar), b.cast(b.index(i), f32))),), 16),))
    assert "llvm.fma.v16f32" not in text_of(kernel)


def test_large_bodies_are_written_once():
    def value(x):
        for _ in range(40):
            x = b.cosh(x)
        return x
    for target in (TARGET, NARROW):
        # beyond MANY uses a function is called: its own text has one more
        assert text_of(map_kernel(value, f32, out=f32), target).count("fdiv") == emit_outline.MANY + 1


def test_tables_are_written_once():
    """However often, and also by functions that are called."""
    def value(x):
        for _ in range(20):
            x = b.tanh(x)
        return x
    assert text_of(map_kernel(value, f32, out=f32), NARROW).count("= internal constant") == 7


# ---- other machines -------------------------------------------------------------------------------------------------

def test_without_avx512_nothing_calls_a_library():
    kernel = map_kernel(lambda x, y: b.pow(b.sin(x), b.ldexp(y, b.cast(x, i32))), f32, f32, out=f32)
    text = text_of(kernel, NARROW)
    assert "llvm.ldexp" not in text
    assert engine.foreign(text) == []


def gpu_map() -> Kernel:
    t, bl = sym("t"), sym("g")
    at = 256 * bl + t
    return Kernel("k", (Buffer("x", f32, (n,)), Buffer("z", f32, (n,), "out")), ("n",), (
        Loop("g", ceildiv(n, 256), "block", (Loop("t", 256, "thread", (
            If(b.lt(b.index(at), b.index(n)), (Store("z", at, b.max(b.tanh(b.load("x", at, f32)), 0.0)),)),)),)),))


def test_gpu_kernels():
    text = text_of(gpu_map(), nvptx_target())
    memory = "ptr addrspace(1) noalias"
    assert f"define ptx_kernel void @k({memory} readonly %p0, {memory} %p1, i64 %d0)" in text
    ptx = engine.compile_ptx(text, "sm_80")
    assert ".reqntid 256" in ptx and "%ctaid.x" in ptx and "%tid.x" in ptx and "max.NaN.f32" in ptx
    assert " x float>" not in text


def test_gpu_shared_memory_and_barrier():
    t, bl = sym("t"), sym("g")
    kernel = Kernel("k", (Buffer("x", f32, (n,)), Buffer("z", f32, (n,), "out")), ("n",), (
        Loop("g", n // 64, "block", (
            Alloc("s", f32, 64, "shared"),
            Loop("t", 64, "thread", (
                Store("s", t, b.load("x", 64 * bl + t, f32)), Barrier(),
                Store("z", 64 * bl + t, b.load("s", 63 - t, f32)))))),))
    ptx = engine.compile_ptx(text_of(kernel, nvptx_target()), "sm_80")
    assert ptx.count("bar.sync") == 2 and ".shared" in ptx and "st.shared" in ptx


def emit_functions_for_the_gpu() -> None:
    """Run in a process of its own: LLVM ends the process over what it cannot select."""
    for d in (f32, f64):
        for name in sorted(FUNCTIONS | {"fmod"}):
            xs = [b.load(x, i, d) for x in "xy"][:INSTRS[name].arity]
            kernel = Kernel("k", (Buffer("x", d, (n,)), Buffer("y", d, (n,)), Buffer("z", d, (n,), "out")), ("n",), (
                Loop("i", n, "block", (Store("z", i, b.emit(name, *xs)),)),))
            assert "call" not in engine.compile_ptx(text_of(kernel, nvptx_target()), "sm_80")


def test_every_function_compiles_for_the_gpu():
    here = Path(__file__).resolve()
    code = (f"import sys; sys.path.insert(0, {str(here.parent)!r}); "
            "import test_emit_text; test_emit_text.emit_functions_for_the_gpu()")
    done = subprocess.run([sys.executable, "-c", code], cwd=here.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_gpu_registers_folds_and_local_memory():
    t, lane = sym("t"), sym("l")
    kernel = Kernel("k", (Buffer("x", f16, (n, 64)), Buffer("z", bf16, (n,), "out")), ("n",), (
        Loop("t", n, "block", (
            Acc("s", f32, (8,), b.const(0.0, f32)), Alloc("m", f32, 64),
            Loop("j", 8, "seq", (Loop("l", 8, "vector", (
                Set("s", (lane,), b.add(b.ref("s", f32, lane), b.cast(b.load("x", 64 * t + 8 * j + lane, f16), f32))),
                Store("m", 8 * j + lane, b.ref("s", f32, lane))), 8),)),
            Fold(("r",), ("s",), 8, ("p",), ("q",), SUM),
            Store("z", t, b.cast(b.add(b.ref("r", f32), b.load("m", 63, f32)), bf16)))),))
    ptx = engine.compile_ptx(text_of(kernel, nvptx_target()), "sm_80")
    assert "cvt.f32.f16" in ptx and ptx.count("add.rn.f32") >= 8


def test_what_a_target_cannot_do_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="barrier"):
        text_of(Kernel("k", (), (), (Barrier(),)))
    with pytest.raises(UnsupportedError, match="static extent"):
        text_of(Kernel("k", (), ("n",), (Loop("i", n, "unroll", ()),)))
    with pytest.raises(UnsupportedError, match="nosuch"):
        text_of(map_kernel(lambda x: Expr("nosuch", (x,), f32), f32, out=f32))
