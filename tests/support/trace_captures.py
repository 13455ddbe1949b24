"""Probes as they leave a host, and the flow that a router balances them by."""

import socket
from typing import NamedTuple, Self

from support.namespaces import Namespace

ETH_P_ALL = 3  # linux/if_ether.h
IP_HEADER_BYTES = {4: 20, 6: 40}
PROTOCOLS = {1: "icmp", 58: "icmp", 17: "udp", 6: "tcp"}
ECHO_REQUEST = {4: 8, 6: 128}


class Flow(NamedTuple):
    """What is hashed: ports or an ICMP message's first 4 bytes, its identifier, the IPv6 label."""

    destination: bytes
    first_bytes: bytes
    ident: bytes
    label: int


class Probe(NamedTuple):
    """A probe as it left."""

    version: int
    method: str
    ttl: int
    flow: Flow
    varies: bytes  # what names it: sequence, identification, sequence number
    packet: bytes


class ProbeCapture:
    """Sees the probes that leave a node."""

    def __init__(self, node: Namespace) -> None:
        self._socket = node.call(
            socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)
        )
        self._socket.setblocking(False)

    def probes(self) -> list[Probe]:
        """Return those that have left since the last call."""
        found: list[Probe] = []
        while True:
            try:
                packet, name = self._socket.recvfrom(2048)
            except BlockingIOError:
                return found
            if name[2] == socket.PACKET_OUTGOING and (probe := _read(packet)) is not None:
                found.append(probe)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _read(packet: bytes) -> Probe | None:
    version = packet[0] >> 4
    if version not in IP_HEADER_BYTES:
        return None
    method = PROTOCOLS.get(packet[9] if version == 4 else packet[6])
    body = packet[IP_HEADER_BYTES[version] :]
    if method is None or (method == "icmp" and body[0] != ECHO_REQUEST[version]):
        return None
    if method == "tcp" and body[13] != 2:  # the kernel's own resets
        return None
    label = int.from_bytes(packet[:4]) & 0xFFFFF if version == 6 else 0
    destination = packet[16:20] if version == 4 else packet[24:40]
    ident = body[4:6] if method == "icmp" else b""
    varies = {
        "icmp": body[6:8],
        "udp": packet[4:6] if version == 4 else body[8:12],
        "tcp": body[4:8],
    }[method]
    ttl = packet[8] if version == 4 else packet[7]
    return Probe(version, method, ttl, Flow(destination, body[:4], ident, label), varies, packet)


def icmp_error(probe: Probe, *, quoted_bytes: int | None = None) -> bytes:
    """Return a time-exceeded message about a probe, checksum 0; quoted_bytes: of its transport."""
    header = IP_HEADER_BYTES[probe.version]
    quoted = probe.packet if quoted_bytes is None else probe.packet[: header + quoted_bytes]
    return bytes((11 if probe.version == 4 else 3, 0, 0, 0, 0, 0, 0, 0)) + quoted
