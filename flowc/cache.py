"""The disk cache of compiled code.

Here: where it lies, who may write there, how an entry is written, checked, found and dropped.
Not here: what a key covers (backends/llvm/engine.py), the cache of one process (jit.py).  Read next: config.py.

Whoever can write into this folder runs code as the user, so the folder must belong to the user alone and hang under
folders that no other user can change; otherwise there is no disk cache, which is said once and changes no result.
An entry is a header (magic, key, length, SHA-256 of the payload) and the payload.  Anything that is not exactly that
is a miss.  Entries are written under another name and renamed, so readers need no lock and see all or nothing.
Nothing here raises because of what is on the disk.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from flowc import config
from flowc.dataclass import dataclass
from flowc.digest import digest

MAGIC = b"flowc\x00\x02\n"
_HEADER = struct.Struct("<8s32sQ32s")     # magic, digest of the key, payload bytes, digest of the payload
SUFFIX, PARTIAL, NOTE = ".code", ".partial", ".note"
MAX_ENTRY = 1 << 30                       # bytes; nothing larger is kept or believed
STALE = 3600.0                            # seconds after which an unfinished file belongs to nobody
KEEP = 0.75                               # of the size limit remains after dropping old entries
PAUSE = 0.05                              # seconds that writing waits, so that the first call may end before
UNSEEN = 1 / 32                           # of the size limit may be written, on average, before somebody looks

_serial = itertools.count()


def _log() -> Any:
    """The logger of the compiler, silent unless the user listens."""
    import logging
    log = logging.getLogger("flowc")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return log


@dataclass(frozen=True)
class Info:
    """State of the cache: folder, number and bytes of entries, limit in bytes, and why it is not used ("": it is)."""

    path: str
    entries: int
    bytes: int
    limit: int
    refused: str


def default_path() -> str:
    """The folder that the settings and the system's customs name."""
    chosen = config.get("cache_dir")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~\\AppData\\Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # the convention says that a relative one is to be ignored
            base = os.path.expanduser("~/.cache")
    return os.path.join(base, "flowc")


def refusal(path: str) -> str:
    """Why ``path``, an existing absolute folder without links in it, must not hold code; "" if it may."""
    if os.name != "posix":
        return ""
    me = os.geteuid()
    try:
        own = os.lstat(path)
    except OSError as e:
        return f"{path}: {e.strerror}"
    if not stat.S_ISDIR(own.st_mode):
        return f"{path} is not a folder"
    if own.st_uid != me:
        return f"{path} belongs to another user"
    if own.st_mode & 0o077:
        return f"{path} is open to other users (mode {stat.S_IMODE(own.st_mode):o}, want 700)"
    parent = os.path.dirname(path)
    while True:
        try:
            s = os.lstat(parent)
        except OSError as e:
            return f"{parent}: {e.strerror}"
        if not stat.S_ISDIR(s.st_mode):
            return f"{parent} is not a folder"
        if s.st_uid not in (me, 0):
            return f"{parent} belongs to another user"
        if s.st_mode & 0o022 and not s.st_mode & stat.S_ISVTX:
            return f"{parent} can be changed by other users"
        if parent == os.path.dirname(parent):
            return ""
        parent = os.path.dirname(parent)


