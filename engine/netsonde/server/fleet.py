"""The fleet: how agents say they are, what is ordered of them, which are granted nothing.

Commands and who is drained are the store's, decided in its transactions. Heartbeats are not worth a
commit each: the last one of every agent is kept here and written down now and then.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from netsonde import wire
from netsonde.clock import NS_PER_S, rfc3339
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import MINTED_ID_MAX, AgentCommand, CommandType, HeartbeatRequest
from netsonde.server.leasing import Change, HeldTask, LeasingPolicy, ServerTime
from netsonde.server.registry import INSTANCE_MAX_CHARS, update_agent
from netsonde.server.store import Store, StoreWriter
from netsonde.server.store.agents import AgentRow
from netsonde.server.store.fleet import Command, HeartbeatRow

HEARTBEATS_MISSED = 3  # before an agent counts as late
FLUSH_ROWS = 500  # at once, so that reports wait for milliseconds
FLUSH_NS = 10 * NS_PER_S  # how much of what agents said of themselves a crash may forget
RETIRED_MAX = 8  # instances whose heartbeats may still be under way: restarts within minutes
DOCUMENT_MAX_BYTES = 4 << 10  # of an agent's health; ours has 300
STATE_MAX_CHARS = 32
DONE_COMMANDS_MAX = 100  # an agent has one open command of a type


class Fleet:
    """Hears heartbeats and gives orders.

    `drained` are the agents that are granted nothing, as far as this process knows; a claim asks
    the store.
    """

    def __init__(self, time: ServerTime, writer: StoreWriter) -> None:
        self.drained: dict[int, int] = {}
        self._time = time
        self._writer = writer
        self._heard: dict[int, HeartbeatRow] = {}
        self._unwritten: set[int] = set()
        self._flushed_ns = time.now_ns()

    def load(self, store: Store, agents: Iterable[AgentRow]) -> None:
        """Read what is known of every agent.

        A registration is durable before the heartbeat that tells of it is written down.
        """
        self._heard = {row.agent_id: row for row in store.heartbeats()}
        self.drained = store.drained_agents()
        for agent in agents:
            row = self._heard.get(agent.agent_id)
            if row is None or agent.instance_id not in row.retired:
                self.began(agent)

    # ── what agents say ──

    def began(self, agent: AgentRow) -> None:
        """Take note that an agent registered: another instance than before knows nothing yet."""
        row = self._heard.get(agent.agent_id, HeartbeatRow(agent_id=agent.agent_id))
        if agent.instance_id is not None and agent.instance_id != row.instance_id:
            self._keep(_followed(row, agent.instance_id))

    async def heard(self, agent: AgentRow, beat: HeartbeatRequest) -> tuple[AgentCommand, ...]:
        """Take note of a heartbeat; return what its agent has yet to carry out.

        One of an earlier instance changes nothing. One that was overtaken by a later one says
        nothing new of its agent.

        Raises:
            RequestError: ERR_VALIDATION.
        """
        _check(beat)
        if not beat.instance_id:
            return ()  # an original agent, which takes no orders
        instance_id = beat.instance_id[:INSTANCE_MAX_CHARS]
        row = self._heard.get(agent.agent_id, HeartbeatRow(agent_id=agent.agent_id))
        if instance_id in row.retired:
            return ()
        if instance_id != row.instance_id:  # it goes on with an identity that it was given
            row = _followed(row, instance_id)
        is_new = beat.seq is None or row.seq is None or beat.seq > row.seq
        if is_new:
            self._keep(_with_beat(row, beat, self._time.now_ns()))
        return await self._commands(agent.agent_id, beat, is_new=is_new)

    def _keep(self, row: HeartbeatRow) -> None:
        self._heard[row.agent_id] = row
        self._unwritten.add(row.agent_id)

    async def _commands(
        self, agent_id: int, beat: HeartbeatRequest, *, is_new: bool
    ) -> tuple[AgentCommand, ...]:
        """Settle what was carried out; return what is open.

        An agent that works although it is drained has begun anew since: it is told again.
        """
        works = is_new and beat.state == "active"

        def look(store: Store) -> tuple[list[Command], bool]:
            is_drained = works and store.drained_since(agent_id) is not None
            return store.commands([agent_id]), is_drained

        open_, is_drained = await self._writer.read(look)
        is_told = any(command.type == CommandType.DRAIN for command in open_)
        if beat.done_commands or (is_drained and not is_told):
            open_ = await self._writer.write(
                lambda store: self._settle(store, agent_id, beat.done_commands, works=works)
            )
        return tuple(AgentCommand(id=one.command_id, type=one.type) for one in open_)

    def _settle(
        self, store: Store, agent_id: int, done: Sequence[int], *, works: bool
    ) -> list[Command]:
        if done:
            store.settle_commands(agent_id, done)
        if works and store.drained_since(agent_id) is not None:
            store.order(agent_id, CommandType.DRAIN, self._time.now_ns())
        return store.commands([agent_id])

    async def flush(self, *, at_once: bool = False) -> None:
        """Write down what agents said of themselves, now and then."""
        now_ns = self._time.now_ns()
        if not self._unwritten or (not at_once and now_ns - self._flushed_ns < FLUSH_NS):
            return
        self._flushed_ns = now_ns
        waiting = sorted(self._unwritten)
        for start in range(0, len(waiting), FLUSH_ROWS):
            rows = [self._heard[agent_id] for agent_id in waiting[start : start + FLUSH_ROWS]]
            await self._writer.write(partial(_save, rows), len(rows))
            # One that was heard of meanwhile waits for the next time.
            written = {row.agent_id for row in rows if self._heard[row.agent_id] is row}
            self._unwritten -= written

    def note_drained(self, agent_id: int, since_ns: int | None) -> None:
        """Take over what a committed transaction decided."""
        if since_ns is None:
            self.drained.pop(agent_id, None)
        else:
            self.drained[agent_id] = since_ns

    # ── what is shown ──

    def shown(
        self, agent_id: int, commands: Collection[Command], since_ns: int | None
    ) -> Mapping[str, Any]:
        """Write how an agent is and what is wanted of it; since_ns: when it was drained."""
        row = self._heard.get(agent_id, HeartbeatRow(agent_id=agent_id))
        said = wire.parse(row.document)
        return {
            "state": row.state,
            "heartbeat_at": None if row.heard_ns is None else rfc3339(row.heard_ns),
            "active_leases": said.get("active_leases"),
            "health": said.get("health", {}),
            "drained": since_ns is not None,
            "drained_at": None if since_ns is None else rfc3339(since_ns),
            "commands": [
                {
                    "id": command.command_id,
                    "type": command.type,
                    "ordered_at": rfc3339(command.ordered_ns),
                }
                for command in commands
                if command.agent_id == agent_id
            ],
        }


def _save(rows: Sequence[HeartbeatRow], store: Store) -> None:
    store.save_heartbeats(rows)


# ── orders, inside a transaction ──


def drain(store: Store, agent: AgentRow, now_ns: int) -> None:
    """Grant an agent nothing, and order it to give back what it has not begun."""
    store.drain_agent(agent.agent_id, now_ns)
    store.call_off(agent.agent_id, CommandType.RESUME)
    if not agent.is_legacy:
        store.order(agent.agent_id, CommandType.DRAIN, now_ns)


def resume(store: Store, agent: AgentRow, now_ns: int) -> None:
    """Grant an agent work again, and order it to ask for some.

    The order is given whatever is known: the agent may know better that it stands by.
    """
    store.resume_agent(agent.agent_id)
    store.call_off(agent.agent_id, CommandType.DRAIN)
    if not agent.is_legacy:
        store.order(agent.agent_id, CommandType.RESUME, now_ns)


def revoke(
    store: Store, agent_id: int, policy: LeasingPolicy, now_ns: int
) -> tuple[AgentRow, list[tuple[HeldTask, Change]]]:
    """Shut an agent out: its tokens end, what it holds is somebody else's to do.

    Raises:
        RequestError: ERR_NOT_FOUND.
    """

    def change(row: AgentRow) -> AgentRow:
        ends = [now_ns if one.until_ns is None else min(one.until_ns, now_ns) for one in row.tokens]
        dead = [replace(one, until_ns=end) for one, end in zip(row.tokens, ends, strict=True)]
        return replace(row, is_disabled=True, tokens=tuple(dead))

    agent = update_agent(store, agent_id, change)
    back = [
        (held, policy.give_back(held, now_ns, keeps_lease=False))
        for held in store.held_by(agent_id)
    ]
    store.apply([change for _, change in back], now_ns)
    store.count("returned", len(back))
    return agent, back


def is_revoked(agent: AgentRow, now_ns: int) -> bool:
    """Whether an agent is shut out until it is enabled and registers again."""
    ends = [token.until_ns for token in agent.tokens]
    return agent.is_disabled and all(end_ns is not None and end_ns <= now_ns for end_ns in ends)


def known_agent(store: Store, agent_id: int) -> AgentRow:
    """Return an agent.

    Raises:
        RequestError: ERR_NOT_FOUND.
    """
    agent = store.agent(agent_id) if 0 < agent_id <= MINTED_ID_MAX else None
    if agent is None:
        raise RequestError(ErrorCode.NOT_FOUND, f"there is no agent {agent_id}")
    return agent


# ── heartbeats ──


def _check(beat: HeartbeatRequest) -> None:
    if beat.seq is not None and not 0 <= beat.seq <= MINTED_ID_MAX:
        raise _refusal("seq", f"seq must be 0 to {MINTED_ID_MAX}")
    if len(beat.done_commands) > DONE_COMMANDS_MAX:
        raise _refusal("done_commands", f"at most {DONE_COMMANDS_MAX} done_commands are allowed")
    if not all(0 < one <= MINTED_ID_MAX for one in beat.done_commands):
        raise _refusal("done_commands", f"a command's id is 1 to {MINTED_ID_MAX}")


def _followed(row: HeartbeatRow, instance_id: str) -> HeartbeatRow:
    """Begin a new instance, of which nothing is known but that it is there."""
    earlier = [one for one in (row.instance_id, *row.retired) if one is not None]
    retired = tuple(one for one in earlier if one != instance_id)[:RETIRED_MAX]
    return HeartbeatRow(agent_id=row.agent_id, instance_id=instance_id, retired=retired)


def _with_beat(row: HeartbeatRow, beat: HeartbeatRequest, now_ns: int) -> HeartbeatRow:
    return replace(
        row,
        seq=beat.seq,
        heard_ns=now_ns,
        state=None if beat.state is None else beat.state[:STATE_MAX_CHARS],
        document=_document(beat),
    )


def _document(beat: HeartbeatRequest) -> bytes:
    """Write what an agent says of itself; what is too long, or no JSON of ours, is left out."""
    leases = beat.active_leases
    held = leases.get("count")
    if type(held) is not int or not 0 <= held <= MINTED_ID_MAX:
        held = len(leases.get("ids", ()))
    try:
        document = wire.encode({"active_leases": held, "health": beat.health})
    except TypeError:
        document = b""
    if 0 < len(document) <= DOCUMENT_MAX_BYTES:
        return document
    return wire.encode({"active_leases": held})


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field}", message),))
