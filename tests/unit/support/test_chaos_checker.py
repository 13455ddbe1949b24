"""The chaos checker finds what is planted in logs that are right otherwise, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from netsonde.clock import NS_PER_MS, NS_PER_S
from support.chaos.checker import REFUSED_FROM, Verdict, judge, summary
from support.chaos.evidence import (
    Applied,
    Began,
    Calm,
    ConfigSaid,
    Counted,
    DeadRow,
    Drained,
    Evidence,
    Exchange,
    Execution,
    Grant,
    Lived,
    Metered,
    Page,
    Published,
    ResultRow,
    Sampled,
    Session,
    Spooled,
    Struck,
    Submitted,
    Trapped,
)
from support.chaos.faults import SERVER, Fault
from support.chaos.fleet_invariants import GOOD as GOOD_CONFIG
from support.chaos.invariants import ANSWER_NS, INVARIANTS, SPOOLING_NS, WAKE_NS
from support.chaos.kills import judge_kills
from support.chaos.settings import RECOVERY_NS, SLOTS

TERM_MS = 3_000
GRANT_NS = 10 * NS_PER_S
GOOD = 101  # a lease
AGENT_ID = 7
SERIES = "netsonde_agent_results_total outcome=ok"


def grant(lease_id: int, task_id: int, attempt: int = 1) -> Grant:
    return Grant(lease_id, task_id, TERM_MS, 0, attempt, 50)


def claim(*grants: Grant, at_ns: int = GRANT_NS, **changes: Any) -> Exchange:
    fields: dict[str, Any] = {
        "agent": 0, "verb": "claim", "begun": at_ns, "sent": at_ns, "answered": at_ns + NS_PER_MS,
        "ended": at_ns + NS_PER_MS, "status": 200, "told": "whole", "asked": SLOTS,
        "claim": f"c{at_ns}", "grants": list(grants),
    }  # fmt: skip
    return Exchange(**(fields | changes))


def report(lease_id: int, status: str, at_ns: int, agent: int = 0) -> Exchange:
    return Exchange(
        agent=agent, verb="report", begun=at_ns, sent=at_ns, answered=at_ns, ended=at_ns,
        status=200, told="whole", items=[lease_id], results=[(lease_id, status)],
    )  # fmt: skip


def execution(lease_id: int, begun_ns: int, ended_ns: int, **changes: Any) -> Execution:
    fields: dict[str, Any] = {"agent": 0, "task": 0, "is_whole": True}
    return Execution(lease_id=lease_id, begun=begun_ns, ended=ended_ns, **(fields | changes))


def row(lease_id: int, task_id: int, **changes: Any) -> ResultRow:
    made = ResultRow(lease_id, task_id, AGENT_ID, "ok", 1, 1)
    return made._replace(**changes)


def metrics(seq: int, value: float, at_ns: int = GRANT_NS, **changes: Any) -> Exchange:
    fields: dict[str, Any] = {"agent_id": AGENT_ID, "run": "r", "samples": 3}
    said = Metered(seq=seq, values={SERIES: value}, **(fields | changes))
    status = None if said.stored is None else 202
    return Exchange(
        agent=0, verb="metrics", begun=at_ns, sent=at_ns, ended=at_ns, status=status, metered=said
    )


def beat(applied: int | None, at_ns: int = GRANT_NS, **changes: Any) -> Exchange:
    said: dict[str, Any] = {"applied": applied, "status": "ack", "revision": applied}
    return Exchange(
        agent=0, verb="heartbeat", begun=at_ns, ended=at_ns, status=200,
        config=ConfigSaid(**(said | changes)),
    )  # fmt: skip


def good() -> Evidence:
    """Make a run of two tasks: one measured at once, one given up."""
    second = GRANT_NS + NS_PER_S
    return Evidence(
        exchanges=[
            claim(grant(GOOD, 1)),
            report(GOOD, "accepted", second),
            claim(grant(102, 2), at_ns=second),
            metrics(1, 5.0, stored=3),
            metrics(2, 8.0, stored=3, at_ns=second),
            beat(1),
            beat(3, at_ns=second + 2),
        ],
        executions=[execution(GOOD, GRANT_NS + 2 * NS_PER_MS, second - NS_PER_MS)],
        events=[
            Session(at=0, boot_id="b", commit="c"),
            Submitted(at=1, first=0, task_ids=[1, 2]),
            Page(at=second, cursor="x", lease_ids=[GOOD]),
            Calm(faults_ended=second, held=1, recovered=second + NS_PER_S, left=[]),
            Sampled(at=second, who="agent-0", rss_bytes=50 << 20, fds=30),
            Spooled(agent=0, lease_ids=[]),
            Published(at=1, revision=1, what=GOOD_CONFIG),
            Published(at=2, revision=2, what="tampered with"),
            Published(at=3, revision=3, what=GOOD_CONFIG),
            Applied(at=4, revision=2, agents=[("chaos-0", "nack", 1)]),
            Applied(at=second, revision=3, agents=[("chaos-0", "ack", 3)], is_last=True),
            Counted(at=second, samples=6, latest={str(AGENT_ID): {SERIES: 8.0}}),
        ],
        results=[row(GOOD, 1)],
        dead=[DeadRow(2, 102, 50, "the lease ended")],
    )


def add(evidence: Evidence, **more: list[Any]) -> None:
    for name, items in more.items():
        getattr(evidence, name).extend(items)


def stopped(begun_ns: int, ended_ns: int) -> Struck:
    return Struck(number=0, fault=Fault.AGENT_STOPPED, agent=0, begun=begun_ns, ended=ended_ns)


def lived(begun_ns: int, ended_ns: int, how: str = "SIGKILL") -> Lived:
    return Lived(who="agent-0", pid=1, begun=begun_ns, ended=ended_ns, how=how, status=1)


DEADLINE_NS = GRANT_NS + TERM_MS * NS_PER_MS


def row_is_gone(evidence: Evidence) -> None:
    evidence.results.clear()


def row_is_doubled(evidence: Evidence) -> None:
    add(evidence, results=[row(99, 1, outcome="target_error")])


def older_lease_won(evidence: Evidence) -> None:
    add(evidence, exchanges=[claim(grant(105, 1), at_ns=GRANT_NS)])


def other_agent_won(evidence: Evidence) -> None:
    evidence.exchanges += [claim(grant(106, 1), agent=1)]
    evidence.results[:] = [row(106, 1), row(GOOD, 1, is_final=0)]
    evidence.results += [row(107, 3, agent_id=9)]
    evidence.exchanges.insert(0, claim(grant(107, 3), agent=1))
    evidence.results.reverse()


def invented(evidence: Evidence) -> None:
    evidence.executions.clear()


def overlapping(evidence: Evidence) -> None:
    add(
        evidence,
        exchanges=[
            claim(grant(90, 1), at_ns=GRANT_NS - NS_PER_S),
            report(90, "accepted", GRANT_NS + NS_PER_S // 2),
        ],
        results=[row(90, 1, outcome="agent_error", is_final=0)],
    )


def granted_too_many(evidence: Evidence) -> None:
    add(evidence, exchanges=[claim(grant(103, 2), grant(104, 2), asked=1, claim="d")])


def measured_too_many(evidence: Evidence) -> None:
    ids = range(200, 201 + SLOTS)
    add(
        evidence,
        exchanges=[claim(*(grant(lease_id, 2) for lease_id in ids), asked=2 * SLOTS)],
        executions=[
            execution(lease_id, GRANT_NS, GRANT_NS + NS_PER_S, is_whole=False) for lease_id in ids
        ],
    )


def began_late(evidence: Evidence) -> None:
    add(evidence, executions=[execution(GOOD, DEADLINE_NS + 1, DEADLINE_NS + 2)])


def ran_over(evidence: Evidence) -> None:
    add(evidence, executions=[execution(GOOD, GRANT_NS, DEADLINE_NS + 1, is_whole=False)])


def woke_and_went_on(evidence: Evidence) -> None:
    woke_ns = DEADLINE_NS + NS_PER_S
    late_ns = woke_ns + WAKE_NS + 1
    add(
        evidence,
        events=[stopped(GRANT_NS + NS_PER_S, woke_ns)],
        executions=[execution(GOOD, GRANT_NS, late_ns, is_whole=False)],
    )


def measured_by_another(evidence: Evidence) -> None:
    add(evidence, executions=[execution(GOOD, GRANT_NS, GRANT_NS + 1, agent=1, is_whole=False)])


def lease_nobody_heard_of(evidence: Evidence) -> None:
    """An answer that its agent did not get grants it nothing."""
    first = evidence.exchanges[0]
    evidence.exchanges[0] = replace(first, told="damaged")


def vanished(evidence: Evidence) -> None:
    evidence.dead.clear()


def finished_and_live(evidence: Evidence) -> None:
    evidence.live_tasks.append(1)


def never_queued(evidence: Evidence) -> None:
    evidence.live_tasks.append(3)


def too_many_attempts(evidence: Evidence) -> None:
    add(evidence, exchanges=[claim(grant(103, 2, attempt=51))])


def gave_up_without_reason(evidence: Evidence) -> None:
    evidence.dead[:] = [DeadRow(2, 102, 50, "")]


def left_in_spool(evidence: Evidence) -> None:
    add(evidence, events=[Spooled(agent=0, lease_ids=[102])])


def measured_and_never_answered_for(evidence: Evidence) -> None:
    ended_ns = GRANT_NS + 2 * NS_PER_S
    add(
        evidence,
        executions=[execution(102, ended_ns - 1, ended_ns)],
        events=[lived(0, ended_ns + SPOOLING_NS + 1)],
    )


def too_large(evidence: Evidence) -> None:
    add(evidence, events=[Sampled(at=1, who="agent-1", rss_bytes=1 << 30, fds=10)])


def too_many_files(evidence: Evidence) -> None:
    add(evidence, events=[Sampled(at=1, who="server", rss_bytes=1 << 20, fds=5_000)])


def hung(evidence: Evidence) -> None:
    at_ns = GRANT_NS
    add(evidence, exchanges=[claim(at_ns=at_ns, answered=at_ns + ANSWER_NS + 1)])


def locked_out(evidence: Evidence) -> None:
    add(evidence, exchanges=[claim(status=401)])


def page_repeats(evidence: Evidence) -> None:
    add(evidence, events=[Page(at=1, cursor="y", lease_ids=[GOOD])])


def page_skips(evidence: Evidence) -> None:
    evidence.events = [one for one in evidence.events if not isinstance(one, Page)]


def page_invents(evidence: Evidence) -> None:
    add(evidence, events=[Page(at=1, cursor="y", lease_ids=[999])])


def recovered_late(evidence: Evidence) -> None:
    late = Calm(faults_ended=0, held=1, recovered=RECOVERY_NS + 1, left=[])
    add(evidence, events=[late])


def never_recovered(evidence: Evidence) -> None:
    add(evidence, events=[Calm(faults_ended=0, held=1, recovered=None, left=[102])])


def gave_up_by_itself(evidence: Evidence) -> None:
    add(evidence, events=[lived(0, NS_PER_S, "by itself")])


def drained_badly(evidence: Evidence) -> None:
    add(evidence, events=[lived(0, 10 * NS_PER_S, "SIGTERM")])


def never_drained(evidence: Evidence) -> None:
    add(evidence, events=[replace(lived(0, 10 * NS_PER_S, "SIGTERM, then SIGKILL"), status=-9)])


def drained_and_silent(evidence: Evidence) -> None:
    """What was measured just before a drain must be reported: a drain is no kill."""
    ended_ns = GRANT_NS + 2 * NS_PER_S
    gone = replace(lived(0, ended_ns + 1, "SIGTERM"), status=0)
    add(evidence, executions=[execution(102, ended_ns - 1, ended_ns)], events=[gone])


def starved(evidence: Evidence) -> None:
    add(
        evidence,
        events=[Submitted(at=2, first=2, task_ids=[3])],
        exchanges=[claim(grant(120, 3), at_ns=GRANT_NS)],
        dead=[DeadRow(3, 120, 50, "the lease ended")],
    )
    evidence.exchanges[2] = claim(grant(102, 2), at_ns=GRANT_NS + 3 * RECOVERY_NS)


def counted(samples: int = 6, value: float = 8.0) -> Counted:
    return Counted(at=0, samples=samples, latest={str(AGENT_ID): {SERIES: value}})


def replay_was_counted(evidence: Evidence) -> None:
    add(evidence, exchanges=[metrics(2, 8.0, stored=3)], events=[counted(samples=9)])


def envelope_was_lost(evidence: Evidence) -> None:
    add(evidence, events=[counted(samples=3, value=5.0)])


def older_envelope_won(evidence: Evidence) -> None:
    add(evidence, events=[counted(value=5.0)])


def earlier_run_won(evidence: Evidence) -> None:
    later = metrics(1, 1.0, stored=3, run="s", at_ns=GRANT_NS + 2 * NS_PER_S)
    add(evidence, exchanges=[later], events=[counted(samples=9, value=8.0)])


def retried_envelope_differs(evidence: Evidence) -> None:
    add(evidence, exchanges=[metrics(2, 9.0, stored=3)])


def answered_in_two_ways(evidence: Evidence) -> None:
    add(evidence, exchanges=[metrics(2, 8.0, stored=2)])


def nobody_asked_for_metrics(evidence: Evidence) -> None:
    evidence.events[:] = [one for one in evidence.events if not isinstance(one, Counted)]


def revision_fell(evidence: Evidence) -> None:
    add(evidence, exchanges=[beat(1, at_ns=GRANT_NS + 2 * NS_PER_S), beat(3, at_ns=2 * GRANT_NS)])


def revision_was_forgotten(evidence: Evidence) -> None:
    nothing = beat(None, at_ns=GRANT_NS + 2 * NS_PER_S, status=None)
    add(evidence, exchanges=[nothing, beat(3, at_ns=2 * GRANT_NS)])


def bad_one_was_taken(evidence: Evidence) -> None:
    add(evidence, exchanges=[beat(2, at_ns=GRANT_NS + 2)])


def bad_one_was_acknowledged(evidence: Evidence) -> None:
    add(evidence, exchanges=[beat(1, at_ns=GRANT_NS + 2, revision=2)])


def nobodys_was_taken(evidence: Evidence) -> None:
    add(evidence, exchanges=[beat(1, at_ns=GRANT_NS + 2, revision=99)])


def shown_with_a_bad_one(evidence: Evidence) -> None:
    evidence.events.insert(-2, Applied(at=5, revision=2, agents=[("chaos-0", "ack", 2)]))


def never_got_the_last_one(evidence: Evidence) -> None:
    evidence.exchanges.pop()


def never_shown_with_the_last_one(evidence: Evidence) -> None:
    shown = Applied(at=6, revision=3, agents=[("chaos-0", "pending", None)], is_last=True)
    add(evidence, events=[shown])


def agent_is_not_shown(evidence: Evidence) -> None:
    add(evidence, events=[Applied(at=6, revision=3, agents=[], is_last=True)])


def nobody_asked_for_configurations(evidence: Evidence) -> None:
    evidence.events[:] = [one for one in evidence.events if not isinstance(one, Applied)]


def drained(begun_ns: int, ended_ns: int) -> Drained:
    return Drained(agent=0, begun=begun_ns, ended=ended_ns)


def granted_while_drained(evidence: Evidence) -> None:
    add(evidence, events=[drained(GRANT_NS - 1, GRANT_NS + NS_PER_S)])


def held_claim_was_granted_while_drained(evidence: Evidence) -> None:
    """Lease 102 comes to a claim of before, when another agent has a lease of after the drain."""
    held = claim(grant(102, 2), at_ns=GRANT_NS - 3, answered=GRANT_NS + 2 * NS_PER_MS)
    evidence.exchanges[2] = held
    evidence.exchanges[0] = claim(grant(GOOD, 1), agent=1)
    evidence.executions[0] = replace(evidence.executions[0], agent=1)
    add(evidence, events=[drained(GRANT_NS - 1, GRANT_NS + NS_PER_S)])


Doctored = Callable[[Evidence], None]
PLANTED: list[tuple[str, Doctored]] = [
    ("I1", row_is_gone),
    ("I2", row_is_doubled),
    ("I3", older_lease_won),
    ("I3", other_agent_won),
    ("I3 measured", invented),
    ("I4", overlapping),
    ("I5", granted_too_many),
    ("I5", measured_too_many),
    ("I6", began_late),
    ("I6", ran_over),
    ("I6", woke_and_went_on),
    ("I6", measured_by_another),
    ("I6", lease_nobody_heard_of),
    ("I7", vanished),
    ("I7", finished_and_live),
    ("I7", never_queued),
    ("I8", too_many_attempts),
    ("I8", gave_up_without_reason),
    ("I9", left_in_spool),
    ("I9", measured_and_never_answered_for),
    ("I10", replay_was_counted),
    ("I10", envelope_was_lost),
    ("I10", older_envelope_won),
    ("I10", earlier_run_won),
    ("I10", retried_envelope_differs),
    ("I10", answered_in_two_ways),
    ("I10", nobody_asked_for_metrics),
    ("I11", revision_fell),
    ("I11", revision_was_forgotten),
    ("I11", bad_one_was_taken),
    ("I11", bad_one_was_acknowledged),
    ("I11", nobodys_was_taken),
    ("I11", shown_with_a_bad_one),
    ("I11", never_got_the_last_one),
    ("I11", never_shown_with_the_last_one),
    ("I11", agent_is_not_shown),
    ("I11", nobody_asked_for_configurations),
    ("I12", too_large),
    ("I12", too_many_files),
    ("I13", hung),
    ("I14", locked_out),
    ("I15", page_repeats),
    ("I15", page_skips),
    ("I15", page_invents),
    ("I16", recovered_late),
    ("I16", never_recovered),
    ("I17", starved),
    ("P6", gave_up_by_itself),
    ("P6", drained_badly),
    ("P6", never_drained),
    ("I9", drained_and_silent),
    ("drain", granted_while_drained),
    ("drain", held_claim_was_granted_while_drained),
]


def broken(evidence: Evidence) -> set[str]:
    return set(judge(evidence).findings)


def test_a_run_without_fault_breaks_nothing() -> None:
    assert judge(good()).findings == {}


@pytest.mark.parametrize(
    ("invariant", "doctor"), PLANTED, ids=lambda one: getattr(one, "__name__", one)
)
def test_what_is_planted_is_found(invariant: str, doctor: Doctored) -> None:
    evidence = good()
    doctor(evidence)
    assert invariant in broken(evidence)


def test_every_invariant_has_something_planted() -> None:
    assert {invariant for invariant, _ in PLANTED} == set(INVARIANTS)


@pytest.mark.parametrize(
    ("samples", "value"), [(6, 8.0), (8, 9.0), (9, 9.0)], ids=["not taken", "in part", "taken"]
)
def test_an_envelope_that_was_not_answered_may_have_been_taken(samples: int, value: float) -> None:
    evidence = good()
    unanswered = metrics(3, 9.0, at_ns=2 * GRANT_NS)
    add(evidence, exchanges=[unanswered], events=[counted(samples=samples, value=value)])
    assert broken(evidence) == set()


def test_an_envelope_that_never_reached_the_server_was_not_taken() -> None:
    evidence = good()
    unsent = replace(metrics(3, 9.0, at_ns=2 * GRANT_NS), sent=None)
    add(evidence, exchanges=[unsent], events=[counted(samples=9, value=9.0)])
    assert broken(evidence) == {"I10"}


def test_a_retried_or_overtaken_envelope_changes_nothing() -> None:
    evidence = good()
    again = metrics(2, 8.0, at_ns=2 * GRANT_NS, stored=3)
    overtaken = metrics(1, 5.0, at_ns=2 * GRANT_NS, stored=0, is_superseded=True)
    add(evidence, exchanges=[again, overtaken])
    assert broken(evidence) == set()


def test_an_agent_that_died_while_it_applied_a_configuration_may_be_without() -> None:
    evidence = good()
    crashed = beat(None, at_ns=GRANT_NS + 1, status="nack", revision=1, reason="crashed")
    add(evidence, exchanges=[crashed])
    assert broken(evidence) == set()


def test_a_copy_of_a_heartbeat_says_nothing() -> None:
    evidence = good()
    add(evidence, exchanges=[replace(beat(None, at_ns=2 * GRANT_NS), is_copy=True)])
    assert broken(evidence) == set()


def test_what_was_granted_before_a_drain_may_come_after_it() -> None:
    evidence = good()
    evidence.exchanges[0] = claim(claim="c", answered=None, told="nothing")
    repeated = claim(grant(GOOD, 1), claim="c", at_ns=GRANT_NS + 3)
    evidence.exchanges.insert(1, repeated)
    add(evidence, events=[drained(GRANT_NS + 2, GRANT_NS + NS_PER_S - 1)])
    assert broken(evidence) == set()


def test_an_agent_that_was_stopped_at_the_deadline_may_notice_when_it_wakes() -> None:
    evidence = good()
    woke_ns = DEADLINE_NS + 5 * NS_PER_S
    add(
        evidence,
        events=[stopped(GRANT_NS + NS_PER_S, woke_ns)],
        executions=[execution(GOOD, GRANT_NS, woke_ns + WAKE_NS, is_whole=False)],
    )
    assert broken(evidence) == set()


def test_being_stopped_before_the_deadline_is_no_excuse() -> None:
    evidence = good()
    add(evidence, events=[stopped(GRANT_NS, DEADLINE_NS - NS_PER_S)])
    ran_over(evidence)
    assert broken(evidence) == {"I6"}


def test_what_is_granted_again_is_not_granted_too_much() -> None:
    evidence = good()
    again = [grant(lease_id, lease_id) for lease_id in (300, 301)]
    add(evidence, exchanges=[claim(*again, told="nothing"), claim(*again, asked=1)])
    assert "I5" not in broken(evidence)


def streamed(*lease_ids: int, asked: int, at_ns: int = GRANT_NS) -> Exchange:
    """Make one group of a streamed claim."""
    grants = [grant(lease_id, lease_id) for lease_id in lease_ids]
    return replace(claim(*grants, asked=asked, at_ns=at_ns), claim="c1", is_stream=True)


def test_the_groups_of_a_stream_are_granted_together() -> None:
    evidence = good()
    add(evidence, exchanges=[streamed(300, 301, asked=3), streamed(302, asked=3)])
    assert "I5" not in broken(evidence)

    add(evidence, exchanges=[streamed(303, asked=3)])
    assert "I5" in broken(evidence)


def test_a_claim_that_is_repeated_may_bring_what_each_request_asked_for() -> None:
    evidence = good()
    add(
        evidence,
        exchanges=[streamed(300, 301, asked=2), streamed(302, asked=1, at_ns=GRANT_NS + 9)],
    )
    assert "I5" not in broken(evidence)

    add(evidence, exchanges=[streamed(303, asked=1, at_ns=GRANT_NS + 9)])
    assert "I5" in broken(evidence)


def test_a_run_without_streams_is_not_what_was_asked_for() -> None:
    verdict = replace(judge(good()), leases=2_000, grants=2_000, streamed=499)
    assert verdict.missing(2_000, 0) == ["only 499 of 2000 leases came by streams"]
    assert replace(verdict, streamed=500).missing(2_000, 0) == []


def test_an_extension_counts_from_its_own_request() -> None:
    evidence = good()
    asked_ns = GRANT_NS + 2 * NS_PER_S
    extended = claim(verb="extend", at_ns=asked_ns, extended=[(GOOD, TERM_MS)], asked=0)
    until_ns = asked_ns + TERM_MS * NS_PER_MS
    add(evidence, exchanges=[extended], executions=[execution(GOOD, GRANT_NS, until_ns)])
    assert broken(evidence) == set()
    add(evidence, executions=[execution(GOOD, GRANT_NS, until_ns + 1)])
    assert broken(evidence) == {"I6"}


@pytest.mark.parametrize("after_ns", [-1, 0, SPOOLING_NS])
def test_a_kill_before_the_result_was_written_down_excuses_it(after_ns: int) -> None:
    evidence = good()
    ended_ns = GRANT_NS + 2 * NS_PER_S
    add(
        evidence,
        executions=[execution(102, ended_ns - 2, ended_ns)],
        events=[lived(0, ended_ns + after_ns)],
    )
    assert broken(evidence) == set()


def test_a_process_may_end_that_could_not_begin_for_want_of_files() -> None:
    evidence = good()
    shortage = Struck(number=1, fault=Fault.AGENT_NO_FILES, agent=0, begun=0, ended=NS_PER_S)
    add(evidence, events=[shortage, lived(5, 10, "by itself")])
    assert broken(evidence) == set()


def test_a_process_that_is_starting_dies_of_a_drain() -> None:
    evidence = good()
    add(evidence, events=[replace(lived(0, NS_PER_S, "SIGTERM"), status=-15)])
    assert broken(evidence) == set()


def test_a_stopped_server_may_answer_late() -> None:
    evidence = good()
    hung(evidence)
    stop = Struck(
        number=1, fault=Fault.SERVER_STOPPED, agent=SERVER, begun=GRANT_NS, ended=GRANT_NS + 1
    )
    add(evidence, events=[stop])
    assert broken(evidence) == set()


def test_the_summary_names_what_counts() -> None:
    verdict = Verdict(
        findings={"I1": ["a"], "I7": ["b"], "I2": ["c"], "I6": ["d", "e"]},
        leases=10, executions=12, messages=40, grants=16, streamed=12,
        faults={"partition": 2, "agent killed": 1}, recovery_s=4.25, metered=30, published=6,
        bad=2, refused=3,
    )  # fmt: skip
    assert summary(verdict, seed=3, seconds=61.0, commit="abc") == (
        "chaos: seed 3, 10 leases, 3 faults (agent killed 1, partition 2), 75 % by streams, lost 2,"
        " double-accepted 1, over capacity 0, late 2, miscounted 0 in 30 envelopes of metrics,"
        " misconfigured 0 by 6 configurations (2 bad, refused 3 times), granted while drained 0,"
        " worst recovery 4.2 s, 61 s, commit abc"
    )
    assert not verdict.holds


def test_a_report_of_findings_is_short() -> None:
    verdict = judge(good())
    many = replace(verdict, findings={"I7": [f"task {number} vanished" for number in range(50)]})
    lines = many.report()
    assert lines[0].startswith("I7: ")
    assert lines[-1] == "  and 45 more"
    assert len(lines) == 7


def killed_at(lease_ids: list[int], at_ns: int = GRANT_NS) -> Trapped:
    return Trapped(at=at_ns, agent=0, is_after=False, lease_ids=lease_ids)


def test_kills_count_each_held_result_once() -> None:
    evidence = good()
    add(evidence, events=[killed_at([GOOD])])
    verdict = judge_kills(evidence)
    assert verdict.holds
    assert (verdict.times, verdict.results, verdict.once) == (1, 1, 1)
    assert verdict.answers == {"accepted": 1}


def test_kills_find_a_result_that_is_lost_or_doubled() -> None:
    evidence = good()
    add(evidence, events=[killed_at([GOOD, 500])])
    row_is_doubled(evidence)
    verdict = judge_kills(evidence)
    assert not verdict.holds
    assert (verdict.results, verdict.once, verdict.lost, verdict.doubled) == (2, 0, 1, 1)


def test_no_kill_at_all_is_no_success() -> None:
    assert not judge_kills(good()).holds


def test_a_long_run_in_which_no_configuration_was_refused_is_not_what_was_asked_for() -> None:
    verdict = replace(judge(good()), leases=REFUSED_FROM, published=9, bad=4)
    said = "no agent refused any of 4 bad configurations"
    assert said in verdict.missing(REFUSED_FROM, 0)
    assert said not in replace(verdict, refused=1).missing(REFUSED_FROM, 0)


def test_a_run_that_fell_short_says_of_what() -> None:
    verdict = judge(good())
    assert verdict.missing(1, 0) == []
    assert verdict.missing(2, 3) == ["1 of 2 leases", "0 of 3 faults"]


def test_faults_of_one_kind_only_are_not_what_was_asked_for() -> None:
    monotonous = replace(judge(good()), faults={Fault.DELAY: 400})
    assert monotonous.missing(1, 100) == []
    assert monotonous.missing(1, 400)[0].startswith("kinds of faults that never struck: 429 storm")
    varied = replace(monotonous, faults=dict.fromkeys(list(Fault)[2:], 20))
    assert varied.missing(1, 400) == []


def test_a_rig_that_was_killed_took_its_agents_along() -> None:
    evidence = good()
    ended_ns = GRANT_NS + 2 * NS_PER_S
    add(evidence, executions=[execution(102, ended_ns - 1, ended_ns)])
    assert broken(evidence) == {"I9"}
    later = Session(at=ended_ns + NS_PER_S, boot_id="b", commit="c")
    add(evidence, events=[later])
    assert broken(evidence) == set()


def test_a_stop_that_the_rig_did_not_live_to_end_lasted_until_then() -> None:
    evidence = good()
    began = Began(number=9, fault=Fault.AGENT_STOPPED, agent=0, at=GRANT_NS + NS_PER_S)
    later = Session(at=DEADLINE_NS + 9 * NS_PER_S, boot_id="b", commit="c")
    over_ns = DEADLINE_NS + 5 * NS_PER_S
    add(evidence, executions=[execution(GOOD, GRANT_NS, over_ns, is_whole=False)], events=[later])
    assert broken(evidence) == {"I6"}
    add(evidence, events=[began])
    assert broken(evidence) == set()


def test_a_start_that_was_stopped_takes_as_much_longer() -> None:
    evidence = good()
    late_ns = 7 * NS_PER_S
    shortage = Struck(
        number=1, fault=Fault.AGENT_NO_FILES, agent=0, begun=late_ns, ended=late_ns + NS_PER_S
    )
    add(evidence, events=[shortage, lived(5, late_ns + 5, "by itself")])
    assert broken(evidence) == {"P6"}
    add(evidence, events=[stopped(NS_PER_S, 6 * NS_PER_S)])
    assert broken(evidence) == set()
