"""The checks `netsonde up` starts with: all five kinds against this host's own services."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from netsonde.control_plane.operator import OperatorClient
from netsonde.model import TaskKind
from netsonde.probe.privilege import GRANT_HINT, icmp_access

PREFIX = "up: "  # checks of this name belong to `up`, which replaces those of its last run

Check = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Services:
    """What this process itself offers to be measured."""

    agent_endpoint: str  # host:port of the control plane's own listener
    dns_server: str  # host:port of the DNS beacon
    dns_name: str  # a name the beacon answers for


def unmeasurable() -> frozenset[TaskKind]:
    """Return the kinds this process lacks the privilege for."""
    if icmp_access(4) is None:
        return frozenset({TaskKind.PING, TaskKind.TRACE})
    return frozenset()


def refusal(kinds: Collection[str]) -> str:
    """Name kinds that this process may not measure, and the lines that grant them."""
    return f"{' and '.join(sorted(kinds))} left out for lack of privilege\n{GRANT_HINT}"


def starter_checks(services: Services) -> list[Check]:
    """Return one check of each kind, none of which leaves this host."""
    targets: Mapping[TaskKind, tuple[str, Mapping[str, Any]]] = {
        TaskKind.PING: ("127.0.0.1", {}),
        TaskKind.TRACE: ("127.0.0.1", {}),
        TaskKind.DNS: (services.dns_name, {"server": services.dns_server, "qtype": "A"}),
        TaskKind.HTTP: (f"http://{services.agent_endpoint}/livez", {}),
        TaskKind.TCP: (services.agent_endpoint, {}),
    }
    return [
        {"kind": kind.value, "targets": [target]} | ({"spec": dict(spec)} if spec else {})
        for kind, (target, spec) in targets.items()
    ]


def named(check: Check, every_ms: int | None) -> Check:
    """Give a check the name that marks it as `up`'s own, and its interval."""
    name = f"{PREFIX}{check['kind']} {' '.join(check['targets'])}"[:200]
    return check | {"name": name} | ({} if every_ms is None else {"every_ms": every_ms})


async def install(client: OperatorClient, checks: Sequence[Check]) -> list[Check]:
    """Create checks in place of those an earlier `up` left behind; return them as kept."""
    for old in await client.checks():
        if str(old.get("name") or "").startswith(PREFIX):
            await client.remove_check(old["check_id"])
    return [await client.create_check(check) for check in checks]
