"""The door to llvmlite: LLVM IR text in, loaded machine code or PTX out.

Here: what this machine is, the pass pipeline, object code and its cache, loading and unloading.
Not here: translating in several threads (translate.py), what is compiled (emit.py, entry.py, pool.py, callpath.py),
where objects are kept (flowc/cache.py).  Read next: translate.py.

Compiling always goes through object bytes: the bytes that run are the bytes that a store keeps.  Each module gets an
LLVM context of its own, so that nothing of it outlives the compile.  One lock is held by whole compiles, whose
modules several threads translate; it also makes two threads asking for one key compile it once.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from flowc.backends.llvm import llvm_options
from flowc.backends.llvm.translate import Ahead, Job, NotLlvmError, Team, Translator
from flowc.diag import FlowcError, UnsupportedError
from flowc.digest import digest

if TYPE_CHECKING:
    import llvmlite.binding as llvm

OPT_LEVEL = 1         # of the code generator; level 2 gives no faster kernels, level 0 makes them twice as slow
QUICK = 0             # for scalar code that runs rarely: compiles some six times faster
FORMAT = 1            # part of every key: raise it when the meaning of cached objects changes
RECYCLE = 256         # libraries per JIT session; a session's table of names is freed with the session only

# The emitter hoists, shares and drops dead code itself, so that accumulators need to become registers and little else.
PASSES = ("sroa", "simplify_cfg")
# Where vectors change between kinds of elements, comparisons and selections can move to the narrower kind (a fifth of
# the time of such kernels); elsewhere the pass takes a tenth of the compile and changes nothing.
CONVERTING = ("sroa", "instruction_combine", "simplify_cfg")
PTX_PASSES = ("sroa", "instruction_combine", "simplify_cfg", "new_gvn", "aggressive_dce")

_LOCK = threading.RLock()
_LIVE: weakref.WeakValueDictionary[str, Code] = weakref.WeakValueDictionary()
# names in a text that begins with a line end: a literal at the front is found ten times as fast as the start of a line
_DEFINED = re.compile(r"\ndefine (?!internal |private )[^@\n]*@(?:\"([^\"\n]+)\"|([-\w.$]+))\(")
_DECLARED = re.compile(r"\ndeclare [^@\n]*@(?:\"([^\"\n]+)\"|([-\w.$]+))\(")
_GLOBAL = re.compile(r"\n@(?:\"([^\"\n]+)\"|([-\w.$]+)) = (?!internal |private |external )[^\n]*"
                     r"\b(?:global|constant) ")
_CONVERTS = re.compile(r"= (?:[sz]ext|trunc|fpto[su]i) <")


class Store(Protocol):
    """Where object code may be kept between processes.  Neither method raises."""

    def get(self, key: str) -> bytes | None: ...

    def put(self, key: str, data: bytes) -> None: ...


@functools.cache
def _llvm() -> Any:
    """llvmlite's binding, loaded when the first code is compiled or loaded."""
    import llvmlite.binding as llvm
    with _LOCK:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
    if hasattr(os, "register_at_fork"):
        # a child must not inherit a lock that another thread of the parent held, nor wait for a thread that it lacks
        os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)
        os.register_at_fork(before=_AHEAD.settle, after_in_child=llvm_options.renew_lock)
    atexit.register(_AHEAD.settle)  # LLVM may not be unloaded under a thread
    return llvm


@functools.cache
def host() -> Host:
    """This machine."""
    llvm = _llvm()
    triple, cpu = llvm.get_process_triple(), llvm.get_host_cpu_name()
    try:
        table = llvm.get_host_cpu_features()
        features = table.flatten(sort=True)
        has = {name for name, on in table.items() if on}
    except RuntimeError:  # LLVM cannot tell on this machine: the cpu name stands for itself
        features, has = "", set()
    bits = 512 if "avx512f" in has else 256 if "avx" in has else 128
    return Host(triple, cpu, features, bits, llvm.llvm_version_info[0])


@functools.cache
def processor() -> str:
    """What measurements of this machine are filed under: the processor and what it can do, and how many of it there
    are."""
    h = host()
    return f"{h.triple} {h.cpu} {digest(h.features.encode()).hexdigest()[:16]} x{os.cpu_count() or 1}"


@functools.cache
def _machine(level: int = OPT_LEVEL) -> llvm.TargetMachine:
    return _new_machine(level)


def _new_machine(level: int) -> llvm.TargetMachine:
    triple, cpu, features = host()[:3]
    target = _llvm().Target.from_triple(triple)
    # small + pic: constants are read relative to the instruction pointer, and the object loads anywhere
    return target.create_target_machine(cpu=cpu, features=features, opt=level, reloc="pic", codemodel="small",
                                        jit=True)


