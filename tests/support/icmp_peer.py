"""The other side of an echo engine: packed requests in, completions out, made-up answers back."""

import asyncio
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Literal, NamedTuple

from netsonde._native.icmp import COMPLETION_FORMAT, REQUEST_FORMAT, EchoEngine
from support import packets
from support.namespaces import Namespace

Family = Literal[4, 6]

SECOND_NS = 1_000_000_000
REQUEST_BYTES = struct.calcsize(REQUEST_FORMAT)
PATIENCE_S = 20.0  # far beyond what anything takes: a hang ends as a failure
TARGET = {4: "127.0.0.1", 6: "::1"}


class Done(NamedTuple):
    """One completion."""

    token: int
    rtt_ns: int
    sent_ns: int
    responder: bytes
    kind: int
    icmp_type: int
    code: int
    ttl: int
    size: int
    clocks: int
    errno: int

    def address(self, family: Family) -> str:
        """Who answered."""
        return str(ip_address(self.responder[: 4 if family == 4 else 16]))


def request(
    token: int, address: str, *, timeout_ns: int = SECOND_NS, size: int = 56, ttl: int = 64,
    tos: int = 0, scope: int = 0, count: int = 1, interval_ns: int = 0, path: int = 0,
    flags: int = 0,
) -> bytes:  # fmt: skip
    packed = ip_address(address).packed.ljust(16, b"\0")
    return struct.pack(
        REQUEST_FORMAT, token, interval_ns, timeout_ns, packed, scope, count, size, path, ttl, tos,
        flags,
    )  # fmt: skip


def poll(engine: EchoEngine, *, later_ns: int = 0) -> list[Done]:
    done = engine.poll(now_ns=time.monotonic_ns() + later_ns)
    return [Done(*each) for each in struct.iter_unpack(COMPLETION_FORMAT, done)]


def submit_all(engine: EchoEngine, requests: bytes) -> list[Done]:
    """Submit more requests than may wait at once; return what completed meanwhile."""
    done: list[Done] = []
    view, deadline = memoryview(requests), time.monotonic() + PATIENCE_S
    while view:
        taken = engine.submit(bytes(view))
        view = view[taken * REQUEST_BYTES :]
        if view:
            select.select([engine], [], [], PATIENCE_S)
            done += poll(engine)
        assert time.monotonic() < deadline, f"{len(view)} bytes were never taken"
    return done


def gather(
    engine: EchoEngine, count: int, meanwhile: Callable[[], object] = lambda: None
) -> list[Done]:
    """Poll whenever the descriptor says so until `count` completions have come."""
    done: list[Done] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(done) < count:
        assert time.monotonic() < deadline, f"{len(done)} of {count}: {engine.counters}"
        select.select([engine], [], [], 0.5)
        done += poll(engine)
        meanwhile()
    return done


def await_sent(engine: EchoEngine, count: int) -> None:
    """Turn the engine, or let it turn, until so many packets have been sent."""
    for _ in range(int(PATIENCE_S * 1000)):
        if engine.counters["sent"] >= count:
            break
        select.select([engine], [], [], 0.001)
        assert poll(engine) == []
    assert engine.counters["sent"] == count


def kinds(done: list[Done]) -> Counter[int]:
    """How many completions of each kind there are."""
    return Counter(each.kind for each in done)


def is_quiet(engine: EchoEngine) -> bool:
    """Whether the descriptor stops being readable while it is heeded."""
    for _ in range(100):
        if not select.select([engine], [], [], 0.02)[0]:
            return True
        poll(engine)
    return False


def await_rest(engine: EchoEngine) -> int:
    """Wait until an engine's thread has slept for a while; return how often it has looked."""
    turns = -1
    deadline = time.monotonic() + PATIENCE_S
    while turns != engine.counters["turns"]:
        turns = engine.counters["turns"]
        select.select([], [], [], 0.02)
        assert time.monotonic() < deadline, "it never rests"
    return turns


class Peer:
    """The other side: sees the requests on the wire and sends whatever a test makes up."""

    def __init__(self, family: Family) -> None:
        self.family: Family = family
        if family == 4:
            self._seen = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            self._out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        else:
            self._seen = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
            self._out = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._seen.setblocking(False)

    def requests(self) -> list[bytes]:
        """The ICMP messages of the echo requests sent since the last call, in order."""
        found: list[bytes] = []
        while True:
            try:
                data = self._seen.recv(65_535)
            except BlockingIOError:
                return found
            message = data[(data[0] & 15) * 4 :] if self.family == 4 else data
            if message[0] == packets.ECHO_REQUEST[self.family]:
                found.append(message)

    async def has_request(self) -> None:
        """Wait until something is on the wire."""
        loop, seen = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._seen, seen.set)
        await seen.wait()
        loop.remove_reader(self._seen)

    def send(self, message: bytes, *, source: str | None = None, times: int = 1) -> None:
        """Send an ICMP message to the engine's host from any source address."""
        to = TARGET[self.family]
        source = source or to
        if self.family == 4:
            packet = packets.ipv4(source, to, message, ttl=61)
        else:
            packet = packets.ipv6(source, to, v6_checksum(source, to, message), hops=61)
        for _ in range(times):
            self._out.sendto(packet, (to, 0))

    def close(self) -> None:
        self._seen.close()
        self._out.close()


def v6_checksum(source: str, destination: str, message: bytes) -> bytes:
    pseudo = ip_address(source).packed + ip_address(destination).packed
    pseudo += struct.pack("!II", len(message), 58)
    total = packets.checksum(pseudo + message[:2] + b"\0\0" + message[4:])
    return message[:2] + struct.pack("!H", total) + message[4:]


def reply_to(message: bytes, family: Family) -> bytes:
    return packets.with_checksum(bytes([packets.ECHO_REPLY[family]]) + message[1:])


def quote(message: bytes, family: Family, *, to: str | None = None, keep: int = 1000) -> bytes:
    """The IP packet that carried a request, cut to `keep` bytes after its header."""
    target = to or TARGET[family]
    if family == 4:
        return packets.ipv4("127.0.0.1", target, message, ttl=1)[: 20 + keep]
    return packets.ipv6("::1", target, message, hops=1)[: 40 + keep]


def unreachable(
    message: bytes, family: Family, *, to: str | None = None, keep: int = 1000
) -> bytes:
    return packets.icmp_error(3 if family == 4 else 1, 1, quote(message, family, to=to, keep=keep))


def send_one(engine: EchoEngine, peer: Peer, token: int = 7, **options: int) -> bytes:
    """Send a request; return it as it was on the wire."""
    assert engine.submit(request(token, TARGET[peer.family], **options)) == 1
    (message,) = peer.requests()
    return message


def quiet_host() -> Namespace:
    """A host on its own whose kernel answers no echo requests."""
    host = Namespace("quiet host")
    host.sysctl("net.ipv4.icmp_echo_ignore_all", 1)
    host.sysctl("net.ipv6.icmp.echo_ignore_all", 1)
    return host
