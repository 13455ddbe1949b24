"""An echo engine at work: its driver, the ways its packets take, and what keeps those true."""

import asyncio
import contextlib
import select
from collections.abc import Callable, Collection
from typing import Protocol

from netsonde import netinfo
from netsonde.clock import Clock
from netsonde.errors import ErrorCode, NetsondeError, RequestError, RouteError
from netsonde.probe.ping.driver import EchoDriver, EchoEngine
from netsonde.probe.ping.ways import Wanted, Ways

ECHO_HEADER_BYTES = {4: 20 + 8, 6: 40 + 8}
DF_BACKENDS = ("header", "packet")  # of IPv4; IPv6 routers never fragment


class Monitor(Protocol):
    """What is used of `netsonde.netinfo.LinkMonitor`."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are changes."""
        ...

    def changes(self) -> Collection[object]:
        """Return what has changed since the last call."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


OpenMonitor = Callable[[], Monitor]


class Lane:
    """The engine of one family.

    Who builds frames (back end packet) must hear of every change of links, routes and neighbours;
    for the others the kernel knows the way.

    Raises:
        NetsondeError: changes cannot be heard of.
    """

    def __init__(
        self,
        clock: Clock,
        family: int,
        engine: EchoEngine,
        monitor: OpenMonitor = netinfo.LinkMonitor,
    ) -> None:
        self.ways = Ways(engine)
        self.engine = engine
        self.is_retired = False
        self._family = family
        self._listener = None
        if engine.backend == "packet":
            self._listener = _Listener(monitor(), self._look_again)
        try:
            self.driver = EchoDriver(clock, engine)
        except BaseException:
            if self._listener is not None:
                self._listener.close()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self.driver.is_closed

    def close(self) -> None:
        """Close the engine and the monitor. Idempotent."""
        self.driver.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def retire(self) -> None:
        """Take no more runs, and close when those there are have ended."""
        self.is_retired = True
        self.driver.when_idle(self.close)

    async def path(self, address: str, wanted: Wanted) -> int:
        """Return the number of the path that packets to address take.

        Raises:
            ConfigError, NetsondeError, RouteError, WaysFullError: as `Ways.find`.
        """
        path = self.ways.known(address, wanted)
        return await self.ways.find(address, wanted) if path is None else path

    async def check_unfragmented(self, address: str, wanted: Wanted, size: int) -> None:
        """Refuse a packet that could leave in fragments only, and may not.

        Raises:
            RequestError: it is larger than the way out carries, or no back end can say DF.
            ConfigError: no such interface, or the source is not this host's.
        """
        if self._family == 4 and self.driver.backend not in DF_BACKENDS:
            raise RequestError(
                ErrorCode.VALIDATION,
                f"df needs the back end {' or '.join(DF_BACKENDS)} with IPv4, here it is"
                f" {self.driver.backend}: leave df out, or let the agent have one of them",
            )
        try:
            mtu = await self.ways.mtu(address, wanted)
        except RouteError:
            return  # the packets will tell
        largest = mtu - ECHO_HEADER_BYTES[self._family]
        if size > largest:
            raise RequestError(
                ErrorCode.VALIDATION,
                f"size {size} with df does not fit: the way to {address} carries packets of"
                f" {mtu} bytes, so size may be {largest} at the most",
            )

    def _look_again(self, monitor: Monitor) -> bool:
        """Forget the ways that may have changed; whether it is of use to listen on."""
        try:
            if monitor.changes():
                self.ways.forget()
        except (NetsondeError, OSError):  # deaf from now on: remember nothing
            self.ways.is_forgetful = True
            self.ways.forget()
        return not self.ways.is_forgetful


class _Listener:
    """Calls heed(monitor) on the event loop whenever there is something, until that returns False.

    Through an epoll descriptor: announcements that were lost make the monitor's own POLLERR, on
    which libuv stops watching for good.
    """

    def __init__(self, monitor: Monitor, heed: Callable[[Monitor], bool]) -> None:
        self._monitor = monitor
        self._heed = heed
        self._loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as opened:
            opened.callback(monitor.close)
            self._epoll = opened.enter_context(select.epoll())
            self._epoll.register(monitor.fileno(), select.EPOLLIN)
            self._loop.add_reader(self._epoll.fileno(), self._hear)
            opened.pop_all()

    def close(self) -> None:
        """Stop listening and close the monitor."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._monitor.close()

    def _hear(self) -> None:
        if not self._heed(self._monitor):
            self._loop.remove_reader(self._epoll.fileno())
