"""The echo engine's paces, measured where they count: by a kernel's stamps at the far end.

Gaps have lower bounds that hold on any machine. How close a rate comes to what was asked has an
upper bound as well, which a busy machine may miss: the best of some attempts counts.
"""

import select
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from netsonde._native.icmp import (
    REPLY,
    EchoEngine,
    PacketBudget,
    pack_requests,
)
from support.icmp_peer import (
    SECOND_NS,
    TARGET,
    Done,
    Family,
    gather,
    poll,
    quiet_host,
    request,
    submit_all,
)
from support.icmp_wire import (
    THERE,
    Backend,
    Driver,
    EchoNetwork,
    Sight,
    beyond,
    both_drivers,
    every_backend,
    gaps_ns,
)

pytestmark = [pytest.mark.raw, pytest.mark.netns]


MS = 1_000_000
CATCH_UP_NS = 2 * MS  # a late turn may shorten the gap of a run by so much
ROUNDING_NS = 1000  # of a stamp's clock
ATTEMPTS = 5
SHARING: tuple[tuple[Family, Driver], ...] = ((4, "thread"), (6, "thread"), (4, "loop"))


def destination(sight: Sight) -> bytes:
    return sight.packet[16:20] if sight.packet[0] >> 4 == 4 else sight.packet[24:40]


def by_target(sights: list[Sight]) -> dict[bytes, list[Sight]]:
    found: dict[bytes, list[Sight]] = defaultdict(list)
    for sight in sights:
        found[destination(sight)].append(sight)
    return found


def assert_keeps_rate(measure: Callable[[], list[Sight]], gap_ns: float) -> None:
    """Check that all of it is not too fast and that a quarter of it is not too slow.

    A machine that is held up for more than CATCH_UP_NS loses what it has not sent by then, so the
    fastest quarter of some attempts counts.
    """
    fastest = 0.0
    for _ in range(ATTEMPTS):
        stamps = [each.stamp_ns for each in measure()]
        assert stamps[-1] - stamps[0] >= (len(stamps) - 1) * gap_ns - 10 * CATCH_UP_NS
        quarter = len(stamps) // 4
        asked = quarter * gap_ns
        took = min(end - begin for begin, end in zip(stamps, stamps[quarter:], strict=False))
        fastest = max(fastest, asked / took)
        if fastest > 0.95:
            break
    assert fastest > 0.95


@both_drivers
@every_backend
def test_a_runs_gaps_are_its_interval(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend, driver)
    interval_ns, count, runs = 10 * MS, 15, 3
    engine.submit(
        b"".join(
            request(n << 32, beyond(family, n), count=count, interval_ns=interval_ns, path=1)
            for n in range(runs)
        )
    )
    assert {each.kind for each in gather(engine, runs * count)} == {REPLY}
    for sights in by_target(wire.packets(runs * count)).values():
        assert len(sights) == count
        assert min(gaps_ns(sights)) >= interval_ns - CATCH_UP_NS - ROUNDING_NS


@both_drivers
def test_a_run_keeps_its_rate(network: EchoNetwork, driver: Driver) -> None:
    wire = network.wire(4)
    engine = network.open(4, "raw", driver)
    interval_ns, count = MS // 4, 1200

    def measure() -> list[Sight]:
        engine.submit(request(0, THERE[4], count=count, interval_ns=interval_ns))
        gather(engine, count, wire.look)
        return wire.packets(count)

    assert_keeps_rate(measure, interval_ns)


