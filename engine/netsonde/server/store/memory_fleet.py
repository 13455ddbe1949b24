"""Heartbeats, commands and drained agents in memory."""

from collections.abc import Collection, Sequence

from netsonde.server.store.agents import AgentRow
from netsonde.server.store.fleet import Command, HeartbeatRow


class MemoryFleet:
    """Verbs over how agents are and what is ordered of them."""

    _agents: dict[int, AgentRow]

    def __init__(self) -> None:
        self._heartbeats: dict[int, HeartbeatRow] = {}
        self._drained: dict[int, int] = {}
        self._commands: dict[int, Command] = {}
        self._next_command = 1

    def save_heartbeats(self, heartbeats: Sequence[HeartbeatRow]) -> None:
        """Insert or replace agents' last heartbeats."""
        self._heartbeats |= {heartbeat.agent_id: heartbeat for heartbeat in heartbeats}

    def heartbeats(self) -> list[HeartbeatRow]:
        """Return every agent's last heartbeat, by agent."""
        return [self._heartbeats[agent_id] for agent_id in sorted(self._heartbeats)]

    def drain_agent(self, agent_id: int, now_ns: int) -> None:
        """Grant an agent nothing from now on; one that is drained already stays so."""
        self._drained.setdefault(agent_id, now_ns)

    def resume_agent(self, agent_id: int) -> None:
        """Grant an agent work again."""
        self._drained.pop(agent_id, None)

    def drained_agents(self) -> dict[int, int]:
        """Return which agents are drained, and since when."""
        return dict(self._drained)

    def drained_since(self, agent_id: int) -> int | None:
        """Return since when an agent is drained, None when it is not."""
        return self._drained.get(agent_id)

    def is_barred(self, agent_id: int) -> bool:
        """Whether an agent is drained or disabled."""
        agent = self._agents.get(agent_id)
        return agent_id in self._drained or (agent is not None and agent.is_disabled)

    def order(self, agent_id: int, type_: str, now_ns: int) -> None:
        """Order something of an agent; an open command of that type stays the only one."""
        if not any(self._is(command, agent_id, type_) for command in self._commands.values()):
            command = Command(self._next_command, agent_id, type_, now_ns)
            self._commands[command.command_id] = command
            self._next_command += 1

    def call_off(self, agent_id: int, type_: str) -> None:
        """Drop an open command that is no longer wanted."""
        for command in list(self._commands.values()):
            if self._is(command, agent_id, type_):
                del self._commands[command.command_id]

    @staticmethod
    def _is(command: Command, agent_id: int, type_: str) -> bool:
        return command.agent_id == agent_id and command.type == type_

    def commands(self, agent_ids: Collection[int]) -> list[Command]:
        """Return agents' open commands, in the order they were given."""
        wanted = set(agent_ids)
        return [command for command in self._commands.values() if command.agent_id in wanted]

    def settle_commands(self, agent_id: int, command_ids: Collection[int]) -> int:
        """Drop commands that an agent has carried out; return how many of them were open."""
        known = [self._commands[one] for one in set(command_ids) if one in self._commands]
        own = [command.command_id for command in known if command.agent_id == agent_id]
        for command_id in own:
            del self._commands[command_id]
        return len(own)
