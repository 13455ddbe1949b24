"""Budget D1: what compressing result bodies saves on the disk, and what it costs.

Bodies of every kind, as many of each, are written as reports are, 500 in a transaction, and read
back. What counts of the disk is the whole database, indexes and all; of time, the processor's,
because commits wait for the disk and compression does not. The rivals store bodies as they are,
compressed without a dictionary, and compressed harder with one of eight bodies.
"""

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from benches.harness import OURS, Bench, Budget, Contestant, MissingRivalError, Scale
from benches.result_bodies import bodies, scratch
from netsonde.model import TaskKind
from netsonde.server.store import SqliteStore, sqlite_feed, sqlite_tasks
from netsonde.server.store.bodies import pack_all, unpack
from netsonde.server.store.results import NewResult, ResultQuery
from netsonde.server.store.tasks import NewTask

PLAIN, BARE, HARD = "as they are", "zlib 1", "zlib 6, eight bodies as dictionary"
RESULTS = {Scale.ONCE: 500, Scale.QUICK: 10_000, Scale.FULL: 20_000}
MEASURED = {Scale.ONCE: 10, Scale.QUICK: 60, Scale.FULL: 200}  # of each kind; they come round
SAMPLES = 8
GROUP = 500
CHECKS, AGENTS = 500, 50

Bodies = Mapping[TaskKind, Sequence[bytes]]


class Codec(NamedTuple):
    """How bodies are stored."""

    pack_all: Callable[[TaskKind, Sequence[bytes]], list[bytes]]
    unpack: Callable[[TaskKind, bytes], bytes]


def as_is(_: TaskKind, body: bytes) -> bytes:
    """Return a body."""
    return body


def all_as_they_are(_: TaskKind, there: Sequence[bytes]) -> list[bytes]:
    """Return bodies."""
    return [*there]


def squeezed(level: int, dictionaries: Mapping[TaskKind, bytes]) -> Codec:
    """Compress with the usual window and memory."""

    def packed(kind: TaskKind, there: Sequence[bytes]) -> list[bytes]:
        return [one(kind, body) for body in there]

    def one(kind: TaskKind, body: bytes) -> bytes:
        packer = zlib.compressobj(level, wbits=-15, zdict=dictionaries[kind])
        return packer.compress(body) + packer.flush()

    def unpacked(kind: TaskKind, body: bytes) -> bytes:
        return zlib.decompressobj(wbits=-15, zdict=dictionaries[kind]).decompress(body)

    return Codec(packed, unpacked)


def store_all(codec: Codec, seen: Bodies, count: int) -> Mapping[str, float]:
    """Write and read count results; return bytes and microseconds for each."""
    with (
        mock.patch.object(sqlite_tasks, "pack_all", codec.pack_all),
        mock.patch.object(sqlite_feed, "unpack", codec.unpack),
        scratch() as folder,
    ):
        store = SqliteStore.open(Path(folder) / "server.db")
        store.begin()
        store.add_tasks([NewTask(kind=TaskKind.TCP, spec=b"{}", run_ns=0, max_attempts=1)])
        store.commit()
        empty = store.size().used_bytes
        begun = time.process_time()
        for first in range(0, count, GROUP):
            store.begin()
            store.add_results([result(number, seen) for number in range(first, first + GROUP)])
            store.commit()
        written = time.process_time()
        read = read_all(store, seen)
        done = time.process_time()
        used = store.size().used_bytes - empty
        store.close()
    if read != count:
        raise AssertionError(f"{read} of {count} bodies came back as they were")
    sizes = {
        kind.value: sum(map(len, codec.pack_all(kind, there))) / len(there)
        for kind, there in seen.items()
    }
    return {
        "database": used / count,
        "write": (written - begun) / count * 1e6,
        "read": (done - written) / count * 1e6,
        **sizes,
    }


def read_all(store: SqliteStore, seen: Bodies) -> int:
    """Read every result; return how many bodies are as they came."""
    position = same = 0
    while page := store.results(ResultQuery(limit=1000, position=position)):
        position = page[-1].result_id
        for row in page:
            there = seen[row.kind]
            same += row.body == there[row.lease_id % len(there)]
    return same


def result(number: int, seen: Bodies) -> NewResult:
    """Make the row of a result, kinds in turn."""
    kinds = tuple(TaskKind)
    kind = kinds[number % len(kinds)]
    there = seen[kind]
    return NewResult(
        lease_id=number,
        task_id=number,
        agent_id=1 + number % AGENTS,
        kind=kind,
        outcome="ok",
        attempt=1,
        received_ns=number,
        is_final=True,
        spec_id=1,
        body=there[number % len(there)],
        check_id=number % CHECKS,
    )


def bench(scale: Scale) -> Bench:
    """Measure the bodies, and make the contestants."""
    seen = bodies(MEASURED[scale] + SAMPLES)
    samples = {kind: b"".join(there[-SAMPLES:]) for kind, there in seen.items()}
    measured = {kind: there[:-SAMPLES] for kind, there in seen.items()}
    codecs = {
        OURS: Codec(pack_all, unpack),
        PLAIN: Codec(all_as_they_are, as_is),
        BARE: squeezed(1, dict.fromkeys(TaskKind, b"")),
        HARD: squeezed(6, samples),
    }
    contestants: dict[str, Contestant | MissingRivalError] = {
        name: partial(store_all, codec, measured, RESULTS[scale]) for name, codec in codecs.items()
    }
    return Bench(contestants, budgets())


def budgets() -> list[Budget]:
    """D1 of docs/performance.md; rows without a budget are stated."""
    stated = [
        Budget(id="D1", figure=figure, unit=unit, rival=rival)
        for rival in (PLAIN, BARE, HARD)
        for figure, unit in (("database", "B"), ("write", "µs"), ("read", "µs"))
        if (rival, figure) != (PLAIN, "database")
    ]
    return [
        Budget(id="D1", figure="database", unit="B", rival=PLAIN, at_most=0.3, noisy=False),
        *stated,
        *(Budget(id="D1", figure=kind.value, unit="B", rival=PLAIN) for kind in TaskKind),
    ]
