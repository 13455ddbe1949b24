"""Bodies of results as they are stored: compressed, each kind's with a dictionary of its own.

A stored body that begins with FIRST is raw deflate with the first dictionaries; one that begins as
JSON does is as it came. A dictionary is a body that was measured once, and is never changed: what
was compressed with it needs it for ever. A better one gets a mark and files of its own.
"""

import functools
import zlib
from importlib import resources

from netsonde.model import TaskKind

FIRST = b"\x01"  # no JSON begins with it
WINDOW_BITS = -13  # raw deflate over 8 KiB: the dictionary and most bodies; larger is slower
LEVEL = 1  # higher ones cost more than they save
MEMORY = 6


def pack(kind: TaskKind, body: bytes) -> bytes:
    """Return a body as it is stored."""
    packer = zlib.compressobj(
        LEVEL, wbits=WINDOW_BITS, memLevel=MEMORY, zdict=_dictionary(FIRST, kind)
    )
    packed = FIRST + packer.compress(body) + packer.flush()
    return packed if len(packed) < len(body) or body.startswith(FIRST) else body


def unpack(kind: TaskKind, stored: bytes) -> bytes:
    """Return a stored body as it came."""
    if not stored.startswith(FIRST):
        return stored
    unpacker = zlib.decompressobj(wbits=WINDOW_BITS, zdict=_dictionary(FIRST, kind))
    return unpacker.decompress(memoryview(stored)[1:]) + unpacker.flush()


@functools.cache
def _dictionary(mark: bytes, kind: TaskKind) -> bytes:
    file = resources.files("netsonde.server.store").joinpath("dictionaries")
    return file.joinpath(f"{mark[0]}_{kind.value}.json").read_bytes()
