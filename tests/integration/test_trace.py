"""Traces over real sockets: loopback, and kernels that route for one another."""

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Literal

import pytest

from netsonde._native import icmp
from netsonde.model import FailureSource, Outcome, PingSpec, Reason, TraceSpec
from netsonde.probe.base import Recorder, measure
from netsonde.probe.ping.engines import Backend, open_engine
from netsonde.probe.ping.lanes import Lanes
from netsonde.probe.trace.answers import Stop, Traced
from support.namespaces import Chain, Namespace, chain, left_address, right_address
from support.trace_captures import ProbeCapture, icmp_error
from support.tracing import CLOCK, hops, probers, seen, trace

pytestmark = [pytest.mark.raw, pytest.mark.netns]

Family = Literal[4, 6]
FAMILIES = pytest.mark.parametrize("version", [4, 6])
METHODS = pytest.mark.parametrize("method", ["icmp", "udp", "tcp"])
ROUTERS = 4
MANY = {4: "10.98.0.0/24", 6: "fd98::/64"}
UNUSED = {4: "10.99.0.0/24", 6: "fd99::/64"}
REFUSED = {4: "10.96.0.0/24", 6: "fd96::/64"}
PROHIBITED = {4: "10.95.0.0/24", 6: "fd95::/64"}
CIRCLES = {4: "10.94.0.0/24", 6: "fd94::/64"}
ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
INET = {4: socket.AF_INET, 6: socket.AF_INET6}


@pytest.fixture(scope="module")
def path() -> Iterator[Chain]:
    """A chain whose target also answers for all of MANY."""
    with chain(ROUTERS) as built:
        for prefix in MANY.values():
            built.route_all_to(prefix)
            built.target.answer_for(prefix)
        yield built


@pytest.fixture(scope="module")
def odd_path() -> Iterator[Chain]:
    """A chain whose second router sends no errors, and prefixes that end in several ways."""
    with chain(ROUTERS, silent={2}) as built:
        for each in (UNUSED, REFUSED, PROHIBITED, CIRCLES):
            for prefix in each.values():
                built.route_all_to(prefix)
        for version, prefix in CIRCLES.items():
            built.nodes[ROUTERS].refuse(UNUSED[version], "blackhole")
            built.nodes[3].refuse(REFUSED[version])
            built.nodes[3].refuse(PROHIBITED[version], "prohibit")
            built.nodes[3].route_to(prefix, left_address(2, version))
        yield built


def host_in(prefix: str) -> str:
    return str(ip_address(prefix.partition("/")[0]) + 7)


def expected(path: Chain, version: int, method: str) -> list[str]:
    """Who answers on the way to the target; it sends errors from its own address."""
    assert method in ("icmp", "udp", "tcp")
    return [*path.hops(version)[:-1], path.target_address(version)]


# ── the path ──


@METHODS
@FAMILIES
async def test_hops_are_the_routers_on_the_way(path: Chain, version: int, method: Any) -> None:
    spec = TraceSpec(host=path.target_address(version), method=method)
    (measurement,) = await trace(path.host, spec)
    value = seen(measurement)
    assert measurement.outcome is Outcome.OK
    assert hops(measurement) == expected(path, version, method)
    assert (value["stop_reason"], value["method"]) == ("completed", method)
    assert value["protocols"] == [method] * value["sent"]
    assert value["rx_clock"] == "kernel"
    assert not value["nat_detected"]
    assert [hop["reached_destination"] for hop in value["hops"]] == [False] * ROUTERS + [True]
    assert {probe["quoted_ttl"] for hop in value["hops"][:ROUTERS] for probe in hop["probes"]} == {
        1
    }
    assert all(hop["rtt_ms"] > 0 for hop in value["hops"])


@pytest.mark.parametrize("backend", ["raw", "header", "datagram", "packet"])
@FAMILIES
async def test_every_back_end_traces(path: Chain, version: int, backend: Backend) -> None:
    if backend == "header" and version == 6:
        pytest.skip("IPv4 only: the kernel writes IPv6 headers of pings")
    if backend == "datagram":
        path.host.allow_icmp_datagrams()
    spec = TraceSpec(host=path.target_address(version))
    (measurement,) = await trace(path.host, spec, backend=backend)
    assert hops(measurement) == expected(path, version, "icmp")


@pytest.mark.parametrize("method", ["udp", "tcp"])
async def test_without_raw_sockets_only_icmp_traces(path: Chain, method: Any) -> None:
    path.host.allow_icmp_datagrams()
    spec = TraceSpec(host=path.target_address(4), method=method)
    (measurement,) = await trace(path.host, spec, backend="datagram")
    assert seen(measurement)["status"] == "permission_denied"
    assert measurement.error is not None
    assert "CAP_NET_RAW" in measurement.error.message


