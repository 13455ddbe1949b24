import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.model import MINTED_ID_MAX, Outcome, ReportStatus, TaskKind
from netsonde.server.config import DEFAULT_TERMS_MS, ServerConfig
from netsonde.server.leasing import (
    RETURNS_MAX,
    Died,
    ExtendStatus,
    Finished,
    HeldTask,
    LeaseIds,
    LeasingPolicy,
    Requeued,
    ServerTime,
    StandingLease,
    SweepGate,
    TaskState,
    Unchanged,
)
from support.stores import TERMS_MS

TERM_NS = 20 * NS_PER_S
NOW_NS = 1_000 * NS_PER_S


def policy(**changes: Any) -> LeasingPolicy:
    return LeasingPolicy(ServerConfig(**({"terms_ms": TERMS_MS} | changes)), random.Random(1))


def held(**changes: Any) -> HeldTask:
    fields: dict[str, Any] = {
        "task_id": 1,
        "lease_id": 10,
        "agent_id": 7,
        "state": TaskState.LEASED,
        "kind": TaskKind.TCP,
        "attempt": 1,
        "max_attempts": 3,
        "returns": 0,
        "granted_ns": NOW_NS,
        "until_ns": NOW_NS + TERM_NS,
    }
    return HeldTask(**(fields | changes))


def test_default_terms_are_the_contracts() -> None:
    terms = policy(terms_ms=DEFAULT_TERMS_MS).terms_ns
    assert {kind: term // NS_PER_S for kind, term in terms.items()} == {
        TaskKind.DNS: 20,
        TaskKind.TCP: 20,
        TaskKind.HTTP: 45,
        TaskKind.PING: 45,
        TaskKind.TRACE: 90,
    }


def test_grace_is_2_s_or_5_percent() -> None:
    rules = policy(terms_ms=DEFAULT_TERMS_MS)
    assert rules.due_ns(TaskKind.TCP, 0) == 2 * NS_PER_S
    assert rules.due_ns(TaskKind.TRACE, 0) == 4_500 * NS_PER_MS
    assert rules.grace_max_ns == 4_500 * NS_PER_MS


def test_the_originals_500_ms_never_shorten() -> None:
    extension = policy().extend(held(), 7, 500 * NS_PER_MS, NOW_NS + NS_PER_S)
    assert extension.status is ExtendStatus.EXTENDED
    assert extension.until_ns == NOW_NS + TERM_NS


def test_extension_is_clamped_to_the_term() -> None:
    now_ns = NOW_NS + 5 * NS_PER_S
    assert policy().extend(held(), 7, 10**18, now_ns).until_ns == now_ns + TERM_NS


def test_extension_stops_at_the_longest_lease() -> None:
    rules = policy(max_lease_ms=60_000)
    near_ns = NOW_NS + 50 * NS_PER_S
    capped = rules.extend(held(until_ns=near_ns + NS_PER_S), 7, TERM_NS, near_ns)
    assert capped.status is ExtendStatus.CAPPED
    assert capped.until_ns == NOW_NS + 60 * NS_PER_S
    over_ns = NOW_NS + 60 * NS_PER_S
    gone = rules.extend(held(until_ns=over_ns), 7, TERM_NS, over_ns)
    assert gone.status is ExtendStatus.CAPPED
    assert gone.until_ns is None


def test_extension_revives_what_nobody_else_was_granted() -> None:
    late_ns = NOW_NS + TERM_NS + 5 * NS_PER_S
    extension = policy().extend(held(state=TaskState.READY), 7, TERM_NS, late_ns)
    assert extension.status is ExtendStatus.EXTENDED
    assert extension.until_ns == late_ns + TERM_NS


