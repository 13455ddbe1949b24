"""A host on a simulated network: plain sockets that send requests and see all that comes back."""

import itertools
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from support import packets
from support.netsim.network import SimulatedNetwork

Family = Literal[4, 6]

PATIENCE_S = 30
IDENT = 0x4E53
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
FENCE = {4: "10.255.0.1", 6: "fdff::1"}
TARGETS = {4: "10.0.0.", 6: "fd00::"}
ADVERTISEMENT = 136
UNREAD_MAX = 100  # requests: what is sent on account of them fits an unprivileged buffer


def target(family: Family, number: int) -> str:
    """Return the address of a host, numbered from 1."""
    return str(ip_address(f"{TARGETS[family]}{number}"))


@dataclass(frozen=True)
class Seen:
    """One ICMP packet from the wire."""

    source: str
    ttl: int
    message: bytes
    packet: bytes

    @property
    def ident(self) -> int:
        return int.from_bytes(self.message[4:6])

    @property
    def sequence(self) -> int:
        return int.from_bytes(self.message[6:8])


class Client:
    """A host on the simulated network: a raw socket to send, a packet socket that sees it all.

    The scenario has a fence: a host at FENCE that answers later than anything else is sent. So its
    reply tells that all other packets are here.
    """

    def __init__(self, network: SimulatedNetwork, family: Family) -> None:
        self.network = network
        self.family: Family = family
        self.sent: dict[int, tuple[str, bytes]] = {}  # sequence -> target, message
        self._read = 0
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        self._out = network.host.call(
            socket.socket, kind, socket.SOCK_RAW, packets.PROTOCOL[family]
        )
        self.wire = network.host.call(
            socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETHERTYPE[family])
        )
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.wire.settimeout(PATIENCE_S)

    def ping(self, address: str, payload_bytes: int = 40) -> bytes:
        """Send a request with the next sequence; returns its message."""
        sequence = len(self.sent)
        payload = os.urandom(payload_bytes)
        message = packets.echo(self.family, "request", IDENT, sequence, payload)
        self._out.sendto(message, (address, 0))
        self.sent[sequence] = address, message
        assert sequence - self._read < UNREAD_MAX + 1
        return message

    def ping_each(self, hosts: int, rounds: int = 1) -> None:
        """Send requests to the first hosts in turn."""
        for _, number in itertools.product(range(rounds), range(1, hosts + 1)):
            self.ping(target(self.family, number))

    def read(self) -> list[Seen]:
        """All that has been sent to this host, up to the reply of a fence."""
        self.ping(FENCE[self.family])
        found: list[Seen] = []
        while not found or found[-1].source != FENCE[self.family]:
            seen = self._parse(self.wire.recv(65_535))
            if seen is not None:
                found.append(seen)
        self._read = len(self.sent)
        return found[:-1]

    def _parse(self, packet: bytes) -> Seen | None:
        """What a packet that may be malformed has in its fields; None: a neighbour."""
        header = 20 if self.family == 4 else 40
        source = str(ip_address(packet[12:16] if self.family == 4 else packet[8:24]))
        if self.family == 6 and packet[40:41] == bytes([ADVERTISEMENT]):
            return None
        return Seen(source, packet[8 if self.family == 4 else 7], packet[header:], packet)

    def checksum(self, seen: Seen) -> int:
        """0 when an ICMP checksum is right."""
        pseudo = b""
        if self.family == 6:
            ends = ip_address(seen.source).packed + ip_address(self.network.address(6)).packed
            pseudo = ends + struct.pack("!II", len(seen.message), 58)
        return packets.checksum(pseudo + seen.message)

    def reply_to(self, sequence: int) -> bytes:
        """The genuine reply's message."""
        address, message = self.sent[sequence]
        reply = bytearray(message)
        reply[0] = packets.ECHO_REPLY[self.family]
        if self.family == 4:
            return packets.with_checksum(bytes(reply))
        ends = ip_address(address).packed + ip_address(self.network.address(6)).packed
        pseudo = ends + struct.pack("!II", len(reply), 58)
        reply[2:4] = b"\0\0"
        reply[2:4] = packets.checksum(pseudo + bytes(reply)).to_bytes(2)
        return bytes(reply)

    def is_genuine(self, seen: Seen) -> bool:
        """Whether this is the right reply to a request that was sent."""
        return (
            len(seen.message) >= 8
            and seen.ident == IDENT
            and seen.sequence in self.sent
            and seen.message == self.reply_to(seen.sequence)
        )

    def close(self) -> None:
        self._out.close()
        self.wire.close()
