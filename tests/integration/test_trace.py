"""Traces over real sockets: loopback, and kernels that route for one another."""

import asyncio
import errno
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Self

import pytest

from netsonde._native.trace import DUPLICATE, TraceSocket
from netsonde.clock import NS_PER_MS, SystemClock
from netsonde.model import FailureSource, Measurement, Outcome, Reason, TraceSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.targets import TargetResolver
from netsonde.probe.trace import TraceProber
from netsonde.probe.trace_lane import TraceEngine, open_engine
from netsonde.probe.trace_path import Answer
from support import quotes
from support.namespaces import Chain, Namespace, chain, left_address, right_address

FAMILIES = pytest.mark.parametrize("version", [4, 6])
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ROUTERS = 4
MANY = {4: "10.98.0.0/24", 6: "fd98::/64"}
UNUSED = {4: "10.99.0.0/24", 6: "fd99::/64"}
REFUSED = {4: "10.96.0.0/24", 6: "fd96::/64"}
PROHIBITED = {4: "10.95.0.0/24", 6: "fd95::/64"}
CIRCLES = {4: "10.94.0.0/24", 6: "fd94::/64"}
ETH_P_ALL = 3  # linux/if_ether.h


@pytest.fixture(scope="module")
def path() -> Iterator[Chain]:
    """A chain whose target also answers for all of MANY."""
    with chain(ROUTERS) as built:
        for prefix in MANY.values():
            built.route_all_to(prefix)
            built.target.answer_for(prefix)
        yield built


@pytest.fixture(scope="module")
def silent_path() -> Iterator[Chain]:
    """A chain whose second router sends no errors; UNUSED ends nowhere, and nobody says so."""
    with chain(ROUTERS, silent={2}) as built:
        for prefix in UNUSED.values():
            built.route_all_to(prefix)
            built.nodes[ROUTERS].refuse(prefix, "blackhole")
        yield built


@pytest.fixture(scope="module")
def broken_path() -> Iterator[Chain]:
    """A chain with prefixes that are refused, go in circles, or that the host cannot send."""
    with chain(ROUTERS) as built:
        for prefix in (*REFUSED.values(), *PROHIBITED.values(), *CIRCLES.values()):
            built.route_all_to(prefix)
        for prefix in REFUSED.values():
            built.nodes[3].refuse(prefix)
        for prefix in PROHIBITED.values():
            built.nodes[2].refuse(prefix, "prohibit")
        for version, prefix in CIRCLES.items():
            built.nodes[3].route_to(prefix, left_address(2, version))
        yield built


def prober_in(node: Namespace | None = None) -> TraceProber:
    def engine(family: int) -> TraceEngine:
        return open_engine(family) if node is None else node.call(open_engine, family)

    return TraceProber(SystemClock(), TargetResolver(TargetPolicy.person()), engine=engine)


async def trace(node: Namespace | None, *specs: TraceSpec) -> list[Measurement]:
    """Trace all specs at once with one prober."""
    clock = SystemClock()
    prober = prober_in(node)
    records = [Recorder(clock) for _ in specs]
    try:
        async with asyncio.TaskGroup() as group:
            for spec, record in zip(specs, records, strict=True):
                group.create_task(measure(prober, spec, record))
    finally:
        await prober.close()
    return [record.measurement() for record in records]


def seen(measurement: Measurement) -> dict[str, Any]:
    value: dict[str, Any] = measurement.observations[-1].value
    return value


def hops(measurement: Measurement) -> list[str | None]:
    return [hop.get("address") for hop in seen(measurement)["hops"]]


def open_in(node: Namespace, version: int) -> TraceSocket:
    return node.call(TraceSocket, FAMILY[version])


def begin(sock: TraceSocket, version: int, address: str, **kwargs: int) -> int:
    handle = sock.begin(socket.inet_pton(FAMILY[version], address), **kwargs)
    assert handle is not None
    return handle


def pump_until(sock: TraceSocket, done: Callable[[list[Answer]], bool]) -> list[Answer]:
    """Pump until done says so, at most two seconds."""
    answers: list[Answer] = []
    limit = time.monotonic() + 2
    while not done(answers):
        assert time.monotonic() < limit, (answers, sock.counters())
        found, refusals = sock.pump()
        assert refusals == []
        answers += map(Answer._make, found)
    return answers


