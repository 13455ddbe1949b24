"""The rebuilt original servers answer what their originals answer, errors included."""

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.control_plane import TransportRequest, TransportResponse
from support.original import GoServer, RustServer

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Caller:
    """An agent of one server, by hand."""

    def __init__(self, server: RustServer | GoServer) -> None:
        self.server = server
        self.headers: dict[str, str] = {"Content-Type": JSON}

    async def call(
        self, verb: str, body: Any = None, *, method: str = "POST", **headers: str
    ) -> TransportResponse:
        sent = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        return await self.server(
            TransportRequest(
                method=method,
                path=f"/v1/agents/{verb}",
                headers=self.headers
                | {key.replace("_", "-"): text for key, text in headers.items()},
                body=sent,
                timeout_s=math.inf,
            )
        )

    async def register(self, hostname: str | None = "probe-1") -> dict[str, Any]:
        answer: dict[str, Any] = read(await self.call("register", {"hostname": hostname}))
        self.headers |= {
            "X-Agent-Id": str(answer["agent_id"]),
            "X-Agent-Token": answer["auth_token"],
        }
        return answer


def read(response: TransportResponse, status: int = 200) -> Any:
    assert response.status == status, response
    return json.loads(response.body)


def told(response: TransportResponse) -> tuple[int, str | None, bytes]:
    return response.status, response.headers.get("Content-Type"), response.body


# ── the Rust server ──


@pytest.fixture
async def rust(clock: ManualClock) -> Caller:
    caller = Caller(RustServer(clock))
    await caller.register()
    return caller


async def test_the_rust_server_knows_hosts_by_name_and_kills_their_old_token(
    clock: ManualClock,
) -> None:
    caller = Caller(RustServer(clock))
    first = await caller.register()
    old = dict(caller.headers)
    assert (first["agent_id"], first["lease_duration_ms"]) == (1, 60_000)
    limited = await caller.call("register", {"hostname": "probe-1"})
    assert read(limited, 429)["error"] == "ERR_RATE_LIMITED"
    assert limited.headers["Retry-After"] == "600"
    await clock.advance(600 * NS_PER_S)
    second = await caller.register()
    assert second["agent_id"] == 1
    caller.headers = old
    refused = read(await caller.call("heartbeat", {"agent_id": 1}), 401)
    assert refused == {
        "error": "ERR_UNAUTHORIZED",
        "message": "invalid credentials",
        "retryable": False,
    }


@pytest.mark.parametrize(
    ("verb", "body", "headers", "status", "content_type"),
    [
        ("heartbeat", {"agent_id": 2}, {}, 403, JSON),
        ("heartbeat", {"agent_id": 1}, {"X_Agent_Id": "x"}, 400, JSON),
        ("heartbeat", {"agent_id": "1"}, {}, 422, TEXT),
        ("heartbeat", b"{", {}, 400, TEXT),
        ("heartbeat", {"agent_id": 1}, {"Content_Type": "text/json"}, 415, TEXT),
        ("report", b" " * (2 << 20) + b"{}", {}, 413, TEXT),
        ("report", {"agent_id": 1, "completed": []}, {}, 422, TEXT),
        ("claim", {"agent_id": 1, "capacities": {"whois": 1}}, {}, 422, TEXT),
        ("release", {"agent_id": 1}, {}, 404, None),
    ],
)
async def test_the_rust_server_refuses(
    rust: Caller,
    verb: str,
    body: Any,
    headers: Mapping[str, str],
    status: int,
    content_type: str | None,
) -> None:
    assert told(await rust.call(verb, body, **headers))[:2] == (status, content_type)


