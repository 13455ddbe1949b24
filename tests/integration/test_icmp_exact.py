"""The echo engine's exact mode: transmit stamps by the kernel, each on its own packet.

A stamp is checked against what the far end's kernel saw: CLOCK_REALTIME there and CLOCK_MONOTONIC
here differ by a constant, so all packets must show the same difference.
"""

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from netsonde._native.icmp import DF, ERROR, REPLY, RX_KERNEL, TX_ERROR, TX_KERNEL
from support.icmp_peer import Done, Family, gather, request
from support.icmp_wire import (
    THERE,
    Backend,
    Driver,
    EchoNetwork,
    Sight,
    Wire,
    beyond,
    both_drivers,
    every_backend,
)

pytestmark = [pytest.mark.raw, pytest.mark.netns]


MS = 1_000_000
APART_NS = 20 * MS  # the packets; another's stamp would be wrong by this much
CLOSE_NS = 8 * MS  # a wire's ends may be so far apart on a busy machine


def assert_true_stamps(sent: list[Done], seen: list[Sight]) -> None:
    """sent, seen: of the same packets in the same order."""
    assert len(sent) == len(seen)
    differences = [sight.stamp_ns - each.sent_ns for each, sight in zip(sent, seen, strict=True)]
    assert max(differences) - min(differences) < CLOSE_NS


@both_drivers
@every_backend
def test_the_kernel_stamps_every_request(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    engine = network.open(family, backend, driver, exact=True)
    count = 3000
    engine.submit(request(0, THERE[family], count=count, path=1))
    done = gather(engine, count)
    assert {each.kind for each in done} == {REPLY}
    stamped = sum(each.clocks == RX_KERNEL | TX_KERNEL for each in done)
    assert stamped > 0.99 * count  # a stamp before the first reading of the clocks cannot count
    assert all(each.rtt_ns >= 0 for each in done)


@every_backend
def test_stamps_are_their_own_packets(
    network: EchoNetwork, family: Family, backend: Backend
) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend, exact=True)
    engine.submit(request(0, THERE[family], count=10, interval_ns=APART_NS, path=1))
    done = sorted(gather(engine, 10))
    assert all(each.clocks & TX_KERNEL for each in done)
    assert_true_stamps(done, wire.packets(10))


