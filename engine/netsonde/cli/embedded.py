"""Control plane, DNS beacon and agent in one process, talking HTTP over loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from netsonde.agent import Agent, AgentConfig
from netsonde.cli.starter import Services, unmeasurable
from netsonde.cli.state import AGENT_DIR, DATABASE
from netsonde.model import TaskKind
from netsonde.server import ServerConfig, serve
from netsonde.server.beacon import NAME, beacon

ANY_PORT = "127.0.0.1:0"
# `up` measures its own host: the loopback is opened in so many words.
LOOPBACK_TARGETS = ("public", "127.0.0.0/8", "::1/128")


@dataclass(frozen=True, slots=True)
class Embedding:
    """Where the embedded control plane keeps its state and listens, and what it may measure.

    `left_out` are the kinds this process lacks the privilege for.
    """

    state_dir: Path
    listen: str
    operator_listen: str
    targets: tuple[str, ...]
    left_out: frozenset[TaskKind]

    @classmethod
    def of(
        cls,
        state_dir: Path,
        *,
        is_brief: bool,
        listen: str | None,
        operator_listen: str | None,
        allow: tuple[str, ...],
    ) -> Self:
        """Fill in the defaults; a brief run takes any free ports, so that it never collides."""
        return cls(
            state_dir=state_dir,
            listen=listen or (ANY_PORT if is_brief else ServerConfig.listen),
            operator_listen=operator_listen
            or (ANY_PORT if is_brief else ServerConfig.operator_listen),
            targets=(*LOOPBACK_TARGETS, *allow),
            left_out=unmeasurable(),
        )


@dataclass(frozen=True, slots=True)
class Place:
    """What runs, and where."""

    agent_url: str
    operator_url: str
    services: Services


@asynccontextmanager
async def embedded(embedding: Embedding) -> AsyncIterator[Place]:
    """Run everything for the duration of the block; at its end the agent drains first.

    Raises:
        ConfigError: an address cannot be listened on.
        StorageError: the state directory is unusable or in use.
    """
    config = ServerConfig(
        listen=embedding.listen,
        operator_listen=embedding.operator_listen,
        database=embedding.state_dir / DATABASE,
    )
    async with serve(config) as server, beacon() as dns, asyncio.TaskGroup() as group:
        agent = Agent(
            AgentConfig(
                control_plane=server.agent_url,
                state_dir=embedding.state_dir / AGENT_DIR,
                targets=embedding.targets,
                capacities=dict.fromkeys(embedding.left_out, 0),
            )
        )
        running = group.create_task(agent.run())
        services = Services(urlsplit(server.agent_url).netloc, dns.endpoint, NAME)
        try:
            yield Place(server.agent_url, server.operator_url, services)
        finally:
            agent.drain()
            await running
