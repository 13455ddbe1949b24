"""An agent's probers: what this process may measure, of which targets, how often."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from netsonde.agent.config import AgentConfig
from netsonde.clock import Clock
from netsonde.model import TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe import EngineOptions, Prober, make_probers
from netsonde.probe.ping.engines import budgets

LOOKUP_TIMEOUT_S = 5.0

Probers = Mapping[TaskKind, Prober[Any]]

_log = logging.getLogger("netsonde.agent")


@asynccontextmanager
async def opened_probers(
    config: AgentConfig, clock: Clock, own: frozenset[str]
) -> AsyncIterator[Probers]:
    """Make the probers of every kind, close them on leaving; own: this host's addresses."""
    policy = TargetPolicy(
        config.targets,
        deny=config.deny,
        own=own,
        control_plane=await _addresses_of(config.control_plane),
    )
    probers = make_probers(clock, policy, ping_options(config))
    try:
        yield probers
    finally:
        for prober in probers.values():
            await prober.close()


def ping_options(config: AgentConfig) -> EngineOptions:
    """Return how pings leave, within the rates of the agent, the kind, a prefix and a target."""
    return EngineOptions(
        backends=config.ping_backends,
        budgets=budgets(config.packets_per_s, config.ping_packets_per_s),
        prefix_pps=config.prefix_packets_per_s,
        target_pps=config.target_packets_per_s,
    )


def missing_kinds(config: AgentConfig, able: Mapping[str, bool]) -> Iterator[TaskKind]:
    """Yield the kinds that a process with these capabilities may not measure."""
    needed = {
        "datagram_icmp" if name == "datagram" else "raw_icmp" for name in config.ping_backends
    }
    if not any(able.get(name) for name in needed):
        yield from (TaskKind.PING, TaskKind.TRACE)  # which have their engines in common


async def _addresses_of(control_plane: str) -> frozenset[str]:
    """Look up the control plane's addresses, so that the policy keeps probes away from it."""
    host = urlsplit(control_plane).hostname
    if host is None:
        return frozenset()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            entries = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        _log.warning(
            "the control plane's addresses are not known (%s): probes are not kept away from it",
            error,
            extra={"action": "control_plane_unresolved"},
        )
        return frozenset()
    return frozenset(str(entry[4][0]).partition("%")[0] for entry in entries)
