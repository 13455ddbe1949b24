"""Ways: which path a packet takes, without a kernel."""

import asyncio
import threading
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from netsonde import netinfo
from netsonde.clock import ManualClock
from netsonde.errors import ConfigError, NetsondeError, PrivilegeError, RouteError, SendError
from netsonde.probe.ping import ways as ways_module
from netsonde.probe.ping.ways import ANY, Wanted, Ways, WaysFullError
from support.echo import MemoryEchoEngine, Path


class FakeNetwork:
    """What the kernel would say: routes by destination, and who was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.indices = {"eth0": 2}
        self.gateway: str | None = "192.0.2.254"
        self.asked: list[str] = []
        self.refusal: Exception | None = None
        self.is_local = False
        self.on_ask: Callable[[], None] = lambda: None
        monkeypatch.setattr(netinfo, "route_to", self.route_to)
        self.parted: frozenset[str] | None = frozenset()
        self.listed = 0
        monkeypatch.setattr(netinfo, "parted_prefixes", self.parted_prefixes)
        monkeypatch.setattr(netinfo, "link_address", self.link_address)
        monkeypatch.setattr(netinfo, "interface_index", self.interface_index)

    def route_to(self, destination: str, **wanted: object) -> netinfo.Route:
        self.asked.append(destination)
        self.on_ask()
        if wanted["source"] == "198.51.100.9":
            raise ConfigError("source 198.51.100.9 is not an address of this host")
        if self.refusal is not None:
            raise self.refusal
        return netinfo.Route(
            source=str(wanted["source"] or "192.0.2.5"),
            interface_index=2,
            interface="eth0",
            mtu=1500,
            gateway=self.gateway,
            is_local=self.is_local,
        )

    def parted_prefixes(self, version: int, bits: int) -> frozenset[str]:
        assert (version, bits) == (4, 24)
        self.listed += 1
        if self.parted is None:
            raise NetsondeError("cannot list this host's routes")
        return self.parted

    def link_address(self, route: netinfo.Route, destination: str) -> bytes:
        last = ip_address(route.gateway or destination).packed[-1]
        return bytes(5) + bytes([last])

    def interface_index(self, name: str) -> int:
        if name not in self.indices:
            raise ConfigError(f"this host has no interface {name!r}")
        return self.indices[name]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> FakeNetwork:
    return FakeNetwork(monkeypatch)


def made(backend: str) -> tuple[Ways, MemoryEchoEngine]:
    engine = MemoryEchoEngine(ManualClock(), 4, backend=backend)
    return Ways(engine), engine


# ── the kernel routes ────────────────────────────────────────────────────────────────────────────


async def test_without_wishes_the_routing_table_decides(network: FakeNetwork) -> None:
    ways, engine = made("header")
    assert ways.known("192.0.2.1", ANY) == 0
    assert (network.asked, engine.paths) == ([], [])


async def test_interface_and_mark_are_one_path_for_all(network: FakeNetwork) -> None:
    ways, engine = made("raw")
    wanted = Wanted(interface="eth0", mark=7)
    assert [ways.known(f"192.0.2.{n}", wanted) for n in range(3)] == [1, 1, 1]
    assert engine.paths == [Path(None, 2, 7, None)]
    assert network.asked == []


async def test_an_interface_that_was_made_anew_is_found_again(network: FakeNetwork) -> None:
    ways, engine = made("raw")
    wanted = Wanted(interface="eth0")
    ways.known("192.0.2.1", wanted)
    network.indices["eth0"] = 9
    assert ways.known("192.0.2.1", wanted) == 2
    assert [path.interface for path in engine.paths] == [2, 9]
    del network.indices["eth0"]
    with pytest.raises(ConfigError, match="no interface 'eth0'"):
        ways.known("192.0.2.1", wanted)


async def test_a_source_is_checked_once(network: FakeNetwork) -> None:
    ways, engine = made("raw")
    wanted = Wanted(source="192.0.2.5")
    assert ways.known("192.0.2.1", wanted) is None
    assert await ways.find("192.0.2.1", wanted) == 1
    assert ways.known("192.0.2.2", wanted) == 1
    assert engine.paths == [Path(bytes([192, 0, 2, 5]), 0, 0, None)]
    assert network.asked == ["192.0.2.1"]
    with pytest.raises(ConfigError, match="not an address of this host"):
        await ways.find("192.0.2.1", Wanted(source="198.51.100.9"))


async def test_that_there_is_no_route_is_for_the_packets_to_tell(network: FakeNetwork) -> None:
    ways, _ = made("raw")
    network.refusal = RouteError("no route")
    assert await ways.find("203.0.113.1", Wanted(source="192.0.2.5")) == 1


async def test_ways_come_to_an_end(network: FakeNetwork) -> None:
    ways, engine = made("raw")
    engine.paths_max = 1
    assert ways.known("192.0.2.1", Wanted(mark=1)) == 1
    assert ways.known("192.0.2.1", Wanted(mark=1)) == 1
    assert ways.known("192.0.2.1", Wanted(mark=2)) is None
    with pytest.raises(WaysFullError, match="at most 1 paths"):
        await ways.find("192.0.2.1", Wanted(mark=2))


async def test_an_engine_that_names_no_way_at_all_is_not_full(network: FakeNetwork) -> None:
    ways, engine = made("raw")
    engine.paths_max = 0
    with pytest.raises(SendError) as caught:
        await ways.find("192.0.2.1", Wanted(mark=1))
    assert not isinstance(caught.value, WaysFullError)


async def test_without_a_thread_the_question_is_not_asked(
    network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    ways, _ = made("packet")
    with pytest.raises(NetsondeError, match="can't start new thread"):
        await ways.find("192.0.2.1", ANY)


async def test_a_privilege_that_is_missing_is_said(network: FakeNetwork) -> None:
    ways, _ = made("packet")
    network.refusal = PrivilegeError("raw sockets need CAP_NET_RAW")
    with pytest.raises(PrivilegeError):
        await ways.find("192.0.2.1", ANY)


async def test_questions_that_hang_hold_up_nobody_else(network: FakeNetwork) -> None:
    answer = threading.Event()

    def wait() -> None:
        answer.wait(10)

    network.on_ask = wait
    ways, _ = made("packet")
    async with asyncio.TaskGroup() as group:
        for n in range(40):
            group.create_task(ways.find(f"198.51.{n}.1", ANY))
        await asyncio.sleep(0)
        assert await asyncio.to_thread(lambda: "at once") == "at once"
        answer.set()


async def test_the_mtu_is_asked_for_each_time(network: FakeNetwork) -> None:
    ways, _ = made("raw")
    assert await ways.mtu("192.0.2.1", ANY) == 1500
    assert await ways.mtu("192.0.2.1", ANY) == 1500
    assert len(network.asked) == 2  # nobody tells when it changes


# ── frames are ours ──────────────────────────────────────────────────────────────────────────────


async def test_what_lies_behind_a_gateway_shares_its_way(network: FakeNetwork) -> None:
    ways, engine = made("packet")
    assert ways.known("198.51.100.1", ANY) is None
    assert await ways.find("198.51.100.1", ANY) == 1
    assert ways.known("198.51.100.200", ANY) == 1
    assert ways.known("198.51.101.1", ANY) is None
    assert engine.paths == [Path(bytes([192, 0, 2, 5]), 2, 0, bytes([0, 0, 0, 0, 0, 254]))]


async def test_what_the_routing_table_parts_shares_no_way(network: FakeNetwork) -> None:
    ways, _ = made("packet")
    network.parted = frozenset({"198.51.100.0/24"})
    await ways.find("198.51.100.1", ANY)
    await ways.find("203.0.113.1", ANY)
    assert ways.known("198.51.100.1", ANY) == 1
    assert ways.known("198.51.100.200", ANY) is None
    assert ways.known("203.0.113.200", ANY) == 1
    assert network.listed == 1
    ways.forget()
    network.parted = frozenset()
    await ways.find("198.51.100.1", ANY)
    assert ways.known("198.51.100.200", ANY) == 1
    assert network.listed == 2


async def test_where_routes_are_not_told_nothing_is_shared(network: FakeNetwork) -> None:
    ways, _ = made("packet")
    network.parted = None
    await ways.find("198.51.100.1", ANY)
    assert ways.known("198.51.100.1", ANY) == 1
    assert ways.known("198.51.100.2", ANY) is None


async def test_neighbours_have_a_link_address_each(network: FakeNetwork) -> None:
    ways, engine = made("packet")
    network.gateway = None
    assert await ways.find("192.0.2.1", ANY) == 1
    assert ways.known("192.0.2.1", ANY) == 1
    assert ways.known("192.0.2.2", ANY) is None
    assert await ways.find("192.0.2.2", ANY) == 2
    assert [path.link_address for path in engine.paths] == [bytes([0] * 5 + [n]) for n in (1, 2)]


async def test_forgetting_makes_it_look_again(network: FakeNetwork) -> None:
    ways, engine = made("packet")
    await ways.find("198.51.100.1", ANY)
    assert await ways.mtu("198.51.100.1", ANY) == 1500
    assert await ways.mtu("198.51.100.1", ANY) == 1500
    assert len(network.asked) == 2
    ways.forget()
    network.gateway = "192.0.2.253"
    assert ways.known("198.51.100.1", ANY) is None
    assert await ways.find("198.51.100.1", ANY) == 2
    await ways.mtu("198.51.100.1", ANY)
    assert len(network.asked) == 4
    assert len(engine.paths) == 2


async def test_the_same_way_is_the_same_path(network: FakeNetwork) -> None:
    ways, engine = made("packet")
    for address in ("198.51.100.1", "203.0.113.1", "198.51.100.1"):
        ways.forget()
        assert await ways.find(address, ANY) == 1
    assert len(engine.paths) == 1


async def test_an_answer_that_a_change_overtook_is_not_remembered(network: FakeNetwork) -> None:
    ways, _ = made("packet")
    loop = asyncio.get_running_loop()

    def change() -> None:
        asyncio.run_coroutine_threadsafe(forget(), loop).result(10)

    async def forget() -> None:
        ways.forget()

    network.on_ask = change
    assert await ways.find("198.51.100.1", ANY) == 1
    assert ways.known("198.51.100.1", ANY) is None


async def test_who_is_deaf_remembers_nothing(network: FakeNetwork) -> None:
    ways, _ = made("packet")
    ways.is_forgetful = True
    await ways.find("198.51.100.1", ANY)
    assert ways.known("198.51.100.1", ANY) is None


async def test_frames_need_a_route_and_do_not_reach_this_host(network: FakeNetwork) -> None:
    ways, _ = made("packet")
    network.is_local = True
    with pytest.raises(RouteError, match="is this host itself"):
        await ways.find("192.0.2.5", ANY)
    network.refusal = RouteError("no route")
    with pytest.raises(RouteError, match="no route"):
        await ways.find("203.0.113.1", ANY)


async def test_memory_is_bounded(network: FakeNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways_module, "WAYS_MAX", 3)
    ways, _ = made("packet")
    for n in range(10):
        await ways.find(f"198.51.{n}.1", ANY)
        await ways.mtu(f"198.51.{n}.1", ANY)
    assert len(ways._known) <= 3
    assert len(ways._mtus) <= 3
