"""The operator API through dispatch: contract section 9."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_S
from support.operator_api import LocalOperatorApi
from support.stores import STORES, Caller, callers, settled

TCP = {"kind": "tcp", "targets": ["192.0.2.1:80"]}


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


# ── who may call ──


async def test_without_a_token_only_loopback_is_answered(memory: Caller) -> None:
    for host in ("127.0.0.1:8090", "[::1]:8090", "localhost"):
        assert (await memory.operator("GET", "/v1/queues", host=host))[0] == 200
    for host in ("evil.example", "evil.example:8090", "192.0.2.1:8090"):
        status, answer, _ = await memory.operator("GET", "/v1/queues", host=host)
        assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"origin": "http://localhost:8090", "sec_fetch_site": "same-origin"}, 201),
        ({"sec_fetch_site": "none"}, 201),
    ],
)
async def test_pages_of_other_origins_change_nothing(
    memory: Caller, headers: dict[str, str], status: int
) -> None:
    sent = {"host": "localhost:8090", "content_type": ""} | headers
    got, answer, _ = await memory.operator("POST", "/v1/checks", TCP, **sent)
    assert got == status, answer
    _, listed, _ = await memory.operator("GET", "/v1/checks")
    assert len(listed["checks"]) == (status == 201)


async def test_with_a_token_only_its_bearer_is(memory: Caller) -> None:
    guarded = Caller(memory.plane, memory.clock, operator_token="correct horse battery")
    for header in ("", "Bearer wrong", "Basic correct horse battery"):
        status, answer, _ = await guarded.operator("GET", "/v1/queues", authorization=header)
        assert (status, answer["error"]) == (401, "ERR_UNAUTHORIZED")
    status, _, _ = await guarded.operator(
        "GET", "/v1/queues", host="far.example", authorization="Bearer correct horse battery"
    )
    assert status == 200
    assert (await guarded.operator("GET", "/readyz"))[0] == 200


# ── checks ──


async def test_a_check_once_is_one_task_per_target(caller: Caller) -> None:
    agent = await caller.register()
    check = TCP | {"targets": ["192.0.2.1:80", "192.0.2.2:80"], "name": "web", "priority": 3}
    status, made, _ = await caller.operator("POST", "/v1/checks", check)
    assert status == 201
    assert (made["tasks"], made["next_at"], made["enabled"]) == (2, None, True)
    leases = await agent.claim(5)
    assert [lease["spec"]["host"] for lease in leases] == ["192.0.2.1", "192.0.2.2"]
    assert {lease["check_id"] for lease in leases} == {made["check_id"]}
    assert leases[0]["scheduled_at"] == made["created_at"]
    assert leases[0]["priority"] == 3
    _, got, _ = await caller.operator("GET", f"/v1/checks/{made['check_id']}")
    assert got == made
    _, listed, _ = await caller.operator("GET", "/v1/checks")
    assert listed == {"checks": [made], "cursor": None}


async def test_a_ping_is_leased_with_all_it_was_asked_for(caller: Caller) -> None:
    agent = await caller.register()
    spec = {
        "method": "tcp", "port": 443, "addresses": "all", "dscp": 46, "source": "192.0.2.9",
        "expect": {"loss_pct_max": 5.0, "p95_ms_max": 20.0},
    }  # fmt: skip
    check = {"kind": "ping", "targets": ["example.net"], "spec": spec}
    status, _, _ = await caller.operator("POST", "/v1/checks", check)
    assert status == 201
    (lease,) = await agent.claim(capacities={"ping": 1})
    assert lease["spec"] == {"kind": "ping", "host": "example.net"} | spec


@pytest.mark.parametrize(
    ("check", "path", "said"),
    [
        ({"kind": "tcp", "targets": ["192.0.2.1:99999"]}, "$.targets[0]", "1 to 65535"),
        ({"kind": "tcp", "targets": ["192.0.2.1:1", "x"]}, "$.targets[1]", "has no port"),
        ({"kind": "ping", "targets": ["not a host"]}, "$.targets[0]", "host"),
        ({"kind": "http", "targets": ["ftp://x"]}, "$.targets[0]", "http://"),
        (
            {"kind": "ping", "targets": ["192.0.2.1"], "spec": {"count": 0}},
            "$.targets[0]",
            "count must be a whole number from 1 to 100000",
        ),
        (
            {"kind": "ping", "targets": ["192.0.2.1"], "spec": {"host": "a"}},
            "$.spec.host",
            "targets",
        ),
        (
            {"kind": "ping", "targets": ["192.0.2.1"], "spec": {"method": "tcp"}},
            "$.targets[0]",
            "port must be a whole number from 1 to 65535",
        ),
        (
            {"kind": "ping", "targets": ["192.0.2.1"], "spec": {"expect": {"loss": 1}}},
            "$.targets[0]",
            "expect has no field loss",
        ),
        ({"kind": "quic", "targets": ["x"]}, "$.kind", "quic"),
        ({"kind": "tcp", "targets": []}, "$.targets", "1 to 1000"),
        ({"kind": "tcp"}, "$", "targets"),
        (TCP | {"colour": "red"}, "$.colour", "unknown field"),
        (TCP | {"select": {"color": 1}}, "$.select.color", "unknown field"),
        (TCP | {"every_ms": 5}, "$.every_ms", "100 to"),
        (TCP | {"every_ms": 1000, "jitter_ms": 1000}, "$.jitter_ms", "0 to 999"),
        (TCP | {"jitter_ms": 5}, "$.jitter_ms", "0 to 0"),
        (TCP | {"stale_after_ms": 0}, "$.stale_after_ms", "1 to"),
        (TCP | {"max_attempts": 0}, "$.max_attempts", "1 to 100"),
        (TCP | {"priority": 101}, "$.priority", "-100 to 100"),
        (TCP | {"name": ""}, "$.name", "1 to 200"),
        (TCP | {"select": {"any": True, "agents": [1]}}, "$.select", "one of"),
        (TCP | {"select": {"labels": {"a": "b"}, "all": True, "count": 1}}, "$.select", "one of"),
        (TCP | {"select": {"any": True, "count": 2}}, "$.select", "any is one agent"),
        (TCP | {"select": {"labels": {"a": "b"}, "count": 0}}, "$.select.count", "1 to"),
    ],
)
async def test_bad_checks_name_field_and_range(
    memory: Caller, check: dict[str, Any], path: str, said: str
) -> None:
    status, answer, _ = await memory.operator("POST", "/v1/checks", check)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    (violation,) = answer["details"]["violations"]
    assert violation["path"] == path
    assert said in answer["message"]
    _, listed, _ = await memory.operator("GET", "/v1/checks")
    assert listed["checks"] == []


async def test_patching_changes_what_is_given_and_runs_anew(caller: Caller) -> None:
    agent = await caller.register()
    _, made, _ = await caller.operator("POST", "/v1/checks", TCP | {"every_ms": 60_000})
    path = f"/v1/checks/{made['check_id']}"
    _, renamed, _ = await caller.operator("PATCH", path, {"name": "new"})
    assert renamed == made | {"name": "new"}
    _, moved, _ = await caller.operator("PATCH", path, {"targets": ["192.0.2.9:80"]})
    assert (moved["tasks"], moved["every_ms"], moved["name"]) == (2, 60_000, "new")
    leases = await agent.claim(9)
    assert [lease["spec"]["host"] for lease in leases] == ["192.0.2.9"]
    _, off, _ = await caller.operator("PATCH", path, {"enabled": False})
    assert (off["enabled"], off["next_at"]) == (False, None)
    _, beat, _ = await agent.call("/heartbeat", {"active_leases": {"ids": [leases[0]["lease_id"]]}})
    assert beat["revoked_leases"] == [leases[0]["lease_id"]]
    _, once, _ = await caller.operator("PATCH", path, {"enabled": True, "every_ms": None})
    assert "every_ms" not in once
    status, answer, _ = await caller.operator("PATCH", path, {"every_ms": 1})
    assert (status, answer["details"]["violations"][0]["path"]) == (400, "$.every_ms")
    _, kept, _ = await caller.operator("GET", path)
    assert kept == once


async def test_deleting_drops_what_is_queued_and_keeps_results(caller: Caller) -> None:
    agent = await caller.register()
    _, made, _ = await caller.operator("POST", "/v1/checks", TCP | {"every_ms": 60_000})
    (lease,) = await agent.claim(1)
    await agent.report(lease["lease_id"])
    path = f"/v1/checks/{made['check_id']}"
    _, extra, _ = await caller.operator("POST", f"{path}/run-now")
    assert extra == {"check_id": made["check_id"], "tasks": 1, "skipped": 0}
    _, again, _ = await caller.operator("POST", f"{path}/run-now")
    assert again == {"check_id": made["check_id"], "tasks": 0, "skipped": 1}
    _, gone, _ = await caller.operator("DELETE", path)
    assert gone == {"check_id": made["check_id"], "cancelled": 1}
    assert (await caller.operator("GET", path))[0] == 404
    _, results, _ = await caller.operator("GET", f"/v1/results?check_id={made['check_id']}")
    assert len(results["results"]) == 1
    _, anew, _ = await caller.operator("POST", "/v1/checks", TCP)
    assert anew["check_id"] > made["check_id"], "an id is never used again"


async def test_cancel_keeps_the_schedule(caller: Caller) -> None:
    _, made, _ = await caller.operator("POST", "/v1/checks", TCP | {"every_ms": 60_000})
    path = f"/v1/checks/{made['check_id']}"
    _, cancelled, _ = await caller.operator("POST", f"{path}/cancel")
    assert cancelled["cancelled"] == 1
    _, kept, _ = await caller.operator("GET", path)
    assert kept["next_at"] == made["next_at"]
    _, queues, _ = await caller.operator("GET", "/v1/queues")
    assert (queues["queues"], queues["counters"]) == ([], {"cancelled": 1})


@pytest.mark.parametrize("path", ["/v1/checks/9", "/v1/checks/x", f"/v1/checks/{10**30}"])
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_unknown_checks_are_404(memory: Caller, method: str, path: str) -> None:
    status, answer, _ = await memory.operator(method, path, {})
    assert (status, answer["error"]) == (404, "ERR_NOT_FOUND")


# ── idempotency ──


async def test_a_repeated_key_does_nothing_twice(caller: Caller) -> None:
    first = await caller.operator("POST", "/v1/checks", TCP, idempotency_key="k")
    again = await caller.operator("POST", "/v1/checks", TCP, idempotency_key="k")
    assert first[:2] == again[:2]
    _, listed, _ = await caller.operator("GET", "/v1/checks")
    assert len(listed["checks"]) == 1
    status, answer, _ = await caller.operator(
        "POST", "/v1/checks", TCP | {"name": "other"}, idempotency_key="k"
    )
    assert (status, answer["error"]) == (409, "ERR_CONFLICT")
    status, answer, _ = await caller.operator("POST", "/v1/checks", TCP, idempotency_key="k" * 256)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")


async def test_a_refused_request_does_not_use_its_key_up(memory: Caller) -> None:
    bad = await memory.operator("POST", "/v1/checks", {"kind": "tcp"}, idempotency_key="k")
    assert bad[0] == 400
    assert (await memory.operator("POST", "/v1/checks", TCP, idempotency_key="k"))[0] == 201


async def test_keys_are_forgotten_after_a_day(caller: Caller) -> None:
    await caller.operator("POST", "/v1/tasks", [], idempotency_key="k")
    await caller.clock.advance(25 * 3600 * NS_PER_S)
    await caller.plane.housekeep()
    other = [{"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 1}}]
    status, _, _ = await caller.operator("POST", "/v1/tasks", other, idempotency_key="k")
    assert status == 200


# ── one-off tasks ──


async def test_one_bad_task_costs_itself(caller: Caller) -> None:
    agent = await caller.register(hostname="probe-1")
    await caller.register(hostname="twin", agent_key="a" * 32)
    await caller.register(hostname="twin", agent_key="b" * 32)
    good = {"kind": "tcp", "spec": {"kind": "tcp", "host": "192.0.2.1", "port": 80}}
    items = [
        good,
        good | {"spec": {"host": "192.0.2.1", "port": 0}},
        good | {"spec": {"kind": "ping", "host": "192.0.2.1"}},
        good | {"spec": {"port": 5}},
        good | {"kind": "quic"},
        good | {"colour": 1},
        good | {"agent": "nobody"},
        good | {"agent": "twin"},
        good | {"max_attempts": 0},
        good | {"priority": 1000},
        good | {"agent": "probe-1", "priority": -1},
    ]
    status, answer, _ = await caller.operator("POST", "/v1/tasks", items)
    assert status == 200
    kinds = ["task_id" if "task_id" in one else one["error"] for one in answer["tasks"]]
    assert kinds == ["task_id", *["ERR_VALIDATION"] * 9, "task_id"]
    assert "port must be a whole number from 1 to 65535" in answer["tasks"][1]["message"]
    assert answer["tasks"][5]["violations"][0]["path"] == "$.colour"
    leases = await agent.claim(5)
    assert [lease["task_id"] for lease in leases] == [
        answer["tasks"][10]["task_id"],
        answer["tasks"][0]["task_id"],
    ]


@pytest.mark.parametrize("body", [{"kind": "tcp"}, [1], "x"])
async def test_a_bulk_is_an_array_of_objects(memory: Caller, body: Any) -> None:
    status, answer, _ = await memory.operator("POST", "/v1/tasks", body)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")


async def test_a_bulk_has_a_limit(memory: Caller) -> None:
    status, answer, _ = await memory.operator("POST", "/v1/tasks", [{}] * 10_001)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")


# ── results ──


async def measured(caller: Caller, count: int) -> list[int]:
    agent = await caller.register()
    await caller.tasks(count)
    leases = await agent.claim(count, claim_id=f"c{count}")
    await agent.report(*(lease["lease_id"] for lease in leases))
    return [lease["lease_id"] for lease in leases]


async def test_the_result_object(caller: Caller) -> None:
    agent = await caller.register()
    _, made, _ = await caller.operator("POST", "/v1/checks", TCP)
    (lease,) = await agent.claim(1)
    await agent.report(lease["lease_id"])
    _, answer, _ = await caller.operator("GET", "/v1/results")
    (result,) = answer["results"]
    assert list(result) == [
        "lease_id", "task_id", "check_id", "agent_id", "kind", "spec", "outcome",
        "scheduled_at", "started_at", "duration_ms", "attempt", "observations",
    ]  # fmt: skip
    assert result["check_id"] == made["check_id"]
    assert result["agent_id"] == agent.agent_id
    assert result["spec"] == {"kind": "tcp", "host": "192.0.2.1", "port": 80}
    assert result["scheduled_at"] == made["created_at"]
    assert (result["outcome"], result["duration_ms"], result["attempt"]) == ("ok", 1.5, 1)


async def test_pages_join_without_gap_or_repetition(caller: Caller) -> None:
    lease_ids = await measured(caller, 7)
    seen: list[int] = []
    cursor = ""
    for _ in range(4):
        _, page, _ = await caller.operator("GET", f"/v1/results?limit=3{cursor}")
        seen += [one["lease_id"] for one in page["results"]]
        cursor = f"&cursor={page['cursor']}"
    assert seen == lease_ids
    more = await measured(caller, 2)
    _, page, _ = await caller.operator("GET", f"/v1/results?limit=3{cursor}")
    assert [one["lease_id"] for one in page["results"]] == more
    _, newest, _ = await caller.operator("GET", "/v1/results?limit=2&order=desc")
    assert [one["lease_id"] for one in newest["results"]] == more[::-1]


async def test_filters(caller: Caller) -> None:
    lease_ids = await measured(caller, 2)

    async def found(query: str) -> int:
        status, page, _ = await caller.operator("GET", f"/v1/results?{query}")
        assert status == 200, page
        return len(page["results"])

    assert await found("agent=probe-1") == 2
    assert await found("agent=1") == 2
    assert await found("kind=tcp&outcome=ok") == 2
    assert await found("kind=ping") == 0
    assert await found("outcome=target_error") == 0
    assert await found("task_id=1") == 1
    assert await found("from=2020-01-01T00:00:00Z&to=2100-01-01T00:00:00Z") == 2
    assert await found("to=2020-01-01T00:00:00Z") == 0
    assert await found("from=9999-01-01T00:00:00Z") == 0
    assert len(lease_ids) == 2


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "$.limit"),
        ("limit=1001", "$.limit"),
        ("limit=x", "$.limit"),
        ("cursor=zzz", "$.cursor"),
        ("cursor=cjE6LTE", "$.cursor"),
        ("cursor=YzE6MQ", "$.cursor"),
        ("cursor=cjE6" + "OTk5" * 1_900, "$.cursor"),
        ("kind=quic", "$.kind"),
        ("agent=nobody", "$.agent"),
        ("from=yesterday", "$.from"),
        ("order=up", "$.order"),
        ("wait_ms=60000", "$.wait_ms"),
        ("check_id=0", "$.check_id"),
        ("color=red", "$.color"),
        ("limit=1&limit=2", "$.limit"),
        ("final=no", "$.final"),
        ("outcome=", "$.outcome"),
    ],
)
async def test_bad_queries_name_the_parameter(memory: Caller, query: str, path: str) -> None:
    status, answer, _ = await memory.operator("GET", f"/v1/results?{query}")
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert answer["details"]["violations"][0]["path"] == path


async def test_following_waits_for_the_next_result(memory: Caller) -> None:
    await measured(memory, 1)
    _, page, _ = await memory.operator("GET", "/v1/results")
    async with asyncio.TaskGroup() as group:
        follow = group.create_task(
            memory.operator("GET", f"/v1/results?cursor={page['cursor']}&wait_ms=50000")
        )
        await memory.clock.advance(9 * NS_PER_S)
        assert not follow.done()
        (lease_id,) = await measured(memory, 1)
        _, answer, _ = await settled(memory.clock, follow, 0, 3)
    assert [one["lease_id"] for one in answer["results"]] == [lease_id]


async def test_a_filter_that_fits_little_is_answered_before_everything_was_looked_at(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.server.operator.results.LOOK_ROWS", 2)
    monkeypatch.setattr("netsonde.server.operator.results.LOOKS_MAX", 2)
    agent = await caller.register()
    await caller.tasks(9)
    lease_ids = [lease["lease_id"] for lease in await agent.claim()]
    await agent.report(*lease_ids[:8])
    await agent.report(lease_ids[8], outcome="target_error")
    for order, pages in (("asc", [(0, True), (0, True), (1, False)]), ("desc", [(1, True)])):
        cursor, seen = "", []
        for wanted in pages:
            path = f"/v1/results?outcome=target_error&order={order}{cursor}"
            _, page, _ = await caller.operator("GET", path)
            cursor = f"&cursor={page['cursor']}"
            assert (len(page["results"]), page["more"]) == wanted
            seen += [one["lease_id"] for one in page["results"]]
        assert seen == lease_ids[8:]
    local = LocalOperatorApi(caller).client("http://localhost")
    (found,) = (await local.results({"outcome": "target_error", "limit": 3})).items
    assert found["lease_id"] == lease_ids[8]


async def test_following_ends_with_its_wait_where_it_began(memory: Caller) -> None:
    await measured(memory, 1)
    _, page, _ = await memory.operator("GET", "/v1/results")
    async with asyncio.TaskGroup() as group:
        follow = group.create_task(
            memory.operator("GET", f"/v1/results?cursor={page['cursor']}&wait_ms=2000")
        )
        _, answer, _ = await settled(memory.clock, follow, 500, 6)
    assert answer == {"results": [], "cursor": page["cursor"], "more": False}


# ── agents, queues ──


async def test_agents_and_their_labels(caller: Caller) -> None:
    labels = {"site": "ams", "bad": 5}
    agent = await caller.register(
        version="1", capacities={"tcp": 4}, inventory={"os": "linux", "labels": labels}
    )
    await caller.tasks(1)
    await agent.claim(1)
    path = f"/v1/agents/{agent.agent_id}"
    _, got, _ = await caller.operator("GET", path)
    assert got["labels"] == {"site": "ams"}
    assert got["in_flight"] == {"tcp": 1}
    assert (got["version"], got["capacities"]) == ("1", {"tcp": 4})
    assert not got["legacy"]
    _, patched, _ = await caller.operator("PATCH", path, {"labels": {"site": "fra"}})
    assert patched["labels"] == {"site": "fra"}
    await caller.register(inventory={"labels": {"site": "ams"}})
    _, listed, _ = await caller.operator("GET", "/v1/agents")
    assert [one["labels"] for one in listed["agents"]] == [{"site": "fra"}], "the operator's stay"
    _, first, _ = await caller.operator("GET", "/v1/agents?limit=1")
    _, rest, _ = await caller.operator("GET", f"/v1/agents?limit=1&cursor={first['cursor']}")
    assert rest == {"agents": [], "cursor": None}


@pytest.mark.parametrize(
    "patch", [{"labels": {"": "x"}}, {"labels": {"a": "x" * 129}}, {"labels": 5}, {"x": 1}]
)
async def test_bad_agent_patches(memory: Caller, patch: dict[str, Any]) -> None:
    agent = await memory.register()
    status, answer, _ = await memory.operator("PATCH", f"/v1/agents/{agent.agent_id}", patch)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert (await memory.operator("PATCH", "/v1/agents/99", {}))[0] == 404
    assert (await memory.operator("GET", "/v1/agents/99"))[0] == 404


async def test_queues_show_depth_age_and_flight(caller: Caller) -> None:
    agent = await caller.register(inventory={"labels": {"site": "ams"}})
    await caller.tasks(2)
    await caller.tasks(1, agent=agent.agent_id)
    labelled = {"select": {"labels": {"site": "fra"}}}
    await caller.operator("POST", "/v1/checks", TCP | labelled)
    await caller.clock.advance(3 * NS_PER_S)
    await agent.claim(2)
    _, answer, _ = await caller.operator("GET", "/v1/queues")
    shown = {
        one["queue"]: (one["ready"], one["leased"], one["oldest_ms"]) for one in answer["queues"]
    }
    assert shown == {
        f"agent:{agent.agent_id}": (0, 1, None),
        "any": (1, 1, 3_000),
        'labels:{"site":"fra"}': (1, 0, 3_000),
    }


async def test_a_page_of_large_results_is_short_and_goes_on(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.server.operator.results.PAGE_BYTES", 1)
    agent = await caller.register()
    await caller.tasks(2)
    lease_ids = [lease["lease_id"] for lease in await agent.claim()]
    await agent.report(*lease_ids)
    _, page, _ = await caller.operator("GET", "/v1/results")
    assert ([one["lease_id"] for one in page["results"]], page["more"]) == (lease_ids[:1], True)
    local = LocalOperatorApi(caller).client("http://localhost")
    assert len((await local.results({"limit": 9})).items) == 2, "who asks for more gets it"


async def test_agents_are_listed_page_by_page(memory: Caller) -> None:
    for place in range(5):
        await memory.register(agent_key=f"{place}" * 32)
    seen, cursor = [], ""
    while True:
        _, page, _ = await memory.operator("GET", f"/v1/agents?limit=2{cursor}")
        seen += [one["agent_id"] for one in page["agents"]]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert seen == [1, 2, 3, 4, 5]


async def test_the_document_is_written_once(
    memory: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await memory.operator("GET", "/openapi.json")
    monkeypatch.delattr("netsonde.server.openapi.document")
    assert (await memory.operator("GET", "/openapi.json"))[:2] == first[:2]
