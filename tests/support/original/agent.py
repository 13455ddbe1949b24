"""The original agent, rebuilt: its loops, its pools, its patience, its faults.

What it does is described where it is done. What it never does: read an error, give up a call, take
a token anew, bound how long an answer may take, send a report for a handler that failed.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

from support.original.client import Carry, NotRegisteredError, OriginalClient
from support.original.messages import Lease, LeaseReport
from support.original.pools import (
    COMMAND_QUEUE,
    DISPATCH_QUEUE,
    KIND_QUEUE,
    POOLS,
    Assignment,
    Extender,
    Windows,
)

HEARTBEAT_EVERY_S = 5.0
EMPTY_PAUSE_S = 0.25


class HandlerError(Exception):
    """A handler returned an error; nobody is told."""


# What a handler makes of a lease: its result, and whether that is one of a cancelled lease.
Handler = Callable[[Assignment], Awaitable[tuple[LeaseReport, bool]]]


async def http_stub(assignment: Assignment) -> tuple[LeaseReport, bool]:
    """Complete at once without having seen anything: the original's HTTP prober."""
    return LeaseReport(assignment.lease.lease_id), assignment.cancelled.is_set()


class OriginalAgent:
    """One process of the original agent; `run` ends only by cancellation, as the process does."""

    def __init__(
        self,
        base_url: str,
        carry: Carry,
        handlers: Mapping[str, Handler],
        hostname: str | None = "probe-1",
        pools: Mapping[str, int] = POOLS,
    ) -> None:
        self.client = OriginalClient(base_url, carry)
        self.extender = Extender(self.client)
        self.windows = Windows(pools)
        self.counters: Counter[str] = Counter()
        self._hostname = hostname
        self._pools = dict(pools)
        self._handlers = {"http": http_stub, **handlers}
        self._dispatch: asyncio.Queue[Assignment] = asyncio.Queue(DISPATCH_QUEUE)
        self._queues: dict[str, asyncio.Queue[Assignment]] = {
            kind: asyncio.Queue(KIND_QUEUE) for kind in pools
        }

    async def run(self) -> None:
        """Register once, then heartbeat, claim, extend, work and report for ever."""
        try:
            await self.client.register(self._hostname)
        except NotRegisteredError:
            return
        async with asyncio.TaskGroup() as group:
            for loop in (self._heartbeat, self._claim, self.extender.run, self._route):
                group.create_task(loop())
            for kind in self._pools:
                group.create_task(self._work_off(group, kind))

    def wedged(self, patience_s: float) -> str | None:
        """Return what has stood still for longer than patience_s, None when nothing has."""
        now_s = asyncio.get_running_loop().time()
        for verb, call in self.client.calls.items():
            since_s = call.failing_since_s
            if since_s is not None and now_s - since_s > patience_s:
                return f"{verb} has failed for {now_s - since_s:.0f} s: {call.why}"
        for verb in ("heartbeat", "claim"):
            done = self.client.calls.get(verb)
            if done is None or done.succeeded_s is None or now_s - done.succeeded_s > patience_s:
                return f"no {verb} has succeeded for {patience_s:.0f} s"
        if self.extender.commands.qsize() >= COMMAND_QUEUE:
            return "the extender does not take commands"
        return None

    # ── its loops ──

    async def _heartbeat(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            next_s = now() + HEARTBEAT_EVERY_S  # a late tick puts the next ones off
            try:
                await self.client.heartbeat()
            except NotRegisteredError:
                self.counters["heartbeats_for_others"] += 1
            await asyncio.sleep(max(next_s - now(), 0))

    async def _claim(self) -> None:
        """Claim as much as the pools hold, whatever they have to do already."""
        while True:
            answer = await self.client.claim(self._pools)
            if not answer.leases:
                await asyncio.sleep(EMPTY_PAUSE_S)
            for lease in answer.leases:
                self.counters["leases"] += 1
                assignment = Assignment(lease)
                await self.extender.track(assignment)
                await self._dispatch.put(assignment)

    async def _route(self) -> None:
        """Move leases into their kinds' queues; a full one stops the leases of every kind."""
        while True:
            assignment = await self._dispatch.get()
            await self._queues[assignment.lease.kind].put(assignment)

    async def _work_off(self, group: asyncio.TaskGroup, kind: str) -> None:
        while True:
            assignment = await self._queues[kind].get()
            await self.windows.acquire(kind)
            group.create_task(self._work(kind, assignment))

    async def _work(self, kind: str, assignment: Assignment) -> None:
        """Work on one lease; its place in the pool is held until its report was taken."""
        try:
            report, is_cancelled = await self._handlers[kind](assignment)
        except HandlerError:
            self.windows.failed(kind)
            self.counters["silent"] += 1
        else:
            self.windows.succeeded(kind)
            await self.client.report(
                [] if is_cancelled else [report], [report] if is_cancelled else []
            )
            self.counters["cancelled" if is_cancelled else "completed"] += 1
        await self.windows.release(kind)
        await self.extender.finish(assignment.lease.lease_id)


def target(lease: Lease) -> str:
    """Return what a lease is about."""
    spec = lease.spec
    for name in ("query", "url", "host"):
        if hasattr(spec, name):
            return str(getattr(spec, name))
    raise AssertionError(spec)
