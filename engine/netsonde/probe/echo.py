"""Drives one native echo engine for any number of concurrent runs: paces, reads, times out.

There is no task or timer per packet, and none of its own: one of the waiting runs leads, which
means that it sends what is due for all of them; when it is done another takes over. Replies come
by the event loop's reader and go to their runs in batches.
"""

import asyncio
import contextlib
import heapq
import itertools
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal, Protocol

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, Clock
from netsonde.errors import PrivilegeError, SendError
from netsonde.probe.privilege import GRANT_HINT, IcmpAccess
from netsonde.probe.targets import socket_address

REQUEST = struct.Struct(icmp.REQUEST_FORMAT)
COMPLETION = struct.Struct(icmp.COMPLETION_FORMAT)

TURN_PACKETS = 256  # sent or read before other work of the loop gets its turn: about 2 ms
RUN_BURST = 64  # of one run per turn, so that a flood shares the turn with others
CATCH_UP_NS = 2 * NS_PER_MS  # a late loop may shorten a gap by this much, never by more
QUANTUM_NS = NS_PER_MS  # faster paces are sent in bursts of this length
FULL_RETRY_NS = 10 * NS_PER_MS  # until another look when every slot is in flight
FOREVER_NS = 3_600_000 * NS_PER_MS  # nothing to send; a deadline or a new run comes first
ATTEMPT_BITS = 32  # of a token; the rest numbers the run

# (token, rtt_ns, sent_ns, responder, kind, type, code, ttl, size, clocks, errno)
Completion = tuple[int, int, int, bytes, int, int, int, int, int, int, int]


class EchoEngine(Protocol):
    """What is used of `netsonde._native.icmp.EchoEngine`."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll has packets to read."""
        ...

    def submit(self, requests: bytes) -> int:
        """Send packed requests; return how many were taken."""
        ...

    def poll(self, *, now_ns: int, limit: int) -> bytes:
        """Return packed completions."""
        ...

    @property
    def next_deadline_ns(self) -> int | None:
        """The instant by which a timeout will be due."""
        ...

    @property
    def access(self) -> IcmpAccess:
        """The kind of socket."""
        ...

    def close(self) -> None:
        """Close the socket."""
        ...


class OpenEngine(Protocol):
    """How a driver gets its engine: `open_engine`, or a test's twin."""

    def __call__(self, family: int) -> EchoEngine:
        """Open an engine for family 4 or 6."""
        ...


def open_engine(family: int) -> EchoEngine:
    """Open the native engine over a raw socket, or a datagram socket where only that is allowed.

    Raises:
        PrivilegeError: neither is; the message says how to grant it.
        SendError: this host cannot at all, for instance because it has no IPv6.
    """
    version: Literal[4, 6] = 4 if family == 4 else 6
    with contextlib.suppress(PermissionError):
        return _open(version, "raw")
    with contextlib.suppress(PermissionError):
        return _open(version, "datagram")
    raise PrivilegeError(f"this process may not send ICMPv{family}.\n{GRANT_HINT}")


def _open(version: Literal[4, 6], access: IcmpAccess) -> EchoEngine:
    try:
        return icmp.EchoEngine(version, access=access)
    except PermissionError:
        raise
    except OSError as error:
        text = error.strerror or str(error)
        raise SendError(f"open ICMPv{version} socket", error.errno or 0, text) from error