# ── loopback ──


@pytest.mark.raw
@FAMILIES
async def test_loopback_is_one_hop_and_one_burst(version: int) -> None:
    (measurement,) = await trace(None, TraceSpec(host=LOOPBACK[version]))

    assert measurement.outcome is Outcome.OK
    assert hops(measurement) == [LOOPBACK[version]]
    value = seen(measurement)
    assert value["sent"] == 4
    assert value["hops"][0]["reached_destination"] is True
    assert 0 <= value["hops"][0]["rtt_ms"] < 50
    assert (value["tx_clock"], value["rx_clock"]) == ("user", "kernel")


@pytest.mark.raw
@FAMILIES
def test_flow_is_what_the_packets_carry(version: int) -> None:
    with (
        TraceSocket(FAMILY[version]) as sock,
        socket.socket(FAMILY[version], socket.SOCK_RAW, ICMP[version]) as listener,
    ):
        handle = begin(sock, version, LOOPBACK[version])
        source, checksum, _ = sock.flow(handle)
        sock.submit(handle, 0, bytes([1, 2, 3]))
        pump_until(sock, lambda answers: len(answers) == 3)

        listener.settimeout(2)
        requests: list[bytes] = []
        while len(requests) < 3:
            message = listener.recv(2048)[20 if version == 4 else 0 :]
            if message[0] == quotes.ECHO_REQUEST[version]:
                requests.append(message)

    assert source == socket.inet_pton(FAMILY[version], LOOPBACK[version])
    assert [int.from_bytes(each[2:4], "big") for each in requests] == [checksum] * 3
    assert len({each[4:6] for each in requests}) == 1
    assert len({each[6:8] for each in requests}) == 3


@pytest.mark.raw
@FAMILIES
def test_pings_of_others_do_not_reach_us(version: int) -> None:
    with ExitStack() as stack:
        # Identifiers are drawn: one listener in 65536 draws the pinger's.
        ours = [stack.enter_context(TraceSocket(FAMILY[version], traces_max=1)) for _ in range(3)]
        theirs = stack.enter_context(TraceSocket(FAMILY[version], traces_max=1))
        handle = begin(theirs, version, LOOPBACK[version], last_ttl=255)
        theirs.submit(handle, 0, bytes(range(1, 256)))
        pump_until(theirs, lambda answers: len(answers) == 255)
        for sock in ours:
            sock.pump()
        received = sorted(sock.counters()["received"] for sock in ours)

        assert received[:2] == [0, 0]
        assert [sock.counters()["rx_drops"] for sock in ours] == [0, 0, 0]


@pytest.mark.raw
def test_socket_is_closed_once_and_for_all() -> None:
    sock = TraceSocket(socket.AF_INET)
    sock.close()
    sock.close()

    assert sock.closed
    for use in (sock.pump, sock.fileno, sock.counters):
        with pytest.raises(ValueError, match="closed"):
            use()
    with pytest.raises(ValueError, match="closed"):
        sock.begin(b"\x7f\0\0\1")


@pytest.mark.raw
def test_forgotten_socket_warns() -> None:
    sockets = [TraceSocket(socket.AF_INET)]
    with pytest.warns(ResourceWarning, match="unclosed TraceSocket"):
        sockets.clear()


@pytest.mark.raw
def test_misuse_is_refused_and_sends_nothing() -> None:
    with TraceSocket(socket.AF_INET, traces_max=1, queue_max=3) as sock:
        handle = begin(sock, 4, "127.0.0.1", last_ttl=5, attempts=2)

        assert sock.begin(b"\x7f\0\0\1") is None
        assert sock.submit(handle, 0, bytes([1, 2])) == 2
        for attempt, ttl in ((0, 1), (0, 6), (0, 0), (2, 1), (-1, 1)):
            with pytest.raises(ValueError, match="not announced or is submitted"):
                sock.submit(handle, attempt, bytes([ttl]))
        assert sock.submit(handle, 1, bytes([1, 2, 3])) == 1
        assert (sock.queued, sock.progress(handle)) == (3, (3, 0))
        sock.end(handle)
        with pytest.raises(ValueError, match="not live"):
            sock.submit(handle, 1, b"\x05")
        assert sock.pump() == ([], [])
        assert (sock.queued, sock.traces, sock.counters()["sent"]) == (0, 0, 0)
        with pytest.raises(ValueError, match="limit must be"):
            sock.pump(1)


