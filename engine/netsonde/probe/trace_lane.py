"""One family's native trace socket on the event loop, and the traces that share it.

No coroutine and no future per probe: the loop's reader takes whatever came in one batch, each
answer goes to its trace's `Path`, and what is due then leaves in one batch. A trace's own coroutine
sleeps until its next timeout.
"""

import asyncio
import errno
import socket
from typing import Any, Protocol

from netsonde._native import trace as native
from netsonde.clock import Clock
from netsonde.probe.targets import socket_address
from netsonde.probe.trace_path import BURST_GAP_NS, Answer, Path, Refusal

PUMP_EVENTS_MAX = 4096  # of one native pump; bounds the time the loop is held
PUMPS_MAX = 4  # in a row: more than the receive buffer holds
TRACES_MAX = 4096  # live at once per family, further ones wait; 1/16 of the ICMP identifiers


class TraceEngine(Protocol):
    """What of `netsonde._native.trace.TraceSocket` a trace needs."""

    @property
    def traces_max(self) -> int:
        """Traces that can be live at once."""
        ...

    @property
    def queued(self) -> int:
        """Probes not given to the kernel yet."""
        ...

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there are answers."""
        ...

    def send_fileno(self) -> int:
        """Return the descriptor that becomes writable when what is queued can be sent."""
        ...

    def begin(
        self, destination: bytes, *, scope_id: int, first_ttl: int, last_ttl: int, attempts: int
    ) -> int | None:
        """Reserve a slot; None when all are taken; OSError when there is no route."""
        ...

    def end(self, trace: int) -> None:
        """Give the slot back."""
        ...

    def flow(self, trace: int) -> tuple[bytes, int, int]:
        """Return source address, ICMP checksum and IPv6 flow label."""
        ...

    def progress(self, trace: int) -> tuple[int, int]:
        """Return the probes still queued and when the last one left."""
        ...

    def submit(self, trace: int, attempt: int, ttls: bytes) -> int:
        """Queue probes; return how many fitted."""
        ...

    def pump(self, limit: int) -> tuple[list[Any], list[Any]]:
        """Send and receive; return at most limit answers and refusals as tuples."""
        ...

    def counters(self) -> dict[str, int]:
        """Return the totals since the start."""
        ...

    def close(self) -> None:
        """Close the sockets."""
        ...


def open_engine(family: int) -> TraceEngine:
    """Open the native sockets of AF_INET or AF_INET6."""
    return native.TraceSocket(family, traces_max=TRACES_MAX)


class TraceRun:
    """One trace on a lane: hands due probes over, and wakes its coroutine when it must."""

    def __init__(self, lane: "TraceLane", trace: int, path: Path) -> None:
        self.trace = trace
        self.path = path
        self._lane = lane
        self._changed = asyncio.Event()
        self._wakes_ns = 0  # what the coroutine sleeps until

    async def finish(self) -> None:
        """Trace until nothing more can be learnt."""
        clock = self._lane.clock
        while True:
            self.step()
            now_ns = clock.monotonic_ns()
            wake_ns = self.path.wake_ns(now_ns)
            if wake_ns is None:
                return
            self._wakes_ns = wake_ns
            self._changed.clear()
            if not await clock.wait(self._changed, max(wake_ns - now_ns, BURST_GAP_NS)):
                # When the loop lags, an answer in time may wait behind this timer.
                self._lane.pump()

    def step(self) -> None:
        """Hand over what is due; wake the coroutine if it sleeps too long now."""
        now_ns = self._lane.clock.monotonic_ns()
        for attempt, ttls in self.path.due(now_ns):
            taken = self._lane.submit(self, attempt, ttls)
            self.path.withdraw(ttls[taken:])
        wake_ns = self.path.wake_ns(now_ns)
        if wake_ns is None or wake_ns < self._wakes_ns:
            self._changed.set()


class TraceLane:
    """One family's socket on the running loop; takes every answer to the trace it belongs to."""

    def __init__(self, engine: TraceEngine, clock: Clock) -> None:
        self.clock = clock
        self.engine = engine
        self._slots = asyncio.Semaphore(engine.traces_max)
        self._runs: dict[int, TraceRun] = {}
        self._unconfirmed: set[TraceRun] = set()
        self._loop = asyncio.get_running_loop()
        self._pending: asyncio.Handle | None = None
        self._is_closed = False
        self._is_stuck = False  # the send buffer is full, and the loop tells when it is not
        self._loop.add_reader(engine.fileno(), self.pump)

    async def begin(self, address: str, path: Path, attempts: int) -> TraceRun:
        """Take a slot for a trace to a vetted address, waiting for one when all are taken.

        Raises:
            OSError: there is no route.
        """
        family, peer = socket_address(address, 0)
        await self._slots.acquire()
        trace = None
        try:
            trace = self.engine.begin(
                socket.inet_pton(family, peer[0]),
                scope_id=peer[3] if len(peer) == 4 else 0,
                first_ttl=path.first_ttl,
                last_ttl=path.last_ttl,
                attempts=attempts,
            )
        finally:
            if trace is None:
                self._slots.release()
        if trace is None:  # only when others use the engine too
            raise OSError(errno.ENOBUFS, "every trace slot is taken")
        self._runs[trace] = TraceRun(self, trace, path)
        return self._runs[trace]

    def end(self, run: TraceRun) -> None:
        """Give a trace's slot back."""
        del self._runs[run.trace]
        self._unconfirmed.discard(run)
        if not self._is_closed:
            self.engine.end(run.trace)
        self._slots.release()

    def rx_drops(self) -> int:
        """Return how many packets a full receive buffer has cost since the socket was opened."""
        return 0 if self._is_closed else self.engine.counters()["rx_drops"]

    def submit(self, run: TraceRun, attempt: int, ttls: bytes) -> int:
        """Queue probes; those of all traces that are due in this turn leave together."""
        taken = self.engine.submit(run.trace, attempt, ttls)
        self._unconfirmed.add(run)
        if self._pending is None:
            self._pending = self._loop.call_soon(self.pump)
        return taken

    def close(self) -> None:
        """Leave the loop and close the sockets."""
        self._is_closed = True
        if self._pending is not None:
            self._pending.cancel()
        self._loop.remove_reader(self.engine.fileno())
        self._loop.remove_writer(self.engine.send_fileno())
        self.engine.close()

    def pump(self) -> None:
        """Send what is queued, give what came to its trace, and hand over what is due then."""
        if self._is_closed:
            return
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        touched = self._unconfirmed
        self._unconfirmed = set()
        for _ in range(PUMPS_MAX):
            answers, refusals = self.engine.pump(PUMP_EVENTS_MAX)
            touched |= self._take(answers, refusals)
            if len(answers) + len(refusals) < PUMP_EVENTS_MAX // 2:
                break
        for run in touched:
            self._confirm(run)
            run.step()
        self._watch_sending()

    def _take(self, answers: list[Any], refusals: list[Any]) -> set[TraceRun]:
        """Give each event to its trace; return those that got one."""
        touched = set()
        for answer in map(Answer._make, answers):
            if (run := self._runs.get(answer.trace)) is not None:
                run.path.take_answer(answer)
                touched.add(run)
        for refusal in map(Refusal._make, refusals):
            if (run := self._runs.get(refusal.trace)) is not None:
                run.path.take_refusal(refusal)
                touched.add(run)
        return touched

    def _watch_sending(self) -> None:
        is_stuck = self.engine.queued > 0 and self._pending is None
        if is_stuck and not self._is_stuck:
            self._loop.add_writer(self.engine.send_fileno(), self.pump)
        elif self._is_stuck and not is_stuck:
            self._loop.remove_writer(self.engine.send_fileno())
        self._is_stuck = is_stuck

    def _confirm(self, run: TraceRun) -> None:
        waiting, last_sent_ns = self.engine.progress(run.trace)
        run.path.confirm(waiting, last_sent_ns)
        if waiting:
            self._unconfirmed.add(run)
