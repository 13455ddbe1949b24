"""Keeps the store in bounds: what is old goes, and what is too much, in steps nobody waits for.

A step is one operation among others, of few rows, and a pause several times as long follows it.
Pages that it frees are used again; the file does not shrink.
"""

from collections.abc import Callable
from typing import NamedTuple

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.errors import RequestError, StorageError
from netsonde.server.background import Trouble
from netsonde.server.core import SPOOLED_NS, ControlPlane
from netsonde.server.leasing import LeaseIds
from netsonde.server.store import Store
from netsonde.server.store.retention import KeyFloor

STEP_ROWS = 100  # a millisecond of the writer's time, and pages that its commit writes
PAUSE_MIN_NS = 20 * NS_PER_MS
PAUSE_SHARE = 3  # how much longer than a step the pause after it is
LOOK_NS = NS_PER_S  # how often the size is looked at
ROUND_NS = 60 * NS_PER_S
SPECS_NS = 3_600 * NS_PER_S
EVICT_TO = 0.98  # of the limit: a store that is full evicts now and then, not all the time


class Rule(NamedTuple):
    """How long rows of one kind are kept, 0 for ever, and what drops them.

    `drop` takes a store, the instant before which rows go, and how many at most; it returns how
    many went, which `counter` adds up. A further kind with an age is a verb and a line in `rules`.
    """

    counter: str
    keep_ns: int
    drop: Callable[[Store, int, int], int]


class Retention:
    """What goes, and when, of one control plane's store."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._round_ns = self._specs_ns = plane.time.now_ns()

    def rules(self) -> tuple[Rule, ...]:
        """Return what goes by age."""
        config = self._plane.config
        keys_ns = self._plane.policy.offline_ns + SPOOLED_NS
        return (
            Rule(
                "results_expired",
                config.retain_results_ms * NS_PER_MS,
                lambda store, before_ns, limit: store.drop_results(before_ns, self.floor(), limit),
            ),
            Rule(
                "dead_letters_expired",
                config.retain_dead_letters_ms * NS_PER_MS,
                lambda store, before_ns, limit: store.drop_dead_letters(before_ns, limit),
            ),
            Rule(
                "keys_expired",
                keys_ns,
                lambda store, _, limit: store.drop_keys(self.floor(), limit),
            ),
        )

    def floor(self) -> KeyFloor:
        """Return below what no agent reports any more: it may go on alone, and be off after that.

        Standing leases are remembered as long (`ControlPlane.housekeep`).
        """
        now_ns = self._plane.time.now_ns()
        horizon_ns = max(now_ns - self._plane.policy.offline_ns - SPOOLED_NS, 0)
        return KeyFloor(LeaseIds.first_of(horizon_ns), horizon_ns)

    async def look(self) -> None:
        """Do what is due: measure, make room where there is too much, and drop what is old."""
        now_ns = self._plane.time.now_ns()
        await self._measure()
        if self._plane.storage.is_over:
            await self._evict()
        if now_ns - self._round_ns >= ROUND_NS:
            self._round_ns = now_ns
            await self.expire()
        if now_ns - self._specs_ns >= SPECS_NS:
            self._specs_ns = now_ns
            await self.drop_specs()

    async def expire(self) -> None:
        """Drop everything that is older than it may be."""
        for rule in self.rules():
            if rule.keep_ns:
                while await self._expire_some(rule):
                    await self._measure()

    async def _expire_some(self, rule: Rule) -> int:
        before_ns = max(self._plane.time.now_ns() - rule.keep_ns, 0)
        return await self._step(rule.counter, lambda store: rule.drop(store, before_ns, STEP_ROWS))

    async def _evict(self) -> None:
        """Drop the oldest results until the store is as small as it has to be."""

        def drop(store: Store) -> int:
            return store.drop_results(None, self.floor(), STEP_ROWS)

        storage = self._plane.storage
        while storage.is_above(EVICT_TO):
            storage.is_stuck = not await self._step("results_evicted", drop)
            await self._measure()
            if storage.is_stuck:
                return

    async def drop_specs(self) -> None:
        """Drop the specs that nothing refers to any more; who reads holds up no writer."""
        after: int | None = 0
        while after is not None:
            since, begun_ns = after, self._plane.clock.monotonic_ns()
            page = await self._plane.writer.read(
                lambda store, since=since: store.unused_specs(since, STEP_ROWS)  # type: ignore[misc]
            )
            unused, after = page.unused, page.after
            if unused:
                await self._step("specs_dropped", lambda store, ids=unused: store.drop_specs(ids))  # type: ignore[misc]
            else:
                await self._pause(begun_ns)
            await self._measure()

    async def _step(self, counter: str, drop: Callable[[Store], int]) -> int:
        begun_ns = self._plane.clock.monotonic_ns()

        def operation(store: Store) -> int:
            dropped = drop(store)
            store.count(counter, dropped)
            return dropped

        dropped = await self._plane.writer.write(operation, STEP_ROWS)
        await self._pause(begun_ns)
        return dropped

    async def _pause(self, begun_ns: int) -> None:
        took_ns = self._plane.clock.monotonic_ns() - begun_ns
        await self._plane.clock.sleep(max(PAUSE_SHARE * took_ns, PAUSE_MIN_NS))

    async def _measure(self) -> None:
        self._plane.storage.measured(await self._plane.writer.read(lambda store: store.size()))


async def keep_in_bounds_forever(plane: ControlPlane) -> None:
    """Look after the store; its failing for a while ends nothing."""
    retention = Retention(plane)
    trouble = Trouble("retention")
    while True:
        try:
            await retention.look()
            trouble.passed()
        except (StorageError, RequestError) as error:
            trouble.met(error)
        await plane.clock.sleep(LOOK_NS)