async def test_the_rust_servers_deadlines_are_relative_and_never_enforced(
    rust: Caller, clock: ManualClock
) -> None:
    assert isinstance(rust.server, RustServer)
    task_id = rust.server.enqueue("tcp", {"host": "a.example", "port": 1})
    claim = {"agent_id": 1, "capacities": {"tcp": 2, "dns": 4}}
    (lease,) = read(await rust.call("claim", claim))["leases"]
    assert (lease["task_id"], lease["lease_until_ms"]) == (task_id, 60_000)
    await clock.advance(3600 * NS_PER_S)
    assert read(await rust.call("claim", claim)) == {"leases": []}
    shorter = {"agent_id": 1, "lease_ids": [lease["lease_id"], 99], "extend_by_ms": 500}
    assert read(await rust.call("extend", shorter)) == {
        "outcomes": [{"lease_id": lease["lease_id"], "new_deadline_ms": 500}],
        "revoked": [99],
    }
    item = {"lease_id": lease["lease_id"], "observations": [{"name": "a", "value": [1]}]}
    report = {"agent_id": 1, "completed": [item, {"lease_id": 99}], "cancelled": []}
    for _ in range(2):  # what has ended counts again
        assert read(await rust.call("report", report)) == {"acknowledged": 1}
    assert rust.server.open_leases() == set()


