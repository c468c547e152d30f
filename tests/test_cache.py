"""The disk cache: what comes back is what was kept, whatever happens to the files."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
import threading
import time

import pytest

from flowc import cache, config
from flowc.cache import DiskStore

KEY = "a" * 64
DATA = bytes(range(256)) * 5


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "deep" / "cache")


@pytest.fixture
def store(folder):
    return DiskStore(folder, limit=1 << 20)


def entry_file(store):
    (name,) = [n for n in os.listdir(store.path) if n.endswith(cache.SUFFIX)]
    return os.path.join(store.path, name)


def test_keeps_and_finds(store):
    assert store.get(KEY) is None
    store.put(KEY, DATA)
    store.put("other", b"")
    assert store.get(KEY) == DATA
    assert store.get("other") == b""
    assert DiskStore(store.path).get(KEY) == DATA
    assert store.get(KEY + "x") is None


def test_reading_creates_nothing(store):
    store.get(KEY)
    assert store.info().entries == 0
    assert not os.path.exists(store.path)


def test_folder_and_files_belong_to_the_user_alone(store):
    store.put(KEY, DATA)
    assert stat.S_IMODE(os.stat(store.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(entry_file(store)).st_mode) == 0o600
    assert [n for n in os.listdir(store.path) if not n.endswith(cache.SUFFIX)] == []


def test_truncated_at_every_byte_is_a_miss(store):
    store.put(KEY, b"payload of some length")
    path = entry_file(store)
    with open(path, "rb") as f:
        whole = f.read()
    for n in range(len(whole)):
        with open(path, "wb") as f:
            f.write(whole[:n])
        assert store.get(KEY) is None, n
        assert not os.path.exists(path), "a bad entry is removed"
        store.put(KEY, b"payload of some length")
        assert store.get(KEY) == b"payload of some length"


def test_longer_file_is_a_miss(store):
    store.put(KEY, DATA)
    with open(entry_file(store), "ab") as f:
        f.write(b"x")
    assert store.get(KEY) is None


def test_every_flipped_bit_is_a_miss(store):
    store.put(KEY, b"abc")
    path = entry_file(store)
    with open(path, "rb") as f:
        whole = f.read()
    for i in range(8 * len(whole)):
        bad = bytearray(whole)
        bad[i // 8] ^= 1 << i % 8
        with open(path, "wb") as f:
            f.write(bad)
        assert store.get(KEY) is None, i
    store.put(KEY, b"abc")
    assert store.get(KEY) == b"abc"


def test_entry_of_another_key_is_a_miss(store):
    store.put(KEY, DATA)
    os.rename(entry_file(store), store._file(store.path, "another"))
    assert store.get("another") is None


@pytest.mark.skipif(os.name != "posix", reason="file modes")
class TestStrangers:
    def test_open_folder_is_refused(self, folder, caplog):
        os.makedirs(folder)
        os.chmod(folder, 0o755)
        store = DiskStore(folder)
        for _ in range(3):
            store.put(KEY, DATA)
        assert store.get(KEY) is None
        assert "open to other users" in store.info().refused
        assert len(caplog.records) == 1, "said once"
        assert os.listdir(folder) == []

    def test_ancestor_that_others_may_change_is_refused(self, tmp_path):
        middle = tmp_path / "open"
        middle.mkdir()
        middle.chmod(0o777)
        store = DiskStore(str(middle / "cache"))
        store.put(KEY, DATA)
        assert "can be changed by other users" in store.refused
        middle.chmod(0o1777)
        store = DiskStore(str(middle / "cache"))
        store.put(KEY, DATA)
        assert store.get(KEY) == DATA, "a sticky folder such as /tmp protects what is ours"

    def test_link_is_refused(self, tmp_path):
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        store = DiskStore(str(tmp_path / "link"))
        store.put(KEY, DATA)
        assert "symbolic link" in store.refused
        assert os.listdir(tmp_path / "real") == []

    def test_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "cache").write_text("in the way")
        store = DiskStore(str(tmp_path / "cache"))
        store.put(KEY, DATA)
        assert store.get(KEY) is None
        assert (tmp_path / "cache").read_text() == "in the way"

    def test_linked_or_writable_entries_are_misses(self, store, tmp_path):
        store.put(KEY, DATA)
        path = entry_file(store)
        os.chmod(path, 0o666)
        assert store.get(KEY) is None
        store.put(KEY, DATA)
        os.rename(path, tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", path)
        assert store.get(KEY) is None
        assert (tmp_path / "elsewhere").exists(), "only the link goes"
        os.link(tmp_path / "elsewhere", path)
        assert store.get(KEY) is None

    def test_odd_files_are_misses(self, store):
        store.put(KEY, DATA)
        path = entry_file(store)
        os.unlink(path)
        os.mkfifo(path)
        assert store.get(KEY) is None, "and it does not hang"
        os.mkdir(path)
        assert store.get(KEY) is None
        store.put(KEY, DATA)  # cannot replace a folder; says nothing
        assert store.get(KEY) is None

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
    def test_read_only_folder(self, store):
        store.put(KEY, DATA)
        os.chmod(store.path, 0o500)
        try:
            store.put("new", DATA)
            assert store.get("new") is None
            assert store.get(KEY) == DATA
        finally:
            os.chmod(store.path, 0o700)


@pytest.mark.parametrize("call", ["open", "fsync", "replace", "mkdir", "utime", "unlink", "scandir"])
def test_failing_system_calls(store, monkeypatch, call):
    """The n-th system call fails, for every n: nothing is raised and what is found is right."""
    real = getattr(os, call)
    for n in range(6):
        calls = [0]

        def fail(*args, _n=n, _calls=calls, **kwargs):
            _calls[0] += 1
            if _calls[0] > _n:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        fresh = DiskStore(store.path, limit=2000)
        with monkeypatch.context() as m:
            m.setattr(os, call, fail)
            for i in range(4):
                fresh.put(f"{n}-{i}", DATA)
                assert fresh.get(f"{n}-{i}") in (None, DATA)
            fresh.info()
            fresh.clear()
    again = DiskStore(store.path)
    again.put(KEY, DATA)
    assert again.get(KEY) == DATA
    left = [name for name in os.listdir(store.path) if name.endswith(cache.PARTIAL)]
    assert left == [] or call in ("unlink",)


def test_folder_deleted_while_running(store):
    store.put(KEY, DATA)
    os.unlink(entry_file(store))
    os.rmdir(store.path)
    assert store.get(KEY) is None
    store.put(KEY, DATA)
    store.put(KEY, DATA)
    assert store.get(KEY) == DATA


def test_size_bound_drops_what_was_used_least_recently(folder):
    store = DiskStore(folder, limit=10_000)
    for i in range(8):
        store.put(f"k{i}", b"x" * 1000)
        path = store._file(store.path, f"k{i}")
        os.utime(path, (time.time() - 1000 + i,) * 2)
    assert store.get("k0") is not None  # used: now the youngest
    for i in range(8, 11):
        store.put(f"k{i}", b"x" * 1000)
        assert store.info().bytes <= 10_000
    assert store.get("k0") is not None
    assert store.get("k1") is None
    assert store.get("k10") is not None
    store.put("huge", b"x" * 20_000)
    assert store.get("huge") is None
    assert store.get("k10") is not None


def test_folder_is_read_by_chance_unless_much_is_written(folder, monkeypatch):
    monkeypatch.setattr(cache.os, "urandom", lambda n: b"\0\0\0\x80")  # one half
    reads = []
    real = cache._shrink
    monkeypatch.setattr(cache, "_shrink", lambda *a: (reads.append(a), real(*a))[1])
    store = DiskStore(folder, limit=100_000)  # half a 32nd of it: 1562
    store.put("little", bytes(1000))
    assert not reads
    store.put("more", bytes(2000))
    assert len(reads) == 1
    store.put("again", bytes(1000))  # known by now
    assert len(reads) == 1
    assert store.info().entries == 3


def test_unfinished_files_of_dead_processes_go(store):
    store.put(KEY, DATA)
    old, new = (os.path.join(store.path, n + cache.PARTIAL) for n in ("1-1-1", "2-2-2"))
    for p in (old, new):
        with open(p, "wb") as f:
            f.write(b"half")
    os.utime(old, (time.time() - 2 * cache.STALE,) * 2)
    fresh = DiskStore(store.path, limit=1 << 20)
    fresh.put("x", bytes(40_000))  # enough to look at the folder
    assert not os.path.exists(old)
    assert os.path.exists(new)
    assert fresh.clear() == 3
    assert os.listdir(store.path) == []


def _hammer(path, seed, failures):
    store = DiskStore(path, limit=20_000)
    for i in range(300):
        n = (i * 7 + seed * 3) % 40
        want = bytes([n]) * (100 + 10 * n)
        got = store.get(f"k{n}")
        if got is not None and got != want:
            failures.put((seed, n))
        store.put(f"k{n}", want)
        if i % 97 == 0:
            store.clear()


def test_processes_racing(folder):
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    runners = [context.Process(target=_hammer, args=(folder, seed, failures)) for seed in range(3)]
    for p in runners:
        p.start()
    for p in runners:
        p.join(120)
        assert p.exitcode == 0
    assert failures.empty()
    assert [n for n in os.listdir(folder) if n.endswith(cache.PARTIAL)] == []


def test_settings_choose_the_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("FLOWC_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert cache.default_path() == str(tmp_path / "xdg" / "flowc")
        monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
        assert cache.default_path() == os.path.expanduser("~/.cache/flowc")
    monkeypatch.setenv("FLOWC_CACHE_DIR", str(tmp_path / "mine"))
    assert cache.default_path() == str(tmp_path / "mine")
    store = cache.default_store()
    assert store is cache.default_store()
    store.put(KEY, DATA)
    assert cache.info().entries == 1
    assert cache.info().bytes > len(DATA)
    assert cache.clear() == 1
    assert cache.info().entries == 0
    with config.options(cache=False):
        assert cache.default_store() is None
    with config.options(cache_dir=str(tmp_path / "third")):
        assert cache.default_store().path == str(tmp_path / "third")


class TestLateStore:
    """Whoever puts does not wait; nothing is lost."""

    def test_there_at_once_and_on_the_disk_soon(self, folder):
        store = cache.LateStore(folder, limit=1 << 20)
        store.put(KEY, DATA)
        assert store.get(KEY) == DATA
        store.flush()
        assert not store._pending
        assert DiskStore(folder).get(KEY) == DATA

    def test_written_in_the_background(self, folder, monkeypatch):
        monkeypatch.setattr(cache, "PAUSE", 0.0)
        store = cache.LateStore(folder, limit=1 << 20)
        for i in range(20):
            store.put(f"k{i}", DATA)
            if i % 7 == 0:
                time.sleep(0.002)
        while (writer := store._writer) is not None:
            writer.join()
        store.flush()
        assert all(DiskStore(folder).get(f"k{i}") == DATA for i in range(20))

    def test_several_threads_put_while_it_is_written(self, folder, monkeypatch):
        monkeypatch.setattr(cache, "PAUSE", 0.0)
        store = cache.LateStore(folder, limit=1 << 22)
        failed = []
        monkeypatch.setattr(threading, "excepthook", failed.append)
        threads = [threading.Thread(target=lambda t=t: [store.put(f"{t} {i}", DATA) for i in range(100)])
                   for t in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while (writer := store._writer) is not None:
            writer.join()
        store.flush()
        assert not failed
        assert all(DiskStore(folder).get(f"{t} {i}") == DATA for t in range(4) for i in range(100))

    def test_a_process_ends_when_all_is_written(self, folder):
        code = f"from flowc import cache; cache.LateStore({folder!r}, limit=1 << 20).put({KEY!r}, {DATA!r})"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert DiskStore(folder).get(KEY) == DATA

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_child_leaves_it_to_its_parent(self, folder):
        store = cache.LateStore(folder, limit=1 << 20)
        store.put(KEY, DATA)
        child = os.fork()
        if child == 0:
            os._exit(0 if not store._pending and store._turn.acquire(timeout=1) else 1)
        assert os.waitpid(child, 0)[1] == 0
        store.flush()
        assert DiskStore(folder).get(KEY) == DATA
