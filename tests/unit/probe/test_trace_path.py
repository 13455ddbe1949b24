"""The decisions of one trace, without a clock, a loop or a network."""

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_MS
from netsonde.model import TraceSpec
from netsonde.probe.trace_path import (
    BURST_GAP_NS,
    DUPLICATE,
    EXTRA_ANSWERS_MAX,
    RETRY_MIN_NS,
    TRANSLATED,
    WINDOW_HOPS,
    Answer,
    Path,
    Refusal,
    Stop,
)

START_NS = 1_000_000_000
TIMEOUT_NS = 1500 * NS_PER_MS
TARGET = "198.51.100.7"


def make_path(**fields: Any) -> Path:
    return Path(TraceSpec(host=TARGET, **fields), 4)


def router(number: int) -> str:
    return f"192.0.2.{number}"


def answer(
    ttl: int,
    address: str,
    *,
    attempt: int = 0,
    rtt_ns: int = 10 * NS_PER_MS,
    icmp: tuple[int, int] | None = None,
    flags: int = 0,
) -> Answer:
    kind, code = icmp or ((0, 0) if address == TARGET else (11, 0))
    packed = ip_address(address).packed
    return Answer(1, ttl, attempt, kind, code, packed, START_NS, START_NS + rtt_ns, 60, 1, 0, flags)


def send(path: Path, now_ns: int) -> list[tuple[int, bytes]]:
    due = path.due(now_ns)
    path.confirm(0, now_ns)
    return due


def send_window(path: Path, now_ns: int = START_NS) -> int:
    """Send bursts until nothing is due; return when."""
    while send(path, now_ns):
        now_ns += BURST_GAP_NS
    return now_ns


def ttls(due: list[tuple[int, bytes]]) -> list[int]:
    return [ttl for _, burst in due for ttl in burst]


def wait_out(path: Path, now_ns: int) -> int:
    """Let every timeout pass, sending what becomes due; return when nothing is left."""
    for _ in range(1000):
        send(path, now_ns)
        wake_ns = path.wake_ns(now_ns)
        if wake_ns is None:
            return now_ns
        now_ns = max(now_ns + 1, wake_ns)
    raise AssertionError("the path does not end")


def test_window_leaves_in_bursts() -> None:
    path = make_path()

    assert ttls(send(path, START_NS)) == [1, 2, 3, 4]
    assert send(path, START_NS + BURST_GAP_NS - 1) == []
    assert path.wake_ns(START_NS) == START_NS + BURST_GAP_NS
    assert ttls(send(path, START_NS + BURST_GAP_NS)) == [5, 6, 7, 8]
    send_window(path, START_NS + 2 * BURST_GAP_NS)
    assert path.sent == WINDOW_HOPS


def test_next_burst_leaves_at_once_when_all_before_it_is_answered() -> None:
    path = make_path()
    send(path, START_NS)
    for ttl in range(1, 5):
        path.take_answer(answer(ttl, router(ttl), rtt_ns=1000))

    assert ttls(send(path, START_NS + 1000)) == [5, 6, 7, 8]


def test_near_destination_costs_one_burst() -> None:
    path = make_path()
    send(path, START_NS)
    for ttl in (4, 3, 2):
        path.take_answer(answer(ttl, TARGET, rtt_ns=1000))
    assert path.wake_ns(START_NS + 1000) is not None
    path.take_answer(answer(1, router(1), rtt_ns=1000))

    assert send(path, START_NS + 1000) == []
    assert path.wake_ns(START_NS + 1000) is None
    assert path.stop is Stop.COMPLETED
    assert [hop.ttl for hop in path.shown()] == [1, 2]
    assert path.sent == 4


def test_window_slides_with_the_farthest_answer() -> None:
    path = make_path()
    now_ns = send_window(path)
    path.take_answer(answer(2, router(2)))

    assert ttls(send(path, now_ns)) == [17, 18]


def test_first_hop_and_max_hops_bound_what_is_probed() -> None:
    path = make_path(first_hop=3, max_hops=5)
    send_window(path)

    assert [hop.ttl for hop in path.up_to(255) if hop.attempts] == [3, 4, 5]
    assert path.sent == 3


def test_first_hop_beyond_max_hops_is_max_hops() -> None:
    path = make_path(first_hop=9, max_hops=5)

    assert (path.first_ttl, path.last_ttl) == (5, 5)


def test_silent_hop_is_asked_again_before_its_timeout() -> None:
    path = make_path(max_hops=2)
    send(path, START_NS)
    path.take_answer(answer(2, TARGET, rtt_ns=NS_PER_MS))

    assert path.wake_ns(START_NS) == START_NS + RETRY_MIN_NS
    assert send(path, START_NS + RETRY_MIN_NS) == [(1, b"\x01")]
    assert send(path, START_NS + 2 * RETRY_MIN_NS) == [(2, b"\x01")]
    assert send(path, START_NS + 3 * RETRY_MIN_NS) == []
    last_ns = START_NS + 2 * RETRY_MIN_NS + TIMEOUT_NS
    assert path.wake_ns(last_ns - 1) == last_ns
    assert path.wake_ns(last_ns) is None
    assert path.stop is Stop.COMPLETED


