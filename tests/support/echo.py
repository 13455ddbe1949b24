"""The echo engine's twin in memory: answers as a script says, on a manual clock."""

import asyncio
import contextlib
import heapq
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.probe.ping.driver import REQUEST
from netsonde.probe.ping.run import COMPLETION
from netsonde.probe.privilege import IcmpAccess

TERMINAL = (icmp.REPLY, icmp.ERROR, icmp.RX_DROP)
SILENT = (icmp.TIMEOUT, icmp.TX_ERROR, icmp.RX_DROP)


class Request(NamedTuple):
    """A packet that was sent."""

    address: str
    attempt: int  # within its run, from 0
    sent_ns: int
    timeout_ns: int
    size: int
    ttl: int
    tos: int
    path: int
    flags: int
    scope: int


class Path(NamedTuple):
    """A way that was named."""

    source: bytes | None
    interface: int
    mark: int
    link_address: bytes | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens to a packet: a reply, an ICMP error, a refused send, a local drop."""

    kind: int = icmp.REPLY
    after_ns: int = NS_PER_MS
    responder: str | None = None  # default: the target
    icmp_type: int = 0
    code: int = 0
    ttl: int = 64
    clocks: int = icmp.RX_KERNEL
    errno: int = 0


Script = Callable[[Request], Sequence[Event]]

ANSWER = (Event(),)


def answers(_request: Request) -> Sequence[Event]:
    """A target 1 ms away."""
    return ANSWER


def silence(_request: Request) -> Sequence[Event]:
    """A target that never answers."""
    return ()


@dataclass(eq=False)
class _Run:
    token: int
    interval_ns: int
    timeout_ns: int
    address: str
    scope: int
    count: int
    size: int
    path: int
    ttl: int
    tos: int
    flags: int
    sent: int = 0


class MemoryEchoEngine:
    """Keeps the packets it sent in `requests`; what happens to each is the script's to say.

    `room` is how many runs it takes at once, `cancellations_max` how many orders may wait,
    `size_max` above which a request is refused. `is_deaf` keeps it from confirming cancellations.
    """

    def __init__(
        self, clock: ManualClock, family: int, script: Script = answers, *, backend: str = "raw"
    ) -> None:
        self.family = family
        self.script = script
        self.room = 1 << 20
        self.cancellations_max = 1024
        self.size_max = icmp.SIZE_MAX_BYTES
        self.paths_max = 4095
        self.is_deaf = False
        self.clock_steps = 0
        self.requests: list[Request] = []
        self.paths: list[Path] = []
        self.batches: list[int] = []  # how many runs of each submission were taken
        self.cancelled: list[int] = []
        self.closed = False
        self.backend = backend
        self._clock = clock
        self._runs: list[tuple[int, int, _Run]] = []
        self._events: list[tuple[int, int, bytes]] = []
        self._orders: list[int] = []
        self._order = itertools.count()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._alarm = clock._sleeper(0)
        self._alarm.cancel()

    @property
    def access(self) -> IcmpAccess:
        return "datagram" if self.backend == "datagram" else "raw"

    @property
    def counters(self) -> dict[str, int]:
        self._live()
        return {"clock_steps": self.clock_steps}

    def fileno(self) -> int:
        self._live()
        return self._fd

    def close(self) -> None:
        self._live()
        self.closed = True
        self._alarm.cancel()
        os.close(self._fd)

    def add_path(
        self,
        *,
        source: bytes | None = None,
        interface: int = 0,
        mark: int = 0,
        link_address: bytes | None = None,
    ) -> int:
        if len(self.paths) == self.paths_max:
            raise ValueError(f"at most {self.paths_max} paths")
        self.paths.append(Path(source, interface, mark, link_address))
        return len(self.paths)

    def submit(self, requests: bytes) -> int:
        self._live()
        records = [_run(self.family, record) for record in REQUEST.iter_unpack(requests)]
        for number, run in enumerate(records):
            if run.size > self.size_max:
                raise ValueError(f"request {number}: size must be 16 to {self.size_max}")
        taken = records[: self.room - len(self._runs)]
        now_ns = self._clock.monotonic_ns()
        for run in taken:
            heapq.heappush(self._runs, (now_ns, next(self._order), run))
        self.batches.append(len(taken))
        self._send()
        self._arm()
        return len(taken)

    def cancel(self, token: int) -> None:
        self._live()
        if len(self._orders) == self.cancellations_max:
            raise ValueError("too many cancellations at once: poll first")
        self.cancelled.append(token)
        self._orders.append(token)
        self._arm()

    def poll(self) -> bytes:
        self._live()
        while self._orders and not self.is_deaf:
            self._stop(self._orders.pop(0))
        self._send()
        now_ns = self._clock.monotonic_ns()
        done = b""
        while self._events and self._events[0][0] <= now_ns:
            done += heapq.heappop(self._events)[2]
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        self._arm()
        return done

    def _live(self) -> None:
        if self.closed:
            raise ValueError("EchoEngine is closed")

    def _send(self) -> None:
        """Send what is due, each packet at its own instant."""
        now_ns = self._clock.monotonic_ns()
        while self._runs and self._runs[0][0] <= now_ns:
            due_ns, _, run = heapq.heappop(self._runs)
            self._send_one(run, due_ns)
            if run.sent < run.count:
                heapq.heappush(self._runs, (due_ns + run.interval_ns, next(self._order), run))

    def _send_one(self, run: _Run, now_ns: int) -> None:
        request = Request(
            run.address, run.sent, now_ns, run.timeout_ns, run.size, run.ttl, run.tos, run.path,
            run.flags, run.scope,
        )  # fmt: skip
        token = run.token + run.sent
        run.sent += 1
        events = list(self.script(request))
        if not any(event.kind == icmp.TX_ERROR for event in events):
            self.requests.append(request)
        ended = False
        silence_ends = Event(kind=icmp.TIMEOUT, after_ns=run.timeout_ns)
        for event in events:
            kind = event.kind
            if kind in TERMINAL and not ended and event.after_ns > run.timeout_ns:
                self._push(token, request, silence_ends)
                ended, kind = True, icmp.LATE
            self._push(token, request, event, kind)
            ended = ended or kind in (*TERMINAL, icmp.TX_ERROR)
        if not ended:
            self._push(token, request, silence_ends)

    def _push(self, token: int, request: Request, event: Event, kind: int | None = None) -> None:
        kind = event.kind if kind is None else kind
        silent = kind in SILENT
        responder = b"" if silent else ip_address(event.responder or request.address).packed
        record = COMPLETION.pack(
            token, -1 if silent else event.after_ns, request.sent_ns, responder.ljust(16, b"\0"),
            kind, event.icmp_type, event.code, event.ttl, request.size, event.clocks, event.errno,
        )  # fmt: skip
        at_ns = request.sent_ns + (0 if kind == icmp.TX_ERROR else event.after_ns)
        heapq.heappush(self._events, (at_ns, next(self._order), record))

    def _stop(self, token: int) -> None:
        """Confirm that a run is cancelled, with how many of its packets were sent, -1 for all."""
        sent = next((run.sent for *_, run in self._runs if run.token == token), -1)
        self._runs = [entry for entry in self._runs if entry[2].token != token]
        heapq.heapify(self._runs)
        record = COMPLETION.pack(token, sent, 0, bytes(16), icmp.STOPPED, 0, 0, 0, 0, 0, 0)
        heapq.heappush(self._events, (0, next(self._order), record))

    def _arm(self) -> None:
        """Make the descriptor readable when something is due."""
        due = [queue[0][0] for queue in (self._runs, self._events) if queue]
        if self._orders and not self.is_deaf:
            due.append(0)
        self._alarm.cancel()
        if not due:
            return
        wait_ns = min(due) - self._clock.monotonic_ns()
        if wait_ns <= 0:
            os.eventfd_write(self._fd, 1)
            return
        self._alarm = self._clock._sleeper(wait_ns)
        self._alarm.add_done_callback(self._wake)

    def _wake(self, alarm: "asyncio.Future[None]") -> None:
        if not self.closed and not alarm.cancelled():
            os.eventfd_write(self._fd, 1)


def _run(
    family: int, record: tuple[int, int, int, bytes, int, int, int, int, int, int, int]
) -> _Run:
    token, interval_ns, timeout_ns, packed, scope, *rest = record
    address = str(ip_address(packed if family == 6 else packed[:4]))
    return _Run(token, interval_ns, timeout_ns, address, scope, *rest)
