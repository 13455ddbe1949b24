"""The decisions of a trace, against networks that are known exactly."""

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native.path_core import (
    BURST_GAP_NS,
    BURST_HOPS,
    DONE,
    EXPIRED,
    LATER,
    PROBE,
    REACHED,
    REFUSED,
    RETRY_MIN_NS,
    WAIT,
    WINDOW_HOPS,
    PathCore,
)

NS_PER_MS = 1_000_000
TIMEOUT_NS = 1500 * NS_PER_MS
STEPS_MAX = 100_000


@dataclass
class Network:
    """A path: who answers at each TTL, None: nobody; the last one answers beyond it too.

    lost: which (TTL, attempt) get no answer. known: what the last one's answer means.
    """

    routers: list[bytes | None]
    rtt_ns: int = 10 * NS_PER_MS
    known: int = REACHED
    lost: frozenset[tuple[int, int]] = frozenset()
    refusals: frozenset[int] = frozenset()  # TTLs whose probes the kernel refuses

    def answer(self, ttl: int, attempt: int) -> tuple[bytes, int, int] | None:
        """Return who answers, what that means and after how long."""
        at = min(ttl, len(self.routers))
        router = self.routers[at - 1]
        if router is None or (ttl, attempt) in self.lost:
            return None
        known = self.known if at == len(self.routers) else EXPIRED
        return router, known, self.rtt_ns * at // len(self.routers)


@dataclass
class Played:
    """How a trace went."""

    path: PathCore
    sent: list[tuple[int, int, int]] = field(default_factory=list)  # instant, TTL, attempt
    ended_ns: int = 0

    @property
    def probes(self) -> Counter[int]:
        """How many probes each TTL got."""
        return Counter(ttl for _, ttl, _ in self.sent)


def play(path: PathCore, network: Network) -> Played:
    """Carry a trace to its end, on a clock that jumps from one event to the next."""
    played, events = Played(path), list[tuple[int, int, int, tuple[bytes, int, int] | None]]()
    order, now_ns = itertools.count(), 0
    for _ in range(STEPS_MAX):
        what, value = path.next(now_ns)
        if what == DONE:
            played.ended_ns = now_ns
            return played
        if what == PROBE:
            attempt, patience_ns = path.send(value, now_ns)
            if value in network.refusals:
                path.refuse(value)
                continue
            played.sent.append((now_ns, value, attempt))
            answer = network.answer(value, attempt)
            at_ns = now_ns + patience_ns
            if answer is not None and answer[2] <= patience_ns:
                at_ns = now_ns + answer[2]
            else:
                answer = None
            heapq.heappush(events, (at_ns, next(order), value, answer))
            continue
        assert what in (LATER, WAIT)
        if what == LATER and (not events or value < events[0][0]):
            now_ns = max(now_ns, value)
            continue
        now_ns, _, ttl, answer = heapq.heappop(events)
        if answer is None:
            path.give_up(ttl)
        else:
            path.answer(ttl, answer[1], answer[0], answer[2])
    raise AssertionError("a trace has no end")


def routers(count: int) -> list[bytes | None]:
    """Return routers at so many TTLs."""
    return [bytes((10, 0, 0, ttl)) for ttl in range(1, count + 1)]


