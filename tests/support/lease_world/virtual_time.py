"""An event loop whose time jumps to whatever is due next, and the clocks of hosts on it."""

import asyncio
import gc
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context, copy_context
from typing import Any, TypeVar, TypeVarTuple

from netsonde.clock import NS_PER_S, NS_PER_US, ClockQuality

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

EPOCH_NS = 1_790_000_000 * NS_PER_S  # 2026: lease ids count from 2025


class StuckError(AssertionError):
    """Everybody waits, and nobody for the clock."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that never waits: when nothing is ready, time passes at once.

    Nothing comes from outside, no descriptor and no thread, so that a turn is what is due and all
    that comes of it. asyncio's own turns are made for more and cost a world a tenth of its time.
    """

    def __init__(self) -> None:
        self._now_s = 1.0
        self.now_ns = NS_PER_S
        self._is_stopped = False
        self._soon: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []  # those of an instant in their order
        self._numbers = itertools.count()
        super().__init__()
        numbers = itertools.count()

        def numbered(
            loop: asyncio.AbstractEventLoop,
            work: Coroutine[Any, Any, T] | Generator[Any, None, T],
            **named: Any,
        ) -> "asyncio.Task[T]":
            return _Task(next(numbers), work, loop=loop, **named)

        self.set_task_factory(numbered)

    def run_forever(self) -> None:
        """Run until `stop` is called."""
        self._is_stopped = False
        super().run_forever()

    def stop(self) -> None:
        """Run nothing more."""
        self._is_stopped = True
        super().stop()

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Call callback in the next turn."""
        handle = _Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # there is no other thread

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call callback after a delay."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call callback at an instant of the virtual time."""
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> "asyncio.Future[T]":
        """Do the work at once, and tell of it in the next turn."""
        future: asyncio.Future[T] = self.create_future()
        try:
            self.call_soon(_settle, future.set_result, future, func(*args))
        except Exception as error:
            self.call_soon(_settle, future.set_exception, future, error)
        return future

    def _run_once(self) -> None:
        """Do all there is to do at an instant; the base class asks for it until it is stopped."""
        soon, timers = self._soon, self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not soon:
            if not timers:
                raise StuckError("everybody waits, and nobody for the clock")
            self._now_s = max(self._now_s, timers[0][0])
            self.now_ns = round(self._now_s * NS_PER_S)
        while timers and timers[0][0] <= self._now_s:
            soon.append(heapq.heappop(timers)[2])
        while soon and not self._is_stopped:
            handle = soon.popleft()
            if not handle.cancelled():
                handle._run()


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no cycles for the duration of the block but when asked: a world has room for them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _settle(settle: Callable[[Any], None], future: "asyncio.Future[Any]", outcome: Any) -> None:
    if not future.done():
        settle(outcome)


class _Handle(asyncio.Handle):
    """asyncio's, without what only its debug mode needs."""

    __slots__ = ()

    def __init__(
        self, callback: Any, args: Any, loop: VirtualLoop, context: Context | None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class _Timer(asyncio.TimerHandle):
    __slots__ = ()

    def __init__(
        self, when: float, callback: Any, args: Any, loop: VirtualLoop, context: Context | None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = True

    def cancel(self) -> None:
        """Be passed over when the time comes."""
        self._cancelled = True
        self._callback = None
        self._args = ()


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


class HostClock:
    """The clocks of one host. While it is suspended, nobody who waits on it goes on."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._wall_offset_ns = EPOCH_NS
        self._asleep_ns = 0
        self._awake_ns = 0

    def boottime_ns(self) -> int:
        """Return the world's time."""
        return self._loop.now_ns

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
            await self._set_or_passed(event, delay_ns)
        await self.awake()
        return event.is_set()

    async def _set_or_passed(self, event: asyncio.Event, delay_ns: int | None) -> None:
        """Wait as `event.wait()` in `asyncio.timeout` does, for less of a world's time."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        waiters = event._waiters
        waiters.append(waiter)
        timer = None
        if delay_ns is not None:
            after_s = _seconds(delay_ns)
            timer = self._loop.call_later(after_s, _settle, waiter.set_result, waiter, False)
        try:
            await waiter
        finally:
            waiters.remove(waiter)
            if timer is not None:
                timer.cancel()


def _seconds(delay_ns: int) -> float:
    """Return seconds that end no earlier than asked, whatever is lost to floating point."""
    return (max(delay_ns, 0) + NS_PER_US) / NS_PER_S
