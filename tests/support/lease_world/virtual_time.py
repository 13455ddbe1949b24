"""An event loop whose time jumps to whatever is due next, and the clocks of hosts on it."""

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

from netsonde.clock import NS_PER_S, NS_PER_US, ClockQuality

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH_NS = 1_790_000_000 * NS_PER_S  # 2026: lease ids count from 2025


class StuckError(AssertionError):
    """Everybody waits, and nobody for the clock."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that never waits: when nothing is ready, time passes at once."""

    def __init__(self) -> None:
        self._now_s = 1.0
        super().__init__(_Jumping(self._jump))
        numbers = itertools.count()

        def numbered(
            loop: asyncio.AbstractEventLoop,
            work: Coroutine[Any, Any, T] | Generator[Any, None, T],
            **named: Any,
        ) -> "asyncio.Task[T]":
            return _Task(next(numbers), work, loop=loop, **named)

        self.set_task_factory(numbered)

    def call_soon_threadsafe(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Do without waking the selector: there is no other thread."""
        return self.call_soon(callback, *args, context=context)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def _jump(self, seconds: float) -> None:
        self._now_s += seconds


class _Task(asyncio.Task[T]):
    """A task whose place in a set is its number's.

    A TaskGroup cancels its tasks in the order of a set, by default that of addresses in memory: one
    seed would make several worlds.
    """

    __slots__ = ("_number",)

    def __init__(
        self, number: int, work: Coroutine[Any, Any, T] | Generator[Any, None, T], **named: Any
    ) -> None:
        self._number = number  # first: asyncio puts the task into a set of its own
        super().__init__(work, **named)

    def __hash__(self) -> int:
        return self._number


class _Jumping(selectors.SelectSelector):
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._pass = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the time pass that a real selector would wait for."""
        if timeout is None:
            raise StuckError("everybody waits, and nobody for the clock")
        if timeout > 0:
            self._pass(timeout)
        return []  # nothing comes from outside this world


class HostClock:
    """The clocks of one host. While it is suspended, nobody who waits on it goes on."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._wall_offset_ns = EPOCH_NS
        self._asleep_ns = 0
        self._awake_ns = 0

    def boottime_ns(self) -> int:
        """Return the world's time."""
        return round(self._loop.time() * NS_PER_S)

    def monotonic_ns(self) -> int:
        """Return the same without what the host slept through."""
        return self.boottime_ns() - self._asleep_ns

    def realtime_ns(self) -> int:
        """Return this host's wall clock."""
        return self.boottime_ns() + self._wall_offset_ns

    def quality(self) -> ClockQuality:
        """Return what nobody here decides by."""
        return ClockQuality(synchronised=True)

    def step(self, delta_ns: int) -> None:
        """Step the wall clock."""
        self._wall_offset_ns += delta_ns

    def suspend(self, duration_ns: int) -> None:
        """Stop the host for a while from now on."""
        begun_ns = max(self._awake_ns, self.boottime_ns())  # it may stand still already
        self._awake_ns = max(begun_ns, self.boottime_ns() + duration_ns)
        self._asleep_ns += self._awake_ns - begun_ns

    @property
    def is_suspended(self) -> bool:
        """Whether the host stands still."""
        return self.boottime_ns() < self._awake_ns

    @property
    def awake_ns(self) -> int:
        """When it last went on, or will."""
        return self._awake_ns

    async def awake(self) -> None:
        """Wait until the host goes on."""
        while (left_ns := self._awake_ns - self.boottime_ns()) > 0:  # noqa: ASYNC110 (of this loop)
            await asyncio.sleep(_seconds(left_ns))

    async def sleep(self, delay_ns: int) -> None:
        """Wait delay_ns, and for the host to go on."""
        await asyncio.sleep(_seconds(delay_ns) if delay_ns > 0 else 0)
        await self.awake()

    async def wait(self, event: asyncio.Event, delay_ns: int | None) -> bool:
        """Wait until event is set or delay_ns has passed, and for the host to go on."""
        if not event.is_set():
            try:
                async with asyncio.timeout(None if delay_ns is None else _seconds(delay_ns)):
                    await event.wait()
            except TimeoutError:
                pass  # what the event is now is what counts
        await self.awake()
        return event.is_set()


def _seconds(delay_ns: int) -> float:
    """Return seconds that end no earlier than asked, whatever is lost to floating point."""
    return (max(delay_ns, 0) + NS_PER_US) / NS_PER_S
