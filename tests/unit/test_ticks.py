"""The grid of a standing task's ticks: where they are, and how they are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_MS, NS_PER_S, instant_ns, rfc3339
from netsonde.model import Repeat
from netsonde.ticks import Grid, grid_of
from support.leases import make_lease

ANCHOR_NS = 1_790_000_000 * NS_PER_S


def grid(every_ms: int = 1_000, **changes: int) -> Grid:
    return Grid(7, ANCHOR_NS, Repeat(every_ms=every_ms, **changes))


def test_without_jitter_ticks_are_a_period_apart() -> None:
    assert [grid().instant_ns(tick) - ANCHOR_NS for tick in (0, 1, 5)] == [
        0,
        NS_PER_S,
        5 * NS_PER_S,
    ]


def test_the_offset_of_a_tick_is_part_of_the_contract() -> None:
    """Other agents compute it too: SHA-256 of `task/tick`, its first 8 bytes, modulo."""
    jittered = grid(jitter_ms=400)
    offsets_ns = [jittered.instant_ns(tick) - ANCHOR_NS - tick * NS_PER_S for tick in range(3)]
    assert offsets_ns == [139_681_264, 185_925_928, 150_869_249]


@given(
    every_ms=st.integers(1, 31 * 86_400_000), share=st.floats(0, 1), tick=st.integers(0, 1000),
    task_id=st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_ticks_keep_their_order_and_are_found_by_time(
    every_ms: int, share: float, tick: int, task_id: int
) -> None:
    repeat = Repeat(every_ms=every_ms, jitter_ms=int(share * (every_ms - 1)))
    one = Grid(task_id, ANCHOR_NS, repeat)
    instant = one.instant_ns(tick)
    assert instant < one.instant_ns(tick + 1)
    assert one.latest(instant) == tick
    assert one.latest(instant - 1) == tick - 1
    assert one.latest(one.instant_ns(tick + 1) - 1) == tick
    assert one.is_tick(tick, one.tick(tick).scheduled_at)
    assert not one.is_tick(tick + 1, one.tick(tick).scheduled_at)


def test_a_task_with_ticks_has_a_last_one() -> None:
    three = grid(ticks=3)
    assert three.latest(ANCHOR_NS + 50 * NS_PER_S) == 2
    assert three.stale_ns(three.last) == ANCHOR_NS + 3 * NS_PER_S
    assert not three.is_tick(3, rfc3339(three.instant_ns(3)))


def test_a_tick_is_missed_when_the_next_is_due_or_it_is_stale() -> None:
    assert grid().stale_ns(4) == ANCHOR_NS + 5 * NS_PER_S
    assert grid(stale_after_ms=200).stale_ns(4) == ANCHOR_NS + 4_200 * NS_PER_MS
    assert grid(stale_after_ms=9_000).stale_ns(4) == ANCHOR_NS + 5 * NS_PER_S


@pytest.mark.parametrize("text", ["", "2026-13-01T00:00:00Z", "yesterday", rfc3339(ANCHOR_NS)[:-1]])
def test_what_is_no_instant_is_no_tick(text: str) -> None:
    assert not grid().is_tick(0, text)


@pytest.mark.parametrize("number", [-1, 2**62, 2**70])
def test_what_no_clock_reaches_is_no_tick(number: int) -> None:
    assert not grid().is_tick(number, rfc3339(ANCHOR_NS))


def test_the_grid_of_a_lease() -> None:
    repeat = Repeat(every_ms=5_000, jitter_ms=10)
    lease = make_lease(3, repeat=repeat, scheduled_at=rfc3339(ANCHOR_NS))
    assert grid_of(lease) == Grid(1003, ANCHOR_NS, repeat)
    assert grid_of(make_lease(3)) is None


@given(st.integers(0, 2**62))
def test_instants_are_read_as_they_are_written(instant: int) -> None:
    assert instant_ns(rfc3339(instant)) == instant
    assert instant_ns("2026-11-28T02:29:46Z") == 1_795_832_986 * NS_PER_S
