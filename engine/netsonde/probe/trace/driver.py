"""Runs any number of traces over one native engine, which pings use too.

No task, timer or object per probe: a trace is one request, and all it saw comes back at once.
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from netsonde._native import icmp
from netsonde.clock import NS_PER_S, Clock
from netsonde.errors import ErrorCode, NetsondeError, RequestError
from netsonde.probe.ping.driver import EchoDriver
from netsonde.probe.ping.run import Completion
from netsonde.probe.trace.answers import Answer, Taken, Traced

REQUEST = struct.Struct(icmp.TRACE_FORMAT)

METHODS = {"icmp": icmp.TRACE_ICMP, "udp": icmp.TRACE_UDP, "tcp": icmp.TRACE_TCP}

PORTS = {"icmp": 0, "udp": 33_434, "tcp": 80}  # the destination's, unless a spec says otherwise

PROBE_ATTEMPTS = 3  # of a single probe, before it counts as unanswered

STOP_WAIT_NS = NS_PER_S  # the engine confirms a cancellation within a quantum, 1 ms


class TraceEngine(Protocol):
    """What is used of `netsonde._native.icmp.EchoEngine`."""

    @property
    def family(self) -> int:
        """4 or 6."""
        ...

    def open_traces(self, methods: int) -> None:
        """Open what traces by these methods need."""
        ...

    def submit_traces(self, traces: bytes) -> int:
        """Take packed traces; return how many there was room for."""
        ...

    def cancel_trace(self, token: int) -> None:
        """End a trace early."""
        ...

    def take_trace(self, number: int) -> Taken:
        """Return what an ended trace saw, and forget it."""
        ...


@dataclass(slots=True, eq=False)
class TraceRun:
    """One trace of a flow: what it sends, and what came of it when `ended` is set.

    destination: 16 bytes, IPv4's 4 first. flow: another number may take another path. With
    all_probes every TTL gets `attempts` probes, `interval_ns` apart, else one that owes an answer.
    """

    destination: bytes
    scope: int = 0
    method: str = "icmp"
    port: int = 0
    flow: int = 0
    first_ttl: int = 1
    last_ttl: int = 30
    attempts: int = 3
    gap_limit: int = 5
    timeout_ns: int = 1_500_000_000
    interval_ns: int = 0
    size: int = 20
    tos: int = 0
    df: bool = False
    all_probes: bool = False
    path: int = 0
    on_answer: Callable[[Answer], None] | None = None
    token: int = 0
    traced: Traced | None = None
    failure: NetsondeError | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def probe(self, ttl: int, *, flow: int = 0, size: int | None = None) -> "TraceRun":
        """Return a run of one TTL, that is like this one for the rest; a size forbids fragments."""
        return TraceRun(
            self.destination,
            self.scope,
            method=self.method,
            port=self.port,
            flow=flow,
            first_ttl=ttl,
            last_ttl=ttl,
            attempts=PROBE_ATTEMPTS,
            timeout_ns=self.timeout_ns,
            size=self.size if size is None else size,
            tos=self.tos,
            df=size is not None,
            path=self.path,
        )

    def request(self) -> bytes:
        """Return it as the engine takes it."""
        flags = icmp.TRACE_FORBID_FRAGMENTS if self.df else 0
        flags |= icmp.TRACE_ALL_ATTEMPTS if self.all_probes else 0
        flags |= icmp.TRACE_WATCHED if self.on_answer else 0
        return REQUEST.pack(
            self.token, self.timeout_ns, self.interval_ns, self.destination, bytes(16), self.scope,
            self.flow, self.path, self.port, self.size, METHODS[self.method], self.first_ttl,
            self.last_ttl, self.attempts, self.gap_limit, self.tos, flags,
        )  # fmt: skip


class TraceDriver:
    """Carries `TraceRun`s over the engine of one family."""

    def __init__(self, clock: Clock, engine: TraceEngine, echo: EchoDriver) -> None:
        self._clock = clock
        self._engine = engine
        self._echo = echo
        self._runs: dict[int, TraceRun] = {}
        self._offered: dict[int, TraceRun] = {}  # that the engine has not got yet
        self._is_flushing = False
        self._loop = asyncio.get_running_loop()
        echo.carry(self)

    @property
    def backend(self) -> str:
        """How the engine's packets leave."""
        return self._echo.backend

    @property
    def is_idle(self) -> bool:
        """Whether no trace is running."""
        return not self._runs

    def open(self, method: str) -> None:
        """Make ready for traces by a method.

        Raises:
            OSError: a socket could not be opened; PermissionError without the privilege.
            ValueError: the engine cannot trace by it.
        """
        self._engine.open_traces(METHODS[method])

    async def run(self, run: TraceRun) -> Traced:
        """Carry a trace to its end, and return what it saw.

        When it is cancelled no more is sent, and run.traced holds what was seen so far.

        Raises:
            RequestError: the engine cannot send this.
            NetsondeError: the engine was closed.
        """
        run.token = self._echo.new_token()
        self._runs[run.token] = run
        self._offered[run.token] = run
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self.flush)
        try:
            await run.ended.wait()
        except asyncio.CancelledError:
            await self._stop(run)
            raise
        finally:
            self._runs.pop(run.token, None)
            self._echo.look_idle()
        if run.failure is not None:
            raise run.failure
        if run.traced is None:
            raise NetsondeError("a trace ended without a result")
        return run.traced

    # ── for the echo driver ──

    def take(self, completion: Completion) -> None:
        """Take what the engine says of a trace: an answer, or its end."""
        run = self._runs.get(completion.token)
        if completion.kind == icmp.HOP:
            if run is not None and run.on_answer is not None:
                run.on_answer(_answer(completion, self._engine.family))
            return
        taken = self._engine.take_trace(completion.rtt_ns)
        if run is not None:
            run.traced = Traced.unpack(taken, self._engine.family)
            run.ended.set()

    def flush(self) -> None:
        """Hand the engine what it has room for; the rest follows when it says so."""
        self._is_flushing = False
        if not self._offered or self._echo.is_closed:
            return
        runs = list(self._offered.values())
        for run in runs[: self._submit(runs)]:
            del self._offered[run.token]

    def fail(self) -> None:
        """End all that are running: the engine has been closed."""
        for run in self._runs.values():
            run.failure = NetsondeError("the ICMP engine was closed before the trace ended")
            run.ended.set()

    def _submit(self, runs: list[TraceRun]) -> int:
        """Hand over traces; return how many are done with. A wrong one fails alone."""
        try:
            return self._engine.submit_traces(b"".join(run.request() for run in runs))
        except ValueError as error:
            if len(runs) == 1:
                why = str(error).removeprefix("trace 0: ")
                runs[0].failure = RequestError(
                    ErrorCode.VALIDATION, f"the ICMP engine cannot send this: {why}"
                )
                runs[0].ended.set()
                return 1
        for done, run in enumerate(runs):
            if self._submit([run]) == 0:
                return done
        return len(runs)

    async def _stop(self, run: TraceRun) -> None:
        """End a trace early and wait for what it saw."""
        if self._offered.pop(run.token, None) is not None or self._echo.is_closed:
            return
        deadline_ns = self._clock.monotonic_ns() + STOP_WAIT_NS
        self._engine.cancel_trace(run.token)
        await self._clock.wait(run.ended, deadline_ns - self._clock.monotonic_ns())


def _answer(c: Completion, family: int) -> Answer:
    """Return the answer that a completion of a watched trace tells, as far as it does."""
    width = 4 if family == 4 else 16
    return Answer(
        c.ttl, c.size, c.clocks, c.responder[:width], c.icmp_type, c.code, c.sent_ns, c.rtt_ns,
        0, 0, 0, c.errno, 0, b"",
    )  # fmt: skip
