"""A host on a simulated network that sends probes made by hand and sees all that comes back."""

import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from typing import Any, Literal

import msgspec

from support import packets
from support.netsim.client import ETHERTYPE, FENCE, PATIENCE_S, Family
from support.netsim.network import SimulatedNetwork
from support.netsim.scenario import Scenario, make_scenario

Method = Literal["icmp", "udp", "tcp"]
Play = Callable[[Scenario], "Tracer"]  # start a network, with a tracer on it

NUMBER: Mapping[Method, Mapping[int, int]] = {
    "icmp": packets.PROTOCOL, "udp": {4: 17, 6: 17}, "tcp": {4: 6, 6: 6},
}  # fmt: skip
CHECKSUM_AT: Mapping[Method, int] = {"icmp": 2, "udp": 6, "tcp": 16}
ADVERTISEMENT = 136
DONT_FRAGMENT = 0x4000


Table = dict[str, Any]

TARGET = {4: "10.20.0.1", 6: "fd20::1"}
ROUTERS = {4: ip_address("10.21.0.0"), 6: ip_address("fd21::")}
FENCE_MS = 60  # longer than any answer of a route may take


def routed(hops: list[Any], routers: Table | None = None, **more: Any) -> Scenario:
    """A scenario of TARGET behind a route, and a fence.

    Routers have the addresses of router_address and what `routers` says; `more` belongs to the
    route, but for the tables of a scenario that are named here.
    """
    names = sorted(set(_names(hops)))
    outer: Table = {key: more.pop(key) for key in ("seed", "record", "limits") if key in more}
    behaviours = more.pop("behaviour", {})
    return make_scenario(
        {
            "record": "probes",
            "hosts": [
                {"prefixes": ["10.20.0.0/24", "fd20::/64"], "route": "tested"}
                | ({"behaviour": "tested"} if "tested" in behaviours else {}),
                {"prefixes": ["10.255.0.0/16", "fdff::/64"], "behaviour": "fence"},
            ],
            "behaviour": {
                "fence": {"delay": {"distribution": "constant", "ms": FENCE_MS}},
                **behaviours,
            },
            "route": {"tested": {"hops": hops, **more}},
            "router": {
                name: {
                    "address4": router_address(4, name),
                    "address6": router_address(6, name),
                    **(routers or {}).get(name, {}),
                }
                for name in names
            },
            **outer,
        }
    )


def fenced(scenario: Scenario) -> Scenario:
    """The scenario with a fence."""
    fence = routed([])
    return msgspec.structs.replace(
        scenario,
        hosts=(*scenario.hosts, fence.hosts[1]),
        behaviour={**scenario.behaviour, **fence.behaviour},
    )


def router_address(family: int, name: str) -> str:
    """The address of a router by its name: a letter and a number below 256."""
    return str(ROUTERS[family] + (ord(name[0]) << 8 | int(name[1:])))


def _names(hops: Iterable[Any]) -> Iterator[str]:
    for hop in hops:
        if isinstance(hop, str):
            yield hop
        else:
            yield from _names(hop)


@dataclass(frozen=True)
class Seen:
    """One packet that came to the host."""

    family: Family
    packet: bytes

    @cached_property
    def header_bytes(self) -> int:
        return 20 if self.family == 4 else 40

    @property
    def source(self) -> str:
        return address_in(self.packet, self.family, "source")

    @property
    def ttl(self) -> int:
        return self.packet[8 if self.family == 4 else 7]

    @property
    def protocol(self) -> int:
        return self.packet[9 if self.family == 4 else 6]

    @property
    def message(self) -> bytes:
        return self.packet[self.header_bytes :]

    @property
    def kind(self) -> tuple[int, int]:
        """ICMP type and code."""
        return self.message[0], self.message[1]

    @property
    def quote(self) -> bytes:
        """The quoted packet, with whatever follows it."""
        return self.message[8:]

    @property
    def quoted(self) -> "Seen":
        return Seen(self.family, self.quote)

    @property
    def length_field(self) -> int:
        """RFC 4884's, in bytes."""
        return self.message[5] * 4 if self.family == 4 else self.message[4] * 8

    @property
    def mtu(self) -> int:
        return int.from_bytes(self.message[6:8])

    @property
    def is_sound(self) -> bool:
        """Whether the checksum of what it carries is right."""
        return transport_checksum(self.family, self.protocol, self.packet, self.message) == 0


