"""Two hosts on one wire for the echo engine: one sends, the other answers, a tap looks on."""

import contextlib
import itertools
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Literal, NamedTuple

import pytest

from netsonde._native.icmp import REPLY, EchoEngine, PacketBudget
from support import packets
from support.icmp_peer import PATIENCE_S, Family, gather, request
from support.namespaces import Namespace, connect

Backend = Literal["raw", "header", "packet", "datagram"]
Driver = Literal["loop", "thread"]

HERE = {4: "10.0.0.1", 6: "fd00::1"}
ALIAS = {4: "10.0.0.11", 6: "fd00::11"}  # a second address of the sender
THERE = {4: "10.0.0.2", 6: "fd00::2"}
BEYOND = {4: "10.9.0.0/16", 6: "fd09::/48"}  # all of it is the answering host
BACKENDS: tuple[tuple[Family, Backend], ...] = (
    (4, "raw"),
    (4, "header"),
    (4, "packet"),
    (4, "datagram"),
    (6, "raw"),
    (6, "packet"),
    (6, "datagram"),
)
DRIVERS: tuple[Driver, ...] = ("loop", "thread")

every_backend = pytest.mark.parametrize(("family", "backend"), BACKENDS)
both_drivers = pytest.mark.parametrize("driver", DRIVERS)

LARGEST_BYTES = 1856  # payload that the packet back end has room for
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
SO_TIMESTAMPNS = 35  # asm-generic/socket.h
SO_RCVBUFFORCE = 33


def beyond(family: Family, n: int) -> str:
    """Return address n of many that answer: each 256 share a /24; each 65 536 share a /48."""
    return str(ip_address(BEYOND[family].split("/")[0]) + n)


class Sight(NamedTuple):
    """A packet on the wire and when the kernel saw it, CLOCK_REALTIME."""

    stamp_ns: int
    packet: bytes