async def test_loopback_is_one_hop_and_one_burst(path: Chain) -> None:
    (measurement,) = await trace(path.host, TraceSpec(host="127.0.0.1"))
    assert hops(measurement) == ["127.0.0.1"]
    assert seen(measurement)["sent"] <= 4


@FAMILIES
async def test_first_hop_and_max_hops_cut_the_path(path: Chain, version: int) -> None:
    spec = TraceSpec(host=path.target_address(version), first_hop=2, max_hops=3)
    (measurement,) = await trace(path.host, spec)
    assert hops(measurement) == path.hops(version)[1:3]
    assert seen(measurement)["stop_reason"] == "max_hops"
    assert measurement.error is not None
    assert measurement.error.reason is Reason.TTL_EXCEEDED


async def test_two_hundred_traces_at_once_are_all_true(path: Chain) -> None:
    targets = [str(ip_address(f"10.98.0.{n}")) for n in range(1, 101)]
    targets += [str(ip_address("fd98::") + n) for n in range(1, 101)]
    measurements = await trace(path.host, *(TraceSpec(host=target) for target in targets))
    for target, measurement in zip(targets, measurements, strict=True):
        version = 6 if ":" in target else 4
        assert hops(measurement) == [*path.hops(version)[:-1], target]


async def test_every_probe_of_every_hop_where_that_is_asked_for(path: Chain) -> None:
    spec = TraceSpec(host=path.target_address(4), all_probes=True, probes_per_hop=7, interval_ms=5)
    (measurement,) = await trace(path.host, spec)
    answered = [len(hop["probes"]) for hop in seen(measurement)["hops"]]
    assert answered == [7] * (ROUTERS + 1)
    assert "loss_class" not in seen(measurement)["hops"][0]


async def test_pings_and_traces_share_an_engine(path: Chain) -> None:
    target = path.target_address(4)
    ping_record, trace_record = Recorder(CLOCK), Recorder(CLOCK)
    with probers(path.host) as (traces, pings), path.host.entered():
        async with asyncio.TaskGroup() as group:
            spec = PingSpec(host=target, count=200, interval_ms=1)
            group.create_task(measure(pings, spec, ping_record))
            group.create_task(measure(traces, TraceSpec(host=target), trace_record))
    assert ping_record.observed("ping_summary")["received"] == 200
    assert hops(trace_record.measurement()) == expected(path, 4, "icmp")


# ── the flow, by capture ──


@METHODS
@FAMILIES
async def test_the_flow_is_constant_and_the_same_next_time(
    path: Chain, version: int, method: Any
) -> None:
    spec = TraceSpec(host=path.target_address(version), method=method, probes_per_hop=2)
    other = TraceSpec(host=host_in(MANY[version]), method=method)
    with ProbeCapture(path.host) as capture, probers(path.host) as (prober, _):
        with path.host.entered():
            for each in (spec, spec, other):
                await measure(prober, each, Recorder(CLOCK))
        targets = {ip_address(each.host).packed for each in (spec, other)}
        probes = [probe for probe in capture.probes() if probe.flow.destination in targets]
    flows = {probe.flow for probe in probes}
    assert {probe.method for probe in probes} == {method}
    assert {flow.destination for flow in flows} == targets
    assert len(flows) == 2
    assert len({probe.varies for probe in probes}) == len(probes) > 3 * (ROUTERS + 1)
    if version == 6:
        assert all(flow.label for flow in flows)
    assert len({(flow.first_bytes, flow.label) for flow in flows}) == 2


# ── what is not ours ──


class Told:
    """One watched trace without a driver: what the engine says of it."""

    def __init__(self, node: Namespace, version: Family, method: int = icmp.TRACE_ICMP) -> None:
        self.version = version
        self.engine = node.call(icmp.EchoEngine, version, backend="raw")
        node.call(self.engine.open_traces, method)
        self._method = method

    def begin(self, address: str, **options: Any) -> None:
        packed = ip_address(address).packed
        record = icmp.pack_traces(
            self.version, packed, token=5, timeout_ns=10**9, method=self._method, port=80,
            flags=icmp.TRACE_WATCHED, **options,
        )  # fmt: skip
        assert self.engine.submit_traces(record) == 1

    def until_done(self) -> Traced:
        """Turn the engine until the trace has ended; return what it saw."""
        limit_ns = CLOCK.monotonic_ns() + 5 * 10**9
        while CLOCK.monotonic_ns() < limit_ns:
            for record in struct.iter_unpack(icmp.COMPLETION_FORMAT, self.engine.poll()):
                if record[4] == icmp.TRACED:
                    return Traced.unpack(self.engine.take_trace(record[1]), self.version)
        raise AssertionError(self.engine.counters)


