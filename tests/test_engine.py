"""The door to LLVM: compiling, loading, unloading, the object cache, refusals."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import types
import weakref

import pytest

from flowc.backends.llvm import engine, llvm_options
from flowc.diag import FlowcError, UnsupportedError

ADD = """
define i64 @add_{n}(i64 %x) nounwind {{
  %y = add i64 %x, {n}
  ret i64 %y
}}
"""
NOT_DOMINATED = """
define i64 @f(i1 %c) {
entry:
  br i1 %c, label %a, label %b
a:
  %x = add i64 1, 2
  br label %b
b:
  ret i64 %x
}
"""
CALL = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)


class Memory(dict):
    """A store that counts."""

    def __init__(self):
        super().__init__()
        self.hits = self.misses = 0

    def get(self, key):
        found = super().get(key)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def put(self, key, data):
        self[key] = data


def test_compiles_and_runs():
    code = engine.compile_module(ADD.format(n=5))
    assert CALL(code.address("add_5"))(37) == 42
    assert "add_5" in code.asm
    assert "add_5" in code.optimised
    assert code.ir == ADD.format(n=5)
    with pytest.raises(KeyError):
        code.address("nothing")


def test_host_is_described():
    host = engine.host()
    assert host.vector_bits in (128, 256, 512)
    assert host.triple and host.cpu
    assert host == (host.triple, host.cpu, host.features, host.vector_bits, host.llvm)


def test_exports_are_functions_and_globals_of_others():
    text = """
@table = global [2 x ptr] zeroinitializer
@"odd name" = constant i64 7
@hidden = internal global i64 0
@also.hidden = private constant i64 0
define internal void @inner() { ret void }
define void @outer(ptr noalias %p) nounwind { ret void }
define linkonce_odr i64 @"an other"() { ret i64 0 }
declare void @abort()
"""
    assert engine.exported(text) == ["outer", "an other", "table", "odd name"]
    assert engine.foreign(text + "declare float @llvm.fma.f32(float, float, float)\n") == ["abort"]


def test_imports_and_tables():
    """Addresses come from a table filled after loading, or from imports that are no part of the object."""
    text = """