@dataclass(eq=False, slots=True, kw_only=True)
class EchoRun:
    """One series of echo requests to one address and what became of each. Attempts count from 0."""

    address: str
    count: int
    interval_ns: int
    timeout_ns: int
    size: int
    ttl: int
    number: int = 0
    submitted: int = 0
    settled: int = 0
    first_sent_ns: int | None = None
    last_sent_ns: int | None = None
    tx_errors: int = 0
    rx_drops: int = 0
    duplicates: int = 0
    user_stamps: int = 0
    late_ns: dict[int, int] = field(default_factory=dict)  # RTTs of replies that came too late
    responders: dict[int, bytes] = field(default_factory=dict)  # of replies from elsewhere
    duplicated: dict[int, int] = field(default_factory=dict)
    kinds: bytearray = field(init=False)  # 0: not settled
    rtts_ns: "array[int]" = field(init=False)
    ttls: bytearray = field(init=False)
    sizes: "array[int]" = field(init=False)
    icmp_types: bytearray = field(init=False)
    codes: bytearray = field(init=False)  # ICMP code, or errno of a refused send
    destination: bytes = field(init=False)
    scope: int = field(init=False)
    woken: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.kinds = bytearray(self.count)
        self.rtts_ns = array("q", bytes(8 * self.count))
        self.ttls = bytearray(self.count)
        self.sizes = array("H", bytes(2 * self.count))
        self.icmp_types = bytearray(self.count)
        self.codes = bytearray(self.count)
        self.destination, self.scope = packed_address(self.address)

    @property
    def finished(self) -> bool:
        """Whether every attempt has ended."""
        return self.settled == self.count

    @property
    def sent(self) -> int:
        """How many requests the kernel took."""
        return self.submitted - self.tx_errors

    def request(self, attempt: int) -> bytes:
        """Pack one request."""
        token = self.number << ATTEMPT_BITS | attempt
        return REQUEST.pack(
            token, self.timeout_ns, self.destination, self.scope, self.size, self.ttl, 0
        )

    def responder(self, attempt: int) -> str:
        """Return who sent what ended an attempt."""
        packed = self.responders.get(attempt, self.destination)
        return str(ip_address(packed if ":" in self.address else packed[:4]))

    def take(self, completion: Completion) -> None:
        """Note what became of one attempt."""
        token, rtt_ns, sent_ns, responder, kind, icmp_type, code, ttl, size, clocks, errno = (
            completion
        )
        attempt = token & (1 << ATTEMPT_BITS) - 1
        if kind == icmp.DUPLICATE:
            self.duplicates += 1
            self.duplicated[attempt] = self.duplicated.get(attempt, 0) + 1
            return
        if kind == icmp.LATE:
            self.late_ns[attempt] = rtt_ns
            return
        self.settled += 1
        self.kinds[attempt] = kind
        self.rtts_ns[attempt] = rtt_ns
        self.ttls[attempt] = ttl
        self.sizes[attempt] = size
        self.icmp_types[attempt] = icmp_type
        self.codes[attempt] = errno or code
        if kind == icmp.TX_ERROR:
            self.tx_errors += 1
            return
        self._note_sent(sent_ns)
        self.rx_drops += kind == icmp.RX_DROP
        self.user_stamps += kind == icmp.REPLY and not clocks & icmp.RX_KERNEL
        if kind in (icmp.REPLY, icmp.ERROR) and responder != self.destination:
            self.responders[attempt] = responder

    def _note_sent(self, sent_ns: int) -> None:
        if self.first_sent_ns is None or sent_ns < self.first_sent_ns:
            self.first_sent_ns = sent_ns
        if self.last_sent_ns is None or sent_ns > self.last_sent_ns:
            self.last_sent_ns = sent_ns


