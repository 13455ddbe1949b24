"""Agents, checks and remembered answers in memory."""

from collections.abc import Mapping
from dataclasses import replace

from netsonde.server.store.agents import AgentRow
from netsonde.server.store.base import RememberedAnswer
from netsonde.server.store.checks import CheckRow


class MemoryRecords:
    """Verbs over what changes rarely."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._counters: dict[str, int] = {}
        self._agents: dict[int, AgentRow] = {}
        self._identities: dict[str, int] = {}
        self._label_queues: dict[bytes, int] = {}
        self._checks: dict[int, CheckRow] = {}
        self._answers: dict[str, tuple[RememberedAnswer, int]] = {}

    def next_id(self, name: str, count: int = 1) -> int:
        """Reserve count ids of a sequence and return the first."""
        first = self._next.get(name, 1)
        self._next[name] = first + count
        return first

    def count(self, counter: str, by: int) -> None:
        """Add to a counter."""
        if by:
            self._counters[counter] = self._counters.get(counter, 0) + by

    def counters(self) -> dict[str, int]:
        """Return the counters."""
        return dict(self._counters)

    # agents

    def new_agent_id(self) -> int:
        """Return an id no agent has had."""
        return self.next_id("agent")

    def save_agent(self, agent: AgentRow) -> None:
        """Insert or replace an agent."""
        self._agents[agent.agent_id] = agent
        self._identities[agent.identity] = agent.agent_id

    def agent(self, agent_id: int) -> AgentRow | None:
        """Return one agent."""
        return self._agents.get(agent_id)

    def agent_by_identity(self, identity: str) -> AgentRow | None:
        """Return the agent of an identity."""
        agent_id = self._identities.get(identity)
        return None if agent_id is None else self._agents[agent_id]

    def agents(self, after: int, limit: int) -> list[AgentRow]:
        """Return agents by id, those above `after`."""
        ids = [agent_id for agent_id in sorted(self._agents) if agent_id > after]
        return [self._agents[agent_id] for agent_id in ids[:limit]]

    def saw_agents(self, seen: Mapping[int, int]) -> None:
        """Note when agents were last heard of."""
        for agent_id, seen_ns in seen.items():
            agent = self._agents.get(agent_id)
            if agent is not None:
                latest = max(agent.last_seen_ns, seen_ns)
                self._agents[agent_id] = replace(agent, last_seen_ns=latest)

    def label_queue(self, labels: bytes) -> int:
        """Return the queue of a set of labels, making it when it is new."""
        return self._label_queues.setdefault(labels, len(self._label_queues) + 1)

    def label_queues(self) -> dict[int, bytes]:
        """Return the label sets that have a queue."""
        return {queue: labels for labels, queue in self._label_queues.items()}

    # checks

    def new_check_id(self) -> int:
        """Return an id no check has had."""
        return self.next_id("check")

    def save_check(self, check: CheckRow) -> None:
        """Insert or replace a check."""
        self._checks[check.check_id] = check

    def check(self, check_id: int) -> CheckRow | None:
        """Return one check."""
        return self._checks.get(check_id)

    def checks(self, after: int, limit: int) -> list[CheckRow]:
        """Return checks by id, those above `after`."""
        ids = [check_id for check_id in sorted(self._checks) if check_id > after]
        return [self._checks[check_id] for check_id in ids[:limit]]

    def check_count(self) -> int:
        """Return how many checks there are."""
        return len(self._checks)

    def add_missed(self, check_id: int, by: int) -> None:
        """Add to what a check counts as missed."""
        check = self._checks.get(check_id)
        if check is not None:
            self._checks[check_id] = replace(check, missed=check.missed + by)

    def delete_check(self, check_id: int) -> None:
        """Remove a check's definition."""
        self._checks.pop(check_id, None)

    def checks_due(self, now_ns: int, limit: int) -> list[CheckRow]:
        """Return enabled checks whose tick has come."""
        due = [
            (check.next_ns, check.check_id)
            for check in self._checks.values()
            if check.is_enabled and check.next_ns is not None and check.next_ns <= now_ns
        ]
        return [self._checks[check_id] for _, check_id in sorted(due)[:limit]]

    def next_tick_ns(self) -> int | None:
        """Return when the next check is due."""
        return min(
            (
                check.next_ns
                for check in self._checks.values()
                if check.is_enabled and check.next_ns is not None
            ),
            default=None,
        )

    # idempotency

    def recall(self, key: str) -> RememberedAnswer | None:
        """Return what a key was answered with."""
        kept = self._answers.get(key)
        return None if kept is None else kept[0]

    def remember(self, key: str, answer: RememberedAnswer, now_ns: int) -> None:
        """Keep a key's answer."""
        self._answers[key] = (answer, now_ns)

    def forget_before(self, instant_ns: int, limit: int) -> None:
        """Drop answers that are older, the oldest first, so many at most."""
        old = [key for key, (_, kept_ns) in self._answers.items() if kept_ns < instant_ns]
        for key in sorted(old, key=lambda key: self._answers[key][1])[:limit]:
            del self._answers[key]