class DiskStore:
    """Compiled code by key.  ``get`` and ``put`` never raise and may be called from any thread and process."""

    def __init__(self, path: str, limit: int | None = None):
        self.path = path           # as asked for; entries go to its real path, once that was checked
        self._limit = limit
        self.refused = ""          # why it is not used
        self._real = ""
        self._bytes: int | None = None  # estimate of what the folder holds
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    @property
    def limit(self) -> int:
        return config.get("cache_size") if self._limit is None else self._limit

    # -- the folder

    def _folder(self, create: bool) -> str:
        """The checked real path of the folder, "" if there is none to use."""
        if self.refused:
            return ""
        if self._real and os.path.isdir(self._real):
            return self._real
        try:
            if os.path.islink(self.path):
                return self._refuse(f"{self.path} is a symbolic link")
            if create:
                os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(self.path, 0o700)
            elif not os.path.isdir(self.path):
                return ""
            real = os.path.realpath(self.path)
        except (OSError, ValueError) as e:
            return self._refuse(f"{self.path}: {e}")
        reason = refusal(real)
        if reason:
            return self._refuse(reason)
        self._real = real
        return real

    def _refuse(self, reason: str) -> str:
        self.refused = reason
        _log().warning("compiled code is not kept on disk: %s", reason)
        return ""

    def _file(self, folder: str, key: str) -> str:
        return os.path.join(folder, digest(key.encode()).hexdigest() + SUFFIX)

    # -- entries

    def get(self, key: str) -> bytes | None:
        """What ``put`` kept under ``key``; None if that is missing or not whole."""
        folder = self._folder(create=False)
        if not folder:
            return None
        path = self._file(folder, key)
        try:
            payload = _read(path, key)
        except (OSError, ValueError, MemoryError):
            payload = None
            with contextlib.suppress(OSError):
                if os.path.lexists(path):
                    os.unlink(path)
        if payload is not None:
            with contextlib.suppress(OSError):  # the time of last use decides what is dropped first
                os.utime(path)
        return payload

    def put(self, key: str, data: bytes) -> None:
        """Keep ``data`` under ``key``, if that is possible."""
        data = bytes(data)
        if len(data) > min(MAX_ENTRY, self.limit):
            return
        folder = self._folder(create=True)
        if not folder:
            return
        size = _HEADER.size + len(data)
        try:
            self._make_room(folder, size)
            _write(folder, self._file(folder, key), _pack(key, data), durable=False)
        except OSError as e:
            _log().info("compiled code was not written to disk: %s", e)
            self._real = ""  # the folder may be gone: look again next time
            self._bytes = None

    def _make_room(self, folder: str, size: int) -> None:
        """Keep to the limit.  Reading a large folder takes longer than many a compile, so a process that has not done
        it does so by chance, the likelier the more it writes; all processes together go little beyond the limit."""
        with self._lock:
            chance = int.from_bytes(os.urandom(4), "little") / 2**32
            if self._bytes is None and chance * self.limit * UNSEEN > size:
                return
            if self._bytes is None or self._bytes + size > self.limit:
                self._bytes = _shrink(folder, self.limit - size)
            self._bytes += size

    # -- notes: small files beside the entries, which are kept until somebody removes them

    def _note(self, folder: str, key: str) -> str:
        return self._file(folder, key)[:-len(SUFFIX)] + NOTE

    def note(self, key: str) -> bytes | None:
        """What ``put_note`` kept under ``key``; None if there is nothing.  ValueError or OSError for a file that is
        there and not whole; it stays where it is."""
        folder = self._folder(create=False)
        return _read(self._note(folder, key), key) if folder else None

    def put_note(self, key: str, data: bytes) -> str:
        """Keep ``data`` under ``key`` and return the file's path.  OSError if that is not possible."""
        folder = self._folder(create=True)
        if not folder:
            raise OSError(self.refused)
        path = self._note(folder, key)
        _write(folder, path, _pack(key, data))
        return path

    def drop_note(self, key: str) -> bool:
        """Remove the note of ``key``; was there one?"""
        folder = self._folder(create=False)
        try:
            os.unlink(self._note(folder, key))
        except OSError:
            return False
        return True

    def other_notes(self, key: str) -> int:
        """How many notes of other keys there are."""
        folder = self._folder(create=False)
        mine = self._note(folder, key)
        return sum(path != mine for path, _ in _entries(folder, (NOTE,))) if folder else 0

    def info(self) -> Info:
        folder = self._folder(create=False)
        found = list(_entries(folder)) if folder else []
        return Info(self.path, len(found), sum(s.st_size for _, s in found), self.limit, self.refused)

    def clear(self) -> int:
        """Remove every entry and unfinished file; returns how many."""
        folder = self._folder(create=False)
        count = 0
        for path, _ in list(_entries(folder, (SUFFIX, PARTIAL))) if folder else []:
            with contextlib.suppress(OSError):
                os.unlink(path)
                count += 1
        self._bytes = None
        return count


def _pack(key: str, data: bytes) -> bytes:
    return _HEADER.pack(MAGIC, digest(key.encode()).digest(), len(data), digest(data).digest()) + data