class EchoDriver:
    """Runs any number of `EchoRun`s over one engine of one family."""

    def __init__(self, clock: Clock, engine: EchoEngine) -> None:
        self._clock = clock
        self._engine = engine
        self._runs: dict[int, EchoRun] = {}
        self._numbers = itertools.count(1)
        self._order = itertools.count()
        self._due: list[tuple[int, int, EchoRun]] = []  # when each run sends next
        self._leader: EchoRun | None = None
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.strays = 0  # late replies to runs that have ended
        self._loop.add_reader(engine.fileno(), self._on_readable)

    @property
    def access(self) -> IcmpAccess:
        """The engine's kind of socket."""
        return self._engine.access

    def close(self) -> None:
        """Close the engine."""
        self._loop.remove_reader(self._engine.fileno())
        self._engine.close()

    async def run(self, run: EchoRun) -> None:
        """Send a run's requests at its pace and return when every one has ended.

        When it is cancelled, run holds what was seen so far.
        """
        run.number = next(self._numbers) & (1 << ATTEMPT_BITS) - 1
        self._runs[run.number] = run
        self._schedule(run, self._clock.monotonic_ns())
        self._wake.set()
        try:
            while not run.finished:
                if self._leader is None:
                    await self._lead(run)
                else:
                    await run.woken.wait()
                    run.woken.clear()
        finally:
            del self._runs[run.number]
            if self._leader is None and self._runs:
                next(iter(self._runs.values())).woken.set()

    async def _lead(self, run: EchoRun) -> None:
        """Send and collect for all runs until this one is finished."""
        self._leader = run
        try:
            while True:
                self._wake.clear()
                now_ns = self._clock.monotonic_ns()
                wait_ns = self._send_due(now_ns)
                self._collect()
                if run.finished:
                    return
                deadline_ns = self._engine.next_deadline_ns
                if deadline_ns is not None:
                    wait_ns = min(wait_ns, deadline_ns - now_ns)
                await self._rest(wait_ns)
        finally:
            self._leader = None

    async def _rest(self, wait_ns: int) -> None:
        """Wait until something is due, or only let others have the loop when it already is."""
        if wait_ns <= 0:
            await self._clock.sleep(0)
        else:
            await self._clock.wait(self._wake, max(wait_ns, QUANTUM_NS))

    def _schedule(self, run: EchoRun, due_ns: int) -> None:
        heapq.heappush(self._due, (due_ns, next(self._order), run))

    def _send_due(self, now_ns: int) -> int:
        """Submit what is due by now, at most a turn's worth; return how long until the next."""
        batch: list[bytes] = []
        owners: list[EchoRun] = []
        while self._due and self._due[0][0] <= now_ns and len(batch) < TURN_PACKETS:
            due_ns, _, run = heapq.heappop(self._due)
            if run.number not in self._runs:
                continue
            due_ns = max(due_ns, now_ns - CATCH_UP_NS)
            attempt = run.submitted
            burst_end = min(attempt + RUN_BURST, run.count)
            while attempt < burst_end and due_ns <= now_ns:
                batch.append(run.request(attempt))
                owners.append(run)
                attempt += 1
                due_ns += run.interval_ns
            run.submitted = attempt
            if attempt < run.count:
                self._schedule(run, due_ns)
        if batch and self._submit(batch, owners) < len(batch):
            return FULL_RETRY_NS
        return self._due[0][0] - now_ns if self._due else FOREVER_NS

    def _submit(self, batch: list[bytes], owners: list[EchoRun]) -> int:
        """Submit a batch; what the engine has no slots for goes back to its runs."""
        taken = 0
        try:
            taken = self._engine.submit(b"".join(batch))
        finally:
            again_ns = self._clock.monotonic_ns() + FULL_RETRY_NS
            for run in owners[taken:]:
                if run.submitted == run.count:  # it had left the schedule
                    self._schedule(run, again_ns)
                run.submitted -= 1
        return taken

    def _on_readable(self) -> None:
        self._collect()
        if self._leader is not None and self._leader.finished:
            self._wake.set()

    def _collect(self) -> None:
        """Hand completions to their runs and wake those that are finished."""
        now_ns = self._clock.monotonic_ns()
        done = self._engine.poll(now_ns=now_ns, limit=TURN_PACKETS)
        runs = self._runs
        for completion in COMPLETION.iter_unpack(done):
            run = runs.get(completion[0] >> ATTEMPT_BITS)
            if run is None:
                self.strays += 1
                continue
            run.take(completion)
            if run.finished:
                run.woken.set()


def packed_address(address: str) -> tuple[bytes, int]:
    """Return an address as 16 bytes, IPv4 in the first 4, and its scope id.

    Raises:
        ResolveError: the zone of a scoped address names no interface of this host.
    """
    _, target = socket_address(address, 0)
    scope = target[3] if len(target) == 4 else 0
    return ip_address(target[0]).packed.ljust(16, b"\0"), scope


def attempts_of(run: EchoRun, kind: int) -> Iterator[int]:
    """Return the attempts that ended as `kind`, in order."""
    return (attempt for attempt, ended in enumerate(run.kinds) if ended == kind)
