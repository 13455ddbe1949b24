"""Drives one native echo engine for any number of concurrent runs and single probes.

No task, timer or object per packet: a run is one request, the engine paces and times it, and its
completions are folded natively. The loop is woken in batches.
"""

import asyncio
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from netsonde._native import icmp
from netsonde._native.ledger import EchoLedger
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.errors import ErrorCode, NetsondeError, RequestError
from netsonde.probe.ping.run import (
    ATTEMPT_BITS,
    ATTEMPT_MASK,
    COMPLETION,
    Completion,
    PingRun,
    packed_address,
)
from netsonde.probe.privilege import IcmpAccess

T = TypeVar("T")

REQUEST = struct.Struct(icmp.REQUEST_FORMAT)

SUBMIT_BATCH = 1024  # requests copied at once
STOP_WAIT_NS = NS_PER_S  # the engine confirms 16 cancellations within a quantum, 1 ms


class EchoEngine(Protocol):
    """What is used of `netsonde._native.icmp.EchoEngine`."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll is to be called."""
        ...

    def submit(self, requests: bytes) -> int:
        """Take packed requests; return how many there was room for."""
        ...

    def cancel(self, token: int) -> None:
        """Send no more packets of the run that began with this token."""
        ...

    def poll(self) -> bytes:
        """Return packed completions."""
        ...

    def add_path(
        self, *, source: bytes | None, interface: int, mark: int, link_address: bytes | None
    ) -> int:
        """Name a way for packets to leave; return its number."""
        ...

    @property
    def access(self) -> IcmpAccess:
        """The kind of receiving socket."""
        ...

    @property
    def backend(self) -> str:
        """How packets leave."""
        ...

    @property
    def counters(self) -> Mapping[str, int]:
        """What happened so far, by name."""
        ...

    def close(self) -> None:
        """Close the sockets."""
        ...


class Traces(Protocol):
    """What else one engine carries: `netsonde.probe.trace.driver.TraceDriver`."""

    @property
    def is_idle(self) -> bool:
        """Whether none is running."""
        ...

    def take(self, completion: Completion) -> None:
        """Take what is said of a trace."""
        ...

    def flush(self) -> None:
        """Hand the engine what it had no room for."""
        ...

    def fail(self) -> None:
        """End all that are running: the engine has been closed."""
        ...