def llvm_version() -> str:
    return ".".join(map(str, _llvm().llvm_version_info))


class _Session:
    """JIT sessions, renewed now and then.  A session never forgets the names of its libraries; replacing it keeps
    memory flat.  A dropped session lives on inside LLVM for as long as code of it is loaded."""

    def __init__(self) -> None:
        self._jit: Any = None
        self._names = itertools.count()
        self._left = 0

    def link(self, builder: llvm.JITLibraryBuilder) -> Any:
        if not self._left:
            self._jit = _llvm().create_lljit_compiler(_machine(), use_jit_link=sys.platform != "win32",
                                                       suppress_errors=True)
            self._left = RECYCLE
        self._left -= 1
        return builder.link(self._jit, f"flowc{next(self._names)}")


_SESSION = _Session()


class Host(NamedTuple):
    """A machine as the code generator sees it; ``vector_bits``: width of its widest vector registers;
    ``llvm``: the major version of the code generator."""

    triple: str
    cpu: str
    features: str
    vector_bits: int
    llvm: int


class Object(NamedTuple):
    """Object code of a module, and the names that it defines for others."""

    data: bytes
    exports: tuple[str, ...]


class Code:
    """Loaded machine code of one or more modules, which see each other's symbols.  It stays loaded until the last
    reference to this object goes: whoever keeps an address keeps the Code.

    texts: LLVM IR of the modules, none for code that was kept without it.  objects: by text, if there are texts."""

    def __init__(self, objects: Sequence[Object], texts: Sequence[str] = (), imports: Mapping[str, int] | None = None,
                 keep: Sequence[Any] = ()):
        self.texts = tuple(texts)
        self.objects = dict(zip(texts, objects, strict=bool(texts)))
        self._exports = [name for o in objects for name in o.exports]
        self._keep = tuple(keep)  # code that the imports point into
        self._asm: str | None = None
        imports = imports or {}
        builder = _llvm().JITLibraryBuilder().add_current_process()
        for obj in objects:
            builder.add_object_img(obj.data)
        for name in self._exports:
            builder.export_symbol(name)
        for name, address in imports.items():
            builder.import_symbol(name, address)
        try:
            self._library = _SESSION.link(builder)
        except RuntimeError as e:
            missing = [n for text in texts for n in foreign(text)
                       if n not in imports and n not in self._exports and not _llvm().address_of_symbol(n)]
            raise FlowcError("C103", f"the compiled code cannot be loaded: {e}",
                             notes=[f"nobody defines {', '.join(missing)}"] if missing else (),
                             cure="this is an error of flowc; report it with FLOWC_DUMP_DIR's files") from None

    def exports(self) -> list[str]:
        """Names of what the modules define for others."""
        return self._exports

    def address(self, symbol: str) -> int:
        """The address of an exported function or global; KeyError if there is none."""
        return int(self._library[symbol])

    @property
    def ir(self) -> str:
        return "\n".join(self.texts)

    @property
    def asm(self) -> str:
        """Assembly text, made when asked for."""
        if self._asm is None:
            self._asm = "\n".join(_translate(text, _machine, passes_for(text), _assembly) for text in self.texts)
        return self._asm

    @property
    def optimised(self) -> str:
        """The LLVM IR after the pass pipeline."""
        return "\n".join(_translate(text, _machine, passes_for(text), _text) for text in self.texts)


# what is taken out of an optimised module

def _assembly(module: Any, machine: Any) -> str:
    return machine.emit_assembly(module)


def _text(module: Any, machine: Any) -> str:
    return str(module)


def exported(ir_text: str) -> list[str]:
    """Names of the functions and globals that ``ir_text`` defines for others."""
    text = "\n" + ir_text
    found = _DEFINED.findall(text) + _GLOBAL.findall(text)
    return [quoted or plain for quoted, plain in found]


def foreign(ir_text: str) -> list[str]:
    """Names of the functions that ``ir_text`` wants from others; LLVM's own operations are not among them."""
    names = [quoted or plain for quoted, plain in _DECLARED.findall("\n" + ir_text)]
    return [n for n in names if not n.startswith("llvm.")]


def object_key(ir_text: str, extra: Sequence[object] = (), level: int = OPT_LEVEL) -> str:
    """The key of compiled code: everything that the object bytes depend on."""
    flowc_version = getattr(sys.modules.get("flowc"), "__version__", "")
    parts = (FORMAT, flowc_version, llvm_version(), *host()[:3], level, "pic small", *passes_for(ir_text),
             *llvm_options.OPTIONS, *extra, ir_text)
    hashed = digest()
    for part in parts:
        data = str(part).encode()
        hashed.update(len(data).to_bytes(8, "little"))
        hashed.update(data)
    return hashed.hexdigest()


