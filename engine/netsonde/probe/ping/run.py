"""One series of packets to one address, and what became of it."""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal, NamedTuple, Protocol, Self

from netsonde._native import icmp
from netsonde._native.ledger import EchoLedger
from netsonde.clock import NS_PER_S
from netsonde.probe.targets import endpoint, socket_address
from netsonde.stats import RttSummary

COMPLETION = struct.Struct(icmp.COMPLETION_FORMAT)

ATTEMPT_BITS = 32  # of a token; the rest numbers the run
ATTEMPT_MASK = (1 << ATTEMPT_BITS) - 1

NOBODY = bytes(16)  # a responder

Method = Literal["icmp", "tcp", "udp"]


class Completion(NamedTuple):
    """What happened to one packet (`netsonde._native.icmp`)."""

    token: int
    rtt_ns: int
    sent_ns: int
    responder: bytes
    kind: int
    icmp_type: int
    code: int
    ttl: int
    size: int
    clocks: int
    errno: int

    @property
    def attempt(self) -> int:
        """Which packet of its run, from 0."""
        return self.token & ATTEMPT_MASK


class Counts(NamedTuple):
    """How a run's packets ended; `submitted` of them there were or will be. Instants 0: none."""

    submitted: int
    settled: int
    received: int
    tx_errors: int
    rx_drops: int
    duplicates: int
    late: int
    user_rx: int
    user_tx: int
    first_sent_ns: int
    last_sent_ns: int

    @classmethod
    def total(cls, each: Iterable[Self]) -> Self:
        """Return the counts of several runs as one."""
        runs = tuple(each)
        return cls(*map(sum, zip(*runs, strict=True)))._replace(
            first_sent_ns=min(filter(None, (run.first_sent_ns for run in runs)), default=0),
            last_sent_ns=max(run.last_sent_ns for run in runs),
        )

    @property
    def sent(self) -> int:
        """How many requests the kernel took."""
        return self.submitted - self.tx_errors

    @property
    def lost(self) -> int:
        """How many requests on the wire stayed unanswered, none of them by our own fault."""
        return self.settled - self.received - self.tx_errors - self.rx_drops


class Carrier(Protocol):
    """Who sends a run's packets and folds what becomes of them."""

    @property
    def access(self) -> str:
        """The kind of socket that replies come to."""
        ...

    @property
    def backend(self) -> str | None:
        """How packets leave, where there is a choice."""
        ...

    @property
    def clock_steps(self) -> int | None:
        """How often the wall clock has stepped; None: nobody looks."""
        ...

    async def run(self, run: "PingRun") -> None:
        """Send a run's packets and return when every one has ended. `forget` it then.

        When it is cancelled no more are sent, and run holds what was seen so far.

        Raises:
            NetsondeError: it can not be gone on with.
        """
        ...

    def forget(self, run: "PingRun") -> None:
        """Drop what is known of a run."""
        ...


