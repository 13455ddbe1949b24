"""A network for trace probes that is known exactly: the twin of the native trace socket.

It answers on a ManualClock; `play` moves the clock from one answer or timeout to the next, so a
trace of seconds takes no time.
"""

import asyncio
import contextlib
import errno
import heapq
import itertools
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.probe.trace_path import ECHO_REPLY, TIME_EXCEEDED

PLAY_LIMIT_NS = 3600 * NS_PER_S


@dataclass(frozen=True)
class Reply:
    """One packet that answers a probe. icmp: type and code; None: what the address implies."""

    address: str
    rtt_ms: float
    icmp: tuple[int, int] | None = None
    flags: int = 0
    quoted_tos: int = 0


# What a probe with this TTL and attempt gets back.
Plan = Callable[[int, int], Sequence[Reply]]


def straight(routers: Sequence[str | None], target: str | None, *, rtt_ms: float = 10.0) -> Plan:
    """Plan a path: router n answers after n times rtt_ms, None never; then the target."""

    def plan(ttl: int, attempt: int) -> Sequence[Reply]:
        hops = [*routers, target]
        address = hops[min(ttl, len(hops)) - 1]
        return [Reply(address, rtt_ms * min(ttl, len(hops)))] if address else []

    return plan


@dataclass
class TwinSocket:
    """Answers probes as `plan` says; refuses them with `send_errno`, or routes with `no_route`."""

    clock: ManualClock
    version: int
    target: str
    plan: Plan
    traces_max: int = 4096
    queue_max: int = 65536
    no_route: bool = False
    send_errno: int | None = None
    sent: list[tuple[int, int, int]] = field(default_factory=list)  # trace, ttl, attempt
    live: set[int] = field(default_factory=set)
    closed: bool = False

    def __post_init__(self) -> None:
        self._handles = itertools.count(1)
        self._order = itertools.count()
        self._queue: list[tuple[int, int, int]] = []
        self._on_the_way: list[tuple[int, int, tuple[Any, ...]]] = []
        self._last_sent_ns: dict[int, int] = {}
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._room = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_stuck = False

    @property
    def queued(self) -> int:
        return len(self._queue)

    def fileno(self) -> int:
        return self._event

    def send_fileno(self) -> int:
        return self._room

    def fill_send_buffer(self) -> None:
        """Let what is queued stay queued."""
        os.eventfd_write(self._room, 2**64 - 2)  # from here on it is not writable
        self._is_stuck = True

    def drain_send_buffer(self) -> None:
        """Take probes again."""
        os.eventfd_read(self._room)
        self._is_stuck = False

    def begin(
        self, destination: bytes, *, scope_id: int, first_ttl: int, last_ttl: int, attempts: int
    ) -> int | None:
        if self.no_route:
            raise OSError(errno.ENETUNREACH, "look up route: Network is unreachable")
        if len(self.live) == self.traces_max:
            return None
        trace = next(self._handles)
        self.live.add(trace)
        self._last_sent_ns[trace] = 0
        return trace

    def end(self, trace: int) -> None:
        self.live.remove(trace)

    def flow(self, trace: int) -> tuple[bytes, int, int]:
        source = "192.0.2.99" if self.version == 4 else "2001:db8::99"
        return ip_address(source).packed, 4711, 0

    def progress(self, trace: int) -> tuple[int, int]:
        waiting = sum(probe[0] == trace for probe in self._queue)
        return waiting, self._last_sent_ns[trace]

    def submit(self, trace: int, attempt: int, ttls: bytes) -> int:
        assert trace in self.live
        taken = ttls[: self.queue_max - len(self._queue)]
        for ttl in taken:
            probe = (trace, ttl, attempt)
            assert probe not in self.sent
            assert probe not in self._queue
            self._queue.append(probe)
        return len(taken)

    def pump(self, limit: int) -> tuple[list[Any], list[Any]]:
        refusals = []
        for probe in [] if self._is_stuck else self._queue:
            if self.send_errno is None:
                self._send(*probe)
            else:
                refusals.append((*probe, self.send_errno))
        if not self._is_stuck:
            self._queue = []
        answers: list[Any] = []
        with contextlib.suppress(BlockingIOError):  # pumped for another reason than an answer
            os.eventfd_read(self._event)
        while (due_ns := self.next_due_ns) is not None and due_ns <= self.clock.monotonic_ns():
            if len(answers) == limit:
                self.ring()  # a descriptor stays readable while there is something to read
                break
            answer = heapq.heappop(self._on_the_way)[2]
            if answer[0] in self.live:
                answers.append(answer)
        return answers, refusals

    def counters(self) -> dict[str, int]:
        return {"rx_drops": 0}

    def close(self) -> None:
        if not self.closed:
            os.close(self._event)
            os.close(self._room)
        self.closed = True

    @property
    def next_due_ns(self) -> int | None:
        """When the next answer arrives."""
        return self._on_the_way[0][0] if self._on_the_way else None

    def ring(self) -> None:
        """Become readable if an answer has arrived."""
        if self.next_due_ns is not None and self.next_due_ns <= self.clock.monotonic_ns():
            os.eventfd_write(self._event, 1)

    def _send(self, trace: int, ttl: int, attempt: int) -> None:
        now_ns = self.clock.monotonic_ns()
        self.sent.append((trace, ttl, attempt))
        self._last_sent_ns[trace] = now_ns
        for reply in self.plan(ttl, attempt):
            is_end = reply.address == self.target
            implied = ECHO_REPLY[self.version] if is_end else TIME_EXCEEDED[self.version]
            kind, code = reply.icmp or (implied, 0)
            due_ns = now_ns + round(reply.rtt_ms * NS_PER_MS)
            answer: tuple[Any, ...] = (
                trace,
                ttl,
                attempt,
                kind,
                code,
                ip_address(reply.address).packed,
            )
            answer += (now_ns, due_ns, 65 - ttl, 0 if is_end else 1, reply.quoted_tos, reply.flags)
            heapq.heappush(self._on_the_way, (due_ns, next(self._order), answer))


async def play(
    clock: ManualClock, sockets: Sequence[TwinSocket], *runs: Coroutine[Any, Any, None]
) -> None:
    """Run coroutines to their end, moving the clock whenever all of them wait."""
    limit_ns = clock.monotonic_ns() + PLAY_LIMIT_NS
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run) for run in runs]
        await clock.settle()
        while not all(task.done() for task in tasks):
            await move(clock, sockets)
            assert clock.monotonic_ns() < limit_ns, "the trace does not end"


async def move(clock: ManualClock, sockets: Sequence[TwinSocket]) -> None:
    """Move the clock to the next thing that happens, and let it happen."""
    instants = [clock.next_wake_ns, *(each.next_due_ns for each in sockets if not each.closed)]
    next_ns = min((instant for instant in instants if instant is not None), default=None)
    assert next_ns is not None, "nobody waits for anything"
    await clock.advance(max(next_ns - clock.monotonic_ns(), 0))
    for each in sockets:
        if not each.closed:
            each.ring()
    await clock.settle()