declare i64 @given(i64)
@table = global [1 x i64] zeroinitializer
define i64 @f(i64 %x) nounwind {
  %y = call i64 @given(i64 %x)
  %z = load i64, ptr @table
  %r = add i64 %y, %z
  ret i64 %r
}
define ptr @where() nounwind { ret ptr @given }
"""
    store = Memory()
    first, second = CALL(lambda x: x * 2), CALL(lambda x: x * 3)
    for function, factor in ((first, 2), (second, 3)):
        address = ctypes.cast(function, ctypes.c_void_p).value
        code = engine.compile_module(text, store=store, imports={"given": address})
        ctypes.c_int64.from_address(code.address("table")).value = 100
        assert CALL(code.address("f"))(7) == 7 * factor + 100
        assert ctypes.CFUNCTYPE(ctypes.c_void_p)(code.address("where"))() == address
    assert len(store) == 1


def test_process_symbols_resolve():
    code = engine.compile_module("declare i64 @strlen(ptr)\ndefine i64 @f(ptr %s) nounwind {\n"
                                 "  %n = call i64 @strlen(ptr %s)\n  ret i64 %n\n}\n")
    assert ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p)(code.address("f"))(b"four") == 4


@pytest.mark.parametrize(("text", "code"), [
    ("define @", "C101"),
    ("define i64 @f() {\n  ret i64 %x\n}\n", "C101"),
    (NOT_DOMINATED, "C102"),
    ("declare i64 @nobody_defines_this()\ndefine i64 @f() {\n  %x = call i64 @nobody_defines_this()\n  ret i64 %x\n}\n",
     "C103"),
])
def test_bad_code_is_an_error_with_a_code(text, code):
    with pytest.raises(FlowcError) as e:
        engine.compile_module(text)
    assert e.value.code == code
    assert e.value.cure


def test_missing_symbol_is_named():
    with pytest.raises(FlowcError, match="nobody_defines_this"):
        engine.compile_module("declare i64 @nobody_defines_this()\ndefine i64 @f() {\n"
                              "  %x = call i64 @nobody_defines_this()\n  ret i64 %x\n}\n")


def test_object_cache():
    store = Memory()
    code = engine.compile_module(ADD.format(n=71), store=store)
    assert (store.hits, store.misses, len(store)) == (0, 1, 1)
    assert engine.compile_module(ADD.format(n=71), store=store) is code, "what is loaded is not asked for again"
    del code
    gc.collect()
    code = engine.compile_module(ADD.format(n=71), store=store)
    assert store.hits == 1
    assert CALL(code.address("add_71"))(1) == 72


def test_bad_objects_are_compiled_anew(capfd):
    store = Memory()
    for bad in (b"no object", b"\x7fELF\x02\x01\x01" + bytes(57), b"\x00"):
        key = engine.object_key(ADD.format(n=72))
        store[key] = bad
        code = engine.compile_module(ADD.format(n=72), store=store)
        assert CALL(code.address("add_72"))(1) == 73
        assert store[key] != bad
        del code
        gc.collect()


def test_key_covers_everything(monkeypatch):
    text = ADD.format(n=1)
    keys = {engine.object_key(text), engine.object_key(text + " "), engine.object_key(text, ["x"]),
            engine.object_key(text, ["x", "y"]), engine.object_key(text, ["xy"]), engine.object_key(text, level=0)}
    for name, value in (("FORMAT", 99), ("PASSES", ("sroa",)),
                        ("llvm_version", lambda: "1.2.3"),
                        ("host", lambda: engine.Host("t", "c", "f", 128, 22)),
                        ("host", lambda: engine.Host(*engine.Host("t", "c", "", 128, 22)))):
        with monkeypatch.context() as m:
            m.setattr(engine, name, value)
            keys.add(engine.object_key(text))
    assert len(keys) == 11


def test_freed_with_the_last_reference():
    code = engine.compile_module(ADD.format(n=99))
    gone = weakref.ref(code)
    library = weakref.ref(code._library)
    del code
    gc.collect()
    assert gone() is None
    assert library() is None


def test_memory_stays_flat_and_sessions_are_renewed():
    """More loads than a session takes; code of an old session lives on."""
    old = engine.compile_module(ADD.format(n=1000))
    store = Memory()
    texts = [ADD.format(n=n) for n in range(2)]

    def cycle(times):
        for i in range(times):
            code = engine.compile_module(texts[i % 2], store=store)
            assert CALL(code.address(f"add_{i % 2}"))(1) == 1 + i % 2
            del code

    def resident():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    cycle(2 * engine.RECYCLE)
    before = resident()
    cycle(4 * engine.RECYCLE)
    assert resident() - before < 8 << 20
    assert CALL(old.address("add_1000"))(1) == 1001


def test_threads_compile_the_same_and_different_code():
    wrong, codes = [], []

    def work(k):
        for i in range(20):
            n = 2000 + (k % 2) * 100 + i
            code = engine.compile_module(ADD.format(n=n))
            codes.append((n, code))
            if CALL(code.address(f"add_{n}"))(1) != 1 + n:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert len({id(c) for _, c in codes}) == 40


def test_content_names():
    a = engine.content_name("define void @SELF() { ret void }", "SELF")
    b = engine.content_name("define void @SELF() {  ret void }", "SELF")
    assert a != b
    assert a == engine.content_name("define void @SELF() { ret void }", "SELF")
    assert a[1] in a[0]


# ---- PTX

STORE = """
define ptx_kernel void @k(ptr addrspace(1) %x) nounwind {{
  {code}
  store float %y, ptr addrspace(1) %x
  ret void
}}
{declare}
"""


def test_ptx():
    text = engine.compile_ptx(STORE.format(code="%y = call float @llvm.fma.f32(float 1.0, float 2.0, float 3.0)",
                                           declare="declare float @llvm.fma.f32(float, float, float)"), "sm_80")
    assert ".target sm_80" in text
    assert ".visible .entry k(" in text
    assert ".version 7.8" in engine.compile_ptx(STORE.format(code="%y = fadd float 1.0, 2.0", declare=""), "sm_80", 78)


@pytest.mark.parametrize(("call", "declare", "code"), [
    ("%y = call float @llvm.sin.f32(float 1.0)", "declare float @llvm.sin.f32(float)", "C111"),
    ("%y = call float @llvm.exp.f32(float 1.0)", "declare float @llvm.exp.f32(float)", "C111"),
    ("%y = call float @sinf(float 1.0)", "declare float @sinf(float)", "C112"),
    ("%y = call float @llvm.nvvm.no.such.thing()", "declare float @llvm.nvvm.no.such.thing()", "C112"),
])
def test_ptx_refuses_what_would_end_the_process(call, declare, code):
    with pytest.raises(FlowcError) as e:
        engine.compile_ptx(STORE.format(code=call, declare=declare), "sm_80")
    assert e.value.code == code
    assert isinstance(e.value, UnsupportedError) == (code == "C111")


@pytest.mark.parametrize("arch", ["", "sm_8", "x86-64", "sm_80; rm"])
def test_ptx_architecture(arch):
    with pytest.raises(FlowcError) as e:
        engine.compile_ptx(STORE.format(code="%y = fadd float 1.0, 2.0", declare=""), arch)
    assert e.value.code == "C110"


def test_older_llvm_gets_its_own_spelling():
    text = ("declare <4 x float> @llvm.masked.load.v4f32.p0(ptr, <4 x i1>, <4 x float>)\n"
            "  %a = call <4 x float> @llvm.masked.load.v4f32.p0(ptr align 4 %p, <4 x i1> %m, <4 x float> %z)\n"
            "  call void @llvm.masked.scatter.v4f32.v4p0(<4 x float> %a, <4 x ptr> align 4 %q, <4 x i1> %m)\n"
            "  call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)\n")
    assert engine.spelled_for((22, 1, 0), text) == text
    old = engine.spelled_for((20, 1, 8), text)
    assert "(ptr, i32, <4 x i1>, <4 x float>)" in old and "(ptr %p, i32 4, <4 x i1> %m" in old
    assert "<4 x ptr> %q, i32 4, <4 x i1>" in old and "@llvm.nvvm.barrier0()" in old


class TestOptionsOfLLVM:
    """LLVM's options belong to the whole process."""

    @pytest.fixture
    def calls(self, monkeypatch):
        seen = []
        monkeypatch.setattr(llvm_options, "_ours", False)
        monkeypatch.setattr(llvm_options, "_users", 0)
        binding = types.SimpleNamespace(llvm_version_info=(22, 1, 0), set_option=lambda _, o: seen.append(o))
        return binding, seen

    def test_they_stay_if_nobody_else_writes_code(self, calls, monkeypatch):
        binding, seen = calls
        monkeypatch.delitem(sys.modules, llvm_options.OTHERS, raising=False)
        for _ in range(2):
            with llvm_options.in_force(binding), llvm_options.in_force(binding):
                assert len(seen) == len(llvm_options.OPTIONS)
        assert len(seen) == len(llvm_options.OPTIONS)

    def test_others_get_the_usual_ones_back(self, calls, monkeypatch):
        binding, seen = calls
        monkeypatch.setitem(sys.modules, llvm_options.OTHERS, types.ModuleType("ir"))
        with llvm_options.in_force(binding):
            with llvm_options.in_force(binding):
                pass
            assert seen == [f"-{name}={here}" for name, here, _ in llvm_options.OPTIONS]
        assert seen[len(llvm_options.OPTIONS):] == [f"-{name}={usual}" for name, _, usual in llvm_options.OPTIONS]

    def test_versions_that_may_lack_them_are_left_alone(self, calls):
        _, seen = calls
        binding = types.SimpleNamespace(llvm_version_info=(max(llvm_options.VERSIONS) + 1, 0, 0),
                                        set_option=lambda _, o: seen.append(o))
        with llvm_options.in_force(binding):
            assert not seen