# Bytes of the transport that nobody off the path can guess, beside IPv4's identification.
SECRET = {
    icmp.TRACE_ICMP: (5, 7),  # identifier, sequence
    icmp.TRACE_UDP: (1, 7),  # source port, checksum
    icmp.TRACE_TCP: (5, 7),  # sequence number
}


@pytest.mark.parametrize("method", SECRET)
@FAMILIES
def test_forged_errors_are_nobodys(odd_path: Chain, version: Family, method: int) -> None:
    told = Told(odd_path.host, version, method)
    target = odd_path.target_address(version)
    header, destination = (20, 16) if version == 4 else (40, 24)
    places = [destination, *(header + at for at in SECRET[method])]
    if version == 4 and method == icmp.TRACE_ICMP:
        places.append(4)
    with told.engine, ProbeCapture(odd_path.host) as capture, forger(odd_path, version) as send:
        told.begin(target, first_ttl=2, last_ttl=2, attempts=1)
        (probe,) = capture.probes()
        for at in places:
            wrong = bytearray(probe.packet)
            wrong[at] ^= 0x41
            send(icmp_error(probe._replace(packet=bytes(wrong)), quoted_bytes=8))
        traced = told.until_done()
        counters = told.engine.counters
    assert traced.answers == ()
    assert traced.stop != Stop.COMPLETED
    assert counters["forged"] + counters["foreign"] == len(places)


@FAMILIES
def test_what_quotes_the_probe_is_believed_whoever_sends_it(
    odd_path: Chain, version: Family
) -> None:
    told = Told(odd_path.host, version)
    with told.engine, ProbeCapture(odd_path.host) as capture, forger(odd_path, version) as send:
        told.begin(odd_path.target_address(version), first_ttl=2, last_ttl=2, attempts=1)
        (probe,) = capture.probes()
        send(icmp_error(probe))
        traced = told.until_done()
        assert told.engine.counters["forged"] == 0
    assert [answer.address for answer in traced.answers] == [right_address(0, version)]


@contextlib.contextmanager
def forger(path: Chain, version: Family) -> Iterator[Any]:
    """Send the host of a chain ICMP messages from its first router."""
    sock = path.nodes[1].call(socket.socket, INET[version], socket.SOCK_RAW, ICMP[version])

    def send(message: bytes) -> None:
        whole = bytearray(message)
        if version == 4:  # of ICMPv6 the kernel writes it
            whole[2:4] = struct.pack("!H", internet_checksum(message))
        sock.sendto(whole, (left_address(0, version), 0))

    with sock:
        yield send


def internet_checksum(data: bytes) -> int:
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_a_trace_without_a_number_goes_on_when_one_is_given_back(path: Chain) -> None:
    """As many have ended as there are numbers for, and nobody has taken them back."""
    numbers, more, submitted = 16_384, 8, 0
    loopback = ip_address("127.0.0.1").packed * 4096
    ended: list[int] = []
    with path.host.call(icmp.EchoEngine, 4, backend="header") as engine:
        path.host.call(engine.open_traces, icmp.TRACE_ICMP)
        engine.start()

        def hear(wanted: int) -> None:
            limit_ns = CLOCK.monotonic_ns() + 30 * 10**9
            while len(ended) < wanted:
                assert CLOCK.monotonic_ns() < limit_ns, engine.counters
                select.select([engine], [], [], 1)
                completions = struct.iter_unpack(icmp.COMPLETION_FORMAT, engine.poll())
                ended.extend(each[1] for each in completions if each[4] == icmp.TRACED)

        while submitted < numbers + more:
            count = min(4096, numbers + more - submitted)
            traces = icmp.pack_traces(4, loopback[: 4 * count], token=submitted, timeout_ns=10**9)
            submitted += engine.submit_traces(traces)
            hear(min(submitted, numbers))
        assert sorted(ended) == [*range(numbers)]
        assert not select.select([engine], [], [], 0.1)[0]
        for each in ended[:more]:
            engine.take_trace(each)
        hear(numbers + more)
    assert sorted(ended[numbers:]) == sorted(ended[:more])


# ── ends ──


@FAMILIES
async def test_a_silent_router_is_a_gap_and_not_the_end(odd_path: Chain, version: int) -> None:
    (measurement,) = await trace(odd_path.host, TraceSpec(host=odd_path.target_address(version)))
    addresses = [*odd_path.hops(version)[:-1], odd_path.target_address(version)]
    addresses[1] = None  # type: ignore[call-overload]
    assert hops(measurement) == addresses
    silent = seen(measurement)["hops"][1]
    assert [probe["error"] for probe in silent["probes"]] == ["timeout"] * 3


