"""What really happened on a simulated network: counts for each target, and every probe if asked."""

import mmap
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, get_args

from support.netsim.scenario import Checksum, Difference, ForgedPayload, NoiseKind

TARGET = struct.Struct("=16s16I3Q")  # truth.h: struct target_record
REQUEST = struct.Struct("=q16s16sI3H6B")  # struct request_record
ANSWER = struct.Struct("=2qI2BH")  # struct answer_record

Buffer = bytes | mmap.mmap


class TruthHoleError(Exception):
    """The simulator lost something, so that its truth is none: the message says what and why."""


class Fate(IntFlag):
    """What was decided about a request."""

    DROPPED = 1
    LIMITED = 2
    REORDERED = 4
    ELSEWHERE = 8


class Kind(IntEnum):
    """What a packet of the simulator is."""

    REPLY = 1
    DUPLICATE = 2
    TRUNCATED = 3
    ERROR = 4
    FORGED = 5
    CORRUPTED = 6
    FOREIGN_ERROR = 7
    NOISE = 8


GENUINE = (Kind.REPLY, Kind.DUPLICATE)
VARIANTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.REPLY: ("destination", "elsewhere"),
    Kind.DUPLICATE: ("destination", "elsewhere"),
    Kind.TRUNCATED: ("destination", "elsewhere"),
    Kind.ERROR: ("error", "rate_limit"),
    Kind.FORGED: get_args(ForgedPayload),
    Kind.CORRUPTED: get_args(Checksum),
    Kind.FOREIGN_ERROR: get_args(Difference),
    Kind.NOISE: get_args(NoiseKind),
}


class Target(NamedTuple):
    """Counts of one target; counts.h says what each is. Turn-around: handed to the kernel less
    arrived, over `replied` (min is 2**64 - 1 when nothing was)."""

    requests: int
    dropped: int
    limited: int
    errors: int
    replied: int
    duplicates: int
    reordered: int
    elsewhere: int
    truncated: int
    forged: int
    corrupted: int
    foreign_errors: int
    noise: int
    unsent: int
    pending: int
    turnaround_sum_ns: int
    turnaround_min_ns: int
    turnaround_max_ns: int


@dataclass(frozen=True)
class Totals:
    """Sums over all targets, and what belongs to no target (network.h)."""

    requests: int
    dropped: int
    limited: int
    errors: int
    replied: int
    duplicates: int
    reordered: int
    elsewhere: int
    truncated: int
    forged: int
    corrupted: int
    foreign_errors: int
    noise: int
    unsent: int
    pending: int
    frames: int
    neighbours: int
    malformed: int
    unrouted: int
    other: int
    overflow: int
    ring_drops: int
    clock_step_ns: int
    late_sum_ns: int
    late_max_ns: int
    late_100us: int


class Answer(NamedTuple):
    """One packet the simulator sent, or tried to: sent_ns is 0 when the kernel refused it.

    Instants are CLOCK_REALTIME; sent_ns is when it was handed to the kernel, at most within_us
    early or late: the system call that sent it took as long.
    """

    due_ns: int
    sent_ns: int
    kind: Kind
    variant: str
    within_us: int


class Probe(NamedTuple):
    """One echo request as it arrived, and what was sent on account of it, in order of sending.

    payload: its first 16 bytes. genuine: replies and duplicates that were planned; planned:
    packets of every kind. n: its number among the target's requests, from 0.
    """

    arrival_ns: int
    destination: str
    payload: bytes
    n: int
    ident: int
    sequence: int
    payload_bytes: int
    fate: Fate
    genuine: int
    planned: int
    ttl: int
    tos: int
    answers: list[Answer]

    def sent(self, *kinds: Kind) -> list[Answer]:
        """Return the answers of these kinds that the kernel took."""
        return [each for each in self.answers if each.kind in kinds and each.sent_ns]


class Truth:
    """What a simulator wrote to its directory (truth.h); the files may go once this is made.

    TruthHoleError when frames or probes were lost. undelivered: packets that the host's interface
    dropped, so that they never came here; a careful sender was told (ENOBUFS). `requests_file` and
    `answers_file` hold the raw records for whoever has millions of them; `probes` makes an object
    of each.
    """

    def __init__(self, directory: Path, undelivered: int) -> None:
        self.undelivered = undelivered
        self.totals = _read_totals(directory / "totals")
        _refuse_holes(self.totals)
        self._targets_file = _read(directory / "targets")
        self.requests_file = _read(directory / "requests")
        self.answers_file = _read(directory / "answers")

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Counts by address, in the order the targets were first asked."""
        return {
            _address(packed, family): Target(*counts)
            for packed, family, *counts in TARGET.iter_unpack(self._targets_file)
        }

    @cached_property
    def probes(self) -> list[Probe]:
        """Every request in the order of arrival; the scenario says record = "probes"."""
        found = [
            Probe(
                arrival_ns, _address(packed, family), payload[:payload_bytes], n, ident, sequence,
                payload_bytes, Fate(flags), genuine, planned, ttl, tos, [],
            )
            for (
                arrival_ns, packed, payload, n, ident, sequence, payload_bytes,
                family, flags, genuine, planned, ttl, tos,
            ) in REQUEST.iter_unpack(self.requests_file)
        ]  # fmt: skip
        for position, answer in self._answers():
            found[position].answers.append(answer)
        return found

    def _answers(self) -> Iterator[tuple[int, Answer]]:
        for due_ns, sent_ns, position, kind, variant, within_us in ANSWER.iter_unpack(
            self.answers_file
        ):
            name = VARIANTS[Kind(kind)][variant]
            yield position, Answer(due_ns, sent_ns, Kind(kind), name, within_us)


def _refuse_holes(totals: Totals) -> None:
    if totals.ring_drops or totals.overflow:
        raise TruthHoleError(
            f"ring_drops {totals.ring_drops}, overflow {totals.overflow}:"
            " raise limits.ring_frames, limits.hosts or limits.in_flight, or send less"
        )
    if totals.clock_step_ns:
        raise TruthHoleError(f"clock_step_ns {totals.clock_step_ns}: the wall clock was set")


def _read_totals(path: Path) -> Totals:
    pairs = (line.split() for line in path.read_text().splitlines())
    return Totals(**{name: int(value) for name, value in pairs})


def _read(path: Path) -> Buffer:
    """Map a file, which may be deleted after; an empty or missing one is no bytes."""
    if not path.exists() or path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _address(packed: bytes, family: int) -> str:
    if family == 4:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    return socket.inet_ntop(socket.AF_INET6, packed)
