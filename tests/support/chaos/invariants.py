"""The invariants, each a function from the evidence to what breaks it: those of leases. Pure.

Numbers are those of the project's list; what cannot be seen from outside is not here.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from netsonde.clock import NS_PER_MS, NS_PER_S
from support.chaos.case import Case, is_drained
from support.chaos.fleet_invariants import (
    configurations_only_grow,
    drained_claim_nothing,
    metrics_are_counted_once,
)
from support.chaos.settings import RECOVERY_NS, SLOTS

TAKEN = frozenset({"accepted", "late_accepted", "duplicate"})
# A process that was stopped wakes with its timers overdue: it needs a turn of its loop, on a
# busy machine, before it can look at a clock. Nothing else is allowed for.
WAKE_NS = NS_PER_S // 2
ANSWER_NS = 15 * NS_PER_S  # a claim is held for 5 s; nothing else takes 10
RSS_MAX_BYTES: Mapping[str, int] = {"server": 384 << 20, "agent": 160 << 20}
FDS_MAX: Mapping[str, int] = {"server": 256, "agent": 256}
START_NS = 5 * NS_PER_S  # to import, open files and register, on a busy machine
SPOOLING_NS = NS_PER_S  # from the target's answer to the disk, which may be full

Finding = Iterator[str]


def acknowledged_is_stored(case: Case) -> Finding:
    """I1: what was acknowledged has exactly one row."""
    rows = Counter(row.lease_id for row in case.evidence.results)
    for exchange in case.evidence.exchanges:
        for lease_id, status in exchange.results:
            if status in TAKEN and rows[lease_id] != 1:
                yield f"lease {lease_id}: answered {status}, {rows[lease_id]} rows"


def accepted_once(case: Case) -> Finding:
    """I2: a task has at most one final result."""
    for task_id, rows in case.final.items():
        if len(rows) > 1:
            yield f"task {task_id}: {len(rows)} final results"


def accepted_is_last_granted(case: Case) -> Finding:
    """I3: a final result is of the last lease granted, and of the agent that got it."""
    for task_id, rows in case.final.items():
        last = case.last_grant.get(task_id)
        for row in rows:
            if last is not None and row.lease_id < last:
                yield f"task {task_id}: result of lease {row.lease_id}, lease {last} was granted"
            holder = case.holder.get(row.lease_id)
            if holder is not None and case.agent_ids.get(holder, row.agent_id) != row.agent_id:
                yield f"task {task_id}: result of agent {row.agent_id}, granted to {holder}"


def accepted_was_measured(case: Case) -> Finding:
    """I3: what says that it measured was seen at the target, to its end, under its lease."""
    measured = {one.lease_id for one in case.evidence.executions if one.is_whole}
    for row in case.evidence.results:
        if row.outcome == "ok" and row.lease_id not in measured:
            yield f"lease {row.lease_id}: accepted, and the target saw no measurement"


def accepted_do_not_overlap(case: Case) -> Finding:
    """I4: no result is taken under a lease when the task's next one has been granted."""
    for task_id, rows in case.rows_of_task.items():
        for earlier, later in pairwise(sorted(row.lease_id for row in rows)):
            taken_ns, granted_ns = case.taken_ns.get(earlier), case.granted_ns.get(later)
            if taken_ns is not None and granted_ns is not None and granted_ns < taken_ns:
                yield f"task {task_id}: a result of lease {earlier} when lease {later} was granted"


def capacity_is_kept(case: Case) -> Finding:
    """I5: no claim is granted more than it asked for, no agent measures more than its slots.

    What an earlier answer granted, which may not have arrived, comes again whatever is asked for. A
    claim that is repeated may bring what each of its requests asked for.
    """
    granted: set[int] = set()
    asked: defaultdict[tuple[int, str], dict[int, int]] = defaultdict(dict)
    brought: Counter[tuple[int, str]] = Counter()
    for number, exchange in enumerate(case.evidence.exchanges):
        fresh = {grant.lease_id for grant in exchange.grants} - granted
        granted |= fresh
        if not exchange.asked:
            continue
        claim = exchange.agent, exchange.claim or str(number)
        known = asked[claim].get(exchange.begun, 0)  # of the groups of one stream
        asked[claim][exchange.begun] = max(known, exchange.asked)
        brought[claim] += len(fresh)
        if brought[claim] > sum(asked[claim].values()):
            yield f"agent {exchange.agent}: {brought[claim]} leases for {exchange.asked}"
    for agent, spans in case.executions_of_agent.items():
        edges = sorted([(one.begun, 1) for one in spans] + [(one.ended, -1) for one in spans])
        running = 0
        for at_ns, step in edges:
            running += step
            if running > SLOTS:
                yield f"agent {agent}: {running} measurements at once at {at_ns}"
                break


