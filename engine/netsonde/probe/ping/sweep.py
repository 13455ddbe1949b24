"""Ping for a stream of targets of any length, in constant memory.

A target costs no task unless it is a name to be resolved or pinged by tcp or udp, and nothing once
its packets have ended.
"""

import asyncio
from collections.abc import AsyncIterable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from netsonde import wire
from netsonde._native import icmp
from netsonde.clock import NS_PER_S
from netsonde.errors import NetsondeError, RequestError, ResolveError
from netsonde.model import HOST_MAX, Measurement, PingSpec
from netsonde.probe.base import INTERRUPTED, Moment, Recorder, failure_of
from netsonde.probe.ping.prober import (
    PingProber,
    Prepared,
    family_of,
    new_run,
    run_all,
    summarise_nothing,
)
from netsonde.probe.ping.run import Completion, PingRun
from netsonde.probe.ping.sockets import SOCKETS_MAX
from netsonde.probe.ping.ways import Wanted
from netsonde.probe.targets import literal

WINDOW = 6144  # targets at once: 7 MB, and 6000 a second when nobody answers
PACKETS_HELD_MAX = 1 << 22  # of all targets at once: what becomes of each takes some 20 bytes
PACKETS_KNOWN_MIN = 1 << 15  # to an engine at once: 2 MiB, 1.6 s at 20 000 a second
LOOK_UPS_MAX = 64  # names being resolved at once
QUALITY_NS = NS_PER_S  # for so long the wall clock is taken to be as good as it was
TURN = 256  # targets after which the loop gets its turn, however fast they come and end


@dataclass(eq=False, slots=True)
class Pinged:
    """A target and its runs, all ended, or why none was begun or gone on with."""

    target: str
    spec: PingSpec
    began: Moment
    prepared: Prepared = field(default_factory=lambda: Prepared([]))
    error: Exception | None = None
    is_cancelled: bool = False

    @property
    def runs(self) -> list[PingRun]:
        """One run per address."""
        return self.prepared.runs


MakeSpec = Callable[[str], PingSpec]
OnEnd = Callable[[Pinged], None]
OnPacket = Callable[[Pinged, PingRun, Completion], None]