def test_retry_waits_longer_on_a_long_path() -> None:
    path = make_path(max_hops=2)
    send(path, START_NS)
    path.take_answer(answer(2, TARGET, rtt_ns=200 * NS_PER_MS))

    assert path.wake_ns(START_NS) == START_NS + 600 * NS_PER_MS


def test_answer_to_an_earlier_attempt_settles_the_hop() -> None:
    path = make_path(max_hops=1)
    send(path, START_NS)
    send(path, START_NS + RETRY_MIN_NS)
    path.take_answer(answer(1, TARGET, attempt=0, rtt_ns=RETRY_MIN_NS + 5))
    path.take_answer(answer(1, TARGET, attempt=1))

    assert path.wake_ns(START_NS + RETRY_MIN_NS + 5) is None
    hop = path.shown()[0]
    assert hop.answer is not None
    assert hop.answer.attempt == 0
    assert [each.attempt for each in hop.others] == [1]


def test_late_answer_settles_nothing() -> None:
    path = make_path(max_hops=1, probes_per_hop=1)
    send(path, START_NS)
    path.take_answer(answer(1, TARGET, rtt_ns=TIMEOUT_NS + 1))

    assert (path.late, path.reached) == (1, None)
    assert path.wake_ns(START_NS) == START_NS + TIMEOUT_NS
    assert path.wake_ns(START_NS + TIMEOUT_NS) is None
    assert path.stop is Stop.MAX_HOPS


def test_answer_at_the_timeout_is_in_time() -> None:
    path = make_path(max_hops=1)
    send(path, START_NS)
    path.take_answer(answer(1, TARGET, rtt_ns=TIMEOUT_NS))

    assert path.reached is not None


def test_duplicates_are_counted_and_a_bounded_number_is_kept() -> None:
    path = make_path(max_hops=1)
    send(path, START_NS)
    path.take_answer(answer(1, TARGET))
    for _ in range(EXTRA_ANSWERS_MAX + 10):
        path.take_answer(answer(1, TARGET, flags=DUPLICATE))

    assert path.duplicates == EXTRA_ANSWERS_MAX + 10
    assert len(path.shown()[0].others) == EXTRA_ANSWERS_MAX


def test_gap_limit_ends_a_path_that_goes_silent() -> None:
    path = make_path(gap_limit=3)
    now_ns = send_window(path)
    path.take_answer(answer(1, router(1)))
    path.take_answer(answer(2, router(2)))
    wait_out(path, now_ns)

    assert path.stop is Stop.GAP_LIMIT
    assert [hop.ttl for hop in path.shown()] == [1, 2, 3, 4, 5]
    assert [hop.attempts for hop in path.up_to(18)] == [1, 1, 3, 3, 3] + [1] * 13


def test_answer_from_beyond_a_gap_counts() -> None:
    path = make_path(gap_limit=3)
    now_ns = send_window(path)
    path.take_answer(answer(1, router(1)))
    path.take_answer(answer(9, TARGET))
    wait_out(path, now_ns)

    assert path.stop is Stop.COMPLETED
    assert len(path.shown()) == 9


def test_gap_wider_than_the_window_widens_it() -> None:
    path = make_path(gap_limit=20)
    send_window(path)

    assert path.sent == 20


def test_path_that_answers_to_the_last_ttl_stops_at_max_hops() -> None:
    path = make_path(max_hops=6)
    now_ns = send_window(path)
    for ttl in range(1, 7):
        path.take_answer(answer(ttl, router(ttl)))

    assert path.wake_ns(now_ns) is None
    assert path.stop is Stop.MAX_HOPS


def test_refusal_ends_the_path() -> None:
    path = make_path()
    now_ns = send_window(path)
    for ttl in (1, 2):
        path.take_answer(answer(ttl, router(ttl)))
    for ttl in range(3, 17):
        path.take_answer(answer(ttl, router(2), icmp=(3, 1)))

    assert path.wake_ns(now_ns) is None
    assert path.stop is Stop.UNREACHABLE
    assert path.refused is not None
    assert path.refused.ttl == 3
    assert len(path.shown()) == 3


def test_refusal_that_others_pass_does_not_end_the_path() -> None:
    path = make_path()
    now_ns = send_window(path)
    path.take_answer(answer(3, router(3), icmp=(3, 13)))
    path.take_answer(answer(5, router(5)))
    path.take_answer(answer(7, router(7), icmp=(3, 1)))

    assert path.refused is not None
    assert path.refused.ttl == 7
    path.take_answer(answer(9, TARGET))
    wait_out(path, now_ns)
    assert path.stop is Stop.COMPLETED