def content_name(ir_text: str, stand_in: str) -> tuple[str, str]:
    """The text with the symbol ``stand_in`` renamed after the content, and that name: equal code gets equal names, in
    every program."""
    name = "k_" + digest(ir_text.encode()).hexdigest()[:24]
    return ir_text.replace(stand_in, name), name


# these are compiled when they are first used: many a process never does
_MASKED = r"(?m)^.*@llvm\.masked\..*$"
_BARRIER = r"@llvm\.nvvm\.barrier\.cta\.sync\.aligned\.all\(i32(?: 0)?\)"
_THREADS = r'(?m)^define ptx_kernel void (@[\w.$]+)\(.*"nvvm\.reqntid"="(\d+)"'
_POINTERS = r"(?P<type>\bptr(?: addrspace\(\d+\))?>?)(?: align (?P<align>\d+) (?P<value>[%@][\w.$]+))?(?=, )"


def spelled_for(version: Sequence[int], ir_text: str) -> str:
    """``ir_text``, which is written for the newest LLVM, as LLVM ``version`` writes it.

    Before LLVM 22 the masked memory operations take the alignment as an operand after the pointers; before LLVM 21
    the barrier of a CUDA block has another name, and the threads of a block are metadata.
    """
    if version[0] < 21:
        ir_text = re.sub(_BARRIER, "@llvm.nvvm.barrier0()", ir_text)
        sizes = [f'!{{ptr {name}, !"reqntidx", i32 {threads}}}' for name, threads in re.findall(_THREADS, ir_text)]
        ir_text += "".join(f"!{k} = {text}\n" for k, text in enumerate(sizes, 9000))
        if sizes:
            ir_text += f"!nvvm.annotations = !{{{', '.join(f'!{k}' for k in range(9000, 9000 + len(sizes)))}}}\n"
    if version[0] >= 22 or "@llvm.masked." not in ir_text:
        return ir_text

    def pointers(m: re.Match[str]) -> str:
        return f"{m['type']}, i32" if m["align"] is None else f"{m['type']} {m['value']}, i32 {m['align']}"
    return re.sub(_MASKED, lambda line: re.sub(_POINTERS, pointers, line[0], count=1), ir_text)


def passes_for(ir_text: str) -> tuple[str, ...]:
    """The passes that a module for the CPU goes through."""
    return CONVERTING if _CONVERTS.search(ir_text) else PASSES


def _pass_manager(machine: Any, names: Sequence[str]) -> tuple[Any, Any]:
    """A pass manager, and the builder that it runs with."""
    llvm = _llvm()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder, manager = llvm.create_pass_builder(machine, options), llvm.create_new_module_pass_manager()
    for name in names:
        getattr(manager, f"add_{name}_pass")()
    return manager, builder


_idle: dict[tuple[int, tuple[str, ...]], list[Translator]] = {}  # by level of the code generator and passes


def _object(ir_text: str, level: int) -> bytes:
    """Object code of a module; any number of threads at a time."""
    passes = passes_for(ir_text)
    free = _idle.setdefault((level, passes), [])
    try:
        translator = free.pop()
    except IndexError:
        machine = _new_machine(level)
        translator = Translator(machine, _pass_manager(machine, passes))
    try:
        with llvm_options.in_force(_llvm()):
            return translator.object(spelled_for(_llvm().llvm_version_info, ir_text))
    except NotLlvmError as e:
        raise _refused(ir_text, e) from None
    except RuntimeError as e:
        raise _uncompilable(e) from None
    finally:
        free.append(translator)


_AHEAD = Ahead(lambda text, level: _object(text, level))


def begin(sources: Iterable[Source], store: Store | None) -> None:
    """Begin to translate modules, unless the store has them: :func:`compile_module` will be asked for them soon."""
    modules = {object_key(source.text, level=source.level): (source.text, source.level) for source in sources}
    _AHEAD.begin({key: module for key, module in modules.items() if store is None or store.get(key) is None})


def begun(source: Source) -> bool | None:
    """Has a module that was begun been translated?  None: it was not begun, or has been compiled."""
    return _AHEAD.done(object_key(source.text, level=source.level))