@pytest.mark.parametrize(
    ("task", "agent_id", "status"),
    [
        (None, 7, ExtendStatus.FENCED),
        (held(), 8, ExtendStatus.FENCED),
        (held(state=TaskState.REVOKED), 7, ExtendStatus.CANCELLED),
    ],
)
def test_extension_refused(task: HeldTask | None, agent_id: int, status: ExtendStatus) -> None:
    extension = policy().extend(task, agent_id, TERM_NS, NOW_NS)
    assert (extension.status, extension.until_ns) == (status, None)


@given(st.integers(-(10**12), 10**12), st.integers(0, 700 * NS_PER_S), st.integers(0, 10**11))
def test_an_extension_is_never_shorter_and_never_beyond_the_cap(
    by_ns: int, after_ns: int, left_ns: int
) -> None:
    rules = policy()
    now_ns = NOW_NS + after_ns
    until_ns = min(now_ns + left_ns, NOW_NS + rules.max_lease_ns)
    extension = rules.extend(held(until_ns=until_ns), 7, by_ns, now_ns)
    if extension.until_ns is not None:
        assert until_ns <= extension.until_ns <= NOW_NS + rules.max_lease_ns
        assert extension.until_ns <= max(until_ns, now_ns + TERM_NS)


def test_expiry_costs_an_attempt_and_keeps_the_lease_for_a_late_report() -> None:
    change = policy().expire(held(attempt=2), NOW_NS)
    assert isinstance(change, Requeued)
    assert (change.attempt, change.returns, change.keeps_lease) == (2, 0, True)
    assert NOW_NS <= change.run_ns <= NOW_NS + 4 * NS_PER_S


def test_expiry_at_the_last_attempt_is_death_with_a_reason() -> None:
    change = policy().expire(held(attempt=3), NOW_NS)
    assert isinstance(change, Died)
    assert change.reason == "the lease expired without a report, attempt 3 of 3"


def test_the_backoff_is_capped() -> None:
    rules = policy(requeue_cap_ms=5_000, max_attempts=100)
    for attempt in (1, 30, 99):
        change = rules.expire(held(attempt=attempt, max_attempts=100), NOW_NS)
        assert isinstance(change, Requeued)
        assert change.run_ns - NOW_NS <= 5 * NS_PER_S


def test_a_return_costs_nothing_ten_times() -> None:
    rules = policy()
    change = rules.give_back(held(attempt=2, returns=RETURNS_MAX - 1), NOW_NS, keeps_lease=False)
    assert change == Requeued(1, NOW_NS, 1, RETURNS_MAX, keeps_lease=False)
    eleventh = rules.give_back(held(attempt=2, returns=RETURNS_MAX), NOW_NS, keeps_lease=False)
    assert isinstance(eleventh, Requeued)
    assert eleventh.attempt == 2
    last = rules.give_back(held(attempt=3, returns=RETURNS_MAX), NOW_NS, keeps_lease=False)
    assert isinstance(last, Died)


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.TARGET_ERROR, Outcome.REJECTED])
def test_measured_is_final(outcome: Outcome) -> None:
    verdict = policy().report(held(), outcome, NOW_NS)
    assert (verdict.status, verdict.is_final) == (ReportStatus.ACCEPTED, True)
    assert verdict.change == Finished(1)


def test_agent_error_is_tried_again_until_it_dies_with_its_result() -> None:
    again = policy().report(held(), Outcome.AGENT_ERROR, NOW_NS)
    assert not again.is_final
    assert isinstance(again.change, Requeued)
    assert not again.change.keeps_lease
    last = policy().report(held(attempt=3), Outcome.AGENT_ERROR, NOW_NS)
    assert last.is_final
    assert isinstance(last.change, Died)


def test_cancelled_goes_back_without_an_attempt() -> None:
    verdict = policy().report(held(attempt=2), Outcome.CANCELLED, NOW_NS)
    assert not verdict.is_final
    assert verdict.change == Requeued(1, NOW_NS, 1, 1, keeps_lease=False)