class Sweep:
    """Pings targets as they come.

    spec_of makes the spec of a target, or raises RequestError for one that is no host, which then
    cannot be resolved. on_end is called with each target in the order in which they end; what it
    wants to know of the runs it must read then. on_packet, where given, is called for every
    completion. What either raises, `run` raises.
    """

    def __init__(
        self,
        prober: PingProber,
        spec_of: MakeSpec,
        on_end: OnEnd,
        *,
        on_packet: OnPacket | None = None,
        window: int = WINDOW,
    ) -> None:
        self._prober = prober
        self._spec_of = spec_of
        self._on_end = on_end
        self._on_packet = on_packet
        self.free = window  # targets that there is room for
        self._window = window
        self._ended = asyncio.Event()
        self._look_ups = asyncio.Semaphore(LOOK_UPS_MAX)
        self._running: dict[PingRun, Pinged] = {}
        self._on_run_end = self._run_ended  # one object for all runs, not one for each
        self._on_packet_end = self._packet_ended
        self._failure: Exception | None = None  # of who is told
        self._is_abandoned = False
        self._asked: Moment | None = None  # how good the wall clock is

    @property
    def is_idle(self) -> bool:
        """Whether every target that was offered has ended."""
        return self.free == self._window

    async def run(self, targets: AsyncIterable[str]) -> None:
        """Ping every target and return when all have ended.

        When it is cancelled, `on_end` gets what was seen of those under way.
        """
        try:
            async with asyncio.TaskGroup() as group:
                offered = 0
                async for target in targets:
                    while not self.free:
                        await self.end()
                    self._check()
                    offered += 1
                    if offered % TURN == 0:
                        await asyncio.sleep(0)
                    if (beginning := self.offer(target)) is not None:
                        group.create_task(beginning)
            while not self.is_idle:
                await self.end()
            self._check()
        except ExceptionGroup as failures:
            error = failures.exceptions[0]
            raise error from error.__cause__
        finally:
            await self.abandon()

    async def end(self) -> None:
        """Wait until some target ends.

        Raises:
            Exception: what `on_end` or `on_packet` has raised.
        """
        self._ended.clear()
        await self._ended.wait()
        self._check()

    def offer(self, target: str) -> Coroutine[Any, Any, None] | None:
        """Begin a target, for which there must be room; what has to wait is returned."""
        self.free -= 1
        pinged = self._accept(target)
        if pinged is None or self._begin_at_once(pinged):
            return None
        return self._begin(pinged)

    async def abandon(self) -> None:
        """End what is still running, and tell what was seen of it."""
        self._is_abandoned = True
        try:
            await self._prober.stop(self._running)
        finally:
            for pinged in dict.fromkeys(self._running.values()):  # once, however many its runs
                pinged.is_cancelled = is_cut_short(pinged)
                self._end(pinged)

    def _accept(self, target: str) -> Pinged | None:
        """Make a target's spec; None: it is no host, and has ended with that."""
        began = self._now()
        try:
            return Pinged(target, self._spec_of(target), began)
        except RequestError as error:
            self._end(no_host(target, self._spec_of(wire.ANY_HOST), began, error))
            return None

    def _now(self) -> Moment:
        """Read the clocks, and ask how good they are now and then."""
        clock, asked = self._prober.clock, self._asked
        if asked is not None and clock.monotonic_ns() - asked.monotonic_ns < QUALITY_NS:
            return Moment.now(clock, asked.quality)
        self._asked = Moment.now(clock)
        return self._asked

    def _begin_at_once(self, pinged: Pinged) -> bool:
        """Begin what needs no waiting: an address, the usual way out, no question of its size."""
        spec = pinged.spec
        try:
            wire.check_spec(spec)
            addresses = literal(spec.host, family_of(spec))
            if not addresses or spec.df or spec.method != "icmp":
                return False
            self._prober.resolver.policy.check(addresses[0])
            lane = self._prober.lanes.get(6 if ":" in addresses[0] else 4)
            wanted = Wanted(spec.source, spec.interface, spec.mark)
            path = lane.ways.known(addresses[0], wanted)
            if path is None:
                return False
            run = new_run(spec, addresses[0], lane.driver, path)
            run.on_end = self._on_run_end
            self._enter(pinged, Prepared([run]))
            lane.driver.start(run)
        except NetsondeError as error:
            pinged.error = error
            self._end(pinged)
        return True

    async def _begin(self, pinged: Pinged) -> None:
        """Begin what may have to wait, and see it through."""
        try:
            async with self._look_ups:
                prepared = await self._prober.prepare_all(pinged.spec)
            self._enter(pinged, prepared)
            await run_all(prepared.runs)
        except asyncio.CancelledError:
            pinged.is_cancelled = is_cut_short(pinged)
            raise
        except Exception as error:  # a bug must still give the target a result
            pinged.error = error
        finally:
            self._end(pinged)

    def _enter(self, pinged: Pinged, prepared: Prepared) -> None:
        pinged.prepared = prepared
        for run in prepared.runs:
            self._running[run] = pinged
            if self._on_packet is not None:
                run.on_packet = self._on_packet_end

    def _run_ended(self, run: PingRun) -> None:
        """Take the end of the only run of a target that was begun at once."""
        pinged = self._running[run]
        pinged.error = run.failure
        pinged.is_cancelled = self._is_abandoned and is_cut_short(pinged)
        self._end(pinged)

    def _end(self, pinged: Pinged) -> None:
        self.free += 1
        self._ended.set()
        try:
            self._on_end(pinged)
        except Exception as error:
            self._failure = self._failure or error
        for run in pinged.runs:
            run.carrier.forget(run)
            run.on_end = run.on_packet = None
            del self._running[run]

    def _packet_ended(self, run: PingRun, packet: Completion) -> None:
        try:
            if self._on_packet is not None:
                self._on_packet(self._running[run], run, packet)
        except Exception as error:
            self._failure = self._failure or error
            self._ended.set()

    def _check(self) -> None:
        """Raise what somebody who was told has raised."""
        if self._failure is not None:
            raise self._failure


def window_for(spec: PingSpec) -> int:
    """Return how many targets like this may be pinged at once."""
    usual = WINDOW if spec.method == "icmp" else SOCKETS_MAX
    return max(1, min(usual, PACKETS_HELD_MAX // spec.count))


def capacity_for(spec: PingSpec) -> int:
    """Return how many packets an engine must know at once for a sweep of targets like this.

    All of a window, and as many again: targets that end soon are followed by others, whose packets
    must not take the slots of those that may still be answered late. More would be remembered for
    nobody, since what comes for a target that has ended tells nothing.
    """
    return min(icmp.CAPACITY, max(PACKETS_KNOWN_MIN, 2 * window_for(spec) * spec.count))


def no_host(target: str, like: PingSpec, began: Moment, error: RequestError) -> Pinged:
    """Make of a target that is no host, as error says, one like others that was not resolved."""
    spec = structs.replace(like, host=target[:HOST_MAX])
    return Pinged(target, spec, began, error=ResolveError(str(error)))


def is_cut_short(pinged: Pinged) -> bool:
    """Whether packets are missing that were asked for."""
    runs = pinged.runs
    return not runs or any(run.ledger is None or run.counts.settled < run.count for run in runs)


def measurement_of(prober: PingProber, pinged: Pinged, env: dict[str, Any]) -> Measurement:
    """Return a target's result as `PingProber.run` would have it; call it in `on_end`."""
    record = Recorder(prober.clock, env, began=pinged.began)
    spec, prepared = pinged.spec, pinged.prepared
    if pinged.error is not None:
        summarise_nothing(spec, pinged.error, record)
        record.fail(*failure_of(pinged.error))
    elif not prepared.runs:
        summarise_nothing(spec, asyncio.CancelledError(), record)
        record.fail(*INTERRUPTED)
    elif pinged.is_cancelled:
        prober.observe(spec, prepared, record, cancelled=True)
        record.fail(*INTERRUPTED)
    else:
        tallies = prober.observe(spec, prepared, record, cancelled=False)
        prober.judge(spec, prepared.runs, tallies, record)
    return record.measurement()