def _translate(ir_text: str, machine: Callable[[], Any], passes: Sequence[str], take: Callable[[Any, Any], Any]) -> Any:
    """Parse, verify, optimise and hand the module to ``take``."""
    with _LOCK, llvm_options.in_force(_llvm()):
        llvm, tm = _llvm(), machine()
        context = llvm.create_context()
        try:
            module = llvm.parse_assembly(spelled_for(llvm.llvm_version_info, ir_text), context=context)
        except RuntimeError as e:
            raise _refused(ir_text, e) from None
        with module:
            module.triple, module.data_layout = tm.triple, str(tm.target_data)
            try:
                module.verify()
                manager, builder = _pass_manager(tm, passes)
                manager.run(module, builder)
                return take(module, tm)
            except RuntimeError as e:
                raise _uncompilable(e) from None


def _refused(ir_text: str, e: RuntimeError) -> FlowcError:
    return FlowcError("C101", f"LLVM does not accept the generated code: {e}", notes=_excerpt(ir_text, str(e)),
                      cure="this is an error of flowc; report it with FLOWC_DUMP_DIR's files")


def _uncompilable(e: RuntimeError) -> FlowcError:
    return FlowcError("C102", f"LLVM cannot compile the generated code: {e}",
                      cure="this is an error of flowc; report it with FLOWC_DUMP_DIR's files")


def _excerpt(ir_text: str, message: str) -> list[str]:
    """The line of the text that a parser message ``<string>:LINE:COL: ...`` points at."""
    m = re.search(r":(\d+):\d+:", message)
    lines = ir_text.splitlines()
    if m is None or not 1 <= int(m[1]) <= len(lines):
        return []
    return [f"line {m[1]}: {lines[int(m[1]) - 1].strip()}"]


class Source(NamedTuple):
    """A module to be compiled.  level: of the code generator; QUICK for code that hardly runs.  last: no other comes
    after it."""

    text: str
    level: int = OPT_LEVEL
    last: bool = False


def loaded(source: Source) -> Code | None:
    """The code of a module, if it is in use."""
    return _LIVE.get(object_key(source.text, level=source.level))


def compile_module(ir_text: str, *, store: Store | None = None, key_extra: Sequence[object] = (),
                   imports: Mapping[str, int] | None = None, keep: Sequence[Any] = (), level: int = OPT_LEVEL) -> Code:
    """Machine code of a module for this machine.

    store: asked for the object first and given it when new.  key_extra: more for the key, in text form.
    imports: addresses of symbols that the module declares and others define; they are no part of the object.
    keep: what must live as long as the code, such as the Code behind ``imports``.
    level: of the code generator; QUICK for code that hardly runs.
    Symbols of the process itself (libc) resolve by themselves.  One text compiled twice is loaded once while the
    first is in use.  Raises FlowcError C101 (not LLVM IR), C102 (not compilable), C103 (a symbol nobody defines).
    """
    source = Source(ir_text, level, last=True)
    return compile_modules([source], store=store, key_extra=key_extra, imports=imports, keep=keep)[0]


def compile_modules(sources: Iterable[Source], *, store: Store | None = None, key_extra: Sequence[object] = (),
                    imports: Mapping[str, int] | None = None, keep: Sequence[Any] = (),
                    helpers: int = 0) -> list[Code]:
    """The Code of each of several modules that may call each other, as in :func:`compile_module`; what is not loaded
    yet is loaded as one Code.

    sources: taken one by one while earlier ones are translated.  helpers: threads that translate besides the caller.
    """
    found: list[tuple[Source, str, str, Code | None, Job | bytes | None]] = []
    llvm = _llvm()  # it takes the lock, so no helper may be the first to ask for it
    with _LOCK, contextlib.ExitStack() as options, Team(_object, helpers) as team:
        for source in sources:
            key = object_key(source.text, key_extra, source.level)
            live = key + repr(sorted(imports.items())) if imports else key
            code = _LIVE.get(live)
            obj: Job | bytes | None = None
            if code is None:
                kept = None if store is None else store.get(key)
                obj = _AHEAD.take(key) or kept
                if obj is None:
                    if not team.busy:
                        options.enter_context(llvm_options.in_force(llvm))  # once, not again for every module
                    obj = team.submit(source.text, source.level, source.last)
            found.append((source, key, live, code, obj))
        team.finish()
        for _, _, _, _, obj in found:
            if isinstance(obj, Job) and obj.error is not None:
                raise obj.error
        loaded = _load([(source, key, obj) for source, key, _, _, obj in found if obj is not None],
                       [code for _, _, _, code, _ in found if code is not None], imports or {}, keep, store)
        out = []
        for _, _, live, code, _ in found:
            if code is None:
                assert loaded is not None
                code = _LIVE[live] = loaded
            out.append(code)
        return out