@pytest.mark.parametrize(
    ("at", "has_loop"),
    [((2, 3), False), ((2, 3, 4), False), ((2, 4), True), ((2, 9), True), ((2, 3, 5), True)],
)
def test_loop_is_one_router_at_ttls_apart(at: tuple[int, ...], has_loop: bool) -> None:
    path = make_path()
    send_window(path)
    for ttl in at:
        path.take_answer(answer(ttl, router(1)))

    assert path.has_loop is has_loop
    assert not path.is_looping


def test_destination_at_many_ttls_is_no_loop() -> None:
    path = make_path()
    send_window(path)
    for ttl in (3, 5, 7, 9):
        path.take_answer(answer(ttl, TARGET))

    assert not path.has_loop


def test_circle_is_left_after_three_rounds() -> None:
    path = make_path(max_hops=255)
    now_ns = send_window(path)
    for ttl in range(1, 17):
        path.take_answer(answer(ttl, router(ttl % 3)))

    assert path.is_looping
    assert send(path, now_ns + TIMEOUT_NS) == []
    assert path.wake_ns(now_ns + TIMEOUT_NS) is None
    assert path.stop is Stop.LOOP


def test_timeout_counts_from_when_the_probe_left() -> None:
    path = make_path(max_hops=1, probes_per_hop=1)
    path.due(START_NS)
    path.confirm(1, 0)
    stuck_ns = START_NS + 100 * TIMEOUT_NS

    assert path.wake_ns(stuck_ns) is not None
    path.confirm(0, stuck_ns)
    assert path.wake_ns(stuck_ns) == stuck_ns + TIMEOUT_NS


def test_probe_without_room_is_due_again() -> None:
    path = make_path()
    (attempt, burst), *_ = path.due(START_NS)
    path.withdraw(burst[1:])

    assert path.sent == 1
    assert ttls(send(path, START_NS + BURST_GAP_NS)) == [2, 3, 4, 5]
    assert attempt == 0


def test_probe_the_kernel_refused_is_tried_again_and_is_no_loss() -> None:
    path = make_path(max_hops=1)
    now_ns = START_NS
    for attempt in range(3):
        assert send(path, now_ns) == [(attempt, b"\x01")]
        path.take_refusal(Refusal(1, 1, attempt, 105))
        now_ns += RETRY_MIN_NS

    assert path.wake_ns(now_ns) is None
    assert (path.sent, path.tx_errors, path.last_errno) == (0, 3, 105)
    assert path.stop is Stop.TX_ERROR


def test_translation_is_remembered() -> None:
    path = make_path()
    send(path, START_NS)
    path.take_answer(answer(1, router(1), flags=TRANSLATED))

    assert path.is_translated


def simulate(path: Path, distance: int, silent: set[int], rtts_ms: list[int]) -> None:
    """Run a path to its end over a network of one router per TTL."""
    on_the_way: list[tuple[int, Answer]] = []
    now_ns = START_NS
    for _ in range(5000):
        for attempt, burst in send(path, now_ns):
            for ttl in set(burst) - silent:
                address = TARGET if ttl >= distance else router(ttl)
                rtt_ns = rtts_ms[ttl] * NS_PER_MS
                came = answer(ttl, address, attempt=attempt, rtt_ns=rtt_ns)
                on_the_way.append((now_ns + rtt_ns, came))
        wake_ns = path.wake_ns(now_ns)
        if wake_ns is None:
            return
        on_the_way.sort(key=lambda item: item[0])
        now_ns = max(now_ns + 1, wake_ns)
        if on_the_way:
            now_ns = min(now_ns, on_the_way[0][0])
        while on_the_way and on_the_way[0][0] <= now_ns:
            path.take_answer(on_the_way.pop(0)[1])
    raise AssertionError("the path does not end")


@given(
    distance=st.integers(1, 40),
    silent=st.sets(st.integers(1, 40), max_size=6),
    rtts_ms=st.lists(st.integers(0, 1500), min_size=41, max_size=41),
    probes_per_hop=st.integers(1, 4),
    gap_limit=st.integers(1, 8),
)
def test_trace_ends_and_tells_the_truth(
    distance: int, silent: set[int], rtts_ms: list[int], probes_per_hop: int, gap_limit: int
) -> None:
    path = make_path(max_hops=40, probes_per_hop=probes_per_hop, gap_limit=gap_limit)
    silent.discard(distance)
    simulate(path, distance, silent, rtts_ms)

    assert all(hop.attempts <= probes_per_hop for hop in path.up_to(40))
    assert path.late == 0
    truth = {ttl: router(ttl) for ttl in range(1, distance)} | {distance: TARGET}
    for hop in path.shown():
        if hop.ttl in silent:
            assert hop.answer is None
        elif hop.answer is not None:
            assert hop.answer.address == truth[hop.ttl]
    longest_gap = max(
        (len(run) for run in "".join("x" if t in silent else " " for t in range(1, 41)).split()),
        default=0,
    )
    if longest_gap < gap_limit:
        assert path.stop is Stop.COMPLETED
        assert [hop.ttl for hop in path.shown()] == list(range(1, distance + 1))
        assert all((hop.answer is None) == (hop.ttl in silent) for hop in path.shown())
