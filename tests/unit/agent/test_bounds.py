"""How often measurements begin and how long they wait, while both change."""

from typing import Any

import pytest

from netsonde.agent.bounds import KIND_BURST, TARGET_BURST, Bounds, target_pacer
from netsonde.clock import NS_PER_S
from netsonde.model import Lease, TaskKind
from support.leases import make_lease

PING, DNS = TaskKind.PING, TaskKind.DNS


@pytest.fixture
def bounds() -> Bounds:
    return Bounds(target_pacer(1_000_000))


def taken(bounds: Bounds, leases: list[Lease], now_ns: int = 0) -> int:
    return sum(bounds.take_each(leases, now_ns))


def waits(bounds: Bounds, leases: list[Lease]) -> list[float]:
    return [bounds.reserve(lease, 0) / NS_PER_S for lease in leases]


def test_a_target_may_be_measured_so_often(bounds: Bounds) -> None:
    bounds.pace(2, {})
    again = [make_lease(number, PING, "one.test") for number in range(TARGET_BURST + 2)]
    assert waits(bounds, again) == [0] * TARGET_BURST + [0.5, 1]


def test_a_kind_may_begin_so_often_whatever_its_targets(bounds: Bounds) -> None:
    bounds.pace(1_000, {PING: 4})
    pings = [make_lease(number, PING, f"192.0.2.{number}") for number in range(KIND_BURST + 2)]
    assert waits(bounds, pings) == [0] * KIND_BURST + [0.25, 0.5]
    others = [make_lease(100 + number, DNS, f"h{number}.example") for number in range(50)]
    assert waits(bounds, others) == [0] * 50


def test_what_begins_at_once_is_held_to_the_same(bounds: Bounds) -> None:
    pings = [make_lease(number, PING, f"192.0.2.{number}") for number in range(50)]
    assert taken(bounds, pings) == 50
    bounds.pace(1_000, {PING: 1})
    assert taken(bounds, pings) == KIND_BURST
    assert taken(bounds, pings, NS_PER_S) == 1
    bounds.pace(1_000, {})
    assert taken(bounds, pings) == 50


@pytest.mark.parametrize(
    ("most", "expected"), [({}, 1000), ({PING: 400}, 400), ({PING: 5000}, 1000), ({DNS: 1}, 1000)]
)
def test_timeouts_are_only_ever_lowered(
    bounds: Bounds, most: dict[TaskKind, int], expected: int
) -> None:
    bounds.bound_timeouts(most)
    spec: Any = bounds.spec(make_lease(1))
    assert spec.timeout_ms == expected
    assert bounds.specs([make_lease(1)]) == [spec]
    bounds.bound_timeouts({})
    assert bounds.spec(make_lease(1)).timeout_ms == 1000
