"""Heartbeats, commands and drained agents in SQLite."""

from collections.abc import Collection, Sequence

from netsonde import wire
from netsonde.server.store.fleet import Command, HeartbeatRow
from netsonde.server.store.sqlite_tasks import Database, id_list


class SqliteFleet:
    """Verbs over the tables heartbeat, command and drained_agent."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def save_heartbeats(self, heartbeats: Sequence[HeartbeatRow]) -> None:
        """Insert or replace agents' last heartbeats."""
        self._db.run_many(
            "save_heartbeat",
            [
                (
                    row.agent_id,
                    row.instance_id,
                    row.seq,
                    row.heard_ns,
                    row.state,
                    row.document,
                    wire.encode(row.retired).decode(),
                )
                for row in heartbeats
            ],
        )

    def heartbeats(self) -> list[HeartbeatRow]:
        """Return every agent's last heartbeat, by agent."""
        return [
            HeartbeatRow(
                agent_id=row[0],
                instance_id=row[1],
                seq=row[2],
                heard_ns=row[3],
                state=row[4],
                document=row[5],
                retired=tuple(wire.parse(row[6].encode())),
            )
            for row in self._db.run("heartbeats").fetchall()
        ]

    def drain_agent(self, agent_id: int, now_ns: int) -> None:
        """Grant an agent nothing from now on; one that is drained already stays so."""
        self._db.run("drain_agent", agent_id, now_ns)

    def resume_agent(self, agent_id: int) -> None:
        """Grant an agent work again."""
        self._db.run("resume_agent", agent_id)

    def drained_agents(self) -> dict[int, int]:
        """Return which agents are drained, and since when."""
        return dict(self._db.run("drained_agents").fetchall())

    def drained_since(self, agent_id: int) -> int | None:
        """Return since when an agent is drained, None when it is not."""
        row = self._db.run("drained_since", agent_id).fetchone()
        return None if row is None else row[0]

    def is_barred(self, agent_id: int) -> bool:
        """Whether an agent is drained or disabled."""
        return bool(self._db.run("is_barred", agent_id).fetchone()[0])

    def order(self, agent_id: int, type_: str, now_ns: int) -> None:
        """Order something of an agent; an open command of that type stays the only one."""
        if self._db.run("open_command", agent_id, type_).fetchone() is None:
            command_id = self._db.next_id("next_command")
            self._db.run("add_command", command_id, agent_id, type_, now_ns)

    def call_off(self, agent_id: int, type_: str) -> None:
        """Drop an open command that is no longer wanted."""
        self._db.run("call_off", agent_id, type_)

    def commands(self, agent_ids: Collection[int]) -> list[Command]:
        """Return agents' open commands, in the order they were given."""
        rows = self._db.run("commands", id_list(agent_ids)).fetchall()
        return [Command(*row) for row in rows]

    def settle_commands(self, agent_id: int, command_ids: Collection[int]) -> int:
        """Drop commands that an agent has carried out; return how many of them were open."""
        return self._db.run("settle_commands", agent_id, id_list(command_ids)).rowcount
