"""The limits of what runs at once: what shrinks them, what does not, and how they come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde import congestion
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.congestion import (
    ANSWERED_NS,
    DECREASE,
    HOLD_NS,
    LAG_MAX_NS,
    SAMPLE,
    TIMEOUT_SHARE,
    CongestionControl,
    Signal,
    Window,
    signal_of,
)
from netsonde.model import Failure, FailureSource, Measurement, Outcome, Reason, TaskKind

DNS, PING = TaskKind.DNS, TaskKind.PING
OVERLOAD = round(TIMEOUT_SHARE * SAMPLE)


def control(dns: int = 100, ping: int = 50) -> CongestionControl:
    return CongestionControl({DNS: dns, PING: ping, TaskKind.TCP: 0})


def once(it: CongestionControl, target: str, signal: Signal, now_ns: int = 0) -> None:
    it.started(DNS, target)
    it.ended(DNS, target, signal, now_ns)


def answers_then_times_out(it: CongestionControl, targets: range, now_ns: int = 0) -> None:
    for number in targets:
        once(it, f"t{number}", Signal.ANSWERED, now_ns)
    for number in targets:
        once(it, f"t{number}", Signal.TIMEOUT, now_ns)


# ── a window ──


def test_a_window_starts_open_and_shrinks_by_a_factor() -> None:
    window = Window(100)
    assert (window.limit, window.is_open) == (100, True)
    assert window.shrink(0)
    assert (window.limit, window.is_open) == (round(100 * DECREASE), False)


def test_one_overload_counts_once() -> None:
    window = Window(100)
    window.shrink(0)
    assert not window.shrink(HOLD_NS - 1)
    assert window.limit == 70
    assert window.shrink(HOLD_NS)
    assert window.limit == 49


def test_a_window_grows_by_one_for_every_windowful() -> None:
    window = Window(100)
    window.shrink(0)
    before = window.limit
    for _ in range(before + 1):
        window.grow(running=before + 1)
    assert window.limit == before + 1


def test_a_window_that_is_not_used_does_not_grow() -> None:
    window = Window(100)
    window.shrink(0)
    for _ in range(1000):
        window.grow(running=10)
    assert window.limit == 70


@given(st.lists(st.one_of(st.none(), st.integers(0, 200)), max_size=300), st.integers(1, 50))
def test_a_window_stays_between_one_and_its_ceiling(steps: list[int | None], ceiling: int) -> None:
    window = Window(ceiling)
    for number, running in enumerate(steps):
        if running is None:
            window.shrink(number * HOLD_NS)
        else:
            window.grow(running)
        assert 1 <= window.limit <= ceiling


# ── what is a signal ──


@pytest.mark.parametrize(
    ("reason", "source", "signal"),
    [
        (Reason.TIMEOUT, FailureSource.TARGET, Signal.TIMEOUT),
        (Reason.TX_ERROR, FailureSource.SELF, Signal.LOCAL_DROP),
        (Reason.REFUSED, FailureSource.TARGET, Signal.NEITHER),
        (Reason.RESOLVE_FAILED, FailureSource.RESOLVER, Signal.NEITHER),
        (Reason.EXPIRED, FailureSource.SELF, Signal.NEITHER),
    ],
)
def test_failures_are_signals_or_not(reason: Reason, source: FailureSource, signal: Signal) -> None:
    error = Failure(reason=reason, failure_source=source, message="")
    measurement = Measurement(
        outcome=Outcome.TARGET_ERROR, started_at_ns=0, duration_ns=1, observations=(), error=error
    )
    assert signal_of(measurement) is signal


def test_a_measurement_without_an_error_was_answered() -> None:
    measurement = Measurement(outcome=Outcome.OK, started_at_ns=0, duration_ns=1, observations=())
    assert signal_of(measurement) is Signal.ANSWERED


# ── the limits of an agent ──


def test_a_limit_is_the_capacity_until_something_shrinks_it() -> None:
    it = control()
    assert (it.limit(DNS), it.limit(PING), it.limit(TaskKind.TCP)) == (100, 50, 0)
    assert it.limit_of_all == 150


def test_a_target_that_is_down_costs_nobody_else_anything() -> None:
    it = control()
    for second in range(100):
        once(it, "down", Signal.TIMEOUT, second * NS_PER_S)
    assert (it.limit(DNS), it.limit(PING), it.limit_of_all) == (100, 50, 150)
    it.started(DNS, "down")
    assert not it.may_start(DNS, "down"), "one at a time is left"
    assert it.may_start(DNS, "up")
    assert it.may_start(PING, "down"), "another kind may find it up"


def test_a_target_that_answers_again_gets_its_room_back() -> None:
    it = control()
    for second in range(20):
        once(it, "t", Signal.TIMEOUT, second * NS_PER_S)
    for _ in range(3):
        it.started(DNS, "t")
        it.ended(DNS, "t", Signal.ANSWERED, 0)
    it.started(DNS, "t")
    assert it.may_start(DNS, "t")


def test_timeouts_of_targets_that_are_up_shrink_their_kind_only() -> None:
    it = control()
    answers_then_times_out(it, range(OVERLOAD))
    assert (it.limit(DNS), it.limit(PING), it.limit_of_all) == (70, 50, 150)
    assert it.shrunk[DNS] == 1


def test_a_few_timeouts_are_what_paths_do() -> None:
    it = control()
    for number in range(10 * SAMPLE):
        once(it, f"t{number % SAMPLE}", Signal.ANSWERED)
        if number % 8 == 7:
            once(it, f"t{number % SAMPLE}", Signal.TIMEOUT)
    assert it.limit(DNS) == 100


def test_what_answered_long_ago_is_not_thought_to_be_up() -> None:
    it = control()
    for number in range(OVERLOAD):
        once(it, f"t{number}", Signal.ANSWERED, 0)
    for number in range(OVERLOAD):
        once(it, f"t{number}", Signal.TIMEOUT, ANSWERED_NS + 1)
    assert it.limit(DNS) == 100


def test_a_local_drop_shrinks_the_kind_and_all() -> None:
    it = control(dns=100, ping=100)
    once(it, "t", Signal.LOCAL_DROP)
    assert (it.limit(DNS), it.limit(PING), it.limit_of_all) == (70, 100, 140)


def test_a_loop_that_lags_shrinks_all() -> None:
    it = control(dns=100, ping=100)
    it.lagged(LAG_MAX_NS, 0)
    assert it.limit_of_all == 200
    it.lagged(LAG_MAX_NS + NS_PER_MS, 0)
    assert (it.limit(DNS), it.limit_of_all) == (100, 140)


def test_after_an_overload_success_under_load_brings_everything_back() -> None:
    it = control(dns=20, ping=0)
    once(it, "t", Signal.LOCAL_DROP)
    assert (it.limit(DNS), it.limit_of_all) == (14, 14)
    running = 0
    for step in range(500):
        while running < min(it.limit(DNS), it.limit_of_all):
            it.started(DNS, f"t{step}")
            running += 1
        it.ended(DNS, f"t{step}", Signal.ANSWERED, 0)
        running -= 1
    assert (it.limit(DNS), it.limit_of_all) == (20, 20)


def test_targets_are_forgotten_but_not_while_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(congestion, "TARGETS_MAX", 5)
    it = control()
    it.started(DNS, "runs")
    for number in range(50):
        once(it, f"t{number}", Signal.ANSWERED)
    assert len(it._targets) == 5
    it.ended(DNS, "runs", Signal.ANSWERED, 0)


def test_what_was_not_started_cannot_end() -> None:
    with pytest.raises(KeyError, match="was not started"):
        control().ended(DNS, "t", Signal.ANSWERED, 0)
