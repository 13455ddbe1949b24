"""A host around the trace core: its clocks are the test's, its network is plain Python."""

from dataclasses import dataclass
from typing import Any

from native.trace_core import Ended, Hop, TraceCore
from netsonde._native import icmp
from netsonde.probe.trace.answers import Flag, Traced
from support.echo_host import EPOCH_NS, NS_PER_MS, NS_PER_S, READING_NS, RESPONDER, TARGET
from support.trace_packets import (
    Probe,
    as_received,
    parse_probe,
    segment_as_received,
)

WATCHED = icmp.TRACE_WATCHED
PORT = {"icmp": 0, "udp": 33434, "tcp": 80}
TURNS_MAX = 100_000


@dataclass(frozen=True)
class Sent:
    """A probe as the wire got it, and whose it is by the engine's own account."""

    token: int
    ttl: int
    attempt: int
    sent_ns: int
    probe: Probe

    @property
    def name(self) -> tuple[int, int, int]:
        """Which probe it is."""
        return self.token, self.ttl, self.attempt


class TraceHost:
    """Sends traces and receives answers at its own `now_ns`, CLOCK_MONOTONIC.

    `offset_ns` is where CLOCK_REALTIME is; the core learns it by `sample`, as by a turn.
    """

    def __init__(self, family: int, core: TraceCore | None = None) -> None:
        self.family = family
        self.core = TraceCore(family) if core is None else core
        self.now_ns = 100 * NS_PER_S
        self.offset_ns = EPOCH_NS
        self.ended: dict[int, int] = {}  # numbers by token
        self.sample()

    def sample(self) -> None:
        """Compare the clocks; REALTIME was read between two readings of MONOTONIC."""
        self.core.sample_clocks(self.offset_ns - READING_NS, self.offset_ns + READING_NS)

    def wait(self, ms: float) -> None:
        """Let time pass."""
        self.now_ns += round(ms * NS_PER_MS)

    def submit(self, token: int = 1, method: str = "icmp", **options: Any) -> tuple[int, int, int]:
        """Ask for a watched trace to the one target there is; return its flow."""
        options = {"flags": WATCHED, "port": PORT[method]} | options
        destination = options.pop("destination", TARGET[self.family])
        return self.core.submit(token, destination, method=method, **options)

    def turn(self, *, refused: int = 0) -> list[Sent]:
        """Send what is due; return it, read and checked."""
        probes = self.core.turn(self.now_ns, refused=refused)
        self.hear()
        return [
            Sent(each.token, each.ttl, each.attempt, self.now_ns,
                 parse_probe(self.family, each.packet))
            for each in probes
        ]  # fmt: skip

    def trace(self, method: str = "icmp", *, token: int = 1, **options: Any) -> list[Sent]:
        """Begin a trace; return its first burst."""
        self.submit(token, method, **options)
        return self.turn()

    def hear(self) -> list[Hop]:
        """Return the answers that the core has told of; keep who has ended."""
        hops = []
        for event in self.core.events():
            if isinstance(event, Ended):
                assert event.token not in self.ended, "a trace ends once"
                self.ended[event.token] = event.number
            else:
                hops.append(event)
        return hops

    def receive(
        self, message: bytes, *, responder: bytes | None = None, stamp_ns: int | None = None,
        late_ns: int = 0, ttl: int = 60,
    ) -> list[Hop]:  # fmt: skip
        """Receive an ICMP message now; return the answers it is.

        stamp_ns: by default what the wall clock shows. late_ns: the reader is.
        """
        who = RESPONDER[self.family] if responder is None else responder
        stamp = self.now_ns + self.offset_ns if stamp_ns is None else stamp_ns
        packet = as_received(self.family, message, who, ttl=ttl)
        self.core.arrive(packet, stamp, self.now_ns + late_ns, source=who, hops=ttl)
        return self.hear()

    def receive_bare(self, message: bytes) -> list[Hop]:
        """Receive an ICMP message as a datagram socket hands it out: without its IP header."""
        self.core.arrive(
            message, self.now_ns + self.offset_ns, self.now_ns, source=RESPONDER[self.family]
        )
        return self.hear()

    def receive_segment(self, data: bytes, *, responder: bytes | None = None) -> list[Hop]:
        """Receive a TCP segment now; return the answer it is."""
        who = TARGET[self.family] if responder is None else responder
        packet = segment_as_received(self.family, data, who)
        self.core.arrive(
            packet, self.now_ns + self.offset_ns, self.now_ns, source=who, hops=60, tcp=True
        )
        return self.hear()

    def report(self, message: bytes, *, kind: int, code: int = 0) -> list[Hop]:
        """Read an ICMP error off the error queue; return the answer it is."""
        self.core.report(
            message, self.now_ns + self.offset_ns, self.now_ns, type_=kind, code=code,
            destination=TARGET[self.family], offender=RESPONDER[self.family],
        )  # fmt: skip
        return self.hear()

    def expire(self) -> None:
        """Time out what is due."""
        self.core.expire(self.now_ns)
        assert not self.hear(), "silence is no answer"

    def run_out(self) -> list[Sent]:
        """Let all time pass that there is, with no answer to anything; return what was sent."""
        sent = []
        for _ in range(TURNS_MAX):
            sent += self.turn()
            self.expire()
            next_ns = self.core.next_turn_ns(self.now_ns)
            if self.core.running == self.core.scheduled == self.core.in_flight == 0:
                return sent
            self.now_ns = max(self.now_ns, next_ns)
        raise AssertionError("an engine comes to no end")

    def take(self, token: int = 1) -> Traced:
        """Take what an ended trace saw."""
        return Traced.unpack(self.core.take(self.ended.pop(token)), self.family)

    def refusals(self) -> dict[str, int]:
        """Return what was refused so far, by reason."""
        counters = self.core.counters
        return {reason: counters[reason] for reason in
                ("foreign", "forged", "malformed", "stale", "late_errors")
                if counters[reason]}  # fmt: skip


def only(hops: list[Hop]) -> Hop:
    assert len(hops) == 1, hops
    return hops[0]


def credited(hops: list[Hop], sent: Sent, flags: int = 0) -> Hop:
    """Insist that an answer is a probe's, with these flags."""
    hop = only(hops)
    assert (hop.token, hop.ttl, hop.attempt) == sent.name
    assert Flag(hop.flags) == Flag(flags)
    return hop


def refused(host: TraceHost, message: bytes, *, tcp: bool = False) -> str:
    """Insist that a packet is nobody's answer; return the one reason that is counted."""
    before = host.refusals()
    hops = host.receive_segment(message) if tcp else host.receive(message)
    assert not hops, "a stranger's packet is no answer"
    after = host.refusals()
    reasons = [reason for reason in after if after[reason] != before.get(reason, 0)]
    assert len(reasons) == 1
    assert after[reasons[0]] == before.get(reasons[0], 0) + 1
    return reasons[0]
