"""What one trace saw, as the native engine tells it."""

import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag, StrEnum
from ipaddress import ip_address
from typing import NamedTuple, Self

from netsonde._native import icmp

_SUMMARY = struct.Struct(icmp.SUMMARY_FORMAT)
_ANSWER = struct.Struct(icmp.ANSWER_FORMAT)

TIME_EXCEEDED = {4: 11, 6: 3}  # RFC 792, RFC 4443
_UNREACHABLE_PORT = {4: (3, 3), 6: (1, 4)}


Taken = tuple[bytes, bytes, bytes]  # what `EchoEngine.take_trace` returns


class Stop(StrEnum):
    """Why a trace ended; the last three before it began."""

    COMPLETED = "completed"
    UNREACHABLE = "unreachable"
    LOOP = "loop"
    GAP_LIMIT = "gap_limit"
    MAX_HOPS = "max_hops"
    TX_ERROR = "tx_error"
    CANCELLED = "cancelled"
    DENIED = "denied"
    RESOLVE_FAILED = "resolve_failed"
    NO_ROUTE = "no_route"


_STOPS = {
    icmp.STOPPED_COMPLETED: Stop.COMPLETED,
    icmp.STOPPED_UNREACHABLE: Stop.UNREACHABLE,
    icmp.STOPPED_LOOP: Stop.LOOP,
    icmp.STOPPED_GAP_LIMIT: Stop.GAP_LIMIT,
    icmp.STOPPED_MAX_HOPS: Stop.MAX_HOPS,
    icmp.STOPPED_TX_ERROR: Stop.TX_ERROR,
    icmp.STOPPED_CANCELLED: Stop.CANCELLED,
}


class Kind(IntEnum):
    """What an answer is."""

    ECHO = 0
    ERROR = 1  # ICMP
    SYN_ACK = 2
    RST = 3
    REFUSED = 4  # none: the kernel did not send the probe


class Flag(IntFlag):
    """What else is to be said of an answer."""

    DUPLICATE = 1  # its probe had been answered
    LATE = 2  # after the timeout
    TRANSLATED = 4  # what is quoted is not what was sent
    USER_CLOCK = 8  # the receive stamp is ours, not the kernel's
    EXTENSION_BAD = 16  # version, checksum or lengths of its extension are wrong
    TRUNCATED = 32  # its extension was longer than what is kept


class Answer(NamedTuple):
    """What came of one probe: instants are CLOCK_MONOTONIC, extension is an RFC 4884 structure.

    rtt_ns is -1 and code an errno when the kernel refused the probe.
    """

    ttl: int
    attempt: int
    kind: int
    responder: bytes  # 4 or 16
    icmp_type: int
    icmp_code: int
    sent_ns: int
    rtt_ns: int
    reply_ttl: int  # 0: not known
    quoted_ttl: int
    quoted_tos: int
    flags: int
    mtu: int  # of a too-big message, else 0
    extension: bytes

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if len(self.responder) == 4 else 6

    @property
    def address(self) -> str:
        """The responder as text."""
        return str(ip_address(self.responder))

    @property
    def is_counted(self) -> bool:
        """Whether it answers its probe, for the first time and in time."""
        return self.kind != Kind.REFUSED and not self.flags & (Flag.DUPLICATE | Flag.LATE)

    @property
    def is_expiry(self) -> bool:
        """Whether a router says that the TTL ran out there."""
        return self.kind == Kind.ERROR and self.icmp_type == TIME_EXCEEDED[self.version]

    def is_end(self, method: str) -> bool:
        """Whether the destination answered a probe by this method."""
        if self.kind != Kind.ERROR:
            return self.kind != Kind.REFUSED
        refusal = (self.icmp_type, self.icmp_code)
        return method == "udp" and refusal == _UNREACHABLE_PORT[self.version]


class Hop(NamedTuple):
    """What came from one TTL, in the order it came."""

    ttl: int
    attempts: int
    answers: tuple[Answer, ...]

    @property
    def answer(self) -> Answer | None:
        """The first answer in time."""
        return next((each for each in self.answers if each.is_counted), None)


class Traced(NamedTuple):
    """What one trace saw and how it ended."""

    token: int
    stop: Stop
    end_ttl: int  # 0: not known
    sent: int
    tx_errors: int
    late: int
    duplicates: int
    rx_drops: int
    errno: int  # of the last refusal, 0: none
    missed: int  # answers that were counted only
    source: bytes
    checksum: int  # ICMP's, constant in the flow
    source_port: int  # UDP's and TCP's, likewise
    flow_label: int  # IPv6's, likewise
    first_ttl: int
    attempts: bytes  # at each TTL from the first
    answers: tuple[Answer, ...]

    @classmethod
    def unpack(cls, taken: Taken, version: int) -> Self:
        """Read what `EchoEngine.take_trace` returned."""
        summary, answers, extensions = taken
        width = 4 if version == 4 else 16
        (token, sent, tx_errors, late, duplicates, rx_drops, errno, missed, flow_label, checksum,
         source_port, stop, end_ttl, first_ttl, source) = _SUMMARY.unpack_from(summary)  # fmt: skip
        return cls(
            token, _STOPS[stop], end_ttl, sent, tx_errors, late, duplicates, rx_drops, errno,
            missed, source[:width], checksum, source_port, flow_label, first_ttl,
            summary[_SUMMARY.size :], tuple(_unpack_answers(answers, extensions, width)),
        )  # fmt: skip

    @property
    def hops(self) -> tuple[Hop, ...]:
        """Every TTL that was tried."""
        found: dict[int, list[Answer]] = {}
        for answer in self.answers:
            found.setdefault(answer.ttl, []).append(answer)
        return tuple(
            Hop(ttl, attempts, tuple(found.get(ttl, ())))
            for ttl, attempts in enumerate(self.attempts, self.first_ttl)
        )


def _unpack_answers(records: bytes, extensions: bytes, width: int) -> Iterator[Answer]:
    for record in _ANSWER.iter_unpack(records):
        (sent_ns, rtt_ns, responder, mtu, at, length, ttl, attempt, kind, icmp_type, code,
         reply_ttl, quoted_ttl, quoted_tos, flags) = record  # fmt: skip
        yield Answer(
            ttl, attempt, kind, responder[:width], icmp_type, code, sent_ns, rtt_ns, reply_ttl,
            quoted_ttl, quoted_tos, flags, mtu, extensions[at : at + length],
        )  # fmt: skip
