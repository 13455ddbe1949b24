"""Kernels in a row: every hop is who the chain says, however much it is asked."""

import select
import socket
import struct
from collections.abc import Iterator

import pytest

from support import packets
from support.namespaces import Chain
from support.router_chain import HOPS, router_chain, target_address, true_hops

pytestmark = [pytest.mark.raw, pytest.mark.netns]

FAMILIES = pytest.mark.parametrize("version", [4, 6])
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
EXCEEDED = {4: 11, 6: 3}
IDENT = 0x4E53
BATCH = 64  # answers that fit a receive buffer
PATIENCE_S = 5


@pytest.fixture(scope="module")
def path() -> Iterator[Chain]:
    with router_chain() as built:
        yield built


class Asker:
    """A raw socket on the host."""

    def __init__(self, path: Chain, version: int) -> None:
        self._version = version
        self._socket = path.host.call(
            socket.socket, FAMILY[version], socket.SOCK_RAW, PROTOCOL[version]
        )

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, target: str, ttl: int, sequence: int = 0) -> None:
        option = (socket.IPPROTO_IP, socket.IP_TTL)
        if self._version == 6:
            option = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        self._socket.setsockopt(*option, ttl)
        request = packets.echo(self._version, "request", IDENT, sequence, bytes(8))
        self._socket.sendto(request, (target, 0))

    def answer(self) -> tuple[str, int, int]:
        """Return who answered, with which type, and the sequence number of what."""
        while select.select([self._socket], [], [], PATIENCE_S)[0]:
            datagram, (address, *_) = self._socket.recvfrom(2048)
            message = datagram[20:] if self._version == 4 else datagram
            if message[0] == packets.ECHO_REPLY[self._version]:
                return address, message[0], *struct.unpack_from("!H", message, 6)
            if message[0] == EXCEEDED[self._version]:
                quoted = 8 + (20 if self._version == 4 else 40)
                return address, message[0], *struct.unpack_from("!H", message, quoted + 6)
        raise TimeoutError("no answer")


@FAMILIES
@pytest.mark.parametrize("number", [0, 4095])
def test_every_hop_is_the_true_one(path: Chain, version: int, number: int) -> None:
    target = target_address(version, number)
    with Asker(path, version) as asker:
        answers = []
        for ttl in range(1, HOPS + 1):
            asker.ask(target, ttl)
            answers.append(asker.answer()[:2])

    types = [EXCEEDED[version]] * (HOPS - 1) + [packets.ECHO_REPLY[version]]
    assert answers == list(zip(true_hops(path, version, number), types, strict=True))


@FAMILIES
def test_no_router_limits_its_errors(path: Chain, version: int) -> None:
    """More of them than any of the kernel's limits lets through in a second."""
    router = true_hops(path, version)[2]
    seen: set[int] = set()
    with Asker(path, version) as asker:
        for begin in range(0, 40 * BATCH, BATCH):
            numbers = range(begin, begin + BATCH)
            for number in numbers:
                asker.ask(target_address(version, 1), 3, number)
            answers = [asker.answer() for _ in numbers]
            assert {address for address, *_ in answers} == {router}
            seen |= {number for *_, number in answers}

    assert seen == set(range(40 * BATCH))


def test_a_path_can_be_short() -> None:
    with router_chain(2) as path, Asker(path, 4) as asker:
        target = target_address(4, 7)
        for ttl in (1, 2):
            asker.ask(target, ttl, ttl)
        answers = {number: address for address, _, number in (asker.answer(), asker.answer())}

        assert [answers[1], answers[2]] == true_hops(path, 4, 7)
