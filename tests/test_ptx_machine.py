"""The PTX interpreter as a machine: memory, warps, control flow, barriers and races, faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ptx import HEAD, REG, THREAD, WIDTH, module, numpy_type, rng, run, same

from flowc.backends.cuda.sim import (
    BarrierFault,
    Device,
    LaunchError,
    MemoryFault,
    Module,
    PtxError,
    RaceFault,
    SimulatorError,
)
from flowc.backends.cuda.sim.flow import arrange
from flowc.backends.cuda.sim.instructions import ROWS
from flowc.backends.cuda.sim.parse import parse

# ---- memory ---------------------------------------------------------------------------------------------------------

def test_vectors_local_and_generic_memory():
    body = THREAD + """
    .local .align 16 .b8 depot[64];
    .shared .align 16 .b8 tile[1024];
    ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r60, 16; add.s64 %rd1, %rd1, %rd2;
    ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
    mov.b64 %rd3, depot; cvta.local.u64 %rd4, %rd3;
    st.local.v2.b32 [%rd3+8], {%r1, %r2};
    ld.b32 %r5, [%rd4+12];
    mov.b64 %rd5, tile; cvta.shared.u64 %rd6, %rd5; add.s64 %rd7, %rd6, %rd2;
    st.v2.b32 [%rd7], {%r3, %r4}; st.b32 [%rd7+8], %r5;
    add.s64 %rd8, %rd5, %rd2; ld.shared.v2.b32 {%r6, %r7}, [%rd8]; ld.shared.b32 %r8, [%rd8+8];
    setp.eq.b32 %p1, %r60, 3; selp.b64 %rd9, %rd7, %rd1, %p1; ld.u8 %r9, [%rd9];
    isspacep.shared %p2, %rd9; selp.u32 %r10, 1, 0, %p2;
    ld.param.b64 %rd10, [p1]; add.s64 %rd10, %rd10, %rd2;
    cvta.to.shared.u64 %rd11, %rd7; sub.s64 %rd11, %rd11, %rd8; cvt.u32.u64 %r11, %rd11;
    add.s32 %r10, %r10, %r11;
    st.global.v4.b32 [%rd10], {%r6, %r8, %r9, %r10}; ret;"""
    x = rng.integers(0, 2**32, (64, 4), dtype=np.uint32)
    d = Device(1 << 20)
    p, q = d.put(x), d.alloc(x.nbytes)
    d.launch(Module(module(body)), "k", (1,), (64,), 0, [p, q, 0])
    got = d.get(q, x.shape, "u4")
    assert np.array_equal(got[:, 0], x[:, 2]) and np.array_equal(got[:, 1], x[:, 1])
    assert np.array_equal(got[:, 2], np.where(np.arange(64) == 3, x[:, 2], x[:, 0]) & 255)
    assert np.array_equal(got[:, 3], (np.arange(64) == 3))


def test_globals_and_constants():
    extra = (".global .align 8 .b8 table[24] = {0, 0, 0, 0, 0, 0, 240, 63, 0, 0, 0, 0, 0, 0, 4, 64};\n"
             ".const .align 4 .u32 scale[2] = {3, 0x10};\n.global .align 4 .b8 counter[4];")
    body = THREAD + """mov.b64 %rd1, table; and.b32 %r1, %r60, 1; mul.wide.u32 %rd2, %r1, 8; add.s64 %rd1, %rd1, %rd2;
    ld.global.f64 %rd3, [%rd1]; ld.const.u32 %r2, [scale+4]; cvt.rn.f64.u32 %rd4, %r2; mul.rn.f64 %rd3, %rd3, %rd4;
    ld.param.b64 %rd5, [p0]; mul.wide.u32 %rd6, %r60, 8; add.s64 %rd5, %rd5, %rd6; st.global.f64 [%rd5], %rd3; ret;"""
    d = Device(1 << 20)
    p = d.alloc(8 * 32)
    d.launch(Module(module(body, extra=extra)), "k", (1,), (32,), 0, [p, 0, 0])
    assert np.array_equal(d.get(p, (32,), "f8"), np.where(np.arange(32) % 2, 40.0, 16.0))


@pytest.mark.parametrize("op, t, start, fn", [
    ("add", "u32", 5, lambda a: 5 + a.sum()), ("add", "f32", 0, lambda a: a.astype("f4").sum()),
    ("max", "s32", -3, lambda a: a.max()), ("min", "u32", 99, lambda a: a.min()),
    ("or", "b32", 0, np.bitwise_or.reduce),
    ("xor", "b32", 1, lambda a: 1 ^ np.bitwise_xor.reduce(a)), ("add", "u64", 0, lambda a: a.sum())])
def test_atomics(op, t, start, fn):
    n, bits = 96, WIDTH[t]
    a = rng.integers(1, 50, n).astype(numpy_type(t))
    reg = REG[bits]
    for form in ("red.global", "atom.global"):
        result = f"%{reg}5, " if form[:4] == "atom" else ""
        keep = f"st.global.b{bits} [%rd4], %{reg}5;" if result else ""
        body = THREAD + f"""ld.param.b64 %rd1, [p0]; ld.param.b64 %rd2, [p1]; mul.wide.u32 %rd3, %r63, {bits // 8};
        add.s64 %rd1, %rd1, %rd3; ld.global.b{bits} %{reg}6, [%rd1]; {form}.{op}.{t} {result}[%rd2], %{reg}6;
        ld.param.b64 %rd4, [p2]; add.s64 %rd4, %rd4, %rd3; {keep} ret;"""
        d = Device(1 << 20)
        p, q, r = d.put(a), d.put(np.array([start], a.dtype)), d.put(a)
        d.launch(Module(module(body)), "k", (3,), (32,), 0, [p, q, r])
        assert d.get(q, (1,), a.dtype)[0] == np.dtype(a.dtype).type(fn(a))
        if result and op == "add":
            assert sorted(d.get(r, (n,), a.dtype).tolist())[0] == start


def test_compare_and_swap_spin_lock_order():
    """Each thread swaps its number in; the chain of old values visits everybody once."""
    body = THREAD + """ld.param.b64 %rd1, [p0]; atom.global.exch.b32 %r1, [%rd1], %r63; ld.param.b64 %rd2, [p1];
    mul.wide.u32 %rd3, %r63, 4; add.s64 %rd2, %rd2, %rd3; st.global.u32 [%rd2], %r1;
    atom.global.cas.b32 %r2, [%rd1+4], 0, %r63; ret;"""
    d = Device(1 << 20)
    p, q = d.put(np.array([999, 0], "u4")), d.alloc(4 * 64)
    d.launch(Module(module(body)), "k", (2,), (32,), 0, [p, q, 0])
    old = d.get(q, (64,), "u4").tolist()
    assert sorted([*old, d.get(p, (1,), "u4")[0]]) == [*range(64), 999]


# ---- warps ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, operand, source", [
    ("bfly", 5, lambda i: i ^ 5), ("down", 3, lambda i: i + 3 if i + 3 < 32 else i),
    ("up", 3, lambda i: i - 3 if i >= 3 else i), ("idx", 9, lambda i: 9)])
def test_shuffles(kind, operand, source):
    clamp = 0 if kind == "up" else 31
    a = rng.integers(0, 2**32, 64, dtype=np.uint32)
    got = run(f"shfl.sync.{kind}.b32 $d|%p1, $0, {operand}, {clamp}, -1;", [("b32", a)], "b32")
    want = [a[w * 32 + source(i)] for w in range(2) for i in range(32)]
    assert np.array_equal(got, want)


def test_votes_and_reductions():
    a = rng.integers(-50, 50, 64).astype("i4")
    w = a.reshape(2, 32)
    for kind, fn in {"add": w.sum(1), "min": w.min(1), "max": w.max(1)}.items():
        same(run(f"redux.sync.{kind}.s32 $d, $0, -1;", [("s32", a)], "s32"), np.repeat(fn, 32).astype("i4"))
    flag = "setp.gt.s32 %p1, $0, 0; "
    same(run(flag + "vote.sync.ballot.b32 $d, %p1, -1;", [("s32", a)], "u32"),
         np.repeat(((w > 0) << np.arange(32)).sum(1), 32).astype("u4"))
    same(run(flag + "vote.sync.any.pred %p2, !%p1, -1; selp.u32 $d, 1, 0, %p2;", [("s32", a)], "u32"),
         np.repeat((w <= 0).any(1), 32).astype("u4"))
    same(run("activemask.b32 $d;", [("s32", a)], "u32"), np.full(64, 2**32 - 1, "u4"))


# ---- control flow ---------------------------------------------------------------------------------------------------

def test_divergent_loops_meet_again():
    """Collatz steps: every lane runs a loop of its own length; afterwards all of a warp are together."""
    body = THREAD + """ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r63, 4; add.s64 %rd1, %rd1, %rd2;
    add.s32 %r1, %r63, 1; mov.b32 %r2, 0;
    LOOP: setp.eq.b32 %p1, %r1, 1; @%p1 bra DONE;
    and.b32 %r3, %r1, 1; setp.eq.b32 %p2, %r3, 0; @%p2 bra EVEN;
    mad.lo.s32 %r1, %r1, 3, 1; bra.uni NEXT;
    EVEN: shr.u32 %r1, %r1, 1;
    NEXT: add.s32 %r2, %r2, 1; bra.uni LOOP;
    DONE: activemask.b32 %r4; setp.eq.b32 %p3, %r4, -1; selp.b32 %r5, 1000, 0, %p3; add.s32 %r2, %r2, %r5;
    st.global.u32 [%rd1], %r2; ret;"""

    def steps(n):
        k = 0
        while n != 1:
            n, k = (3 * n + 1 if n % 2 else n // 2), k + 1
        return k
    d = Device(1 << 20)
    p = d.alloc(4 * 128)
    d.launch(Module(module(body)), "k", (2,), (64,), 0, [p, 0, 0])
    assert d.get(p, (128,), "u4").tolist() == [steps(i + 1) + 1000 for i in range(128)]
    assert d.stats.blocks == 2 and d.stats.launches == 1 and d.stats.instructions > 128 * 10


def test_early_exit_and_guards():
    body = THREAD + """ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r63, 4; add.s64 %rd1, %rd1, %rd2;
    setp.ge.u32 %p1, %r63, 40; @%p1 ret;
    setp.lt.u32 %p2, %r63, 10; mov.b32 %r1, 5; @%p2 add.s32 %r1, %r1, %r63; @!%p2 st.global.u32 [%rd1+400], %r63;
    st.global.u32 [%rd1], %r1; ret;"""
    d = Device(1 << 20)
    p = d.put(np.zeros(200, "u4"))
    d.launch(Module(module(body)), "k", (2,), (32,), 0, [p, 0, 0])
    got = d.get(p, (200,), "u4")
    assert got[:40].tolist() == [5 + i if i < 10 else 5 for i in range(40)] and not got[40:100].any()
    assert got[110:140].tolist() == list(range(10, 40))


def test_order_of_blocks():
    """A cold block behind a loop must run before the loop's exit."""
    graph = {0: [1], 1: [2, 5], 2: [3, 6], 3: [1], 5: [], 6: [3]}
    order = arrange(graph, 0)
    at = {n: i for i, n in enumerate(order)}
    assert sorted(order) == sorted(graph) and at[6] < at[5] and at[6] < at[3] and order[0] == 0
    deep = {i: [i + 1] for i in range(5000)} | {5000: [0]}
    assert arrange(deep, 0) == list(range(5001))
    two_heads = {0: [1, 2], 1: [2, 3], 2: [1], 3: []}
    assert arrange(two_heads, 0)[-1] == 3


def test_grid_and_block_axes():
    body = """mov.u32 %r1, %ctaid.y; mov.u32 %r2, %nctaid.x; mov.u32 %r3, %ctaid.x; mad.lo.s32 %r4, %r1, %r2, %r3;
    mov.u32 %r5, %tid.z; mov.u32 %r6, %ntid.y; mov.u32 %r7, %tid.y; mad.lo.s32 %r8, %r5, %r6, %r7;
    mov.u32 %r9, %ntid.x; mov.u32 %r10, %tid.x; mad.lo.s32 %r8, %r8, %r9, %r10; mad.lo.s32 %r11, %r4, 24, %r8;
    ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r11, 4; add.s64 %rd1, %rd1, %rd2; st.global.u32 [%rd1], %r11; ret;"""
    d = Device(1 << 20, lanes=64)
    p = d.alloc(4 * 24 * 15)
    d.launch(Module(module(body)), "k", (3, 5), (2, 3, 4), 0, [p, 0, 0])
    assert np.array_equal(d.get(p, (360,), "u4"), np.arange(360))


# ---- barriers and races ---------------------------------------------------------------------------------------------

NEIGHBOUR = THREAD + """.shared .align 4 .b8 tile[256];
    mov.b64 %rd1, tile; mul.wide.u32 %rd2, %r60, 4; add.s64 %rd3, %rd1, %rd2; st.shared.u32 [%rd3], %r63;
    BARRIER
    xor.b32 %r1, %r60, 63; mul.wide.u32 %rd4, %r1, 4; add.s64 %rd4, %rd1, %rd4; ld.shared.u32 %r2, [%rd4];
    ld.param.b64 %rd5, [p0]; mul.wide.u32 %rd6, %r63, 4; add.s64 %rd5, %rd5, %rd6; st.global.u32 [%rd5], %r2; ret;"""


def launch(body: str, block: int = 64, grid: int = 2, size: int = 1 << 12, extra: str = "", **options) -> Device:
    d = Device(1 << 20, **options)
    p = d.alloc(size, "result")
    d.result = p  # type: ignore[attr-defined]
    d.launch(Module(module(body, extra=extra)), "k", (grid,), (block,), 0, [p, 0, 0])
    return d


def test_barrier_orders_shared_memory():
    d = launch(NEIGHBOUR.replace("BARRIER", "bar.sync 0;"))
    got = d.get(d.result, (128,), "u4")
    assert got[:64].tolist() == list(range(63, -1, -1)) and d.stats.barriers == 2


def test_a_missing_barrier_is_a_race():
    with pytest.raises(RaceFault, match=r"race.*ld\.shared"):
        launch(NEIGHBOUR.replace("BARRIER", ""))
    launch(NEIGHBOUR.replace("BARRIER", ""), races=False)


@pytest.mark.parametrize("second", ("st.shared.u32 [%rd3], %r1;", "st.shared.u32 [%rd1], %r1;"))
def test_writes_race(second):
    body = NEIGHBOUR.replace("BARRIER", "bar.sync 0;").replace("ld.param.b64 %rd5", second + " ld.param.b64 %rd5", 1)
    with pytest.raises(RaceFault, match="write"):
        launch(body)


def test_a_barrier_that_some_threads_miss():
    body = NEIGHBOUR.replace("BARRIER", "setp.gt.u32 %p1, %r60, 40; @%p1 bra OVER; bar.sync 0; OVER:")
    with pytest.raises((BarrierFault, RaceFault)):
        launch(body)
    body = THREAD + "setp.gt.u32 %p1, %r60, 40; @%p1 ret; bar.sync 0; ret;"
    with pytest.raises(BarrierFault, match="41 of 64 threads"):
        launch(body)


def test_one_warp_at_two_barriers():
    body = THREAD + """setp.gt.u32 %p1, %r60, 40; @%p1 bra OTHER; bar.sync 0; bra.uni END;
    OTHER: bar.sync 0; END: ret;"""
    with pytest.raises(BarrierFault, match="one warp"):
        launch(body)


def test_named_barriers_of_half_a_block():
    body = THREAD + """shr.u32 %r1, %r60, 5; add.s32 %r2, %r1, 1; bar.sync %r2, 32; bar.sync 0; ret;"""
    with pytest.raises(SimulatorError):  # the number must be the same in all threads that run the instruction
        launch(body)
    body = THREAD + """setp.lt.u32 %p1, %r60, 32; @%p1 bra LOW; bar.sync 2, 32; bra.uni END;
    LOW: bar.sync 1, 32; END: bar.sync 0; ret;"""
    assert launch(body).stats.barriers == 6


def test_shuffles_need_the_whole_warp():
    body = THREAD + "setp.gt.u32 %p1, %r60, 40; @%p1 ret; shfl.sync.bfly.b32 %r1|%p2, %r60, 1, 31, -1; ret;"
    with pytest.raises(BarrierFault, match="shfl"):
        launch(body)


def test_endless_loops_end():
    with pytest.raises(LaunchError, match="not ended"):
        launch(THREAD + "LOOP: add.s32 %r1, %r1, 1; bra.uni LOOP;", max_steps=1000)


# ---- other faults ---------------------------------------------------------------------------------------------------

STORE = THREAD + """ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r63, 4; add.s64 %rd1, %rd1, %rd2;
st.global.u32 [%rd1OFFSET], %r63; ret;"""


def test_out_of_bounds_names_the_thread():
    launch(STORE.replace("OFFSET", ""), size=512)
    with pytest.raises(MemoryFault, match=r"next to result.*\n.*block 1, thread 63"):
        launch(STORE.replace("OFFSET", ""), size=508)
    with pytest.raises(MemoryFault, match="block 0, thread 0"):
        launch(STORE.replace("OFFSET", "+-4"), size=512)


def test_misaligned_access():
    with pytest.raises(MemoryFault, match="multiple of 4"):
        launch(STORE.replace("OFFSET", "+2"), size=1024)


def test_freed_memory_is_gone():
    d = Device(1 << 20)
    p = d.alloc(512)
    d.free(p)
    with pytest.raises(MemoryFault):
        d.launch(Module(module(STORE.replace("OFFSET", ""))), "k", (2,), (64,), 0, [p, 0, 0])
    with pytest.raises(LaunchError):
        d.free(p)
    q = d.alloc(512)
    assert (d.get(q, (512,), "u1") == 0xFF).all()  # nothing of what was there before
    with pytest.raises(MemoryFault):
        d.get(q, (513,), "u1")
    with pytest.raises(MemoryError):
        d.alloc(1 << 21)


def test_allocations_come_back_whole():
    d = Device(1 << 16)
    held = [d.alloc(3000) for _ in range(8)]
    for p in (*held[::2], *held[1::2]):
        d.free(p)
    assert d.memory.live == 0 and d.alloc(40000)


def test_shared_memory_starts_poisoned_and_is_bounded():
    body = THREAD + """.shared .align 4 .b8 tile[256]; mov.b64 %rd1, tile; mul.wide.u32 %rd2, %r60, 4;
    add.s64 %rd1, %rd1, %rd2; ld.shared.u32 %r1, [%rd1OFFSET]; ld.param.b64 %rd3, [p0]; mul.wide.u32 %rd4, %r63, 4;
    add.s64 %rd3, %rd3, %rd4; st.global.u32 [%rd3], %r1; ret;"""
    d = launch(body.replace("OFFSET", ""))
    assert (d.get(d.result, (128,), "u4") == 2**32 - 1).all()
    with pytest.raises(MemoryFault, match="outside the 256 bytes of shared"):
        launch(body.replace("OFFSET", "+4"))


def test_dynamic_shared_memory():
    body = THREAD + """mov.b64 %rd1, dyn; mul.wide.u32 %rd2, %r60, 4; add.s64 %rd1, %rd1, %rd2;
    st.shared.u32 [%rd1], %r1; ret;"""
    m = Module(module(body, extra=".extern .shared .align 16 .b8 dyn[];"))
    d = Device(1 << 20)
    d.launch(m, "k", (1,), (64,), 256, [0, 0, 0])
    with pytest.raises(MemoryFault):
        d.launch(m, "k", (1,), (64,), 252, [0, 0, 0])


@pytest.mark.parametrize("line", ["wgmma.fence.sync.aligned;", "add.oddly.s32 %r1, %r1, %r1;",
                                  "tex.2d.v4.f32 %r1, [p0];", "cvt.f32.f64 %r1;", "call.uni helper;",
                                  "setp.maybe.s32 %p1, %r1, %r2;",
                                  "ld.global.nc.secret.b32 %r1, [%rd1];", "cvt.s32.f32 %r1, %r2;"])
def test_unknown_instructions_are_named(line):
    text = module(THREAD + line + " ret;")
    with pytest.raises(PtxError, match=line.split()[0].rstrip(";").replace(".", r"\.")):
        Module(text).kernel("k")


@pytest.mark.parametrize("text", [".version 7.8\n.target sm_90\n.address_size 32\n",
                                  HEAD + ".func (.param .b32 r) f() { }",
                                  HEAD + ".entry k( { ret; }", HEAD + "\x01", HEAD + ".entry k() .unheard { ret; }"])
def test_text_outside_the_grammar(text):
    with pytest.raises(PtxError):
        parse(text)


def test_branches_to_nowhere():
    with pytest.raises(PtxError, match="NOWHERE"):
        Module(module("bra NOWHERE; ret;")).kernel("k")


def test_launches_that_cannot_be():
    m = Module(module("ret;", directives=".reqntid 64"))
    d = Device(1 << 16)
    d.launch(m, "k", (1,), (64,), 0, [0, 0, 0])
    for grid, block, shared, args in [((0,), (64,), 0, [0] * 3), ((1,), (32,), 0, [0] * 3),
                                      ((1,), (64,), 1 << 20, [0] * 3), ((1,), (64,), 0, [0] * 2)]:
        with pytest.raises(SimulatorError):
            d.launch(m, "k", grid, block, shared, args)
    with pytest.raises(LaunchError, match="no kernel"):
        d.launch(m, "other", (1,), (64,), 0, [0] * 3)
    with pytest.raises(LaunchError, match="trap"):
        d.launch(Module(module("trap; ret;")), "k", (1,), (64,), 0, [0] * 3)


def test_scalar_arguments_by_type():
    text = (HEAD + ".visible .entry k(.param .u64 p, .param .f32 a, .param .u16 b, .param .align 8 .b8 c[16]) {\n"
            ".reg .b64 %rd<4>; .reg .b32 %r<4>; .reg .b16 %rs<4>;\n"
            "ld.param.u64 %rd1, [p]; ld.param.f32 %r1, [a]; ld.param.u16 %rs1, [b]; ld.param.b64 %rd2, [c+8];\n"
            "st.global.b32 [%rd1], %r1; st.global.b16 [%rd1+4], %rs1; st.global.b64 [%rd1+8], %rd2; ret; }")
    d = Device(1 << 16)
    p = d.alloc(16)
    d.launch(Module(text), "k", (1,), (1,), 0, [p, 1.5, 7, bytes(range(16))])
    assert d.get(p, (1,), "f4")[0] == 1.5 and d.get(p + 4, (1,), "u2")[0] == 7
    assert d.get(p + 8, (8,), "u1").tolist() == list(range(8, 16))


def test_memory_transactions_are_counted():
    def count(stride):
        body = THREAD + f"""ld.param.b64 %rd1, [p0]; mul.wide.u32 %rd2, %r63, {stride}; add.s64 %rd1, %rd1, %rd2;
        ld.global.u32 %r1, [%rd1]; .shared .align 4 .b8 tile[8192]; mov.b64 %rd3, tile;
        mul.wide.u32 %rd4, %r60, {stride}; add.s64 %rd3, %rd3, %rd4; st.shared.u32 [%rd3], %r1; ret;"""
        return launch(body, size=1 << 14, profile=True).stats
    tight, loose = count(4), count(128)
    assert tight.sectors == tight.ideal_sectors == 16 and tight.wavefronts == tight.ideal_wavefronts == 4
    assert loose.sectors == 128 and loose.wavefronts == 32 * 4 and loose.requests == 4


def test_every_row_of_the_table_is_tested():
    """The rows named in neither file on the interpreter are the ones of other families with the same code."""
    text = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_ptx_*.py"))
    quiet = {"ldu", "mad24", "membar", "fence", "prefetch", "prefetchu", "nanosleep", "discard",
             "applypriority", "barrier", "st", "ld", "atom", "red", "bar", "trap"}
    missing = [r for r in ROWS if f"{r}." not in text and r not in quiet]
    assert not missing
