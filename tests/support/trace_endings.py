"""What the engine tells of traces that have ended, made by hand."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS
from netsonde.probe.trace.answers import TIME_EXCEEDED, Answer, Kind, Taken, Traced

SUMMARY = struct.Struct(icmp.SUMMARY_FORMAT)
ANSWER = struct.Struct(icmp.ANSWER_FORMAT)
SOURCES = {4: "192.0.2.99", 6: "2001:db8::99"}
CHECKSUM, SOURCE_PORT, FLOW_LABEL = 4711, 40_000, 99


def answer(ttl: int, address: str = "192.0.2.1", **fields: Any) -> Answer:
    """Return an answer: after ttl ms, that the TTL ran out, unless fields say otherwise."""
    responder = ip_address(address).packed
    expired = TIME_EXCEEDED[4 if len(responder) == 4 else 6]
    plain = Answer(
        ttl, 0, Kind.ERROR, responder, expired, 0, 1000, ttl * NS_PER_MS, 64, 1, 0, 0, 0, b""
    )
    return plain._replace(**fields)


def echo(ttl: int, address: str = "198.51.100.7", **fields: Any) -> Answer:
    """Return the destination's answer to a ping."""
    return answer(ttl, address, kind=Kind.ECHO, icmp_type=0, **fields)


def pack_answers(answers: Iterable[Answer]) -> tuple[bytes, bytes]:
    """Return answers and extensions as the engine does."""
    records, extensions = b"", b""
    for each in answers:
        records += ANSWER.pack(
            each.sent_ns, each.rtt_ns, each.responder, each.mtu, len(extensions),
            len(each.extension), each.ttl, each.attempt, each.kind, each.icmp_type, each.icmp_code,
            each.reply_ttl, each.quoted_ttl, each.quoted_tos, each.flags,
        )  # fmt: skip
        extensions += each.extension
    return records, extensions


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a trace ends. attempts: at each TTL; None: one as far as the last answer."""

    answers: Sequence[Answer] = ()
    stop: int = icmp.STOPPED_COMPLETED
    end_ttl: int = 0
    attempts: bytes | None = None
    tx_errors: int = 0
    rx_drops: int = 0
    errno: int = 0
    missed: int = 0

    def taken(self, token: int = 1, family: int = 4, first_ttl: int = 1) -> Taken:
        """Return it as the engine's `take_trace` does."""
        farthest = max((each.ttl for each in self.answers), default=first_ttl - 1)
        tried = bytes([1]) * (farthest - first_ttl + 1) if self.attempts is None else self.attempts
        late, duplicates = (sum(bool(each.flags & bit) for each in self.answers) for bit in (2, 1))
        summary = SUMMARY.pack(
            token, sum(tried), self.tx_errors, late, duplicates, self.rx_drops, self.errno,
            self.missed, FLOW_LABEL if family == 6 else 0, CHECKSUM, SOURCE_PORT, self.stop,
            self.end_ttl, first_ttl, ip_address(SOURCES[family]).packed,
        )  # fmt: skip
        return (summary + tried, *pack_answers(self.answers))

    def traced(self, family: int = 4, first_ttl: int = 1) -> Traced:
        """Return it as the driver does."""
        return Traced.unpack(self.taken(1, family, first_ttl), family)
