"""Arrays in the IDX files that MNIST comes in, plain or gzip-compressed.

Here: one reader with every check, and the file names of MNIST's parts.  Not here: what is learned from them
(examples/mnist_softmax.py).

The format: two zero bytes, a byte for the element type, a byte for the number of axes, one big-endian 32-bit size
per axis, then the elements in C order, big-endian.  A file is data from elsewhere: nothing is allocated that the
bytes at hand do not cover, and everything wrong is a FileFormatError that names the file, what was expected and
what was found.
"""

from __future__ import annotations

import math
import os
import struct
import zlib

import numpy as np

from flowc.diag import FileFormatError

ELEMENTS: dict[int, str] = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_BYTES = 1 << 30   # of a decompressed file; MNIST's largest has 47 million
_CURE = "fetch the file again; MNIST's files are called {}-images-idx3-ubyte and {}-labels-idx1-ubyte, plain or .gz"


def _bad(code: str, path: str, expected: str, found: str, cure: str = "") -> FileFormatError:
    return FileFormatError(code, f"{path}: expected {expected}, found {found}",
                           cure=cure or "fetch the file again, or give the path of an IDX file")


def _unzipped(path: str, data: bytes) -> bytes:
    """The content of a gzip file of one or more members, at most MAX_BYTES."""
    out: list[bytes] = []
    size = 0
    while data:
        stream = zlib.decompressobj(wbits=31)
        try:
            part = stream.decompress(data, MAX_BYTES + 1 - size)
        except zlib.error as e:
            raise _bad("F003", path, "a whole gzip file", f"damaged data ({e})") from None
        size += len(part)
        if size > MAX_BYTES:
            raise _bad("F004", path, f"at most {MAX_BYTES} bytes when decompressed", "more")
        if not stream.eof:
            raise _bad("F003", path, "a whole gzip file", f"one cut short after {len(data)} compressed bytes")
        out.append(part)
        data = stream.unused_data
        if data and not data.strip(b"\0"):  # padding after the last member is allowed
            break
    return b"".join(out)


def _content(path: str) -> bytes:
    if not os.path.isfile(path):
        found = "a folder or device" if os.path.exists(path) else "no such file"
        raise _bad("F001", path, "an IDX file", found, "check the path, or fetch the file")
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise _bad("F004", path, f"at most {MAX_BYTES} bytes", f"{os.path.getsize(path)}")
        with open(path, "rb") as f:
            data = f.read()
    except OSError as e:
        raise _bad("F002", path, "a readable file", e.strerror or str(e), "check the rights of the file") from None
    return _unzipped(path, data) if data[:2] == b"\x1f\x8b" else data


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """The array in an IDX file, in native byte order.

    Raises FileFormatError: F001 missing, F002 unreadable, F003 damaged gzip, F004 too large, F005 no IDX file,
    F006 unknown element type, F007 sizes that do not fit the bytes in the file.
    """
    name = os.fspath(path)
    data = _content(name)
    if len(data) < 4 or data[:2] != b"\0\0":
        shown = data[:4].hex(" ") or "an empty file"
        raise _bad("F005", name, "an IDX file (first bytes 00 00, element type, number of axes)", shown)
    kind, rank = data[2], data[3]
    if kind not in ELEMENTS:
        raise _bad("F006", name, f"an element type of {', '.join(f'{k:02x}' for k in ELEMENTS)}", f"{kind:02x}")
    head = 4 + 4 * rank
    if len(data) < head:
        raise _bad("F007", name, f"a header of {head} bytes for {rank} axes", f"{len(data)} bytes in all")
    shape = struct.unpack(f">{rank}I", data[4:head])
    element = np.dtype(ELEMENTS[kind])
    want = math.prod(shape) * element.itemsize  # Python integers: no overflow
    if len(data) - head != want:
        sizes = " x ".join(map(str, shape)) or "1"
        raise _bad("F007", name, f"{want} bytes for {sizes} elements of {element.itemsize}",
                   f"{len(data) - head} after the header")
    if rank > 32 or math.prod(max(n, 1) for n in shape) * element.itemsize >= 2 ** 63:  # what NumPy can hold
        raise _bad("F007", name, "at most 32 axes and 2^63 bytes", " x ".join(map(str, shape)))
    return np.frombuffer(data, element, offset=head).reshape(shape).astype(element.newbyteorder("="))


def _find(folder: str, part: str, what: str, axes: int) -> str:
    stems = [f"{part}-{what}{sep}idx{axes}-ubyte" for sep in "-."]
    names = [stem + end for stem in stems for end in ("", ".gz")]
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    there = sorted(os.listdir(folder))[:8]
    raise _bad("F001", folder, f"one of {', '.join(names)}", ", ".join(there) or "an empty folder",
               _CURE.format(part, part))


def load_mnist_part(folder: str | os.PathLike, part: str = "t10k") -> tuple[np.ndarray, np.ndarray]:
    """Images u8[n, rows, columns] and labels u8[n] of one part of MNIST, ``t10k`` or ``train``.

    Raises FileFormatError as ``read_idx`` does, and F008 where images and labels do not belong together.
    """
    where = os.fspath(folder)
    if not os.path.isdir(where):
        raise _bad("F001", where, "a folder with MNIST's IDX files", "no such folder", _CURE.format(part, part))
    files = _find(where, part, "images", 3), _find(where, part, "labels", 1)
    images, labels = read_idx(files[0]), read_idx(files[1])
    for path, array, rank, what in ((files[0], images, 3, "images"), (files[1], labels, 1, "labels")):
        if array.ndim != rank or array.dtype != np.uint8:
            raise _bad("F008", path, f"{what}: unsigned bytes with {rank} axes",
                       f"{array.dtype} with {array.ndim}", _CURE.format(part, part))
    if len(images) != len(labels):
        raise _bad("F008", files[1], f"{len(images)} labels, one per image of {os.path.basename(files[0])}",
                   f"{len(labels)}", "take images and labels of the same part")
    if labels.size and int(labels.max()) > 9:
        raise _bad("F008", files[1], "labels from 0 to 9", f"{int(labels.max())}", "fetch the labels again")
    return images, labels
