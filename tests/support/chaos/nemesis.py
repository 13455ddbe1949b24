"""Makes faults happen, and writes down when each began and ended. Ends every one it began."""

import asyncio
import resource
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from support.chaos.evidence import Began, Drained, Struck
from support.chaos.faults import (
    MESSAGE_FAULTS,
    ORDERED_FAULTS,
    SERVER,
    SERVER_FAULTS,
    WEATHER,
    Fault,
    Planned,
)
from support.chaos.journal import Journal
from support.chaos.lanes import Lane
from support.chaos.processes import Process, now_ns

ARMED_MAX = 2  # message faults that wait on one lane; more would all strike at once


class Orders(Protocol):
    """What an operator may order of the agent with a number."""

    async def drain(self, agent: int) -> None:
        """Let it be granted nothing."""
        ...

    async def resume(self, agent: int) -> None:
        """Let it be granted work again."""
        ...

    async def revoke(self, agent: int) -> None:
        """End its tokens, and let it register anew."""
        ...


class Nemesis:
    """Sets faults on a server and its agents; one at a time per process and lane."""

    def __init__(
        self,
        server: Process,
        agents: Sequence[Process],
        lanes: Sequence[Lane],
        events: Journal,
        orders: Orders,
    ) -> None:
        self.struck: Counter[str] = Counter()
        self.last_ended_ns = 0
        self._server = server
        self._agents = agents
        self._lanes = lanes
        self._events = events
        self._orders = orders
        self._busy: set[int | Lane] = set()
        for lane in lanes:
            lane.on_struck = self.strike

    @property
    def total(self) -> int:
        """Faults that have struck."""
        return self.struck.total()

    @property
    def pending(self) -> int:
        """Faults that last, or wait for their message."""
        return len(self._busy) + sum(len(lane.armed) for lane in self._lanes)

    def strike(self, planned: Planned, begun_ns: int, ended_ns: int) -> None:
        """Write down a fault that happened."""
        agent = SERVER if planned.fault in SERVER_FAULTS else planned.agent
        self.struck[planned.fault] += 1
        self.last_ended_ns = max(self.last_ended_ns, ended_ns)
        self._events.write(
            Struck(
                number=planned.number, fault=planned.fault, agent=agent, begun=begun_ns,
                ended=ended_ns,
            )
        )  # fmt: skip

    def set(self, planned: Planned, group: asyncio.TaskGroup) -> bool:
        """Begin a fault; False when what it would befall is in trouble already."""
        lane = self._lanes[planned.agent]
        if planned.fault in MESSAGE_FAULTS:
            if len(lane.armed) >= ARMED_MAX:
                return False
            lane.armed.append(planned)
            return True
        key: int | Lane = planned.agent
        if planned.fault in WEATHER:
            key = lane
        elif planned.fault in SERVER_FAULTS:
            key = SERVER
        if key in self._busy or (not isinstance(key, Lane) and self._process(key).has_died):
            return False
        if planned.fault in ORDERED_FAULTS and not self._is_at_work(planned.agent):
            return False
        self._busy.add(key)
        group.create_task(self._last(planned, key))
        return True

    async def revive(self) -> None:
        """Start what ended by itself and is in no trouble any more, as a service manager would."""
        for key, process in ((SERVER, self._server), *enumerate(self._agents)):
            if process.has_died and key not in self._busy:
                self._busy.add(key)
                await process.end()
                await process.start()
                self._busy.discard(key)

    def disarm(self) -> None:
        """Forget faults whose message never came."""
        for lane in self._lanes:
            lane.armed.clear()

    def _is_at_work(self, agent: int) -> bool:
        """Whether an agent has registered: one that must, and is revoked, waits for minutes."""
        return self._lanes[agent].served_ns > self._agents[agent].begun_ns

    def _process(self, key: int) -> Process:
        return self._server if key == SERVER else self._agents[key]

    async def _last(self, planned: Planned, key: int | Lane) -> None:
        """Let a fault begin, last and end."""
        begun_ns = now_ns()
        if not isinstance(key, Lane):
            self._events.write(
                Began(number=planned.number, fault=planned.fault, agent=key, at=begun_ns)
            )
        try:
            if isinstance(key, Lane):
                key.set_weather(planned)
                try:
                    await asyncio.sleep(planned.duration_ns / 1e9)
                finally:
                    key.clear()
            elif planned.fault is Fault.AGENT_REVOKED:
                await self._orders.revoke(key)
            elif planned.fault is Fault.AGENT_ORDERED_AWAY:
                await self._order_away(key, planned.duration_ns / 1e9)
            else:
                await _ACTS[planned.fault](self._process(key), planned.duration_ns / 1e9)
            self.strike(planned, begun_ns, now_ns())
        except (ProcessLookupError, FileNotFoundError):
            pass  # it had ended by itself: nothing was struck
        finally:
            self._busy.discard(key)

    async def _order_away(self, agent: int, seconds: float) -> None:
        """Drain an agent by the operator's call, and resume it."""
        await self._orders.drain(agent)
        drained_ns = now_ns()
        await asyncio.sleep(seconds)
        self._events.write(Drained(agent=agent, begun=drained_ns, ended=now_ns()))
        await self._orders.resume(agent)


async def _stop(process: Process, seconds: float) -> None:
    process.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        process.signal(signal.SIGCONT)


async def _kill(process: Process, seconds: float) -> None:
    await process.end(signal.SIGKILL)
    try:
        await asyncio.sleep(seconds)
    finally:
        await process.start()


async def _drain(process: Process, seconds: float) -> None:
    await process.end(signal.SIGTERM)
    try:
        await asyncio.sleep(seconds)
    finally:
        await process.start()


async def _fill_disk(process: Process, seconds: float) -> None:
    """Let no file grow: every write fails as on a full disk, those of the log too."""
    with process.limited(resource.RLIMIT_FSIZE, 1):
        await asyncio.sleep(seconds)


async def _take_descriptors(process: Process, seconds: float) -> None:
    """Allow no more descriptors than are open."""
    with process.limited(resource.RLIMIT_NOFILE, process.descriptors()):
        await asyncio.sleep(seconds)


_ACTS: Mapping[Fault, Callable[[Process, float], Awaitable[None]]] = {
    Fault.AGENT_STOPPED: _stop,
    Fault.AGENT_KILLED: _kill,
    Fault.AGENT_DRAINED: _drain,
    Fault.AGENT_DISK_FULL: _fill_disk,
    Fault.AGENT_NO_FILES: _take_descriptors,
    Fault.SERVER_STOPPED: _stop,
    Fault.SERVER_KILLED: _kill,
    Fault.SERVER_NO_FILES: _take_descriptors,
}