@FAMILIES
async def test_a_path_that_goes_silent_ends_at_the_gap_limit(odd_path: Chain, version: int) -> None:
    spec = TraceSpec(host=host_in(UNUSED[version]), gap_limit=3, timeout_ms=400)
    (measurement,) = await trace(odd_path.host, spec)
    assert seen(measurement)["stop_reason"] == "gap_limit"
    assert len(hops(measurement)) == ROUTERS - 1 + 3
    assert measurement.error is not None
    assert (measurement.outcome, measurement.error.reason, measurement.error.failure_source) == (
        Outcome.TARGET_ERROR, Reason.TIMEOUT, FailureSource.PATH,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("prefixes", "reason"),
    [(REFUSED, Reason.UNREACHABLE_HOST), (PROHIBITED, Reason.FILTERED)],
    ids=["refused", "prohibited"],
)
async def test_a_router_that_refuses_ends_the_path(
    odd_path: Chain, prefixes: dict[int, str], reason: Reason
) -> None:
    (measurement,) = await trace(odd_path.host, TraceSpec(host=host_in(prefixes[4])))
    value = seen(measurement)
    assert value["stop_reason"] == "unreachable"
    assert (value["unreachable"]["ttl"], value["unreachable"]["address"]) == (
        3, odd_path.hops(4)[2],
    )  # fmt: skip
    assert measurement.error is not None
    assert measurement.error.reason is reason


@FAMILIES
async def test_a_circle_is_a_loop(odd_path: Chain, version: int) -> None:
    spec = TraceSpec(host=host_in(CIRCLES[version]), timeout_ms=400)
    (measurement,) = await trace(odd_path.host, spec)
    value = seen(measurement)
    assert value["loop_detected"]
    assert value["stop_reason"] in ("loop", "max_hops", "gap_limit")
    assert measurement.outcome is Outcome.TARGET_ERROR


@pytest.mark.parametrize("host", ["203.0.113.7", "2001:db8::7"])
async def test_no_route_is_our_own_failure(path: Chain, host: str) -> None:
    (measurement,) = await trace(path.host, TraceSpec(host=host))
    assert seen(measurement)["stop_reason"] == "no_route"
    assert measurement.error is not None
    assert (measurement.outcome, measurement.error.reason) == (
        Outcome.AGENT_ERROR, Reason.NO_ROUTE,
    )  # fmt: skip


async def test_a_cancelled_trace_tells_what_it_saw(odd_path: Chain) -> None:
    record, answered = Recorder(CLOCK), asyncio.Event()
    with probers(odd_path.host) as (prober, _), odd_path.host.entered():
        prober._watch = lambda *_: answered.set()
        spec = TraceSpec(host=host_in(UNUSED[4]), timeout_ms=60_000)
        task = asyncio.get_running_loop().create_task(measure(prober, spec, record))
        await answered.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    value = record.observed("trace")
    assert (value["status"], value["stop_reason"]) == ("cancelled", "cancelled")
    assert value["sent"] > 0


# ── misuse ──


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"first_ttl": 3, "last_ttl": 2}, "first_ttl"),
        ({"attempts": 0}, "attempts"),
        ({"attempts": 101}, "attempts"),
        ({"gap_limit": 0}, "gap_limit"),
        ({"size": 17}, "size"),
        ({"path": 1}, "no path"),
        ({"flags": 64}, "flags"),
        ({"method": icmp.TRACE_UDP}, "not open"),
        ({"timeout_ns": 0}, "timeout_ns"),
        ({"interval_ns": 10**13}, "interval_ns"),
    ],
)
def test_a_wrong_request_is_refused_and_sends_nothing(
    path: Chain, options: dict[str, Any], why: str
) -> None:
    told = Told(path.host, 4)
    chosen = {"token": 1, "timeout_ns": 10**9} | options
    with told.engine:
        with pytest.raises(ValueError, match=why):
            told.engine.submit_traces(icmp.pack_traces(4, bytes(4), **chosen))
        with pytest.raises(ValueError, match="whole records"):
            told.engine.submit_traces(b"short")
        with pytest.raises(ValueError, match="has ended"):
            told.engine.take_trace(0)
        assert told.engine.counters["sent"] == 0


def test_methods_are_opened_by_name(path: Chain) -> None:
    with path.host.call(icmp.EchoEngine, 4) as engine:
        for wrong in (0, 8):
            with pytest.raises(ValueError, match="methods"):
                engine.open_traces(wrong)
    path.host.allow_icmp_datagrams()
    with (
        path.host.call(icmp.EchoEngine, 4, backend="datagram") as engine,
        pytest.raises(ValueError, match="ICMP only"),
    ):
        engine.open_traces(icmp.TRACE_TCP)


async def test_lanes_close_twice(path: Chain) -> None:
    lanes = Lanes(CLOCK, lambda family: path.host.call(open_engine, family))
    lanes.get(4)
    lanes.close()
    lanes.close()
    assert [*lanes] == []
