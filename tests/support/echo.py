"""The echo engine's twin in memory: answers as a script says, on a manual clock."""

import heapq
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, Clock
from netsonde.probe.echo import COMPLETION, REQUEST
from netsonde.probe.privilege import IcmpAccess

TERMINAL = (icmp.REPLY, icmp.ERROR, icmp.RX_DROP)


class Request(NamedTuple):
    """What the prober asked for."""

    address: str
    attempt: int  # within its run, from 0
    sent_ns: int
    timeout_ns: int
    size: int
    ttl: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens to a request: a reply, an ICMP error, a refused send, a local drop."""

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


class MemoryEchoEngine:
    """Keeps what it was asked in `requests`; what happens to each is the script's to say."""

    def __init__(
        self,
        clock: Clock,
        family: int,
        script: Script = answers,
        *,
        capacity: int = 1 << 20,
        access: IcmpAccess = "raw",
    ) -> None:
        self.clock = clock
        self.family = family
        self.script = script
        self.capacity = capacity
        self.access: IcmpAccess = access
        self.requests: list[Request] = []
        self.batches: list[int] = []
        self.closed = False
        self._in_flight = 0
        self._events: list[tuple[int, int, bytes, bool]] = []
        self._order = itertools.count()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        os.close(self._fd)

    def submit(self, requests: bytes) -> int:
        taken = 0
        for record in REQUEST.iter_unpack(requests):
            if self._in_flight == self.capacity:
                break
            self._take(*record)
            taken += 1
        self.batches.append(taken)
        return taken

    @property
    def next_deadline_ns(self) -> int | None:
        return self._events[0][0] if self._events else None

    def poll(self, *, now_ns: int, limit: int) -> bytes:
        done = b""
        while self._events and self._events[0][0] <= now_ns and limit > 0:
            _, _, record, frees = heapq.heappop(self._events)
            done += record
            limit -= 1
            self._in_flight -= frees
        return done

    def _take(
        self, token: int, timeout_ns: int, packed: bytes, scope: int, size: int, ttl: int, tos: int
    ) -> None:
        address = str(ip_address(packed if self.family == 6 else packed[:4]))
        now_ns = self.clock.monotonic_ns()
        request = Request(address, token & 0xFFFFFFFF, now_ns, timeout_ns, size, ttl)
        events = list(self.script(request))
        if not any(event.kind == icmp.TX_ERROR for event in events):
            self.requests.append(request)
        self._in_flight += 1
        ended = False
        for event in events:
            kind = event.kind
            if kind in TERMINAL and not ended and event.after_ns > timeout_ns:
                self._push(token, request, Event(kind=icmp.TIMEOUT, after_ns=timeout_ns), True)
                ended, kind = True, icmp.LATE
            frees = not ended and kind in (*TERMINAL, icmp.TX_ERROR)
            self._push(token, request, event, frees, kind)
            ended = ended or frees
        if not ended:
            self._push(token, request, Event(kind=icmp.TIMEOUT, after_ns=timeout_ns), True)

    def _push(
        self, token: int, request: Request, event: Event, frees: bool, kind: int | None = None
    ) -> None:
        kind = event.kind if kind is None else kind
        silent = kind in (icmp.TIMEOUT, icmp.TX_ERROR, icmp.RX_DROP)
        responder = b"" if silent else ip_address(event.responder or request.address).packed
        record = COMPLETION.pack(
            token, -1 if silent else event.after_ns, request.sent_ns, responder.ljust(16, b"\0"),
            kind, event.icmp_type, event.code, event.ttl, request.size, event.clocks, event.errno,
        )  # fmt: skip
        at_ns = request.sent_ns + (0 if kind == icmp.TX_ERROR else event.after_ns)
        heapq.heappush(self._events, (at_ns, next(self._order), record, frees))