@both_drivers
@every_backend
def test_a_refused_packet_does_not_shift_the_stamps(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend, driver, exact=True)
    count = 12
    refused = (
        request(1 << 32, THERE[family], size=1800, flags=DF, count=count // 3,
                interval_ns=3 * APART_NS, path=1)
        if backend in {"header", "packet"} or family == 6
        else request(1 << 32, "203.0.113.1", count=count // 3, interval_ns=3 * APART_NS)
    )  # fmt: skip
    engine.submit(request(0, THERE[family], count=count, interval_ns=APART_NS, path=1) + refused)
    done = sorted(gather(engine, count + count // 3))
    sent = [each for each in done if each.kind == REPLY]
    assert [each.kind for each in done] == [REPLY] * count + [TX_ERROR] * (count // 3)
    assert sum(bool(each.clocks & TX_KERNEL) for each in sent) > count // 2
    assert_true_stamps(sent, wire.packets(count))


def assert_pause(done: list[Done], wire: Wire, last_stamped: int) -> None:
    """Check that of a batch only the first packets were stamped, and truly.

    done: its packets and one that was sent when they had ended, all seen on the wire.
    """
    stamped = [each for each in done if each.clocks & TX_KERNEL]
    assert [each.token for each in stamped] == [*range(last_stamped + 1), done[-1].token]
    seen = wire.packets(len(done))
    assert_true_stamps(stamped, [*seen[: last_stamped + 1], seen[-1]])


@both_drivers
@pytest.mark.parametrize("family", [4, 6])
def test_a_short_count_pauses_the_stamps_for_the_rest_of_the_batch(
    network: EchoNetwork, family: Family, driver: Driver
) -> None:
    """A router's error comes within the call that sent packet 1 and is what packet 2 is told.

    The call ends with 2 of 6. The second one takes packet 2, whose number may have been used up.
    """
    gone, victim = ("10.8.0.0/24", "10.8.0.7") if family == 4 else ("fd08::/64", "fd08::7")
    network.there.make_router()
    network.there.refuse(gone)
    network.here.route_to(gone, THERE[family])
    wire = network.wire(family)
    engine = network.open(family, "datagram", driver, exact=True)
    engine.submit(b"".join(request(n, victim if n == 1 else THERE[family]) for n in range(6)))
    done = sorted(gather(engine, 6))
    assert [each.kind for each in done] == [REPLY, ERROR, *[REPLY] * 4]
    assert engine.counters["tx_errors"] == 0
    engine.submit(request(6, THERE[family]))
    done += gather(engine, 1)
    assert_pause(done, wire, last_stamped=1)


@both_drivers
@every_backend
def test_a_refusal_in_the_middle_of_a_batch_pauses_the_stamps_for_the_rest_of_it(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend, driver, exact=True)
    refused = (
        request(3, THERE[family], size=1800, flags=DF, path=1)
        if backend in {"header", "packet"} or family == 6
        else request(3, "203.0.113.1")
    )
    sent = [request(n, THERE[family], path=1) for n in range(7)]
    engine.submit(b"".join([*sent[:3], refused, *sent[4:6]]))
    done = sorted(gather(engine, 6))
    assert done.pop(3).kind == TX_ERROR
    assert [each.kind for each in done] == [REPLY] * 5
    engine.submit(sent[6])
    done += gather(engine, 1)
    assert_pause(done, wire, last_stamped=2)


@both_drivers
def test_what_goes_by_the_other_socket_does_not_shift_the_stamps(
    network: EchoNetwork, driver: Driver
) -> None:
    """The header back end leaves to the ICMP socket what the kernel may have to fragment."""
    wire = network.wire(4)
    engine = network.open(4, "header", driver, exact=True)
    count = 12
    engine.submit(
        b"".join(
            request(n << 32, THERE[4], size=size, count=count, interval_ns=APART_NS)
            for n, size in enumerate((1000, 56, 1200))
        )
    )
    done = sorted(gather(engine, 3 * count))
    assert {each.kind for each in done} == {REPLY}
    seen = wire.packets(3 * count)
    for n, size in enumerate((1000, 56, 1200)):
        of_run = [each for each in done if each.token >> 32 == n]
        assert_true_stamps(of_run, [each for each in seen if len(each.packet) == 28 + size])
        assert all(bool(each.clocks & TX_KERNEL) == (size == 56) for each in of_run)


@pytest.mark.parametrize("backend", ["raw", "header", "datagram"])
def test_refusals_of_a_full_queue_do_not_shift_the_stamps(
    network: EchoNetwork, backend: Backend
) -> None:
    """Packets wait in the queue for their stamps while later ones are refused."""
    try:
        network.here.limit_queue("h0", rate=40_000, burst=1600, limit=4000)
    except NetlinkError as error:
        pytest.skip(f"this kernel has no tbf queue: {error}")
    wire = network.wire(4)
    engine = network.open(4, backend, "thread", exact=True)
    count, runs = 40, 4
    engine.submit(
        b"".join(
            request(n << 32, beyond(4, n), size=500, count=count, interval_ns=7 * MS)
            for n in range(runs)
        )
    )
    done = sorted(gather(engine, runs * count))
    kinds = {each.kind for each in done}
    assert kinds == {REPLY, TX_ERROR}
    for n in range(runs):
        sent = [each for each in done if each.token >> 32 == n and each.kind == REPLY]
        seen = [each for each in wire.packets() if each.packet[16:20] == packed(beyond(4, n))]
        assert sent or seen == []
    assert any(each.clocks & TX_KERNEL for each in done)
    # A stamp that is another packet's would be one queue's length away from the truth.
    assert all(
        each.rtt_ns < CLOSE_NS for each in done if each.kind == REPLY and each.clocks & TX_KERNEL
    )


def packed(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


@every_backend
def test_stamps_keep_coming_where_no_replies_do(
    network: EchoNetwork, family: Family, backend: Backend
) -> None:
    silent = "10.0.0.77" if family == 4 else "fd00::77"
    network.here.route.neigh(
        "replace", dst=silent, lladdr="02:00:00:00:00:77", ifindex=network.here.index("h0"),
        state="permanent",
    )  # fmt: skip
    engine = network.open(family, backend, exact=True)
    count = 4000
    engine.submit(request(0, silent, count=count, path=1, timeout_ns=500 * MS))
    done = gather(engine, count)
    assert sum(bool(each.clocks & TX_KERNEL) for each in done) > 0.9 * count