@dataclass(frozen=True)
class Sent:
    """One probe, as it was put on the wire."""

    family: Family
    packet: bytes

    @property
    def message(self) -> bytes:
        return self.packet[20 if self.family == 4 else 40 :]


def address_in(packet: bytes, family: Family, end: Literal["source", "destination"]) -> str:
    """Return an address of an IP header."""
    width = 4 if family == 4 else 16
    at = (12 if family == 4 else 8) + (width if end == "destination" else 0)
    return str(ip_address(packet[at : at + width]))


def transport_checksum(family: Family, protocol: int, packet: bytes, message: bytes) -> int:
    """Return the checksum over a message that has one: 0 when that is right."""
    if protocol == packets.PROTOCOL[4]:
        return packets.checksum(message)
    ends = packet[12:20] if family == 4 else packet[8:40]
    return packets.checksum(ends + struct.pack("!II", len(message), protocol) + message)


class Tracer:
    """A packet socket for both ways. The scenario has a fence, as one of `routed` does.

    number: of the last probe, from 1.
    """

    def __init__(self, network: SimulatedNetwork, family: Family) -> None:
        self.network = network
        self.family: Family = family
        self.source = network.address(family)
        self.number = 0
        self._wire = network.host.call(
            socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETHERTYPE[family])
        )
        self._wire.bind((network.interface, ETHERTYPE[family]))
        self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._wire.settimeout(PATIENCE_S)

    def send(
        self,
        destination: str,
        ttl: int,
        method: Method = "icmp",
        *,
        flow: int = 0,
        label: int = 0,
        tos: int = 0,
        payload: bytes = bytes(20),
        fragment: bool = False,
    ) -> Sent:
        """Send one probe. flow: an ICMP identifier, or the source port less 33000.

        Its packets have a number: ICMP's sequence, IPv4's identification.
        """
        self.number += 1
        message = self._message(method, flow, payload)
        packet = self._packet(destination, ttl, method, message, label, tos, fragment)
        self.put(packet)
        return Sent(self.family, packet)

    def read(self) -> list[Seen]:
        """All that has come, up to the reply of a fence."""
        fence = FENCE[self.family]
        self.send(fence, 64)
        found: list[Seen] = []
        while not found or found[-1].source != fence:
            seen = Seen(self.family, self._wire.recv(65_535))
            if seen.protocol == packets.PROTOCOL[6] and seen.message[0] == ADVERTISEMENT:
                continue
            if seen.source != self.source:
                found.append(seen)
        return found[:-1]

    def ask(self, destination: str, ttl: int, method: Method = "icmp", **more: Any) -> list[Seen]:
        """Send one probe, return what comes of it."""
        self.send(destination, ttl, method, **more)
        return self.read()

    def close(self) -> None:
        self._wire.close()

    def _message(self, method: Method, flow: int, payload: bytes) -> bytes:
        if method == "icmp":
            type_ = packets.ECHO_REQUEST[self.family]
            return struct.pack("!BBHHH", type_, 0, 0, flow, self.number) + payload
        port = 33_000 + flow
        if method == "udp":
            return struct.pack("!HHHH", port, 33_434, 8 + len(payload), 0) + payload
        words, syn = 5 << 12, 2
        sequence = self.number << 16
        return struct.pack("!HHIIHHHH", port, 80, sequence, 0, words | syn, 4096, 0, 0) + payload

    def _packet(
        self, destination: str, ttl: int, method: Method, message: bytes, label: int, tos: int,
        fragment: bool,
    ) -> bytes:  # fmt: skip
        protocol = NUMBER[method][self.family]
        ends = ip_address(self.source).packed + ip_address(destination).packed
        if self.family == 4:
            flags = 0 if fragment else DONT_FRAGMENT
            header = struct.pack(
                "!BBHHHBBH", 0x45, tos, 20 + len(message), self.number, flags, ttl, protocol, 0
            )
            total = packets.checksum(header + ends)
            header = header[:10] + total.to_bytes(2)
        else:
            word = 6 << 28 | tos << 20 | label
            header = struct.pack("!IHBB", word, len(message), protocol, ttl)
        bare = header + ends
        total = transport_checksum(self.family, protocol, bare, message)
        at = CHECKSUM_AT[method]
        return bare + message[:at] + total.to_bytes(2) + message[at + 2 :]

    def put(self, packet: bytes) -> None:
        mac = bytes.fromhex(self.network.simulator_mac.replace(":", ""))
        name = (self.network.interface, ETHERTYPE[self.family], 0, 0, mac)
        self._wire.sendto(packet, name)