class Wire:
    """Every IP packet of a family that an interface receives, stamped."""

    def __init__(self, family: Family, interface: str) -> None:
        self.family: Family = family
        self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._seen: list[Sight] = []
        with contextlib.suppress(PermissionError):  # root of a user namespace has 256 packets
            self._tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        self._tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._tap.bind((interface, ETHERTYPE[family]))

    def packets(self, count: int = 0) -> list[Sight]:
        """What has passed since the last call; waits until that is `count`."""
        deadline = time.monotonic() + PATIENCE_S
        self.look()
        while len(self._seen) < count:
            assert time.monotonic() < deadline, f"{len(self._seen)} of {count} packets"
            select.select([self._tap], [], [], 0.5)
            self.look()
        seen, self._seen = self._seen, []
        return seen

    def look(self) -> None:
        """Take what has passed out of the socket: it holds few packets without privilege."""
        while True:
            try:
                data, control, _, address = self._tap.recvmsg(65_535, 100, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if address[2] != socket.PACKET_OUTGOING and self._is_request(data):
                second, nanosecond = struct.unpack("qq", control[0][2])
                self._seen.append(Sight(second * 1_000_000_000 + nanosecond, data))

    def _is_request(self, data: bytes) -> bool:
        """Whether it is an echo request or a piece of one."""
        if self.family == 4:
            later = int.from_bytes(data[6:8]) & packets.FRAGMENT_OFFSET_4
            return data[9] == 1 and (bool(later) or data[20] == packets.ECHO_REQUEST[4])
        return data[6] == packets.FRAGMENT_6 or (
            data[6] == 58 and data[40] == packets.ECHO_REQUEST[6]
        )

    def close(self) -> None:
        """Stop looking."""
        self._tap.close()


def gaps_ns(sights: list[Sight]) -> list[int]:
    """Return the times between one packet and the next."""
    return [after.stamp_ns - before.stamp_ns for before, after in itertools.pairwise(sights)]


@dataclass
class EchoNetwork:
    """`here` has the engines; `there` answers for THERE and BEYOND."""

    here: Namespace = field(default_factory=lambda: Namespace("here"))
    there: Namespace = field(default_factory=lambda: Namespace("there"))
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        connect(self.here, self.there, "h0", "t0")
        for family, bits in ((4, 24), (6, 64)):
            self.here.address("h0", HERE[family], bits)
            self.here.address("h0", ALIAS[family], bits)
            self.there.address("t0", THERE[family], bits)
            self.there.answer_for(BEYOND[family])
            self.here.route_to(BEYOND[family], THERE[family])
        self.there.unlimit_icmp()
        self._know_each_other()
        self._await_answer(4)
        self._await_answer(6)
        self.here.allow_icmp_datagrams()

    def _await_answer(self, family: Family) -> None:
        """Wait until packets get through: the kernel drops some a moment after `up`."""
        with self.here.call(EchoEngine, family) as engine:
            for n in range(200):
                engine.submit(request(n, THERE[family], timeout_ns=50_000_000, count=4))
                if all(each.kind == REPLY for each in gather(engine, 4)):
                    return
        raise AssertionError(f"{THERE[family]} does not answer")

    def _know_each_other(self) -> None:
        """Spare the tests the neighbour discovery, whose queue of packets is short."""
        for one, other, end, other_end, address in (
            (self.here, self.there, "h0", "t0", THERE),
            (self.there, self.here, "t0", "h0", HERE),
            (self.there, self.here, "t0", "h0", ALIAS),
        ):
            for family in (4, 6):
                one.route.neigh(
                    "replace", dst=address[family], lladdr=link_address(other, other_end),
                    ifindex=one.index(end), state="permanent",
                )  # fmt: skip

    def open(
        self, family: Family, backend: Backend, driver: Driver = "loop", *, exact: bool = False,
        budgets: tuple[PacketBudget, ...] = (), prefix_pps: float = 0, target_pps: float = 0,
        capacity: int = 1 << 20, receive_buffer_bytes: int = 8 << 20,
    ) -> EchoEngine:  # fmt: skip
        """Open an engine here; its path 1 is as good as any, for every back end."""
        engine = self.here.call(
            EchoEngine, family, backend=backend, exact=exact, budgets=budgets,
            prefix_pps=prefix_pps, target_pps=target_pps, capacity=capacity,
            receive_buffer_bytes=receive_buffer_bytes,
            largest_size=LARGEST_BYTES,
        )  # fmt: skip
        self._open.callback(engine.close)
        self.add_path(engine)
        if driver == "thread":
            engine.start()
        return engine

    def add_path(self, engine: EchoEngine, source: str = "") -> int:
        """Give an engine a path over the wire."""
        packet = engine.backend == "packet"
        return engine.add_path(
            source=ip_address(source or HERE[engine.family]).packed if packet or source else None,
            interface=self.here.index("h0") if packet else 0,
            link_address=link_bytes(self.there, "t0") if packet else None,
        )

    def wire(self, family: Family) -> Wire:
        """Look at what arrives there."""
        wire = self.there.call(Wire, family, "t0")
        self._open.callback(wire.close)
        return wire

    def close(self) -> None:
        """Close all that was opened, then the hosts."""
        self._open.close()
        self.here.close()
        self.there.close()


def opened(
    host: Namespace, family: Family, driver: Driver, *, budgets: tuple[PacketBudget, ...] = (),
    target_pps: float = 0, capacity: int = 1 << 20, receive_buffer_bytes: int = 8 << 20,
) -> EchoEngine:  # fmt: skip
    """Open a raw engine on a host of its own."""
    engine = host.call(
        EchoEngine, family, budgets=budgets, target_pps=target_pps, capacity=capacity,
        receive_buffer_bytes=receive_buffer_bytes,
    )  # fmt: skip
    if driver == "thread":
        engine.start()
    return engine


def link_address(namespace: Namespace, interface: str) -> str:
    """Return an interface's hardware address."""
    (link,) = namespace.route.get_links(namespace.index(interface))
    address: str = link.get_attr("IFLA_ADDRESS")
    return address


def link_bytes(namespace: Namespace, interface: str) -> bytes:
    """Return an interface's hardware address, packed."""
    return bytes.fromhex(link_address(namespace, interface).replace(":", ""))


@contextlib.contextmanager
def echo_network() -> Iterator[EchoNetwork]:
    """Build the two hosts."""
    network = EchoNetwork()
    try:
        yield network
    finally:
        network.close()