def nothing_runs_past_its_lease(case: Case) -> Finding:
    """I6: a measurement begins, and ends, before its lease does, as its agent was told it.

    The deadline is the proxy's: when it saw the request, plus what the answer granted. The agent's
    own is earlier by its margin, which is all that a busy machine is allowed.
    """
    for one in case.evidence.executions:
        until_ns = case.until_ns.get(one.lease_id)
        if until_ns is None or case.holder[one.lease_id] != one.agent:
            yield f"lease {one.lease_id}: measured by agent {one.agent}, which was not granted it"
            continue
        allowed_ns = case.woken_by(one.agent, until_ns)
        if one.begun > allowed_ns:
            yield (
                f"lease {one.lease_id}: begun {(one.begun - until_ns) / NS_PER_MS:.0f} ms after"
                f" its end by agent {one.agent}"
            )
        elif one.ended > allowed_ns:
            yield (
                f"lease {one.lease_id}: measured for {(one.ended - until_ns) / NS_PER_MS:.0f} ms"
                f" past its end by agent {one.agent}"
            )


def no_task_vanishes(case: Case) -> Finding:
    """I7: every task that was queued is finished, given up or live, one of them only; none else."""
    dead = Counter(row.task_id for row in case.evidence.dead)
    live = Counter(case.evidence.live_tasks)
    for task_id in case.task_ids:
        places = bool(case.final.get(task_id)) + live[task_id]
        # One that was given up may have a final result beside: that of its last, failed attempt.
        if places + dead[task_id] == 0:
            yield f"task {task_id} vanished"
        elif places > 1:
            yield f"task {task_id} is finished and live"
    strangers = (case.final.keys() | dead.keys() | live.keys()) - case.task_ids
    for task_id in sorted(strangers)[:10]:
        yield f"task {task_id} was never queued"


def attempts_are_bounded(case: Case) -> Finding:
    """I8: no attempt beyond a task's last; what was given up says why."""
    for exchange in case.evidence.exchanges:
        for grant in exchange.grants:
            if grant.attempt > grant.max_attempts:
                yield f"task {grant.task_id}: attempt {grant.attempt} of {grant.max_attempts}"
    for row in case.evidence.dead:
        if not row.reason:
            yield f"task {row.task_id} was given up without a reason"


def spools_empty(case: Case) -> Finding:
    """I9: nothing waits in a spool at the end, and what was measured to its end was answered for.

    Unless its agent was killed before it can have written the result down.
    """
    for spool in case.spools:
        if spool.lease_ids:
            yield f"agent {spool.agent}: {len(spool.lease_ids)} results wait in its spool"
    for one in case.evidence.executions:
        if one.is_whole and one.lease_id not in case.answered:
            died_ns = case.died_after(one.agent, one.begun)
            if died_ns is None or not case.is_unwritten(one.agent, one.ended, died_ns, SPOOLING_NS):
                yield f"lease {one.lease_id}: measured by agent {one.agent}, never answered for"


def sizes_are_bounded(case: Case) -> Finding:
    """I12: memory and descriptors stay within bounds."""
    worst: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for sample in case.samples:
        rss, fds = worst[sample.who]
        worst[sample.who] = max(rss, sample.rss_bytes), max(fds, sample.fds)
    for who, (rss, fds) in worst.items():
        role = who.partition("-")[0]
        if rss > RSS_MAX_BYTES[role]:
            yield f"{who}: {rss >> 20} MiB resident"
        if fds > FDS_MAX[role]:
            yield f"{who}: {fds} descriptors"


