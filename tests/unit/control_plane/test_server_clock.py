"""What answers tell of the control plane's clock."""

from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.control_plane.server_clock import ServerClock

SERVER_NS = 1_790_000_000 * NS_PER_S


def test_before_an_answer_nothing_is_known() -> None:
    clock = ServerClock()
    clock.hear(None, 0, 1)
    assert clock.at_ns(5) is None


def test_the_first_answer_is_believed_to_half_its_round_trip() -> None:
    clock = ServerClock()
    clock.hear(SERVER_NS // NS_PER_MS, 0, 40 * NS_PER_MS)
    told_ns = clock.at_ns(20 * NS_PER_MS)
    assert told_ns is not None
    assert abs(told_ns - SERVER_NS) <= NS_PER_MS


def test_a_held_answer_is_no_worse_than_its_way() -> None:
    clock = ServerClock()
    clock.hear(SERVER_NS // NS_PER_MS, 0, 20_040 * NS_PER_MS, held_ms=20_000)
    told_ns = clock.at_ns(20_020 * NS_PER_MS)
    assert told_ns is not None
    assert abs(told_ns - SERVER_NS) <= NS_PER_MS


def test_a_slow_answer_moves_nothing_and_a_contradiction_no_more_than_it_must() -> None:
    clock = ServerClock()
    clock.hear(SERVER_NS // NS_PER_MS, 0, 0)
    before_ns = clock.at_ns(0)
    clock.hear(SERVER_NS // NS_PER_MS + 100, 0, 5_000 * NS_PER_MS)
    assert clock.at_ns(0) == before_ns
    clock.hear(SERVER_NS // NS_PER_MS + 3_600_000, 0, 1_000 * NS_PER_MS)
    assert clock.at_ns(0) == SERVER_NS + 3_599_000 * NS_PER_MS


def test_an_answer_that_is_twice_as_close_is_believed_instead() -> None:
    clock = ServerClock()
    clock.hear(SERVER_NS // NS_PER_MS, 0, 40 * NS_PER_MS)  # it was there when this left
    told_ns = clock.at_ns(0)
    assert told_ns is not None
    assert abs(told_ns - SERVER_NS) >= 19 * NS_PER_MS
    clock.hear(SERVER_NS // NS_PER_MS + 50, 49 * NS_PER_MS, 51 * NS_PER_MS)
    told_ns = clock.at_ns(0)
    assert told_ns is not None
    assert abs(told_ns - SERVER_NS) <= NS_PER_MS


def test_a_hold_longer_than_the_whole_call_is_not_believed() -> None:
    clock = ServerClock()
    clock.hear(SERVER_NS // NS_PER_MS, 0, 10 * NS_PER_MS, held_ms=10**9)
    told_ns = clock.at_ns(10 * NS_PER_MS)
    assert told_ns is not None
    assert abs(told_ns - SERVER_NS) <= NS_PER_MS


@given(
    offset_ms=st.integers(0, 10**12),
    calls=st.lists(
        st.tuples(*[st.integers(0, 500)] * 3), min_size=1, max_size=20
    ),  # out, held, back
)
def test_the_estimate_is_never_further_off_than_the_best_answer_allows(
    offset_ms: int, calls: list[tuple[int, int, int]]
) -> None:
    clock, now_ms, best_ms = ServerClock(), 0, 10**9
    for out_ms, held_ms, back_ms in calls:
        sent_ms, now_ms = now_ms, now_ms + out_ms + held_ms + back_ms
        server_ms = sent_ms + out_ms + held_ms + offset_ms
        clock.hear(server_ms, sent_ms * NS_PER_MS, now_ms * NS_PER_MS, held_ms)
        best_ms = min(best_ms, out_ms + back_ms + 1)
        told_ns = clock.at_ns(now_ms * NS_PER_MS)
        assert told_ns is not None
        assert abs(told_ns - (now_ms + offset_ms) * NS_PER_MS) <= best_ms * NS_PER_MS