async def test_the_rust_servers_hint_is_cut_to_whole_seconds_and_a_restart_forgets_quotas(
    rust: Caller, clock: ManualClock
) -> None:
    assert isinstance(rust.server, RustServer)
    body = {"agent_id": 1, "lease_ids": [], "extend_by_ms": 1}
    for _ in range(10):
        read(await rust.call("extend", body))
    assert (await rust.call("extend", body)).headers["Retry-After"] == "2"
    await clock.advance(NS_PER_S + NS_PER_S // 2)
    assert (await rust.call("extend", body)).headers["Retry-After"] == "0"
    assert [one.disobeyed for one in rust.server.limited] == [1, 0]
    rust.server.restart()
    read(await rust.call("extend", body))


async def test_the_rust_servers_configuration(rust: Caller) -> None:
    assert isinstance(rust.server, RustServer)
    missing = read(await rust.call("config", method="GET"), 404)
    assert (missing["error"], missing["retryable"]) == ("ERR_NOT_FOUND", True)
    rust.server.config = {"revision": "r-1", "config": {}}
    served = await rust.call("config", method="GET")
    assert served.headers["ETag"] == "r-1"  # unquoted
    rust.server.restart()
    for tag in ("r-1", '"r-1"'):
        assert (await rust.call("config", method="GET", If_None_Match=tag)).status == 304
    rust.server.restart()
    assert (await rust.call("config", method="GET", If_None_Match='W/"r-1"')).status == 200


async def test_the_rust_servers_metrics(rust: Caller) -> None:
    body = {"agent_id": 9, "timestamp": "2026-11-23T12:00:00Z", "gauges": []}
    accepted = read(await rust.call("metrics", body), 202)
    assert accepted["accepted"] is True
    assert len(accepted["id"]) == 36


# ── the Go server ──


@pytest.fixture
async def go(clock: ManualClock) -> Caller:
    caller = Caller(GoServer(clock))
    await caller.register()
    return caller


async def test_the_go_server_makes_an_agent_of_every_registration(clock: ManualClock) -> None:
    caller = Caller(GoServer(clock))
    response = await caller.call("register", {"hostname": "probe-1"})
    assert told(response)[:2] == (200, TEXT)
    assert response.body.endswith(b"\n")
    first = json.loads(response.body)
    assert (first["lease_duration_ms"], first["heartbeat_timeout_ms"]) == (90_000, 20_000)
    assert len(first["auth_token"]) == 64
    assert (await caller.register())["agent_id"] == first["agent_id"] + 1


@pytest.mark.parametrize(
    ("verb", "body", "headers", "status", "said"),
    [
        ("heartbeat", {}, {"X_Agent_Token": ""}, 401, b"missing agent auth\n"),
        ("heartbeat", {}, {"X_Agent_Token": "no"}, 401, b"invalid token\n"),
        ("heartbeat", {}, {"X_Agent_Id": "9"}, 401, b"agent not found\n"),
        ("heartbeat", {}, {"X_Agent_Id": "x"}, 401, b"bad agent id\n"),
        ("claim", {"agent_id": 9}, {}, 401, b"agent mismatch\n"),
        ("claim", b"{", {}, 400, b"bad json\n"),
        ("extend", {"lease_ids": []}, {}, 400, b"no leases to extend\n"),
        ("extend", {"lease_ids": [1]}, {}, 400, b"invalid extend\n"),
        ("report", {"completed": [], "cancelled": []}, {}, 400, b"empty report\n"),
        ("metrics", {}, {}, 404, b"404 page not found\n"),
        ("release", {}, {}, 404, b"404 page not found\n"),
    ],
)
async def test_the_go_server_refuses_in_plain_text(
    go: Caller, verb: str, body: Any, headers: Mapping[str, str], status: int, said: bytes
) -> None:
    assert told(await go.call(verb, body, **headers)) == (status, TEXT, said)


async def test_the_go_server_takes_config_for_an_agent(go: Caller) -> None:
    assert told(await go.call("config", method="GET")) == (400, TEXT, b"bad agent id\n")


async def test_the_go_servers_deadlines_are_absolute_and_extensions_add_up(
    go: Caller, clock: ManualClock
) -> None:
    go.server.enqueue("trace", {"host": "a.example"})
    now_ms = clock.realtime_ns() // 1_000_000
    # Only tcp is asked for, one of it: kinds mean nothing to it, the sum does.
    claimed = await go.call("claim", {"agent_id": 1, "capacities": {"tcp": 1}})
    (lease,) = read(claimed)["leases"]
    assert lease["lease_until_ms"] == now_ms + 90_000
    body = {"agent_id": 1, "lease_ids": [lease["lease_id"], 99], "extend_by_ms": 500}
    assert read(await go.call("extend", body)) == {
        "outcomes": [{"lease_id": lease["lease_id"], "new_deadline_ms": now_ms + 90_500}]
    }
    report = {"completed": [{"lease_id": lease["lease_id"]}], "cancelled": []}
    assert read(await go.call("report", report)) == {"acknowledged": 1}
    assert read(await go.call("report", report)) == {"acknowledged": 0}


async def test_the_go_server_reads_no_capacity_as_no_bound(go: Caller) -> None:
    for number in range(6):
        go.server.enqueue("tcp", {"host": f"{number}.example", "port": 1})
    claimed = read(await go.call("claim", {"agent_id": 1, "capacities": {"tcp": 0}}))
    assert len(claimed["leases"]) == 4  # as many as one agent may hold
    full = await go.call("claim", {"agent_id": 1, "capacities": {"tcp": 1}})
    assert told(full) == (204, None, b"")


async def test_the_go_server_holds_a_claim_and_kills_it_with_what_it_had_granted(
    go: Caller, clock: ManualClock
) -> None:
    assert isinstance(go.server, GoServer)
    async with asyncio.TaskGroup() as group:
        claim = {"agent_id": 1, "capacities": {"tcp": 2}}
        held = group.create_task(go.call("claim", claim))
        await clock.advance(19 * NS_PER_S)
        assert not held.done()
        go.server.enqueue("tcp", {"host": "a.example", "port": 1})
        await clock.advance(5 * NS_PER_S)  # it waits anew for the second one
        assert not held.done()
        await clock.advance(NS_PER_S)
    assert told(held.result()) == (503, TEXT, b'{"error":"timeout"}')
    assert len(go.server.leases) == 1  # nobody heard of it


async def test_the_go_server_takes_expired_leases_back_for_ever(
    go: Caller, clock: ManualClock
) -> None:
    assert isinstance(go.server, GoServer)
    task_id = go.server.enqueue("tcp", {"host": "a.example", "port": 1})
    async with asyncio.TaskGroup() as group:
        retrying = group.create_task(go.server.retry_forever())
        for _ in range(5):
            claimed = await go.call("claim", {"agent_id": 1, "capacities": {"tcp": 1}})
            assert read(claimed)["leases"][0]["task_id"] == task_id
            for _ in range(20):
                await clock.advance(5 * NS_PER_S)
        retrying.cancel()
    assert go.server.requeued[task_id] == 5