@dataclass(eq=False, kw_only=True, slots=True)
class PingRun:
    """What to send; once it is running also what became of it. Attempts count from 0.

    `path` is an echo engine's, `prepare` sets the options of sockets of tcp and udp. `on_end` is
    called when what was started has ended, by its last packet or by `failure`. `on_packet`, where
    given, is called for every completion, late and duplicate replies included.

    Raises:
        ResolveError: the zone of a scoped address names no interface of this host.
    """

    carrier: Carrier
    address: str
    count: int
    interval_ns: int
    timeout_ns: int
    size: int = 56
    ttl: int = 64
    tos: int = 0
    df: bool = False
    path: int = 0
    method: Method = "icmp"
    port: int = 0
    prepare: "Callable[[socket.socket], None] | None" = None
    on_end: "Callable[[PingRun], None] | None" = None
    on_packet: "Callable[[PingRun, Completion], None] | None" = None
    failure: Exception | None = None
    number: int = 0
    ledger: EchoLedger | None = None
    _stopped: asyncio.Event | None = field(default=None, init=False)
    steps_before: int | None = None
    family: int = field(init=False)
    destination: bytes = field(init=False)  # 16 bytes, IPv4 in the first 4
    scope: int = field(init=False)

    def __post_init__(self) -> None:
        """Pack the address, while it can still be refused."""
        self.family = 6 if ":" in self.address else 4
        self.destination, self.scope = packed_address(self.address)

    @property
    def stopped(self) -> asyncio.Event:
        """Set when no more packets are sent; few ask, and it is half of a run's size."""
        if self._stopped is None:
            self._stopped = asyncio.Event()
        return self._stopped

    @property
    def token(self) -> int:
        """The token of the first packet."""
        return self.number << ATTEMPT_BITS

    @property
    def endpoint(self) -> str:
        """Address and port as one string, as the original wrote it; port 0 for ICMP."""
        return endpoint(self.address, self.port)

    @property
    def target(self) -> str:
        """The address, with the port where there is one."""
        return self.endpoint if self.port else self.address

    def enter(self, ledger: EchoLedger) -> None:
        """Open the run in a ledger: what follows is kept there."""
        self.ledger = ledger
        self.number = ledger.open(self.destination, self.count, watched=self.on_packet is not None)
        self.steps_before = self.carrier.clock_steps

    def stop_record(self, submitted: int) -> bytes:
        """Pack the word that no more than this many packets were sent."""
        return COMPLETION.pack(self.token, submitted, 0, NOBODY, icmp.STOPPED, 0, 0, 0, 0, 0, 0)

    # ── what became of it, while the ledger has it ──

    @property
    def is_settled(self) -> bool:
        """Whether every packet has ended."""
        counts = self.counts
        return counts.settled >= counts.submitted

    @property
    def counts(self) -> Counts:
        """How the packets ended so far."""
        return Counts(*self._book.counts(self.number))

    @property
    def kinds(self) -> bytes:
        """The kind of completion of each packet, 0 for none yet."""
        return self._book.kinds(self.number)

    @property
    def rtts_ns(self) -> "memoryview[int]":
        """The round-trip time of each packet, -1 where no reply came in time."""
        return memoryview(self._book.rtts_ns(self.number)).cast("q")

    @property
    def ttls(self) -> bytes:
        """The TTL that each packet's answer arrived with, 0 where it is not known."""
        return self._book.ttls(self.number)

    @property
    def sizes(self) -> "memoryview[int]":
        """The payload size of each packet's answer."""
        return memoryview(self._book.sizes(self.number)).cast("H")

    @property
    def icmp_types(self) -> bytes:
        """The ICMP type of each packet's answer."""
        return self._book.icmp_types(self.number)

    @property
    def codes(self) -> bytes:
        """The ICMP code of each packet's answer, or the errno of a send or connect."""
        return self._book.codes(self.number)

    @property
    def exceptions(self) -> list[Completion]:
        """Late and duplicate replies, ICMP errors, replies from another address, as they came."""
        return [
            Completion(*each) for each in COMPLETION.iter_unpack(self._book.exceptions(self.number))
        ]

    @property
    def rtts(self) -> RttSummary | None:
        """A summary of the round-trip times, None without replies."""
        numbers = self._book.summary(self.number)
        return None if numbers is None else RttSummary.of(*numbers)

    @property
    def histogram(self) -> list[list[int]]:
        """The round-trip times as `[bucket, count]` pairs of `netsonde.stats.Histogram`."""
        return self._book.histogram(self.number)

    @property
    def rtt_us_json(self) -> bytes:
        """The round-trip times as a JSON array of microseconds, null where there is none."""
        return self._book.rtt_us_json(self.number)

    @property
    def clock_steps(self) -> int | None:
        """How often the wall clock has stepped since the run began; None: nobody looked."""
        now = self.carrier.clock_steps
        return None if now is None or self.steps_before is None else now - self.steps_before

    def responder(self, packed: bytes) -> str | None:
        """Write the address of who sent an answer; None for nobody."""
        if packed == NOBODY:
            return None
        return str(ip_address(packed if self.family == 6 else packed[:4]))

    @property
    def _book(self) -> EchoLedger:
        if self.ledger is None:
            raise ValueError(f"the run to {self.target} has not begun")
        return self.ledger


def rate_pps(sent: int, first_sent_ns: int, last_sent_ns: int) -> float | None:
    """Return the rate that packets were really sent at, from the first to the last."""
    took_ns = last_sent_ns - first_sent_ns
    return (sent - 1) * NS_PER_S / took_ns if sent > 1 and took_ns > 0 else None


def packed_address(address: str) -> tuple[bytes, int]:
    """Return an address as 16 bytes, IPv4 in the first 4, and its scope id.

    Raises:
        ResolveError: the zone of a scoped address names no interface of this host.
    """
    if "%" not in address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.inet_pton(family, address).ljust(16, b"\0"), 0
    _, target = socket_address(address, 0)
    scope = target[3] if len(target) == 4 else 0
    return ip_address(target[0]).packed.ljust(16, b"\0"), scope
