"""The evidence, put in order for the invariants: who was granted what until when. Pure."""

from bisect import bisect_left, insort
from collections import defaultdict
from functools import cached_property
from typing import TypeVar

from netsonde.clock import NS_PER_MS
from support.chaos.evidence import (
    Began,
    Calm,
    Evidence,
    Execution,
    Lived,
    Page,
    ResultRow,
    Sampled,
    Session,
    Spooled,
    Struck,
    Submitted,
)
from support.chaos.faults import AGENT_FAULTS, SERVER, SERVER_FAULTS, SHORTAGES, Fault

E = TypeVar("E")
WON = frozenset({"accepted", "late_accepted"})
SERVER_AFTER_NS = 10_000_000_000  # a server that was in trouble works off what waited


class Case:
    """Indexes over one run's evidence, made when they are first needed."""

    def __init__(self, evidence: Evidence, wake_ns: int) -> None:
        self.evidence = evidence
        self._wake_ns = wake_ns
        submitted = self.of(Submitted)
        self.batches = [one.task_ids for one in submitted]
        self.task_ids = {task_id for batch in self.batches for task_id in batch}
        self.pages = self.of(Page)
        self.calms = self.of(Calm)
        self.samples = self.of(Sampled)
        self.spools = list({one.agent: one for one in self.of(Spooled)}.values())  # the last ones
        self.sessions = self.of(Session)
        self.lives = self.of(Lived)
        self.struck = self.of(Struck)
        self.lasted = list(self.struck)  # and faults that nobody lived to end
        self._deaths: defaultdict[str, list[int]] = defaultdict(list)
        for life in self.lives:
            if not is_drained(life):  # which is no excuse for anything
                self._deaths[life.who].append(life.ended)
        self._end_sessions()
        self.until_ns: dict[int, int] = {}
        self.holder: dict[int, int] = {}
        self.granted_ns: dict[int, int] = {}
        self.last_grant: dict[int, int] = {}
        self.first_granted_ns: dict[int, int] = {}
        self.answered: set[int] = set()
        self.taken_ns: dict[int, int] = {}  # by lease: when the report was begun that won it
        self.agent_ids: dict[int, int] = {}
        self._follow_leases()
        self._name_agents()

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of a kind, in their order."""
        return [event for event in self.evidence.events if isinstance(event, kind)]

    def _end_sessions(self) -> None:
        """A rig that was killed took all its processes along, when it wrote its last line."""
        agents = {f"agent-{one.agent}" for one in self.evidence.exchanges}
        ends_ns = []
        for session in self.sessions[1:]:
            seen_ns = [one.ended for one in self.evidence.exchanges if one.ended < session.at]
            seen_ns += [one.ended for one in self.evidence.executions if one.ended < session.at]
            ends_ns.append(max(seen_ns, default=0))
            for who in agents:
                insort(self._deaths[who], ends_ns[-1])
        struck = {one.number for one in self.struck}
        for one in self.of(Began):
            ended_ns = next((at for at in ends_ns if at >= one.at), None)
            if one.number not in struck and ended_ns is not None:
                self.lasted.append(
                    Struck(
                        number=one.number, fault=one.fault, agent=one.agent, begun=one.at,
                        ended=ended_ns,
                    )
                )  # fmt: skip

    def _follow_leases(self) -> None:
        """Note each lease's longest term, as far as its agent can have heard of it."""
        for one in self.evidence.exchanges:
            self.answered.update(lease_id for lease_id, status in one.results if status != "retry")
            for lease_id, status in one.results:
                if status in WON:
                    self.taken_ns[lease_id] = one.begun
            for grant in one.grants:
                until_ns = one.begun + (grant.after_ms + grant.until_ms) * NS_PER_MS
                self._allow(grant.lease_id, until_ns if one.told == "whole" else 0)
                self.holder[grant.lease_id] = one.agent
                at_ns = one.begun if one.answered is None else one.answered
                self.granted_ns.setdefault(grant.lease_id, at_ns)
                self.first_granted_ns.setdefault(grant.task_id, at_ns)
                last = self.last_grant.get(grant.task_id, 0)
                self.last_grant[grant.task_id] = max(last, grant.lease_id)
            if one.told == "whole":
                for lease_id, by_ms in one.extended:
                    self._allow(lease_id, one.begun + by_ms * NS_PER_MS)

    def _allow(self, lease_id: int, until_ns: int) -> None:
        self.until_ns[lease_id] = max(self.until_ns.get(lease_id, 0), until_ns)

    def _name_agents(self) -> None:
        """Learn the server's id of each agent, by the first result of a lease it was granted."""
        for row in self.evidence.results:
            holder = self.holder.get(row.lease_id)
            if holder is not None:
                self.agent_ids.setdefault(holder, row.agent_id)

    @cached_property
    def final(self) -> dict[int, list[ResultRow]]:
        """Final results by task."""
        found: defaultdict[int, list[ResultRow]] = defaultdict(list)
        for row in self.evidence.results:
            if row.is_final:
                found[row.task_id].append(row)
        return dict(found)

    @cached_property
    def rows_of_task(self) -> dict[int, list[ResultRow]]:
        """All results of the tasks that have several."""
        found: defaultdict[int, list[ResultRow]] = defaultdict(list)
        for row in self.evidence.results:
            found[row.task_id].append(row)
        return {task_id: rows for task_id, rows in found.items() if len(rows) > 1}

    @cached_property
    def executions_of_agent(self) -> dict[int, list[Execution]]:
        """Executions by agent."""
        found: defaultdict[int, list[Execution]] = defaultdict(list)
        for one in self.evidence.executions:
            found[one.agent].append(one)
        return dict(found)

    @cached_property
    def _stops(self) -> dict[int, list[Struck]]:
        found: defaultdict[int, list[Struck]] = defaultdict(list)
        for one in self.lasted:
            if one.fault == Fault.AGENT_STOPPED:
                found[one.agent].append(one)
        return dict(found)

    def woken_by(self, agent: int, until_ns: int) -> int:
        """Return an instant, or a little after the agent woke that was stopped up to it."""
        for stop in self._stops.get(agent, ()):
            if stop.begun <= until_ns <= stop.ended + self._wake_ns:
                return max(until_ns, stop.ended + self._wake_ns)
        return until_ns

    def died_after(self, agent: int, at_ns: int) -> int | None:
        """Return when an agent's process ended that lived at an instant; None: it did not."""
        deaths = self._deaths.get(f"agent-{agent}", [])
        place = bisect_left(deaths, at_ns)
        return deaths[place] if place < len(deaths) else None

    def is_unwritten(self, agent: int, ended_ns: int, died_ns: int, within_ns: int) -> bool:
        """Whether an agent may have died before it wrote down what it measured."""
        if died_ns - ended_ns <= within_ns:
            return True
        return any(
            one.agent == agent
            and one.fault in AGENT_FAULTS - {Fault.AGENT_DRAINED}
            and one.begun <= ended_ns + within_ns
            and died_ns <= one.ended + within_ns
            for one in self.lasted
        )

    def started_by(self, who: str, begun_ns: int, within_ns: int) -> int:
        """Return when a process must have started: it may have been stopped meanwhile."""
        agent, until_ns = _number(who), begun_ns + within_ns
        for one in sorted(self.lasted, key=lambda one: one.begun):
            is_stop = one.fault in (Fault.AGENT_STOPPED, Fault.SERVER_STOPPED)
            if is_stop and one.agent == agent and begun_ns <= one.begun <= until_ns:
                until_ns += one.ended - one.begun
        return until_ns

    def lacked_something(self, who: str, begun_ns: int, ended_ns: int) -> bool:
        """Whether a process had no disk or no descriptors at some time between two instants."""
        agent = _number(who)
        return any(
            one.agent == agent
            and one.fault in SHORTAGES
            and one.begun <= ended_ns
            and begun_ns <= one.ended
            for one in self.lasted
        )

    def server_was_in_trouble(self, begun_ns: int, ended_ns: int) -> bool:
        """Whether a fault befell the server, or ended shortly before, between two instants."""
        return any(
            one.fault in SERVER_FAULTS
            and one.begun <= ended_ns
            and one.ended + SERVER_AFTER_NS >= begun_ns
            for one in self.lasted
        )


def is_drained(life: Lived) -> bool:
    """Whether a process was asked to end, and did."""
    return life.how == "SIGTERM" and life.status == 0


def _number(who: str) -> int:
    """Return what faults call a process."""
    return SERVER if who == "server" else int(who.removeprefix("agent-"))
