"""Bodies of results as they are stored: compressed, each kind's with a dictionary of its own.

A stored body that begins with FIRST is a zstd frame of the first dictionaries; one that begins as
JSON does is as it came. A dictionary is a body that was measured once, and is never changed: what
was compressed with it needs it for ever. A better one gets a mark and files of its own.
"""

import functools
import threading
from collections.abc import Sequence
from importlib import resources

import zstandard

from netsonde.model import TaskKind

FIRST = b"\x01"  # no JSON begins with it
LEVEL = 1  # higher ones save nothing of bodies that are this small


def pack_all(kind: TaskKind, bodies: Sequence[bytes]) -> list[bytes]:
    """Return bodies of one kind as they are stored."""
    if not any(bodies):
        return [*bodies]  # there is nothing to compress, which zstandard calls an error
    # All in one step: each by itself would give the GIL away, and wait for a busy loop to get it.
    packed = _codecs.packer(kind).multi_compress_to_buffer([*bodies])
    return [_smaller(packed[at].tobytes(), body) for at, body in enumerate(bodies)]


def _smaller(packed: bytes, body: bytes) -> bytes:
    is_worth_it = len(FIRST) + len(packed) < len(body) or body.startswith(FIRST)
    return FIRST + packed if is_worth_it else body


def unpack(kind: TaskKind, stored: bytes) -> bytes:
    """Return a stored body as it came."""
    if not stored.startswith(FIRST):
        return stored
    return _codecs.unpacker(kind).decompress(memoryview(stored)[1:])


class _Codecs(threading.local):
    """Every thread's own: they keep a state from one call to the next, without a lock."""

    def __init__(self) -> None:
        self._packers: dict[TaskKind, zstandard.ZstdCompressor] = {}
        self._unpackers: dict[TaskKind, zstandard.ZstdDecompressor] = {}

    def packer(self, kind: TaskKind) -> zstandard.ZstdCompressor:
        packer = self._packers.get(kind)
        if packer is None:
            packer = self._packers[kind] = zstandard.ZstdCompressor(
                dict_data=_dictionary(FIRST, kind), level=LEVEL, write_dict_id=False
            )
        return packer

    def unpacker(self, kind: TaskKind) -> zstandard.ZstdDecompressor:
        unpacker = self._unpackers.get(kind)
        if unpacker is None:
            unpacker = self._unpackers[kind] = zstandard.ZstdDecompressor(
                dict_data=_dictionary(FIRST, kind)
            )
        return unpacker


_codecs = _Codecs()


@functools.cache
def _dictionary(mark: bytes, kind: TaskKind) -> zstandard.ZstdCompressionDict:
    """Read a dictionary and digest it, which takes longer than most bodies."""
    file = resources.files("netsonde.server.store").joinpath("dictionaries")
    body = file.joinpath(f"{mark[0]}_{kind.value}.json").read_bytes()
    dictionary = zstandard.ZstdCompressionDict(body, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    dictionary.precompute_compress(LEVEL)
    return dictionary
