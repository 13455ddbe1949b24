"""Agents, checks and remembered answers in SQLite."""

from collections.abc import Mapping, Sequence
from typing import Any

from netsonde.server.store.agents import AgentRow, TokenRow
from netsonde.server.store.base import RememberedAnswer
from netsonde.server.store.checks import CheckRow
from netsonde.server.store.sqlite_tasks import Database


class SqliteRecords:
    """Verbs over what changes rarely."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def count(self, counter: str, by: int) -> None:
        """Add to a counter that survives restarts."""
        if by:
            self._db.run("count", counter, by)

    def counters(self) -> dict[str, int]:
        """Return the counters."""
        return dict(self._db.run("counters").fetchall())

    # agents

    def new_agent_id(self) -> int:
        """Return an id no agent has had."""
        return self._db.next_id("next_agent")

    def save_agent(self, agent: AgentRow) -> None:
        """Insert or replace an agent."""
        self._db.run(
            "save_agent",
            agent.agent_id,
            agent.identity,
            agent.hostname,
            agent.is_legacy,
            agent.registered_ns,
            agent.last_seen_ns,
            agent.instance_id,
            agent.labels,
            agent.has_operator_labels,
            agent.is_disabled,
            agent.document,
        )
        self._db.run("drop_tokens", agent.agent_id)
        self._db.run_many(
            "add_token",
            (
                (agent.agent_id, position, token.digest, token.is_used, token.until_ns)
                for position, token in enumerate(agent.tokens)
            ),
        )

    def agent(self, agent_id: int) -> AgentRow | None:
        """Return one agent."""
        return self._agent(self._db.run("agent", agent_id).fetchone())

    def agent_by_identity(self, identity: str) -> AgentRow | None:
        """Return the agent of an identity."""
        return self._agent(self._db.run("agent_by_identity", identity).fetchone())

    def agents(self, after: int, limit: int) -> list[AgentRow]:
        """Return agents by id, those above `after`."""
        rows = self._db.run("agents", after, limit).fetchall()
        return [agent for agent in map(self._agent, rows) if agent is not None]

    def _agent(self, row: Sequence[Any] | None) -> AgentRow | None:
        if row is None:
            return None
        tokens = self._db.run("tokens", row[0]).fetchall()
        return AgentRow(
            agent_id=row[0],
            identity=row[1],
            hostname=row[2],
            is_legacy=bool(row[3]),
            registered_ns=row[4],
            last_seen_ns=row[5],
            instance_id=row[6],
            labels=row[7],
            has_operator_labels=bool(row[8]),
            is_disabled=bool(row[9]),
            document=row[10],
            tokens=tuple(TokenRow(digest, bool(used), until) for digest, used, until in tokens),
        )

    def saw_agents(self, seen: Mapping[int, int]) -> None:
        """Note when agents were last heard of."""
        self._db.run_many("saw_agent", ((seen_ns, agent_id) for agent_id, seen_ns in seen.items()))

    def label_queue(self, labels: bytes) -> int:
        """Return the queue of a set of labels, making it when it is new."""
        self._db.run("add_label_queue", labels)
        queue: int = self._db.run("label_queue", labels).fetchone()[0]
        return queue

    def label_queues(self) -> dict[int, bytes]:
        """Return the label sets that have a queue."""
        return dict(self._db.run("label_queues").fetchall())

    # checks

    def new_check_id(self) -> int:
        """Return an id no check has had."""
        return self._db.next_id("next_check")

    def save_check(self, check: CheckRow) -> None:
        """Insert or replace a check."""
        self._db.run(
            "save_check",
            check.check_id,
            check.document,
            check.is_enabled,
            check.next_ns,
            check.created_ns,
            check.tick,
            check.tasks,
            check.skipped,
            check.missed,
        )

    def check(self, check_id: int) -> CheckRow | None:
        """Return one check."""
        row = self._db.run("check", check_id).fetchone()
        return None if row is None else _check(row)

    def checks(self, after: int, limit: int) -> list[CheckRow]:
        """Return checks by id, those above `after`."""
        return [_check(row) for row in self._db.run("checks", after, limit).fetchall()]

    def check_count(self) -> int:
        """Return how many checks there are."""
        count: int = self._db.run("check_count").fetchone()[0]
        return count

    def add_missed(self, check_id: int, by: int) -> None:
        """Add to what a check counts as missed."""
        self._db.run("add_missed", by, check_id)

    def delete_check(self, check_id: int) -> None:
        """Remove a check's definition."""
        self._db.run("delete_check", check_id)

    def checks_due(self, now_ns: int, limit: int) -> list[CheckRow]:
        """Return enabled checks whose tick has come."""
        return [_check(row) for row in self._db.run("checks_due", now_ns, limit).fetchall()]

    def next_tick_ns(self) -> int | None:
        """Return when the next check is due."""
        instant: int | None = self._db.run("next_tick").fetchone()[0]
        return instant

    # idempotency

    def recall(self, key: str) -> RememberedAnswer | None:
        """Return what a key was answered with."""
        row = self._db.run("recall", key).fetchone()
        return None if row is None else RememberedAnswer(*row)

    def remember(self, key: str, answer: RememberedAnswer, now_ns: int) -> None:
        """Keep a key's answer."""
        self._db.run("remember", key, answer.body_digest, answer.status, answer.body, now_ns)

    def forget_before(self, instant_ns: int, limit: int) -> None:
        """Drop answers that are older, the oldest first, so many at most."""
        self._db.run("forget_before", instant_ns, limit)


def _check(row: Sequence[Any]) -> CheckRow:
    return CheckRow(
        check_id=row[0],
        document=row[1],
        is_enabled=bool(row[2]),
        next_ns=row[3],
        created_ns=row[4],
        tick=row[5],
        tasks=row[6],
        skipped=row[7],
        missed=row[8],
    )