@both_drivers
@every_backend
def test_a_slow_budget_keeps_every_gap(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend, driver, budgets=(PacketBudget(200),))
    count = 40
    engine.submit(
        b"".join(request(2 * n, beyond(family, n), count=2, path=1) for n in range(count // 2))
    )
    assert {each.kind for each in gather(engine, count)} == {REPLY}
    assert min(gaps_ns(wire.packets(count))) >= 5 * MS - ROUNDING_NS


@both_drivers
@pytest.mark.parametrize("rate_pps", [2000, 20_000])
def test_a_fast_budget_keeps_its_rate(network: EchoNetwork, driver: Driver, rate_pps: int) -> None:
    wire = network.wire(4)
    count = rate_pps // 5
    engine = network.open(4, "raw", driver, budgets=(PacketBudget(rate_pps),))

    def measure() -> list[Sight]:
        engine.submit(request(0, THERE[4], count=count))
        gather(engine, count, wire.look)
        return wire.packets(count)

    assert_keeps_rate(measure, SECOND_NS / rate_pps)


def test_a_paced_thread_wakes_once_a_quantum(network: EchoNetwork) -> None:
    engine = network.open(4, "raw", "thread", budgets=(PacketBudget(20_000),))
    started_ns = time.monotonic_ns()
    engine.submit(request(0, THERE[4], count=10_000))
    gather(engine, 10_000)
    elapsed_ms = (time.monotonic_ns() - started_ns) / MS
    assert engine.counters["turns"] < 2.5 * elapsed_ms


def test_engines_share_a_budget(network: EchoNetwork) -> None:
    budget, count = PacketBudget(5000), 600
    engines = [network.open(family, "raw", driver, budgets=(budget,)) for family, driver in SHARING]
    wires = [network.wire(4), network.wire(6)]
    for engine in engines:
        engine.submit(request(0, THERE[engine.family], count=count))
    unread = dict.fromkeys(engines, count)
    while any(unread.values()):
        ready, _, _ = select.select([each for each in engines if unread[each]], [], [], 5)
        assert ready
        for engine in ready:
            unread[engine] -= len(poll(engine))
        for wire in wires:
            wire.look()
    stamps = sorted(each.stamp_ns for wire in wires for each in wire.packets())
    total = count * len(engines)
    assert len(stamps) == total
    assert (stamps[-1] - stamps[0]) / SECOND_NS >= (total - 1) / 5000 - 0.05


def test_an_engine_obeys_the_slowest_of_its_budgets(network: EchoNetwork) -> None:
    wire = network.wire(4)
    budgets = (PacketBudget(1e6), PacketBudget(100), PacketBudget(1000), PacketBudget(500))
    engine = network.open(4, "raw", "thread", budgets=budgets)
    engine.submit(request(0, THERE[4], count=20))
    gather(engine, 20)
    assert min(gaps_ns(wire.packets(20))) >= 10 * MS - ROUNDING_NS
    # What the slowest refused was given back to the others.
    other = network.open(4, "raw", budgets=(budgets[2],))
    other.submit(request(0, THERE[4], count=3))
    assert {each.kind for each in gather(other, 3)} == {REPLY}


def test_who_has_no_slot_takes_no_token() -> None:
    host, budget = quiet_host(), PacketBudget(50)
    with (
        host.call(EchoEngine, 4, capacity=1, budgets=(budget,)) as full,
        host.call(EchoEngine, 4, budgets=(budget,)) as other,
    ):
        full.submit(request(1, TARGET[4], count=1000, timeout_ns=60 * SECOND_NS))
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            select.select([full], [], [], 0.1)
            assert poll(full) == []
        assert full.counters["sent"] == 1
        other.submit(request(2, TARGET[4]))
        assert other.counters["sent"] == 1
    host.close()


@both_drivers
@every_backend
def test_each_target_has_its_own_pace(
    network: EchoNetwork, family: Family, backend: Backend, driver: Driver
) -> None:
    wire = network.wire(family)
    engine = network.open(family, backend, driver, target_pps=100)
    targets, count = 12, 8
    engine.submit(
        b"".join(
            request((run * targets + n) << 32, beyond(family, n), count=count // 2, path=1)
            for run in range(2)
            for n in range(targets)
        )
    )
    gather(engine, targets * count)
    seen = by_target(wire.packets(targets * count))
    assert len(seen) == targets
    for sights in seen.values():
        assert len(sights) == count
        assert min(gaps_ns(sights)) >= 10 * MS - ROUNDING_NS


@both_drivers
@pytest.mark.parametrize("family", [4, 6])
def test_each_prefix_has_its_own_pace(network: EchoNetwork, family: Family, driver: Driver) -> None:
    """Two /24 for IPv4; one /48 for IPv6, however far apart in it the targets are."""
    wire = network.wire(family)
    engine = network.open(family, "raw", driver, prefix_pps=200)
    targets, count = 10, 3
    step = 1 if family == 4 else 1 << 70
    prefixes = (0, 256) if family == 4 else (0,)
    engine.submit(
        b"".join(
            request((prefix + n) << 32, beyond(family, prefix + n * step), count=count)
            for prefix in prefixes
            for n in range(targets)
        )
    )
    total = len(prefixes) * targets * count
    gather(engine, total)
    seen: dict[bytes, list[Sight]] = defaultdict(list)
    for sight in wire.packets(total):
        seen[destination(sight)[: 3 if family == 4 else 6]].append(sight)
    assert len(seen) == len(prefixes)
    for sights in seen.values():
        assert min(gaps_ns(sights)) >= 5 * MS - ROUNDING_NS


@both_drivers
def test_a_prefix_is_shared_fairly(network: EchoNetwork, driver: Driver) -> None:
    engine = network.open(4, "raw", driver, prefix_pps=400)
    runs, seen = 10, 200
    engine.submit(b"".join(request(n << 32, beyond(4, n), count=1000) for n in range(runs)))
    done = gather(engine, seen)
    share = Counter(each.token >> 32 for each in done)
    assert len(share) == runs
    assert min(share.values()) > seen / runs / 2


def test_more_busy_targets_than_buckets_share_them(network: EchoNetwork) -> None:
    """A pace is never exceeded for want of room: beyond 65 536 busy targets some wait in line."""
    host = quiet_host()
    targets = 90_000
    addresses = b"".join((0x7F000001 + n).to_bytes(4) for n in range(targets))
    with host.call(EchoEngine, 4, target_pps=0.01) as engine:
        submit_all(engine, pack_requests(4, addresses, token=0, timeout_ns=60 * SECOND_NS))
        for _ in range(100):
            select.select([engine], [], [], 0.001)
            engine.poll()
        assert 50_000 < engine.counters["sent"] <= 65_536
    host.close()


def test_a_bucket_that_ran_dry_is_anybodys(network: EchoNetwork) -> None:
    host = quiet_host()
    targets = 90_000
    addresses = b"".join((0x7F000001 + n).to_bytes(4) for n in range(targets))
    done: list[Done] = []
    with host.call(EchoEngine, 4, target_pps=100) as engine:
        done += submit_all(engine, pack_requests(4, addresses, token=0, timeout_ns=60 * SECOND_NS))
        for _ in range(10_000):
            if engine.counters["sent"] == targets:
                break
            select.select([engine], [], [], 0.01)
            engine.poll()
        assert engine.counters["sent"] == targets
    host.close()


def test_the_slowest_pace_there_is_sends_one_packet(network: EchoNetwork) -> None:
    budget = PacketBudget(1e-300)
    engine = network.open(4, "raw", "thread", budgets=(budget,), target_pps=1e-200)
    engine.submit(request(0, THERE[4], count=2))
    assert [each.kind for each in gather(engine, 1)] == [REPLY]
    assert select.select([engine], [], [], 0.05)[0] == []
    assert engine.counters["sent"] == 1
