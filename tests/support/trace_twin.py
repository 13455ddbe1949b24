"""The traces of the echo engine's twin: each ends as a test says, on a manual clock."""

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from netsonde._native import icmp
from netsonde.clock import ManualClock
from netsonde.probe.ping.run import COMPLETION
from netsonde.probe.trace.answers import Answer, Taken
from netsonde.probe.trace.driver import REQUEST
from support.echo import MemoryEchoEngine
from support.trace_endings import Ending


class TraceRequest(NamedTuple):
    """A trace that was submitted."""

    token: int
    timeout_ns: int
    interval_ns: int
    destination: bytes
    source: bytes
    scope: int
    flow: int
    path: int
    port: int
    size: int
    method: int
    first_ttl: int
    last_ttl: int
    attempts: int
    gap_limit: int
    tos: int
    flags: int


class TraceTwin(MemoryEchoEngine):
    """Keeps what was submitted in `traces`; a trace ends when `plan` or the test says how.

    `trace_room` is how many it takes from now on, `open_error` and `wrong` (a destination's first
    byte) are what it refuses. `partial` is what a cancelled trace has seen.
    """

    def __init__(self, clock: ManualClock, family: int = 4, *, backend: str = "raw") -> None:
        super().__init__(clock, family, backend=backend)
        self.plan: Callable[[TraceRequest], Ending | None] = lambda _: None
        self.open_error: Exception | None = None
        self.opened: list[int] = []
        self.trace_room = 1 << 20
        self.wrong: int | None = None
        self.partial: Sequence[Answer] = ()
        self.traces: list[TraceRequest] = []
        self.cancelled_traces: list[int] = []
        self._taken: dict[int, Taken] = {}
        self._numbers = itertools.count()

    def open_traces(self, methods: int) -> None:
        if self.open_error is not None:
            raise self.open_error
        self.opened.append(methods)

    def submit_traces(self, traces: bytes) -> int:
        requests = [TraceRequest(*record) for record in REQUEST.iter_unpack(traces)]
        for number, request in enumerate(requests):
            if request.destination[0] == self.wrong:
                raise ValueError(f"trace {number}: size must be another")
        taken = requests[: self.trace_room]
        self.trace_room -= len(taken)
        self.traces += taken
        for request in taken:
            if (ending := self.plan(request)) is not None:
                self.end(request, ending)
        return len(taken)

    def cancel_trace(self, token: int) -> None:
        self.cancelled_traces.append(token)
        if not self.is_deaf:
            (request,) = (each for each in self.traces if each.token == token)
            self.end(request, Ending(answers=self.partial, stop=icmp.STOPPED_CANCELLED))

    def take_trace(self, number: int) -> Taken:
        return self._taken.pop(number)

    def end(self, request: TraceRequest, ending: Ending) -> None:
        """End a trace."""
        number = next(self._numbers)
        self._taken[number] = ending.taken(request.token, self.family, request.first_ttl)
        self._say(request.token, number, 0, bytes(16), icmp.TRACED, 0, 0, 0, 0, 0, 0)

    def tell(self, request: TraceRequest, told: Answer) -> None:
        """Tell one answer of a trace that is watched."""
        self._say(
            request.token, told.rtt_ns, told.sent_ns, told.responder, icmp.HOP, told.icmp_type,
            told.icmp_code, told.ttl, told.attempt, told.kind, told.flags,
        )  # fmt: skip

    def ring(self) -> None:
        """Wake the driver, as when there is room again."""
        self._say(0, 0, 0, bytes(16), icmp.HOP, 0, 0, 0, 0, 0, 0)

    def _say(self, *record: Any) -> None:
        heapq.heappush(self._events, (0, next(self._order), COMPLETION.pack(*record)))
        self._arm()