def test_late_means_past_the_deadline_and_not_granted_again() -> None:
    past_ns = NOW_NS + TERM_NS + 1
    assert policy().report(held(), Outcome.OK, past_ns).status is ReportStatus.LATE_ACCEPTED
    swept = policy().report(held(state=TaskState.READY), Outcome.OK, past_ns)
    assert (swept.status, swept.is_final) == (ReportStatus.LATE_ACCEPTED, True)
    assert swept.change == Finished(1)
    worthless = policy().report(held(state=TaskState.READY), Outcome.AGENT_ERROR, past_ns)
    assert (worthless.change, worthless.is_final) == (Unchanged(1), False)


def test_a_revoked_lease_is_fenced_and_ends() -> None:
    revoked = held(state=TaskState.REVOKED)
    verdict = policy().report(revoked, Outcome.OK, NOW_NS)
    assert (verdict.status, verdict.change) == (ReportStatus.FENCED, Finished(1))
    assert policy().expire(revoked, NOW_NS) == Finished(1)
    assert policy().give_back(revoked, NOW_NS, keeps_lease=False) == Finished(1)


async def test_the_servers_clock_never_goes_back() -> None:
    clock = ManualClock(realtime_ns=500 * NS_PER_S)
    assert ServerTime(clock, 0).now_ns() == 500 * NS_PER_S
    time = ServerTime(clock, 900 * NS_PER_S)
    assert time.now_ns() == 900 * NS_PER_S
    clock.step_realtime(-400 * NS_PER_S)
    await clock.advance(NS_PER_S)
    assert time.now_ns() == 901 * NS_PER_S


def test_lease_ids_grow_with_time_and_stay_exact() -> None:
    ids = LeaseIds(0)
    early = ids.next(1_800_000_000 * NS_PER_S, 10)
    ids.last = early + 9
    assert ids.next(1_700_000_000 * NS_PER_S, 1) == early + 10, "a clock that went back"
    later = ids.next(1_800_000_001 * NS_PER_S, 1)
    assert early + 9 < later <= MINTED_ID_MAX
    assert ids.may_have_minted(early + 9)
    assert not ids.may_have_minted(early + 10)
    assert not ids.may_have_minted(0)
    with pytest.raises(OverflowError, match="2093"):
        ids.next(2**31 * NS_PER_S + 1_735_689_600 * NS_PER_S, 1)


def test_the_sweeper_waits_one_grace_after_a_start_and_after_a_stall() -> None:
    grace_ns = 2 * NS_PER_S
    gate = SweepGate(grace_ns)
    assert not gate.may_expire(NOW_NS)
    assert not gate.may_expire(NOW_NS + NS_PER_S)
    assert gate.may_expire(NOW_NS + grace_ns)
    assert gate.may_expire(NOW_NS + grace_ns + NS_PER_S)
    stalled_ns = NOW_NS + 100 * NS_PER_S
    assert not gate.may_expire(stalled_ns)
    assert gate.may_expire(stalled_ns + grace_ns)


def test_a_short_grace_does_not_take_scheduling_noise_for_a_stall() -> None:
    gate = SweepGate(50 * NS_PER_MS)
    gate.may_expire(NOW_NS)
    assert gate.may_expire(NOW_NS + 900 * NS_PER_MS)


def test_a_sweeper_that_runs_when_it_meant_to_has_not_stalled() -> None:
    """With a grace below a second, a sweep a second never took anything back."""
    gate = SweepGate(500 * NS_PER_MS)
    assert not gate.may_expire(NOW_NS)
    gate.plan(NOW_NS + 3 * NS_PER_S)
    assert gate.may_expire(NOW_NS + 3 * NS_PER_S + NS_PER_MS)
    gate.plan(NOW_NS + 6 * NS_PER_S)
    assert not gate.may_expire(NOW_NS + 8 * NS_PER_S)


# ── standing leases ──

STANDING_TERM_NS = 3_600 * NS_PER_S


def standing(**changes: Any) -> HeldTask:
    return held(**({"is_standing": True, "until_ns": NOW_NS + STANDING_TERM_NS} | changes))