@pytest.mark.raw
def test_pump_returns_the_rest_with_the_next_call() -> None:
    with TraceSocket(socket.AF_INET) as sock:
        handle = begin(sock, 4, "127.0.0.1", last_ttl=255)
        sock.submit(handle, 0, bytes(range(1, 256)))
        answers: list[Any] = []
        for _ in range(100):
            found, _ = sock.pump(64)
            assert len(found) <= 64
            answers += found

    assert sorted(answer[1] for answer in answers) == list(range(1, 256))


@pytest.mark.netns
def test_missing_privilege_is_told_by_the_kernel_and_by_us() -> None:
    program = """
import asyncio, ctypes
from netsonde.clock import SystemClock
from netsonde.errors import PrivilegeError
from netsonde.model import TraceSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder
from netsonde.probe.targets import TargetResolver
from netsonde.probe.trace import TraceProber

assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER: root there, nobody here
clock = SystemClock()
prober = TraceProber(clock, TargetResolver(TargetPolicy.person()))
record = Recorder(clock)
try:
    asyncio.run(prober.run(TraceSpec(host="127.0.0.1"), record))
except PrivilegeError as error:
    print(error)
print(record.measurement().observations[0].value["status"])
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert "open raw ICMP socket: Operation not permitted" in found.stdout
    assert "AmbientCapabilities=CAP_NET_RAW" in found.stdout
    assert found.stdout.endswith("permission_denied\n")


# ── a chain of routers ──


@pytest.mark.netns
@FAMILIES
async def test_hops_are_the_routers_on_the_way(path: Chain, version: int) -> None:
    spec = TraceSpec(host=path.target_address(version))

    (measurement,) = await trace(path.host, spec)

    value = seen(measurement)
    assert measurement.outcome is Outcome.OK
    assert hops(measurement) == path.hops(version)
    assert [hop["ttl"] for hop in value["hops"]] == list(range(1, ROUTERS + 2))
    assert [hop["reached_destination"] for hop in value["hops"]] == [False] * ROUTERS + [True]
    assert [hop["probes"][0]["reply_ttl"] for hop in value["hops"]] == [64, 63, 62, 61, 60]
    assert [hop["probes"][0]["quoted_ttl"] for hop in value["hops"][:-1]] == [1] * ROUTERS
    assert measurement.env["source"] == left_address(0, version)
    assert (value["nat_detected"], value["loop_detected"], value["tx_errors"]) == (False, False, 0)
    assert value["sent"] <= 8


@pytest.mark.netns
@FAMILIES
async def test_first_hop_and_max_hops_cut_the_path(path: Chain, version: int) -> None:
    spec = TraceSpec(host=path.target_address(version), first_hop=2, max_hops=4)

    (measurement,) = await trace(path.host, spec)

    assert hops(measurement) == path.hops(version)[1:4]
    assert seen(measurement)["stop_reason"] == "max_hops"
    assert measurement.error is not None
    assert measurement.error.reason == Reason.TTL_EXCEEDED


@pytest.mark.netns
async def test_two_hundred_traces_at_once_are_all_true(path: Chain) -> None:
    targets = [f"10.98.0.{number}" for number in range(1, 101)]
    targets += [f"fd98::{number:x}" for number in range(1, 101)]
    stop = threading.Event()
    flood = threading.Thread(target=path.nodes[1].call, args=(forge_until, stop))
    flood.start()
    witness = open_in(path.host, 4)
    try:
        measurements = await trace(path.host, *(TraceSpec(host=target) for target in targets))
    finally:
        stop.set()
        flood.join()
        witness.pump()
        forged = witness.counters()["foreign"]
        witness.close()

    for target, measurement in zip(targets, measurements, strict=True):
        version = 6 if ":" in target else 4
        assert hops(measurement) == [*path.hops(version)[:-1], target]
        assert measurement.outcome is Outcome.OK
    assert forged > 100


def forge_until(stop: threading.Event) -> None:
    """Send the host time-exceeded errors that guess identifiers, sequences and checksums."""
    chance = random.Random(2026)
    host, forger = left_address(0, 4), right_address(0, 4)
    address = socket.inet_aton(host)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        while not stop.is_set():
            target = socket.inet_aton(f"10.98.0.{chance.randint(1, 100)}")
            quoted = bytes([0x45, 0, 0, 44]) + bytes(4) + bytes([1, 1, 0, 0]) + address + target
            quoted += bytes([8, 0]) + chance.randbytes(4)
            quoted += bytes([0x10, chance.randint(1, 8) << 4])
            packet = quotes.error(4, quoted, responder=forger)
            sock.sendto(packet[20:], (host, 0))


def host_in(prefix: str) -> str:
    return prefix.partition("/")[0].removesuffix(".0") + (".7" if "." in prefix else "7")


class Sniffer:
    """Sees the IP packets that leave a node."""

    def __init__(self, node: Namespace) -> None:
        self._socket = node.call(
            socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)
        )
        self._socket.settimeout(2)

    def probe(self, version: int) -> bytes:
        """Return the next echo request."""
        start = quotes.IP_HEADER_BYTES[version]
        while True:
            packet = self._socket.recv(2048)
            if packet[0] >> 4 != version or packet[9 if version == 4 else 6] != ICMP[version]:
                continue
            if packet[start] == quotes.ECHO_REQUEST[version]:
                return packet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class Forger:
    """Sends the host of a chain ICMP messages from its first router."""

    def __init__(self, built: Chain, version: int) -> None:
        self._host = left_address(0, version)
        self._start = 20 if version == 4 else 0
        self.address = right_address(0, version)
        self._socket = built.nodes[1].call(
            socket.socket, FAMILY[version], socket.SOCK_RAW, ICMP[version]
        )

    def send(self, packet: bytes) -> None:
        """Send a packet of `support.quotes`, with a header of the kernel's."""
        self._socket.sendto(packet[self._start :], (self._host, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@pytest.mark.netns
@FAMILIES
def test_forged_errors_are_rejected_and_true_ones_from_elsewhere_kept(
    path: Chain, version: int
) -> None:
    with (
        open_in(path.host, version) as sock,
        Sniffer(path.host) as sniffer,
        Forger(path, version) as forger,
    ):
        handle = begin(sock, version, path.target_address(version))
        sock.submit(handle, 0, bytes([3]))
        pump_until(sock, lambda answers: len(answers) == 1)
        probe = sniffer.probe(version)
        wrong = bytearray(probe)
        wrong[quotes.IP_HEADER_BYTES[version] + 2] ^= 0x40

        forger.send(quotes.error(version, bytes(wrong), quoted_bytes=8))
        forger.send(quotes.error(version, bytes(wrong)))
        forger.send(quotes.error(version, probe, quoted_bytes=8))
        (again,) = pump_until(sock, lambda answers: len(answers) == 1)
        counters = sock.counters()

    assert (again.flags, again.ttl, again.address) == (DUPLICATE, 3, forger.address)
    assert (counters["forged"], counters["matched"], counters["duplicates"]) == (2, 1, 1)


@pytest.mark.netns
@FAMILIES
def test_reader_that_lags_does_not_lengthen_the_rtt(silent_path: Chain, version: int) -> None:
    with (
        open_in(silent_path.host, version) as sock,
        Sniffer(silent_path.host) as sniffer,
        Forger(silent_path, version) as router,
    ):
        handle = begin(sock, version, silent_path.target_address(version))
        sock.submit(handle, 0, bytes([2]))
        assert sock.pump() == ([], [])
        router.send(quotes.error(version, sniffer.probe(version)))
        answered_ns = time.monotonic_ns()
        time.sleep(0.1)
        (answer,) = pump_until(sock, lambda answers: len(answers) == 1)

    assert answer.flags == 0
    assert answer.tx_ns < answer.rx_ns < answered_ns + 20 * NS_PER_MS


@pytest.mark.netns
@FAMILIES
async def test_silent_router_is_a_gap_and_not_the_end(silent_path: Chain, version: int) -> None:
    target = silent_path.target_address(version)
    spec = TraceSpec(host=target, timeout_ms=300, probes_per_hop=2)

    (measurement,) = await trace(silent_path.host, spec)

    truth: list[str | None] = [*silent_path.hops(version)]
    truth[1] = None
    assert measurement.outcome is Outcome.OK
    assert hops(measurement) == truth
    silent = seen(measurement)["hops"][1]
    assert (silent["success"], silent["error"]) == (False, "timeout")
    assert len(silent["probes"]) == 2


@pytest.mark.netns
@FAMILIES
async def test_path_that_goes_silent_ends_at_the_gap_limit(
    silent_path: Chain, version: int
) -> None:
    host = host_in(UNUSED[version])
    spec = TraceSpec(host=host, timeout_ms=300, probes_per_hop=1, gap_limit=3)

    (measurement,) = await trace(silent_path.host, spec)

    routers = silent_path.hops(version)
    assert hops(measurement) == [routers[0], None, routers[2], None, None, None]
    assert seen(measurement)["stop_reason"] == "gap_limit"
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.TIMEOUT
    assert measurement.error.failure_source == FailureSource.PATH


@pytest.mark.netns
@pytest.mark.parametrize(
    ("prefix", "reason", "router", "icmp"),
    [
        (REFUSED[4], Reason.UNREACHABLE_HOST, 3, (3, 1)),
        (REFUSED[6], Reason.UNREACHABLE_NET, 3, (1, 0)),
        (PROHIBITED[4], Reason.FILTERED, 2, (3, 13)),
        (PROHIBITED[6], Reason.FILTERED, 2, (1, 1)),
    ],
)
async def test_router_that_refuses_ends_the_path(
    broken_path: Chain, prefix: str, reason: Reason, router: int, icmp: tuple[int, int]
) -> None:
    (measurement,) = await trace(broken_path.host, TraceSpec(host=host_in(prefix)))

    version = 6 if ":" in prefix else 4
    value = seen(measurement)
    assert hops(measurement) == broken_path.hops(version)[:router]
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == reason
    assert value["stop_reason"] == "unreachable"
    found = value["unreachable"]
    assert (found["icmp_type"], found["icmp_code"]) == icmp
    assert (found["ttl"], found["address"]) == (router, broken_path.hops(version)[router - 1])


@pytest.mark.netns
@FAMILIES
async def test_circle_is_a_loop(broken_path: Chain, version: int) -> None:
    spec = TraceSpec(host=host_in(CIRCLES[version]), timeout_ms=300)

    (measurement,) = await trace(broken_path.host, spec)

    value = seen(measurement)
    assert (value["stop_reason"], value["loop_detected"]) == ("loop", True)
    assert hops(measurement)[:3] == broken_path.hops(version)[:3]
    assert hops(measurement)[4] == hops(measurement)[6]
    assert measurement.error is not None
    assert measurement.error.reason == Reason.TTL_EXCEEDED


@pytest.mark.netns
@pytest.mark.parametrize("host", ["203.0.113.1", "2001:db8::1"])
async def test_no_route_is_our_own_failure(path: Chain, host: str) -> None:
    (measurement,) = await trace(path.host, TraceSpec(host=host))

    assert measurement.outcome is Outcome.AGENT_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == Reason.NO_ROUTE
    assert seen(measurement)["stop_reason"] == "no_route"


@pytest.mark.netns
@FAMILIES
def test_packets_a_full_queue_drops_are_send_errors(version: int) -> None:
    with chain(1) as built:
        target = built.target_address(version)
        with open_in(built.host, version) as sock:
            warm = begin(sock, version, target)
            sock.submit(warm, 0, b"")
            pump_until(sock, lambda answers: len(answers) == 1)
            built.host.limit_queue("right", rate=1000, burst=2000, limit=2000)
            handle = begin(sock, version, target, last_ttl=255)
            sock.submit(handle, 0, bytes(range(1, 256)))

            _, refusals = sock.pump()
            counters = sock.counters()

    assert {refusal[3] for refusal in refusals} == {errno.ENOBUFS}
    assert counters["tx_errors"] == len(refusals)
    assert counters["sent"] == 256 - len(refusals)
    assert 100 < len(refusals) < 255