def _load(parts: Sequence[tuple[Source, str, Job | bytes]], others: Sequence[Code], imports: Mapping[str, int],
          keep: Sequence[Any], store: Store | None) -> Code | None:
    """Code of new and of stored objects that may call ``others``; None for no objects.  New ones are stored.  Where
    LLVM refuses the stored ones they are translated anew."""
    if not parts:
        return None
    texts = [source.text for source, _, _ in parts]
    defined = {source.text: tuple(exported(source.text)) for source, _, _ in parts}
    reached = {name: code.address(name) for code in others for name in code.exports()} if others else {}
    # a module may declare what another new one defines, which a loaded one may define as well
    wanted = {name for text in texts for name in foreign(text)} - {n for names in defined.values() for n in names}
    imports = {**{name: address for name, address in reached.items() if name in wanted}, **imports}
    keep = [*keep, *others]
    stored = [obj for _, _, obj in parts if isinstance(obj, bytes)]
    fresh = {key: obj.object for _, key, obj in parts if isinstance(obj, Job) and obj.object is not None}

    def load(data: Iterable[bytes]) -> Code:
        objects = [Object(d, defined[text]) for text, d in zip(texts, data, strict=True)]
        return Code(objects, texts, imports, keep)
    try:
        code = load(fresh[key] if isinstance(obj, Job) else obj for _, key, obj in parts)
    except FlowcError:
        if not stored:
            raise
        fresh = {key: _object(source.text, source.level) for source, key, _ in parts}
        code = load(fresh[key] for _, key, _ in parts)
    if store is not None:
        for key, data in fresh.items():
            store.put(key, data)
    return code


# ---- PTX ------------------------------------------------------------------------------------------------------------

# What NVPTX selects.  On any other intrinsic LLVM ends the process, so the list says what is let through.
_PTX_SAFE = (
    r"llvm\.(?:nvvm\.[\w.]+|(?:fma|fabs|sqrt|floor|ceil|trunc|rint|nearbyint|round|roundeven|copysign|minnum|maxnum|"
    r"minimum|maximum)\.(?:v\d+)?(?:f16|bf16|f32|f64)|exp2\.f32|(?:smin|smax|umin|umax|abs|ctpop|ctlz|cttz|bswap|"
    r"bitreverse|fshl|fshr|sadd\.sat|ssub\.sat|uadd\.sat|usub\.sat|[su](?:add|sub|mul)\.with\.overflow)\.(?:v\d+)?i\d+|"
    r"fpto[su]i\.sat\.(?:v\d+)?i\d+\.(?:v\d+)?b?f\d+|lifetime\.(?:start|end)[.\w]*|assume|trap|expect\.i\d+|"
    r"mem(?:cpy|set)\.[\w.]+|is\.fpclass\.f\d+)$")
_ARCH = r"sm_\d{2,3}[af]?$"


def compile_ptx(ir_text: str, arch: str, ptx: int | None = None) -> str:
    """PTX text of a module for ``arch`` such as ``sm_80``; ``ptx``: version of the PTX language times ten, by default
    the oldest that knows the architecture.

    Raises UnsupportedError C111 for an operation that PTX does not have, naming it, and FlowcError C112 for code that
    would call a function outside the module.
    """
    if not re.match(_ARCH, arch):
        raise FlowcError("C110", f"{arch!r} is not an NVIDIA architecture", cure="use a name such as sm_80")
    names = [quoted or plain for quoted, plain in _DECLARED.findall("\n" + ir_text)]
    unknown = [n for n in names if n.startswith("llvm.") and not re.match(_PTX_SAFE, n)]
    outside = foreign(ir_text)
    if unknown:
        raise UnsupportedError("C111", f"PTX has no operation for {', '.join(unknown)}",
                               cure="expand it into arithmetic before code generation")
    if outside:
        raise FlowcError("C112", f"device code calls functions outside its module: {', '.join(outside)}",
                         cure="define them in the module")
    text = _translate(ir_text, lambda: _ptx_machine(arch, ptx), PTX_PASSES, _assembly)
    stray = re.search(r"^\s*(?:\.extern\s+\.func.*|call(?:\.uni)?\b.*)$", text, re.M)
    if stray is not None and ".extern .func" in text:  # a misspelt llvm.nvvm name parses as a plain function
        raise FlowcError("C112", f"device code calls a function that nobody defines: {stray[0].strip()}",
                         cure="check the spelling of the intrinsic")
    return text


@functools.cache
def _ptx_machine(arch: str, ptx: int | None) -> llvm.TargetMachine:
    llvm = _llvm()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("nvptx64-nvidia-cuda")
    return target.create_target_machine(cpu=arch, features=f"+ptx{ptx}" if ptx else "", opt=3)