class EchoDriver:
    """Runs any number of `PingRun`s and single probes over one engine of one family."""

    def __init__(self, clock: Clock, engine: EchoEngine) -> None:
        self._clock = clock
        self._engine = engine
        self._ledger = EchoLedger()
        self._runs: dict[int, PingRun] = {}
        self._probes: dict[int, asyncio.Future[Completion]] = {}
        self._numbers = itertools.count(1)  # of single probes
        self._offered: dict[int, bytes] = {}  # by token: requests that the engine has not got yet
        self._is_flushing = False
        self.is_closed = False
        self._reserved: set[PingRun] = set()  # that are going to be started
        self._on_idle: Callable[[], None] | None = None
        self._traces: Traces | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(engine.fileno(), self._collect)

    @property
    def access(self) -> IcmpAccess:
        """The engine's kind of receiving socket."""
        return self._engine.access

    @property
    def backend(self) -> str:
        """How the engine's packets leave."""
        return self._engine.backend

    @property
    def clock_steps(self) -> int | None:
        """How often the engine has seen the wall clock step; None once it is closed."""
        return None if self.is_closed else self._engine.counters["clock_steps"]

    def close(self) -> None:
        """Close the engine; what has not ended fails. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        self._loop.remove_reader(self._engine.fileno())
        self._engine.close()
        self._offered.clear()
        for run in tuple(self._runs.values()):
            if not run.is_settled:
                self._fail(run, NetsondeError("the ICMP engine was closed before the run ended"))
        for future in self._probes.values():
            if not future.done():
                future.set_exception(NetsondeError("the ICMP engine was closed before the reply"))
        if self._traces is not None:
            self._traces.fail()

    def carry(self, traces: Traces) -> None:
        """Pass on what the engine says of traces."""
        self._traces = traces

    def new_token(self) -> int:
        """Return a name for what is not a run, below 2^32."""
        return next(self._numbers) & ATTEMPT_MASK

    def reserve(self, run: PingRun) -> None:
        """Count on a run that will be started or forgotten."""
        self._reserved.add(run)

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call this as soon as there are no runs; none may be added any more."""
        self._on_idle = call
        self.look_idle()

    def start(self, run: PingRun) -> None:
        """Begin a run; its `on_end` is called when it has ended. `forget` it then."""
        self._reserved.discard(run)
        run.enter(self._ledger)
        self._runs[run.number] = run
        self._offer(run.token, request_of(run))

    def forget(self, run: PingRun) -> None:
        """Drop what is known of a run; replies to it are strays from now on."""
        self._reserved.discard(run)
        if self._runs.get(run.number) is run:
            del self._runs[run.number]
            self._ledger.close(run.number)
        self.look_idle()

    async def run(self, run: PingRun) -> None:
        """Send a run's requests and return when every one has ended. `forget` it then.

        When it is cancelled no more are sent, and run holds what was seen so far.

        Raises:
            RequestError: the engine cannot send this.
            NetsondeError: the engine was closed.
        """
        ended = asyncio.Event()
        run.on_end = lambda _run: ended.set()
        self.start(run)
        try:
            await ended.wait()
        except asyncio.CancelledError:
            await self.stop([run])
            raise
        if run.failure is not None:
            raise run.failure

    def probe(
        self, address: str, *, timeout_ns: int, size: int = 56, ttl: int = 64, path: int = 0
    ) -> "asyncio.Future[Completion]":
        """Send one echo request; the future's result says what became of it.

        What is asked for in one turn of the loop is handed to the engine at once.

        Raises:
            ResolveError: the address has a zone that names no interface.
        """
        packed, scope = packed_address(address)
        return self.probe_packed(
            packed, scope, timeout_ns=timeout_ns, size=size, ttl=ttl, path=path
        )

    def probe_packed(
        self, packed: bytes, scope: int, *, timeout_ns: int, size: int, ttl: int, path: int
    ) -> "asyncio.Future[Completion]":
        """Send one echo request as `probe`, to an address of 16 bytes."""
        token = self.new_token()
        request = REQUEST.pack(token, 0, timeout_ns, packed, scope, 1, size, path, ttl, 0, 0)
        future = self._probes[token] = self._loop.create_future()
        self._offer(token, request)
        return future

    async def stop(self, runs: Iterable[PingRun]) -> None:
        """Send no more of these runs, and learn how many packets of each were sent.

        Where the engine does not say so in time, those are counted whose end is known.
        """
        asked = [run for run in self._known(runs) if not self._withdraw(run)]
        try:
            for run in asked:
                while not self._cancel(run):
                    await self._clock.sleep(NS_PER_MS)
            self._collect()
            deadline_ns = self._clock.monotonic_ns() + STOP_WAIT_NS
            for run in self._known(asked):
                await self._clock.wait(run.stopped, deadline_ns - self._clock.monotonic_ns())
        finally:
            for run in self._known(asked):
                if not run.stopped.is_set():
                    self._ledger.fold(run.stop_record(len(run.kinds.rstrip(b"\0"))))

    def look_idle(self) -> None:
        """Tell who waits for it if nothing is running any more."""
        is_tracing = self._traces is not None and not self._traces.is_idle
        if self._on_idle is not None and not (self._runs or self._reserved or is_tracing):
            self._loop.call_soon(self._on_idle)

    def _known(self, runs: Iterable[PingRun]) -> Iterator[PingRun]:
        """Yield those of runs that have not been forgotten by the time they are asked for."""
        return (run for run in runs if run.number in self._runs)

    def _cancel(self, run: PingRun) -> bool:
        """Ask the engine to end a run; whether it had room for the order."""
        if self.is_closed:
            return True
        try:
            self._engine.cancel(run.token)
        except ValueError:
            self._collect()
            return False
        return True

    def _withdraw(self, run: PingRun) -> bool:
        """Take back a request that the engine has not been handed yet."""
        if self._offered.pop(run.token, None) is None:
            return False
        self._ledger.fold(run.stop_record(0))
        return True

    def _offer(self, token: int, request: bytes) -> None:
        self._offered[token] = request
        if len(self._offered) == SUBMIT_BATCH:
            self._flush()
        elif not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hand the engine what it has room for; the rest follows when it says so."""
        self._is_flushing = False
        while self._offered:
            batch = dict(itertools.islice(self._offered.items(), SUBMIT_BATCH))
            taken = self._submit(list(batch.values()))
            for token in itertools.islice(batch, taken):
                del self._offered[token]
            if taken < len(batch):
                return

    def _submit(self, requests: list[bytes]) -> int:
        """Hand over requests; return how many are done with. A wrong one fails alone."""
        try:
            return self._engine.submit(b"".join(requests))
        except ValueError as error:
            if len(requests) == 1:
                self._refuse(requests[0], str(error).removeprefix("request 0: "))
                return 1
        for done, request in enumerate(requests):
            if self._submit([request]) == 0:
                return done
        return len(requests)

    def _refuse(self, request: bytes, why: str) -> None:
        error = RequestError(ErrorCode.VALIDATION, f"the ICMP engine cannot send this: {why}")
        token: int = REQUEST.unpack(request)[0]
        if token >> ATTEMPT_BITS == 0:
            future = self._probes.pop(token)
            if not future.done():
                future.set_exception(error)
        elif (run := self._runs.get(token >> ATTEMPT_BITS)) is not None:
            self._ledger.fold(run.stop_record(0))
            self._fail(run, error)

    def _fail(self, run: PingRun, error: NetsondeError) -> None:
        run.failure = error
        run.stopped.set()
        if run.on_end is not None:
            self._tell(run.on_end, run)

    def _collect(self) -> None:
        """Fold what the engine has, and tell whom it concerns."""
        if self.is_closed:
            return
        finished, stopped, records = self._ledger.fold(self._engine.poll())
        for record in COMPLETION.iter_unpack(records):
            self._tell(self._dispatch, Completion(*record))
        for number in stopped:
            if (run := self._runs.get(number)) is not None:
                run.stopped.set()
        for number in finished:
            run = self._runs.get(number)
            if run is not None and run.on_end is not None:
                self._tell(run.on_end, run)
        if self._offered:
            self._flush()
        if self._traces is not None:
            self._traces.flush()

    def _tell(self, whom: Callable[[T], None], what: T) -> None:
        """Call somebody whose failure must not cost the others their turn."""
        try:
            whom(what)
        except Exception as error:
            context = {"message": "what came of a ping was not taken", "exception": error}
            self._loop.call_exception_handler(context)

    def _dispatch(self, completion: Completion) -> None:
        """Hand a completion to the trace, probe or watched run it belongs to."""
        number = completion.token >> ATTEMPT_BITS
        if completion.kind in (icmp.TRACED, icmp.HOP):
            if self._traces is not None:
                self._traces.take(completion)
        elif number == 0:
            future = self._probes.pop(completion.token, None)
            if future is not None and not future.done():
                future.set_result(completion)
        elif (run := self._runs.get(number)) is not None and run.on_packet is not None:
            run.on_packet(run, completion)


def request_of(run: PingRun) -> bytes:
    """Pack the one request that is a whole run."""
    flags = icmp.DF if run.df else 0
    return REQUEST.pack(
        run.token, run.interval_ns, run.timeout_ns, run.destination, run.scope, run.count, run.size,
        run.path, run.ttl, run.tos, flags,
    )  # fmt: skip