def lease(**changes: Any) -> StandingLease:
    fields: dict[str, Any] = {
        "lease_id": 10,
        "task_id": 1,
        "agent_id": 7,
        "kind": TaskKind.TCP,
        "anchor_ns": NOW_NS,
        "repeat": "{}",
        "spec_id": 1,
        "granted_ns": NOW_NS,
        "next_tick": 0,
    }
    return StandingLease(**(fields | changes))


def test_a_standing_lease_is_extended_by_its_own_term_and_without_a_cap() -> None:
    later_ns = NOW_NS + 1_000 * STANDING_TERM_NS
    extension = policy().extend(standing(until_ns=later_ns), 7, 10**18, later_ns)
    assert extension.status is ExtendStatus.EXTENDED
    assert extension.until_ns == later_ns + STANDING_TERM_NS
    assert policy().extend(standing(), 7, 0, NOW_NS).until_ns == NOW_NS + STANDING_TERM_NS


def test_the_grace_of_a_standing_lease_is_5_percent_of_its_term() -> None:
    rules = policy()
    assert rules.due_ns(TaskKind.TCP, 0, is_standing=True) == STANDING_TERM_NS // 20


@pytest.mark.parametrize("state", [TaskState.LEASED, TaskState.READY])
def test_a_standing_task_waits_for_its_agent_whatever_happened(state: TaskState) -> None:
    task = standing(state=state, attempt=1, max_attempts=1, returns=10 * RETURNS_MAX)
    waits = Requeued(1, NOW_NS, 0, 10 * RETURNS_MAX, keeps_lease=True)
    assert policy().expire(task, NOW_NS) == waits
    assert policy().give_back(task, NOW_NS, keeps_lease=True) == waits
    back = policy().give_back(task, NOW_NS, keeps_lease=False)
    assert isinstance(back, Requeued)
    assert not back.keeps_lease


def test_a_revoked_standing_task_ends() -> None:
    task = standing(state=TaskState.REVOKED)
    assert policy().expire(task, NOW_NS) == Finished(1)
    assert policy().give_back(task, NOW_NS, keeps_lease=True) == Finished(1)
    assert policy().extend(task, 7, 1, NOW_NS).status is ExtendStatus.CANCELLED


@pytest.mark.parametrize(
    ("task", "status"),
    [
        (standing(), ReportStatus.ACCEPTED),
        (standing(until_ns=NOW_NS - 1), ReportStatus.LATE_ACCEPTED),
        (standing(state=TaskState.READY), ReportStatus.LATE_ACCEPTED),
        (None, ReportStatus.LATE_ACCEPTED),
    ],
)
def test_a_tick_is_taken_and_late_without_a_current_lease(
    task: HeldTask | None, status: ReportStatus
) -> None:
    assert policy().report_run(lease(), task, NOW_NS, NOW_NS) is status


def test_a_tick_is_fenced_when_it_was_due_after_the_end_of_the_work() -> None:
    ended = lease(ended_ns=NOW_NS)
    assert policy().report_run(ended, None, NOW_NS, NOW_NS) is ReportStatus.LATE_ACCEPTED
    assert policy().report_run(ended, None, NOW_NS + 1, NOW_NS) is ReportStatus.FENCED


def test_an_earlier_lease_is_good_while_its_task_stands() -> None:
    rules = policy()
    extension = rules.extend_earlier(lease(), 10**18, NOW_NS)
    assert extension.status is ExtendStatus.EXTENDED
    assert extension.until_ns == NOW_NS + STANDING_TERM_NS
    assert rules.extend_earlier(lease(next_tick=None), 1, NOW_NS).status is ExtendStatus.FENCED
    ended = rules.extend_earlier(lease(ended_ns=NOW_NS), 1, NOW_NS)
    assert (ended.status, ended.until_ns) == (ExtendStatus.CANCELLED, None)
