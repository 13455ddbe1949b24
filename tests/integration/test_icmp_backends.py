"""Every back end of the echo engine puts the same packets on a wire and says the same of them."""

import errno
from ipaddress import ip_address
from typing import get_args

import pytest

from netsonde._native.icmp import (
    DF,
    ERROR,
    REPLY,
    RX_KERNEL,
    SIZE_MAX_BYTES,
    TIMEOUT,
    TX_ERROR,
    EchoEngine,
)
from support import packets
from support.icmp_peer import SECOND_NS, Family, gather, request, submit_all, v6_checksum
from support.icmp_wire import (
    ALIAS,
    BACKENDS,
    BEYOND,
    HERE,
    THERE,
    Backend,
    Driver,
    EchoNetwork,
    beyond,
    both_drivers,
    every_backend,
)
from support.namespaces import connect

pytestmark = [pytest.mark.raw, pytest.mark.netns]

routed = pytest.mark.parametrize(
    ("family", "backend"), [each for each in BACKENDS if each[1] != "packet"]
)

LATER_FRAGMENT = 100  # index of a table that only marked packets use
LARGE = 1800  # bytes: more than an Ethernet frame


def icmp_of(family: Family, packet: bytes) -> bytes:
    return packet[20 if family == 4 else 40 :]


def assert_right_checksums(family: Family, packet: bytes) -> None:
    message = icmp_of(family, packet)
    if family == 4:
        assert packets.checksum(packet[:20]) == 0
        assert packets.checksum(message) == 0
    else:
        source, destination = str(ip_address(packet[8:24])), str(ip_address(packet[24:40]))
        assert v6_checksum(source, destination, message) == message


@both_drivers
@every_backend
def test_every_field_is_what_was_asked_for(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend, driver)
    path = network.add_path(engine, source=ALIAS[family])
    engine.submit(request(1, THERE[family], size=57, ttl=3, tos=0xB8, path=path))
    ((_, packet),) = wire.packets(1)
    parsed = packets.parse_ip(family, packet)
    assert not isinstance(parsed, str)
    protocol, tos, ttl, source, destination, body = parsed
    assert (protocol, tos, ttl) == (packets.PROTOCOL[family], 0xB8, 3)
    assert source == ip_address(ALIAS[family]).packed
    assert destination == ip_address(THERE[family]).packed
    assert body[:2] == bytes([packets.ECHO_REQUEST[family], 0])
    assert body[4:6] == engine.ident.to_bytes(2)
    assert body[24:] == bytes(range(16, 57))
    if family == 4:
        assert int.from_bytes(packet[6:8]) == 0  # no DF, no fragment
    assert_right_checksums(family, packet)
    (done,) = gather(engine, 1)
    assert (done.token, done.kind, done.size, done.ttl) == (1, REPLY, 57, 64)
    assert done.address(family) == THERE[family]
    assert done.clocks & RX_KERNEL


@every_backend
def test_sizes_and_classes_have_right_checksums(
    network: EchoNetwork, family: Family, backend: Backend
) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend)
    asked = [(size, tos) for size in (16, 17, 31, 548, 549, 1300) for tos in (0, 1, 0xFF)]
    engine.submit(
        b"".join(
            request(n, beyond(family, n), size=size, tos=tos, path=1)
            for n, (size, tos) in enumerate(asked)
        )
    )
    sights = wire.packets(len(asked))
    for packet in (each.packet for each in sights):
        assert_right_checksums(family, packet)
    done = sorted(gather(engine, len(asked)))
    assert [each.kind for each in done] == [REPLY] * len(asked)
    assert [each.size for each in done] == [size for size, _ in asked]


@both_drivers
@every_backend
def test_every_way_of_sending_completes_alike(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    count = 2000
    engine = network.open(family, backend, driver, capacity=500)
    silent = "10.0.0.77" if family == 4 else "fd00::77"
    network.here.route.neigh(
        "replace", dst=silent, lladdr="02:00:00:00:00:77", ifindex=network.here.index("h0"),
        state="permanent",
    )  # fmt: skip
    done = submit_all(
        engine,
        b"".join(
            request(
                n, silent if n % 100 == 7 else beyond(family, n), path=1, timeout_ns=50_000_000
                if n % 100 == 7 else 10_000_000_000,
            )
            for n in range(count)
        ),
    )  # fmt: skip
    done = sorted(done + gather(engine, count - len(done)))
    assert [each.token for each in done] == list(range(count))
    assert [each.kind for each in done] == [
        TIMEOUT if n % 100 == 7 else REPLY for n in range(count)
    ]
    assert all(
        each.address(family) == beyond(family, each.token) for each in done if each.kind == REPLY
    )
    assert engine.counters["sent"] == count
    assert engine.in_flight == 0


@pytest.mark.parametrize(
    ("family", "backend"),
    [each for each in BACKENDS if each[0] == 6 or each[1] in ("header", "packet")],
)
def test_df_forbids_fragments(network: EchoNetwork, family: Family, backend: Backend) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend)
    engine.submit(
        request(1, THERE[family], size=1300, flags=DF, path=1)
        + request(2, THERE[family], size=LARGE, flags=DF, path=1)
        + request(3, THERE[family], size=1300, flags=DF, path=1)
    )
    first, refused, last = sorted(gather(engine, 3))
    assert (first.kind, last.kind) == (REPLY, REPLY)
    assert (refused.kind, refused.errno) == (TX_ERROR, errno.EMSGSIZE)
    sights = wire.packets(2)
    assert len(sights) == 2
    if family == 4:
        assert all(int.from_bytes(packet[6:8]) == 0x4000 for _, packet in sights)