@given(st.integers(1, 30), st.integers(0, RETRY_MIN_NS // NS_PER_MS))
def test_a_path_without_loss_takes_one_probe_a_hop(hops: int, rtt_ms: int) -> None:
    played = play(PathCore(), Network(routers(hops), rtt_ns=rtt_ms * NS_PER_MS))
    assert (played.path.stop, played.path.end_ttl) == ("completed", hops)
    assert all(played.probes[ttl] == 1 for ttl in range(1, hops + 1))
    assert max(played.probes) <= min(max(WINDOW_HOPS, hops + 7), 30)


@pytest.mark.parametrize("hops", [1, 4, 9, 16])
def test_one_window_is_one_round_trip_and_never_passes_its_end(hops: int) -> None:
    rtt_ns = 30 * NS_PER_MS
    played = play(PathCore(), Network(routers(hops), rtt_ns=rtt_ns))
    bursts = -(-hops // BURST_HOPS)
    assert played.ended_ns <= rtt_ns + bursts * BURST_GAP_NS
    assert max(played.probes) <= WINDOW_HOPS


def test_a_near_end_costs_few_probes() -> None:
    played = play(PathCore(), Network(routers(1), rtt_ns=BURST_GAP_NS // 2))
    assert played.probes == Counter({1: 1, 2: 1, 3: 1, 4: 1})


def test_the_window_moves_on_when_its_last_hop_has_spoken() -> None:
    rtt_ns = 30 * NS_PER_MS
    played = play(PathCore(), Network(routers(20), rtt_ns=rtt_ns))
    assert (played.path.stop, played.path.end_ttl) == ("completed", 20)
    assert played.ended_ns < 3 * rtt_ns
    assert max(played.probes) == 24


@given(
    st.integers(1, 25), st.sets(st.tuples(st.integers(1, 30), st.integers(0, 1)), max_size=40),
    st.integers(2, 5),
)  # fmt: skip
def test_what_is_lost_is_asked_again(hops: int, lost: set[tuple[int, int]], attempts: int) -> None:
    network = Network(routers(hops), lost=frozenset(lost))
    played = play(PathCore(attempts=attempts + 1), network)
    assert (played.path.stop, played.path.end_ttl) == ("completed", hops)
    for ttl in range(1, hops + 1):
        missed = next(n for n in range(attempts + 1) if (ttl, n) not in lost)
        assert played.probes[ttl] == missed + 1


@given(
    st.lists(st.booleans(), min_size=1, max_size=28), st.integers(1, 10), st.integers(1, 4),
    st.integers(1, 30), st.integers(1, 30),
)  # fmt: skip
def test_any_silence_ends(
    silent: list[bool], gap_limit: int, attempts: int, one: int, other: int
) -> None:
    first, last = sorted((one, other))
    path = [None if mute else router for mute, router in zip(silent, routers(28), strict=False)]
    core = PathCore(first_ttl=first, last_ttl=last, attempts=attempts, gap_limit=gap_limit)
    played = play(core, Network(path))
    assert min(played.probes) >= first
    assert max(played.probes) <= last
    assert max(played.probes.values()) <= attempts
    answering = [ttl for ttl in range(first, last + 1) if path[min(ttl, len(path)) - 1] is not None]
    gaps = (b - a - 1 for a, b in itertools.pairwise([first - 1, *answering]))
    reachable = all(gap < gap_limit for gap in gaps)
    if last >= len(path) and path[-1] is not None and reachable:
        assert core.stop == "completed"
        assert core.end_ttl == max(first, len(path))
    elif core.stop == "gap_limit":
        assert played.ended_ns >= TIMEOUT_NS or attempts == 1
    settled = core.end_ttl or min(max((0, *answering)) + gap_limit, last)
    if core.stop == "completed":
        for ttl in range(first, settled + 1):
            assert played.probes[ttl] in (1, attempts)


def test_a_silent_end_stops_at_the_gap() -> None:
    played = play(PathCore(gap_limit=3), Network([*routers(4), None]))
    assert (played.path.stop, played.path.end_ttl) == ("gap_limit", 0)
    assert [played.probes[ttl] for ttl in range(4, 9)] == [1, 3, 3, 3, 1]


def test_the_highest_ttl_stops_it() -> None:
    played = play(PathCore(last_ttl=6), Network(routers(9)))
    assert (played.path.stop, played.path.end_ttl) == ("max_hops", 0)
    assert max(played.probes) == 6


def test_a_refusal_ends_it_unless_something_beyond_speaks() -> None:
    path = PathCore()
    assert play(path, Network(routers(5), known=REFUSED)).path.stop == "unreachable"
    assert path.end_ttl == 5
    path = PathCore(last_ttl=3)
    for ttl in (1, 2, 3):
        assert path.next(0) == (PROBE, ttl)
        path.send(ttl, 0)
    path.answer(2, REFUSED, b"\2", 1)
    assert path.end_ttl == 2
    path.answer(3, EXPIRED, b"\3", 1)
    assert path.end_ttl == 0


def test_the_lowest_ttl_that_reached_it_is_the_end() -> None:
    path = PathCore()
    for ttl in range(1, 5):
        path.send(ttl, 0)
    path.answer(4, REACHED, b"\7", 1)
    path.answer(2, REACHED, b"\7", 1)
    path.answer(3, REACHED, b"\7", 1)
    assert path.end_ttl == 2


def test_three_times_at_one_router_is_a_loop() -> None:
    a, b = b"\1", b"\2"
    played = play(PathCore(), Network([a, b] * 15))
    assert played.path.stop == "loop"
    assert max(played.probes) <= WINDOW_HOPS
    twice = play(PathCore(), Network([a, b, a, *routers(9)]))
    assert twice.path.stop == "completed"
    neighbours = play(PathCore(), Network([a, a, a, a, *routers(9)]))
    assert neighbours.path.stop == "completed"


def test_retries_wait_for_what_answers_usually_take() -> None:
    lost = frozenset({(3, 0), (3, 1)})
    played = play(PathCore(), Network(routers(5), rtt_ns=20 * NS_PER_MS, lost=lost))
    third = [instant for instant, ttl, _ in played.sent if ttl == 3]
    assert [b - a for a, b in itertools.pairwise(third)] == [RETRY_MIN_NS, RETRY_MIN_NS]
    slow = play(PathCore(), Network(routers(5), rtt_ns=200 * NS_PER_MS, lost=lost))
    third = [instant for instant, ttl, _ in slow.sent if ttl == 3]
    assert third[2] - third[1] == 600 * NS_PER_MS


def test_the_last_attempt_has_the_whole_timeout() -> None:
    path = PathCore(attempts=2)
    assert path.send(1, 0)[1] == RETRY_MIN_NS
    path.give_up(1)
    assert path.send(1, 0)[1] == TIMEOUT_NS


def test_an_answer_after_its_patience_still_counts() -> None:
    path = PathCore(last_ttl=1)
    path.send(1, 0)
    path.give_up(1)
    path.answer(1, REACHED, b"\1", 5, waiting=False)
    assert path.next(RETRY_MIN_NS) == (DONE, 0)
    assert path.stop == "completed"


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 300))
def test_all_attempts_come_in_rounds(attempts: int, hops: int, interval_ms: int) -> None:
    interval_ns = interval_ms * NS_PER_MS
    core = PathCore(attempts=attempts, all_attempts=True, interval_ns=interval_ns)
    played = play(core, Network(routers(hops), lost=frozenset({(2, 0), (1, 2)})))
    assert core.stop == "completed"
    assert all(played.probes[ttl] == attempts for ttl in range(1, hops + 1))
    for ttl in range(1, hops + 1):
        instants = [instant for instant, each, attempt in played.sent if each == ttl]
        assert all(b - a >= interval_ns for a, b in itertools.pairwise(instants[1:]))


def test_what_the_kernel_refuses_is_asked_again_and_told() -> None:
    played = play(PathCore(last_ttl=4), Network(routers(9), refusals=frozenset({1, 2, 3, 4})))
    assert played.path.stop == "tx_error"
    assert [played.path.attempts(ttl) for ttl in (1, 2, 3, 4)] == [3, 3, 3, 3]


def test_a_cancelled_trace_is_done() -> None:
    path = PathCore()
    path.send(1, 0)
    path.cancel()
    assert path.next(0)[0] == DONE
    assert path.stop == "cancelled"
