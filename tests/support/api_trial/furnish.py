"""What a trial's control plane has before it is tried: an agent, work, results, dead letters."""

import base64
import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netsonde import wire
from netsonde.model import TaskKind
from netsonde.remote_config import PAYLOAD_TYPE
from netsonde.server.openapi import AGENT, OPERATOR

TOKEN = "a-token-of-a-trial-only"
AGENT_KEY = "a" * 32
INSTANCE = "b" * 32
TIMEOUT_S = 10.0
TASKS = 200  # what claims are granted for a while
REPORTED = 20  # of them, before the trial
OUTCOMES = ("ok", "target_error", "agent_error")
SPECS: tuple[Mapping[str, Any], ...] = (
    {"kind": TaskKind.PING, "spec": {"host": "192.0.2.1"}},
    {"kind": TaskKind.TCP, "spec": {"host": "192.0.2.1", "port": 443}},
    {"kind": TaskKind.HTTP, "spec": {"url": "https://www.example/"}},
    {"kind": TaskKind.DNS, "spec": {"name": "www.example"}},
    {"kind": TaskKind.TRACE, "spec": {"host": "192.0.2.1"}},
)
CHECKS: tuple[Mapping[str, Any], ...] = (
    {"kind": TaskKind.PING, "targets": ["192.0.2.1"], "every_ms": 60_000},
    {"kind": TaskKind.TCP, "targets": ["192.0.2.1:22"], "every_ms": 60_000, "jitter_ms": 1_000,
     "select": {"agents": ["trial"]}},
    {"kind": TaskKind.DNS, "targets": ["www.example"], "name": "once"},
)  # fmt: skip
CONFIG = {
    "spec": 1, "revision": 1, "scope": {"all": True}, "config": {},
    "issued_at": "2026-11-28T00:00:00Z", "expires_at": "2036-11-28T00:00:00Z",
}  # fmt: skip
METRICS = {
    "timestamp": "2026-11-28T00:00:00Z", "start_time": "2026-11-28T00:00:00Z",
    "instance_id": INSTANCE, "seq": 1,
    "counters": [{"name": "trial_total", "value": 1}],
    "histograms": [
        {"name": "trial_seconds", "bounds": [1], "counts": [1, 0], "sum": 1, "count": 1},
    ],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent in whose name the trial asks."""

    agent_id: int
    token: str

    @property
    def headers(self) -> Mapping[str, str]:
        """What its calls carry."""
        return {"X-Agent-Id": str(self.agent_id), "X-Agent-Token": self.token}


def furnished(urls: Mapping[str, str]) -> Agent:
    """Make an agent, and enough of everything that every listing has something to answer with."""
    calls = f"{urls[AGENT]}/v1/agents"
    registered = _call(
        f"{calls}/register",
        {"hostname": "trial", "agent_key": AGENT_KEY, "instance_id": INSTANCE},
    )
    agent = Agent(registered["agent_id"], registered["auth_token"])
    _work(urls[OPERATOR])
    _reported(calls, agent)
    one = {"agent_id": agent.agent_id}
    _call(f"{calls}/heartbeat", {**one, "instance_id": INSTANCE, "seq": 1}, agent.headers)
    _call(f"{calls}/metrics", {**one, **METRICS}, agent.headers)
    return agent


def _work(operators: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    tasks = [{**SPECS[one % len(SPECS)], "max_attempts": 1} for one in range(TASKS)]
    _call(f"{operators}/v1/tasks", tasks, headers)
    for check in CHECKS:
        _call(f"{operators}/v1/checks", check, headers)
    payload = base64.b64encode(json.dumps(CONFIG).encode()).decode()
    signature = {"keyid": "0" * 32, "sig": base64.b64encode(bytes(64)).decode()}
    envelope = {"payload_type": PAYLOAD_TYPE, "payload": payload, "signatures": [signature]}
    _call(f"{operators}/v1/configs", envelope, headers)
    _call(f"{operators}/v1/tokens", {"name": "trial", "scopes": ["read"]}, headers)
    _call(f"{operators}/v1/enrolment-tokens", {"name": "trial"}, headers)


def _reported(calls: str, agent: Agent) -> None:
    """Report some of the work as done, as failed, and as not to be done, which makes it dead."""
    one = {"agent_id": agent.agent_id}
    capacities = {kind.value: REPORTED for kind in TaskKind}
    claim = {**one, "capacities": capacities, "max_leases": REPORTED, "wait_ms": 0}
    leases = _call(f"{calls}/claim", claim, agent.headers)["leases"]
    items = []
    for place, lease in enumerate(leases):
        outcome = OUTCOMES[place % len(OUTCOMES)]
        item = {"lease_id": lease["lease_id"], "outcome": outcome}
        if outcome != "ok":
            item["error"] = {"reason": "timeout", "failure_source": "self", "message": "a trial"}
        items.append(item)
    _call(f"{calls}/report", {**one, "completed": items, "cancelled": []}, agent.headers)


def _call(url: str, body: Any, headers: Mapping[str, str] | None = None) -> Any:
    request = urllib.request.Request(
        url,
        wire.encode(body),
        {"Content-Type": "application/json", "Netsonde-Protocol": "1", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        return json.load(response)
