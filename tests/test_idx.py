"""IDX files: what is right is read, what is wrong is refused by name, at every byte."""

import contextlib
import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowc import idx
from flowc.diag import FileFormatError

CODES = {np.dtype(v).newbyteorder("="): k for k, v in idx.ELEMENTS.items()}


def idx_bytes(a: np.ndarray, kind: int | None = None) -> bytes:
    kind = CODES[a.dtype] if kind is None else kind
    head = bytes((0, 0, kind, a.ndim)) + struct.pack(f">{a.ndim}I", *a.shape)
    return head + a.astype(a.dtype.newbyteorder(">")).tobytes()


def refused(path, code: str, *words: str) -> None:
    with pytest.raises(FileFormatError) as e:
        idx.read_idx(path)
    assert e.value.code == code
    text = str(e.value)
    for w in (str(path), "expected", "found", "cure", *words):
        assert w in text, (w, text)


@pytest.mark.parametrize("dtype", sorted(CODES, key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_round_trip(tmp_path, dtype, shape, packed):
    want = np.random.default_rng(1).integers(0, 100, shape).astype(dtype)
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(idx_bytes(want)) if packed else idx_bytes(want))
    got = idx.read_idx(path)
    assert got.dtype == want.dtype and got.dtype.isnative and got.shape == want.shape
    np.testing.assert_array_equal(got, want)
    assert got.flags.writeable


def test_truncated_at_every_byte(tmp_path):
    data = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    path = tmp_path / "cut"
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(FileFormatError, match="cut"):
            idx.read_idx(path)
    path.write_bytes(data + b"\0")
    refused(path, "F007", "24 bytes for 2 x 3 x 4", "25")


def test_gzip_truncated_and_flipped_at_every_byte(tmp_path):
    want = np.random.default_rng(0).integers(0, 255, (5, 7), dtype=np.uint8)
    data = gzip.compress(idx_bytes(want), mtime=0)
    path = tmp_path / "x.gz"
    for n in range(2, len(data)):
        path.write_bytes(data[:n])
        refused(path, "F003", "gzip")
    for n in range(len(data)):
        path.write_bytes(data[:n] + bytes((data[n] ^ 0x10,)) + data[n + 1:])
        with contextlib.suppress(FileFormatError):
            np.testing.assert_array_equal(idx.read_idx(path), want)  # a bit of the header that means nothing


def test_two_gzip_members_and_padding(tmp_path):
    data = idx_bytes(np.arange(9, dtype=np.int32))
    path = tmp_path / "two.gz"
    path.write_bytes(gzip.compress(data[:11]) + gzip.compress(data[11:]) + b"\0" * 7)
    np.testing.assert_array_equal(idx.read_idx(path), np.arange(9))
    path.write_bytes(gzip.compress(data) + b"rubbish")
    refused(path, "F003")


def test_wrong_magic_and_type(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"\x89PNG1234")
    refused(path, "F005", "89 50 4e 47")
    path.write_bytes(b"")
    refused(path, "F005", "empty")
    path.write_bytes(b"\0\0\x0a\x01\0\0\0\0")
    refused(path, "F006", "0a")


def test_declared_sizes_are_checked_before_memory_is_taken(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(b"\0\0\x08\x03" + b"\xff" * 12 + b"1234")
    refused(path, "F007", "4294967295 x 4294967295", "4 after the header")
    path.write_bytes(b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"1")
    refused(path, "F007", "32 axes")
    path.write_bytes(b"\0\0\x0b\x03" + struct.pack(">3I", 0, 2 ** 31, 2 ** 31))  # empty, yet beyond NumPy's sizes
    refused(path, "F007", "2147483648")


def test_a_compressed_bomb_stops_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "MAX_BYTES", 1000)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"\0" * 10_000))
    refused(path, "F004", "1000")
    path.write_bytes(b"\0" * 1001)
    refused(path, "F004", "1000")


def test_missing_and_folder(tmp_path):
    refused(tmp_path / "none", "F001", "no such file")
    refused(tmp_path, "F001", "folder")


HEADERS = st.builds(lambda kind, sizes, rest: bytes((0, 0, kind, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes)
                    + rest, st.sampled_from([*idx.ELEMENTS, 0, 255]),
                    st.lists(st.sampled_from([0, 1, 2, 3, 2 ** 31, 2 ** 32 - 1]), max_size=4), st.binary(max_size=40))


@given(st.binary(max_size=64) | HEADERS)
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    try:
        assert isinstance(idx.read_idx(path), np.ndarray)
    except FileFormatError as e:
        assert e.code.startswith("F") and e.cure


def write_part(folder, part="t10k", sep="-", end="", n=6, labels=None):
    images = np.random.default_rng(3).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = np.arange(n, dtype=np.uint8) % 10 if labels is None else labels
    for what, axes, a in (("images", 3, images), ("labels", 1, labels)):
        data = idx_bytes(a)
        (folder / f"{part}-{what}{sep}idx{axes}-ubyte{end}").write_bytes(gzip.compress(data) if end else data)
    return images, labels


@pytest.mark.parametrize("part", ["t10k", "train"])
@pytest.mark.parametrize("sep", "-.")
@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist_part(tmp_path, part, sep, end):
    images, labels = write_part(tmp_path, part, sep, end)
    got = idx.load_mnist_part(tmp_path, part)
    np.testing.assert_array_equal(got[0], images)
    np.testing.assert_array_equal(got[1], labels)


@pytest.mark.parametrize("spoil, code, words", [
    (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), "F001", ["t10k-labels-idx1-ubyte.gz", "t10k-images"]),
    (lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(5, np.uint8))), "F008", ["6 labels", "5"]),
    (lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.full(6, 10, np.uint8))), "F008",
     ["0 to 9", "10"]),
    (lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros((6, 1), np.uint8))), "F008", ["1 axes"]),
    (lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((6, 2, 2), np.int8))), "F008", ["int8"]),
    (lambda f: [p.unlink() for p in f.iterdir()], "F001", ["empty folder"]),
], ids=["missing", "count", "label", "rank", "dtype", "empty"])
def test_mnist_part_refused(tmp_path, spoil, code, words):
    write_part(tmp_path)
    spoil(tmp_path)
    with pytest.raises(FileFormatError) as e:
        idx.load_mnist_part(tmp_path)
    assert e.value.code == code
    for w in (str(tmp_path), "cure", *words):
        assert w in str(e.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileFormatError, match="F001"):
        idx.load_mnist_part(tmp_path / "none")