@pytest.mark.parametrize("backend", ["raw", "datagram"])
def test_df_is_refused_where_the_kernel_cannot_be_asked(
    network: EchoNetwork, backend: Backend
) -> None:
    engine = network.open(4, backend)
    with pytest.raises(ValueError, match="no DF"):
        engine.submit(request(1, THERE[4], flags=DF))


@both_drivers
@routed
def test_large_requests_are_fragmented(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend, driver)
    sizes = [LARGE, 56, SIZE_MAX_BYTES if family == 4 else 60_000, 56, LARGE]
    engine.submit(b"".join(request(n, THERE[family], size=size) for n, size in enumerate(sizes)))
    done = sorted(gather(engine, len(sizes)))
    assert [(each.kind, each.size) for each in done] == [(REPLY, size) for size in sizes]
    assert len(wire.packets()) > 2 * len(sizes)
    assert (engine.counters["sent"], engine.counters["tx_errors"]) == (len(sizes), 0)


@pytest.mark.parametrize("family", get_args(Family))
def test_the_packet_back_end_does_not_fragment(network: EchoNetwork, family: Family) -> None:
    engine = network.open(family, "packet")
    engine.submit(request(1, THERE[family], size=LARGE, path=1))
    (done,) = gather(engine, 1)
    assert (done.kind, done.errno) == (TX_ERROR, errno.EMSGSIZE)


@routed
def test_a_mark_takes_another_table(network: EchoNetwork, family: Family, backend: Backend) -> None:
    network.here.route.route("del", dst=BEYOND[family])
    route = network.here.route
    route.route("add", dst=BEYOND[family], gateway=THERE[family], table=LATER_FRAGMENT)
    route.rule("add", fwmark=7, table=LATER_FRAGMENT, family=2 if family == 4 else 10)
    engine = network.open(family, backend)
    marked, other = engine.add_path(mark=7), engine.add_path(mark=8)
    to = beyond(family, 5)
    engine.submit(request(1, to, path=marked) + request(2, to) + request(3, to, path=other))
    first, *refused = sorted(gather(engine, 3))
    assert first.kind == REPLY
    assert [(each.kind, each.errno) for each in refused] == [(TX_ERROR, errno.ENETUNREACH)] * 2


@routed
def test_an_interface_takes_its_own_route(
    network: EchoNetwork, family: Family, backend: Backend
) -> None:
    here, there = network.here, network.there
    connect(here, there, "h1", "t1")
    second, gateway = ("10.0.1.1", "10.0.1.2") if family == 4 else ("fd00:1::1", "fd00:1::2")
    here.address("h1", second, 64 if family == 6 else 24)
    there.address("t1", gateway, 64 if family == 6 else 24)
    here.route.route("del", dst=BEYOND[family])
    here.route.route("add", dst=BEYOND[family], gateway=THERE[family], priority=1)
    here.route.route("add", dst=BEYOND[family], gateway=gateway, priority=2)
    engine = network.open(family, backend)
    path = engine.add_path(interface=here.index("h1"))
    wire = network.wire(family)
    to = beyond(family, 5)
    # On a link that is just up the kernel's first question for the gateway can be lost; it asks
    # again after a second.
    engine.submit(request(1, to, path=path, timeout_ns=5 * SECOND_NS))
    (done,) = gather(engine, 1)
    assert (done.kind, wire.packets()) == (REPLY, [])
    engine.submit(request(2, to))
    assert [each.kind for each in gather(engine, 1)] == [REPLY]
    assert len(wire.packets()) == 1


@both_drivers
@every_backend
def test_an_interface_that_goes_away_ends_no_run_early(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    engine = network.open(family, backend, driver)
    count = 60
    engine.submit(
        request(100, THERE[family], count=count, interval_ns=2_000_000, path=1,
                timeout_ns=200_000_000)
    )  # fmt: skip
    done = gather(engine, 3)
    network.here.route.link("del", index=network.here.index("h0"))
    done = sorted(done + gather(engine, count - len(done)))
    assert [each.token for each in done] == list(range(100, 100 + count))
    assert done[0].kind == REPLY
    assert done[-1].kind == TX_ERROR
    assert {each.kind for each in done} <= {REPLY, TX_ERROR, TIMEOUT, ERROR}
    assert done[-1].errno in (errno.ENETUNREACH, errno.ENXIO, errno.ENODEV, errno.ENETDOWN)
    assert engine.in_flight == 0


@pytest.mark.parametrize("family", get_args(Family))
def test_a_path_of_the_packet_back_end_is_complete(network: EchoNetwork, family: Family) -> None:
    engine = network.here.call(EchoEngine, family, backend="packet")
    source = ip_address(HERE[family]).packed
    with pytest.raises(ValueError, match="source, interface and link_address"):
        engine.add_path(source=source, interface=1)
    with pytest.raises(ValueError, match="no path 0"):
        engine.submit(request(1, THERE[family]))
    engine.close()


def test_paths_have_limits(network: EchoNetwork) -> None:
    with network.here.call(EchoEngine, 4) as engine:
        for wrong in (b"", bytes(16)):
            with pytest.raises(ValueError, match="source must be 4"):
                engine.add_path(source=wrong)
        with pytest.raises(ValueError, match="at most 8"):
            engine.add_path(link_address=bytes(9))
        assert [engine.add_path(mark=n) for n in range(4095)] == list(range(1, 4096))
        with pytest.raises(ValueError, match="4095 paths"):
            engine.add_path(mark=1)
        engine.submit(request(1, THERE[4], path=4095))
        assert [each.kind for each in gather(engine, 1)] == [REPLY]
