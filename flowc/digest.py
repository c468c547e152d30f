"""Digests of texts and arrays: names of kernels, keys of the caches, checks of what was stored.

Here: the one hash function that flowc uses.  Not here: what goes into a key (image.py, backends/llvm/engine.py).

BLAKE2b (RFC 7693) with 256 bits, from Python's own module: ``hashlib`` loads OpenSSL first, which takes as long as a
small compile.
"""

from __future__ import annotations

from typing import Any

try:
    from _blake2 import blake2b
except ImportError:  # a Python that keeps it elsewhere
    from hashlib import blake2b


def digest(data: bytes = b"") -> Any:
    """A hash object over ``data`` with ``update``, ``digest`` (32 bytes) and ``hexdigest``."""
    return blake2b(data, digest_size=32)
