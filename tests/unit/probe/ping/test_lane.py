"""A lane: what is asked of the way out, and who hears of its changes."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from netsonde.clock import ManualClock
from netsonde.errors import NetsondeError, RequestError, RouteError
from netsonde.probe.ping.lane import Lane
from netsonde.probe.ping.ways import ANY, Ways
from support.echo import MemoryEchoEngine


class FakeMonitor:
    """Readable when `tell` was called; `problem` is what reading raises."""

    def __init__(self) -> None:
        self.problem: Exception | None = None
        self.heard: list[object] = []
        self.is_closed = False
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._fd

    def tell(self, *changes: object) -> None:
        self.heard += changes
        os.eventfd_write(self._fd, 1)

    def changes(self) -> list[object]:
        if self.problem is not None:
            raise self.problem
        os.eventfd_read(self._fd)
        heard, self.heard = self.heard, []
        return heard

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True
        os.close(self._fd)


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.monitor = FakeMonitor()
        self.lane = self.made("packet")
        self.forgotten = 0
        forget = self.lane.ways.forget

        def count() -> None:
            self.forgotten += 1
            forget()

        self.lane.ways.forget = count  # type: ignore[method-assign]

    def made(self, backend: str, family: int = 4) -> Lane:
        engine = MemoryEchoEngine(self.clock, family, backend=backend)
        return Lane(self.clock, family, engine, lambda: self.monitor)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    bench.lane.close()
    assert bench.monitor.is_closed


async def test_a_change_makes_frames_look_for_their_way_again(bench: Bench) -> None:
    bench.lane.ways._known["192.0.2.0/24", ANY] = 1
    bench.monitor.tell("a route")
    await bench.clock.settle()
    assert bench.forgotten == 1
    assert bench.lane.ways.known("192.0.2.1", ANY) is None


async def test_what_is_no_change_forgets_nothing(bench: Bench) -> None:
    bench.monitor.tell()
    await bench.clock.settle()
    assert bench.forgotten == 0


async def test_a_monitor_that_fails_leaves_nothing_to_be_trusted(bench: Bench) -> None:
    bench.monitor.problem = NetsondeError("cannot hear network changes")
    bench.monitor.tell("lost")
    await bench.clock.settle()
    assert bench.forgotten == 1
    assert bench.lane.ways.is_forgetful


class LossyMonitor:
    """Its descriptor is POLLERR when it has lost something, as a netlink socket's then is."""

    def __init__(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
            closed.bind(("127.0.0.1", 0))
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.connect(closed.getsockname())
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def lose(self) -> None:
        self._socket.send(b"to nobody")

    def changes(self) -> list[object]:
        with contextlib.suppress(ConnectionRefusedError):
            self._socket.recv(1)
        return ["lost"]

    def close(self) -> None:
        self._socket.close()


async def test_what_was_lost_is_heard_of_again_and_again() -> None:
    clock, monitor = ManualClock(), LossyMonitor()
    lane = Lane(clock, 4, MemoryEchoEngine(clock, 4, backend="packet"), lambda: monitor)
    for _ in range(3):
        lane.ways._known["192.0.2.0/24", ANY] = 1
        monitor.lose()
        await clock.settle()
        assert lane.ways.known("192.0.2.1", ANY) is None
    lane.close()


@pytest.mark.parametrize("backend", ["header", "raw", "datagram"])
async def test_where_the_kernel_routes_nobody_listens(backend: str) -> None:
    def unwanted() -> FakeMonitor:
        raise AssertionError

    clock = ManualClock()
    lane = Lane(clock, 4, MemoryEchoEngine(clock, 4, backend=backend), unwanted)
    lane.close()


# ── DF ───────────────────────────────────────────────────────────────────────────────────────────


def carries(monkeypatch: pytest.MonkeyPatch, answer: int | Exception) -> None:
    async def mtu(_ways: Ways, _address: str, _wanted: object) -> int:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(Ways, "mtu", mtu)


@pytest.mark.parametrize(("family", "backend", "largest"), [(4, "header", 1472), (6, "raw", 1452)])
async def test_what_may_not_be_cut_must_fit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, family: int, backend: str, largest: int
) -> None:
    carries(monkeypatch, 1500)
    lane = bench.made(backend, family)
    address = "192.0.2.1" if family == 4 else "2001:db8::1"
    await lane.check_unfragmented(address, ANY, largest)
    with pytest.raises(RequestError, match=f"size may be {largest} at the most"):
        await lane.check_unfragmented(address, ANY, largest + 1)
    lane.close()


@pytest.mark.parametrize("backend", ["raw", "datagram"])
async def test_a_back_end_without_df_says_which_has_it(bench: Bench, backend: str) -> None:
    lane = bench.made(backend)
    with pytest.raises(RequestError, match="df needs the back end header or packet"):
        await lane.check_unfragmented("192.0.2.1", ANY, 56)
    lane.close()


async def test_where_there_is_no_way_the_packets_tell(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    carries(monkeypatch, RouteError("no route"))
    await bench.lane.check_unfragmented("203.0.113.1", ANY, 9000)


# ── what cannot be opened ────────────────────────────────────────────────────────────────────────


class DeafLoop:
    """Cannot watch anything."""

    def __init__(self) -> None:
        self.watched: list[int] = []

    def add_reader(self, descriptor: int, _call: object) -> None:
        self.watched.append(descriptor)
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("is_closed", [True, False])
async def test_a_lane_that_cannot_be_opened_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, is_closed: bool
) -> None:
    clock, monitor, loop = ManualClock(), FakeMonitor(), DeafLoop()
    engine = MemoryEchoEngine(clock, 4, backend="packet")
    if is_closed:  # so that the driver cannot watch it
        engine.close()
    else:
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    with pytest.raises((ValueError, OSError)):
        Lane(clock, 4, engine, lambda: monitor)
    assert monitor.is_closed
    for descriptor in loop.watched:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    if not is_closed:
        engine.close()


async def test_a_monitor_that_breaks_in_any_way_leaves_nothing_to_be_trusted(bench: Bench) -> None:
    bench.monitor.problem = OSError(16, "Device or resource busy")
    bench.monitor.tell("lost")
    await bench.clock.settle()
    assert bench.lane.ways.is_forgetful