def nothing_hangs(case: Case) -> Finding:
    """I13: the server answers whatever reached it, unless it was in trouble itself."""
    for one in case.evidence.exchanges:
        if one.sent is None or one.answered is None or one.answered - one.sent <= ANSWER_NS:
            continue
        if not case.server_was_in_trouble(one.sent, one.answered):
            seconds = (one.answered - one.sent) / NS_PER_S
            yield f"agent {one.agent}: {one.verb} was answered after {seconds:.1f} s"


def credentials_last(case: Case) -> Finding:
    """I14: no agent is locked out: after each refused token comes one that is accepted."""
    refused: dict[int, int] = {}
    for one in case.evidence.exchanges:
        if one.status in (401, 403) and not one.is_copy:
            refused.setdefault(one.agent, one.ended)
        elif one.status == 200 and one.verb != "register":
            refused.pop(one.agent, None)
    for agent in refused:
        yield f"agent {agent}: its token was refused, and none was accepted after"


def stream_is_whole(case: Case) -> Finding:
    """I15: the pages of the result stream are the accepted results, each once."""
    paged = Counter(lease_id for page in case.pages for lease_id in page.lease_ids)
    final = {row.lease_id for row in case.evidence.results if row.is_final}
    for lease_id, times in paged.items():
        if times > 1:
            yield f"lease {lease_id}: {times} times in the result stream"
        if lease_id not in final:
            yield f"lease {lease_id}: in the result stream, and not stored"
    for lease_id in sorted(final - paged.keys())[:10]:
        yield f"lease {lease_id}: stored, and not in the result stream"


def faults_are_recovered_from(case: Case) -> Finding:
    """I16: leases that were held at a fault have ended two terms and half a minute after it."""
    for calm in case.calms:
        if calm.recovered is None:
            yield f"{len(calm.left)} of {calm.held} leases did not end, such as {calm.left[:3]}"
        elif calm.recovered - calm.faults_ended > RECOVERY_NS:
            yield f"recovery took {(calm.recovered - calm.faults_ended) / NS_PER_S:.1f} s"


def nobody_gives_up(case: Case) -> Finding:
    """P6: no process ends by itself, but for one that a shortage did not let begin; a drain ends.

    The rig starts it again, as a service manager would. One that is still starting dies of SIGTERM.
    """
    for life in case.lives:
        started_ns = case.started_by(life.who, life.begun, START_NS)
        is_drain = life.how.startswith("SIGTERM")
        if is_drain and not is_drained(life) and life.ended > started_ns:
            yield f"{life.who} was drained and ended by {life.how} with status {life.status}"
        is_alone = life.how == "by itself"
        if is_alone and not case.lacked_something(life.who, life.begun, started_ns):
            begun_ago = (life.ended - life.begun) / NS_PER_S
            yield f"{life.who} ended by itself with status {life.status} after {begun_ago:.0f} s"


def nobody_starves(case: Case) -> Finding:
    """I17: no task waits for its first lease while those queued later than it get theirs.

    Work is always waiting in a run, so that an age says nothing: order does. A grant whose answer
    was lost was not seen, and the task's next one comes after its requeue: that long is allowed.
    """
    earliest_later_ns = 2**63
    for task_ids in reversed(case.batches):
        firsts = [case.first_granted_ns[one] for one in task_ids if one in case.first_granted_ns]
        for at_ns in firsts:
            if at_ns - earliest_later_ns > 2 * RECOVERY_NS:
                yield f"a task was overtaken for {(at_ns - earliest_later_ns) / NS_PER_S:.0f} s"
        earliest_later_ns = min([earliest_later_ns, *firsts])


INVARIANTS: Mapping[str, Callable[[Case], Finding]] = {
    "I1": acknowledged_is_stored,
    "I2": accepted_once,
    "I3": accepted_is_last_granted,
    "I3 measured": accepted_was_measured,
    "I4": accepted_do_not_overlap,
    "I5": capacity_is_kept,
    "I6": nothing_runs_past_its_lease,
    "I7": no_task_vanishes,
    "I8": attempts_are_bounded,
    "I9": spools_empty,
    "I10": metrics_are_counted_once,
    "I11": configurations_only_grow,
    "I12": sizes_are_bounded,
    "I13": nothing_hangs,
    "I14": credentials_last,
    "I15": stream_is_whole,
    "I16": faults_are_recovered_from,
    "P6": nobody_gives_up,
    "I17": nobody_starves,
    "drain": drained_claim_nothing,
}