def _read(path: str, key: str) -> bytes | None:
    """The payload, None if there is no such file.  ValueError for a file that is no whole entry of this key, OSError
    for one that cannot be read."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as f:
        s = os.fstat(fd)
        if not stat.S_ISREG(s.st_mode) or s.st_nlink > 1:
            raise ValueError("not a plain file")
        if os.name == "posix" and (s.st_uid != os.geteuid() or s.st_mode & 0o022):
            raise ValueError("others may write it")
        if not _HEADER.size <= s.st_size <= _HEADER.size + MAX_ENTRY:
            raise ValueError("impossible size")
        data = f.read(s.st_size + 1)
    if len(data) != s.st_size:
        raise ValueError("changed while it was read")
    magic, of_key, size, of_payload = _HEADER.unpack_from(data)
    payload = data[_HEADER.size:]
    if (magic != MAGIC or size != len(payload) or of_key != digest(key.encode()).digest()
            or of_payload != digest(payload).digest()):
        raise ValueError("not a whole entry of this key")
    return payload


def _write(folder: str, path: str, data: bytes, durable: bool = True) -> None:
    """All or nothing: a file of another name, then renamed.  durable: on the disk when this returns, which takes
    milliseconds.  Without it a power cut may leave a file that is not whole, which readers find by its checksum."""
    partial = os.path.join(folder, f"{os.getpid()}-{threading.get_ident()}-{next(_serial)}{PARTIAL}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    fd = os.open(partial, flags | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            if durable:
                f.flush()
                os.fsync(fd)
        os.replace(partial, path)
    except BaseException:  # also Ctrl-C: leave no litter
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    if durable and os.name == "posix":
        folder_fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)


def _entries(folder: str, suffixes: tuple[str, ...] = (SUFFIX,)) -> Iterator[tuple[str, os.stat_result]]:
    """Files of the cache with their state; those that vanish meanwhile are left out."""
    try:
        with os.scandir(folder) as it:
            for e in it:
                if e.name.endswith(suffixes):
                    with contextlib.suppress(OSError):
                        yield e.path, e.stat(follow_symlinks=False)
    except OSError:
        return


def _shrink(folder: str, limit: int) -> int:
    """Drop the entries used least recently until ``limit`` is kept; returns the bytes left.  Also removes unfinished
    files of processes that are long gone."""
    now = time.time()
    for path, s in list(_entries(folder, (PARTIAL,))):
        if now - s.st_mtime > STALE:
            with contextlib.suppress(OSError):
                os.unlink(path)
    found = sorted(_entries(folder), key=lambda t: t[1].st_mtime)
    total = sum(s.st_size for _, s in found)
    if total <= limit:
        return total
    for path, s in found:
        if total <= limit * KEEP:
            break
        with contextlib.suppress(OSError):  # another process may drop the same ones
            os.unlink(path)
        total -= s.st_size
    return total


class LateStore(DiskStore):
    """A store that writes in the background: whoever compiles does not wait for the disk.  What was put is there for
    ``get`` at once, and written before the process ends."""

    def __init__(self, path: str, limit: int | None = None):
        super().__init__(path, limit)
        self._pending: dict[str, bytes] = {}
        self._writer: threading.Thread | None = None
        self._turn = threading.RLock()  # who holds it writes
        atexit.register(self.flush)

    def _renew_lock(self) -> None:
        super()._renew_lock()
        self._pending, self._writer, self._turn = {}, None, threading.RLock()  # the parent writes them

    def get(self, key: str) -> bytes | None:
        found = self._pending.get(key)
        return super().get(key) if found is None else found

    def put(self, key: str, data: bytes) -> None:
        if self.refused:
            return
        self._pending[key] = bytes(data)
        with self._lock:
            if self._writer is not None:
                return
            self._writer = threading.Thread(target=self._write_soon, name="flowc-store", daemon=True)
        try:
            self._writer.start()
        except RuntimeError:  # no more threads, or the process ends
            self._writer = None
            self.flush()

    def _write_soon(self) -> None:
        time.sleep(PAUSE)
        with self._lock:
            self._writer = None  # what is put from now on is for another one
        self.flush()

    def flush(self) -> None:
        """Write what is left to be written."""
        with self._turn:
            while waiting := list(self._pending.items()):  # others may put meanwhile
                for key, data in waiting:
                    super().put(key, data)
                    self._pending.pop(key, None)


_stores: dict[str, LateStore] = {}
_stores_lock = threading.Lock()


def default_store() -> LateStore | None:
    """The store that the settings ask for now; None if they switch it off."""
    if not config.get("cache"):
        return None
    path = default_path()
    store = _stores.get(path)
    if store is None:
        with _stores_lock:
            store = _stores.setdefault(path, LateStore(path))
    return store


def info() -> Info:
    """State of the disk cache of this user."""
    settle()
    return DiskStore(default_path()).info()


def clear() -> int:
    """Empty the disk cache of this user; returns the number of files removed."""
    settle()
    return DiskStore(default_path()).clear()


def settle() -> None:
    """Have everything on the disk that was put."""
    for store in list(_stores.values()):
        store.flush()
