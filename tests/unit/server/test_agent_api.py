"""The agent API through dispatch: contract sections 1 to 8, for our agents and original ones."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.quotas import Quotas
from support.stores import STORES, Caller, callers, result_item, settled

PREFIXES = ("/v1/agents", "", "/v1", "/api/v1")
ORIGINAL = {"user_agent": "codecrafters-agent/0.1.0", "netsonde_protocol": ""}
HOUR_NS = 3600 * NS_PER_S


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


# ── register, authenticate ──


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_prefix_serves_every_call(caller: Caller, prefix: str) -> None:
    status, answer, headers = await caller.agent("POST", f"{prefix}/register", {"hostname": "h"})
    assert status == 200
    assert headers["Netsonde-Protocol"] == "1"
    auth = {"x_agent_id": str(answer["agent_id"]), "x_agent_token": answer["auth_token"]}
    bodies: dict[str, Any] = {
        "heartbeat": {},
        "claim": {"capacities": {}, "claim_id": "c"},
        "extend": {"lease_ids": [], "extend_by_ms": 1},
        "release": {},
        "report": {"completed": [], "cancelled": []},
        "metrics": {"timestamp": "2026-11-23T00:00:00Z"},
    }
    for call, body in bodies.items():
        sent = {"agent_id": answer["agent_id"]} | body
        status, got, _ = await caller.agent("POST", f"{prefix}/{call}", sent, **auth)
        assert status == (202 if call == "metrics" else 200), (call, got)
    status, got, _ = await caller.agent("GET", f"{prefix}/config", **auth)
    assert (status, got["error"], got["retryable"]) == (404, "ERR_NOT_FOUND", False)


async def test_register_answers_the_legacy_four_and_our_terms(memory: Caller) -> None:
    agent = await memory.register()
    assert agent.answer["agent_id"] == 1
    assert agent.answer["lease_duration_ms"] == 20_000
    assert agent.answer["heartbeat_timeout_ms"] == 45_000
    assert agent.answer["heartbeat_interval_ms"] == 15_000
    assert agent.answer["claim_wait_ms"] == 20_000
    assert agent.answer["limits"]["report_items"] == 500
    assert len(agent.token) >= 43


async def test_the_key_is_the_identity_not_the_hostname(caller: Caller) -> None:
    first = await caller.register(hostname="a", agent_key="x" * 32)
    same = await caller.register(hostname="b", agent_key="x" * 32)
    other = await caller.register(hostname="a", agent_key="y" * 32)
    assert first.agent_id == same.agent_id != other.agent_id
    assert first.token != same.token


async def test_a_lost_register_answer_locks_nobody_out(caller: Caller) -> None:
    old = await caller.register()
    assert await old.claim() == []
    await caller.register()  # the answer is lost
    new = await caller.register()
    await caller.clock.advance(2 * HOUR_NS)
    assert await old.claim() == [], "valid until the new one is used"
    assert await new.claim() == []
    await caller.clock.advance(59 * NS_PER_S)
    assert await old.claim() == []
    await caller.clock.advance(2 * NS_PER_S)
    status, answer, _ = await old.call("/claim", {"capacities": {}})
    assert (status, answer["error"]) == (401, "ERR_TOKEN_EXPIRED")
    assert await new.claim() == []


async def test_the_used_token_survives_any_number_of_lost_answers(caller: Caller) -> None:
    used = await caller.register()
    await used.claim()
    for _ in range(4):
        await caller.register()
        await caller.clock.advance(120 * NS_PER_S)
    assert await used.claim() == []


async def test_original_agents_are_known_by_host_and_keep_their_token_a_day(
    caller: Caller,
) -> None:
    first = await caller.register(agent_key=None, hostname="old-1")
    again = await caller.register(agent_key=None, hostname="old-1")
    assert first.agent_id == again.agent_id
    await again.claim(claim_id="c")
    await caller.clock.advance(23 * HOUR_NS)
    assert await first.claim(claim_id="c") == []
    await caller.clock.advance(2 * HOUR_NS)
    status, _, _ = await first.call("/heartbeat", {})
    assert status == 401
    await caller.clock.advance(10_000 * HOUR_NS)
    status, _, _ = await again.call("/heartbeat", {})
    assert status == 200


async def test_what_an_agent_says_of_itself_is_bounded(memory: Caller) -> None:
    agent = await memory.register(
        instance_id="i" * 100_000,
        version="1",
        inventory={"notes": "x" * 100_000, "labels": {"site": "ams"}},
    )

    row = memory.plane.registry.get(agent.agent_id)

    assert row is not None
    assert row.document == b"{}"
    assert row.instance_id == "i" * 128
    status, shown, _ = await memory.operator("GET", f"/v1/agents/{agent.agent_id}")
    assert (status, shown["labels"]) == (200, {"site": "ams"})


async def test_a_quota_remembers_no_secret_and_no_megabyte(
    memory: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def spend(_: Quotas, call: str, caller: str, now_ns: int) -> None:
        asked.append(caller)

    monkeypatch.setattr(Quotas, "spend", spend)
    await memory.register(agent_key="k" * 500_000)
    await memory.register(agent_key=None, hostname="h" * 500_000)

    assert len(asked) == 2
    assert all(len(caller) < 300 and "kkkk" not in caller for caller in asked)


async def test_a_missing_hostname_is_minted(memory: Caller) -> None:
    agent = await memory.register(agent_key=None, hostname=None)
    _, answer, _ = await memory.operator("GET", f"/v1/agents/{agent.agent_id}")
    assert answer["hostname"] == f"agent-{agent.agent_id}"


async def test_tokens_survive_a_restart_hashed(tmp_path: Path) -> None:
    before = callers("sqlite", tmp_path)
    agent = await next(before).register()
    await agent.claim()
    assert next(before, None) is None, "closed"
    assert agent.token.encode() not in (tmp_path / "server.db").read_bytes()
    for again in callers("sqlite", tmp_path):
        status, _, _ = await again.agent(
            "POST", "/heartbeat", {"agent_id": agent.agent_id}, **agent.credentials()
        )
        assert status == 200


async def test_bearer_is_as_good(memory: Caller) -> None:
    agent = await memory.register()
    status, _, _ = await memory.agent(
        "POST",
        "/heartbeat",
        {"agent_id": agent.agent_id},
        x_agent_id=str(agent.agent_id),
        authorization=f"Bearer {agent.token}",
    )
    assert status == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "ERR_UNAUTHORIZED"),
        ({"x_agent_id": "1"}, 401, "ERR_UNAUTHORIZED"),
        ({"x_agent_id": "1", "x_agent_token": "wrong"}, 401, "ERR_UNAUTHORIZED"),
        ({"x_agent_id": "99", "x_agent_token": "wrong"}, 401, "ERR_UNAUTHORIZED"),
        ({"x_agent_id": "x", "x_agent_token": "y"}, 400, "ERR_VALIDATION"),
        ({"x_agent_id": "9" * 400, "x_agent_token": "y"}, 400, "ERR_VALIDATION"),
        ({"x_agent_id": "0", "x_agent_token": "y"}, 400, "ERR_VALIDATION"),
    ],
)
async def test_bad_credentials(
    memory: Caller, headers: dict[str, str], status: int, code: str
) -> None:
    await memory.register()
    got, answer, _ = await memory.agent("POST", "/claim", {}, **headers)
    assert (got, answer["error"]) == (status, code)


async def test_an_agent_speaks_for_itself_only(memory: Caller) -> None:
    agent = await memory.register()
    status, answer, _ = await agent.call("/heartbeat", {"agent_id": 77})
    assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")


async def test_enrolment_off_loopback_needs_the_token(tmp_path: Path) -> None:
    token = "correct horse battery"
    settings = {"listen": "0.0.0.0:0", "enrolment_token": token}
    for caller in callers("memory", tmp_path, **settings):
        for wrong in ({}, {"enrolment_token": "correct horse"}):
            status, answer, headers = await caller.agent(
                "POST", "/register", {"hostname": "h"} | wrong
            )
            assert (status, answer["error"]) == (401, "ERR_ENROLMENT_REQUIRED")
            assert headers["WWW-Authenticate"] == "Bearer"
        await caller.register(enrolment_token=token)


# ── claim ──


async def test_a_claim_grants_what_there_is_room_for(caller: Caller) -> None:
    agent = await caller.register()
    task_ids = await caller.tasks(5)
    leases = await agent.claim(3)
    assert [lease["task_id"] for lease in leases] == task_ids[:3]
    lease = leases[0]
    assert lease["kind"] == "tcp"
    assert lease["spec"] == {"kind": "tcp", "host": "192.0.2.1", "port": 80}
    assert (lease["attempt"], lease["max_attempts"]) == (1, 3)
    assert (lease["lease_until_ms"], lease["granted_after_ms"]) == (20_000, 0)
    assert lease["max_lease_ms"] == 600_000
    assert all(0 < one["lease_id"] < 2**53 for one in leases)
    assert [one["task_id"] for one in await agent.claim(9)] == task_ids[3:]


async def test_max_leases_does_not_starve_a_kind(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(50)
    await caller.tasks(50, kind="ping", spec={"host": "192.0.2.1"})
    capacities = {"tcp": 50, "ping": 50}
    kinds = set()
    for number in range(6):
        leases = await agent.claim(claim_id=f"c{number}", capacities=capacities, max_leases=5)
        assert len(leases) == 5
        kinds |= {lease["kind"] for lease in leases}
    assert kinds == {"tcp", "ping"}


async def test_repeating_a_claim_id_returns_what_is_held_under_it(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(5)
    first = await agent.claim(3, claim_id="one")
    await caller.clock.advance(4 * NS_PER_S)
    again = await agent.claim(3, claim_id="one")
    assert [lease["lease_id"] for lease in again] == [lease["lease_id"] for lease in first]
    assert [lease["lease_until_ms"] for lease in again] == [16_000] * 3
    await agent.report(first[0]["lease_id"])
    assert len(await agent.claim(3, claim_id="one")) == 2
    assert len(await agent.claim(3, claim_id="two")) == 2


async def test_a_resumed_claim_gives_new_work_only_when_none_is_left(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(2)
    (lease,) = await agent.claim(1, claim_id="one")
    await agent.report(lease["lease_id"])
    (other,) = await agent.claim(1, claim_id="one")
    assert other["lease_id"] > lease["lease_id"]


async def test_an_empty_claim_is_held_and_woken_by_work(memory: Caller) -> None:
    agent = await memory.register()
    async with asyncio.TaskGroup() as group:
        claim = group.create_task(
            agent.call("/claim", {"capacities": {"tcp": 1}, "claim_id": "c", "wait_ms": 50_000})
        )
        await memory.clock.advance(7 * NS_PER_S)
        assert not claim.done()
        await memory.tasks(1)
        _, answer, _ = await settled(memory.clock, claim, 0, 3)
    (lease,) = answer["leases"]
    assert lease["granted_after_ms"] == 7_000
    assert answer["held_ms"] == 7_000
    assert lease["lease_until_ms"] == 20_000, "counts from the grant"


async def test_a_held_claim_ends_with_its_wait(memory: Caller) -> None:
    agent = await memory.register()
    async with asyncio.TaskGroup() as group:
        claim = group.create_task(
            agent.call("/claim", {"capacities": {"tcp": 1}, "claim_id": "c", "wait_ms": 3_000})
        )
        await memory.clock.advance(2_999 * NS_PER_MS)
        assert not claim.done()
        status, answer, _ = await settled(memory.clock, claim, 1, 3)
    assert (status, answer["leases"], answer["claim_id"]) == (200, [], "c")


async def test_one_task_wakes_one_claim(memory: Caller) -> None:
    agents = [await memory.register(agent_key=f"{n}" * 32) for n in range(3)]
    async with asyncio.TaskGroup() as group:
        claims = [
            group.create_task(
                agent.call("/claim", {"capacities": {"tcp": 1}, "claim_id": "c", "wait_ms": 9_000})
            )
            for agent in agents
        ]
        await memory.clock.advance(NS_PER_S)
        await memory.tasks(1)
        await memory.clock.settle()
        assert [claim.done() for claim in claims] == [True, False, False]
        await memory.clock.advance(9 * NS_PER_S)
    granted = [claim.result()[1]["leases"] for claim in claims]
    assert [len(leases) for leases in granted] == [1, 0, 0]


HELD = {"capacities": {"tcp": 1}, "wait_ms": 50_000}


async def test_work_goes_to_the_claim_that_is_still_listened_to(memory: Caller) -> None:
    agent = await memory.register()
    async with asyncio.TaskGroup() as group:
        lost = group.create_task(agent.call("/claim", HELD | {"claim_id": "c"}))
        await memory.clock.advance(NS_PER_S)
        again = group.create_task(agent.call("/claim", HELD | {"claim_id": "c"}))
        _, answer, _ = await settled(memory.clock, lost, 0, 3)
        assert answer["leases"] == []
        await memory.tasks(1)
        _, answer, _ = await settled(memory.clock, again, 0, 3)
        assert len(answer["leases"]) == 1


async def test_a_released_claim_is_granted_nothing_more(memory: Caller) -> None:
    agent = await memory.register()
    async with asyncio.TaskGroup() as group:
        held = group.create_task(agent.call("/claim", HELD | {"claim_id": "c"}))
        other = group.create_task(agent.call("/claim", HELD | {"claim_id": "d"}))
        await memory.clock.advance(NS_PER_S)
        await memory.tasks(1)  # both are woken or will be; neither has looked yet
        await agent.call("/release", {"claim_ids": ["c"]})
        _, answer, _ = await settled(memory.clock, held, 0, 3)
        assert answer["leases"] == []
        _, answer, _ = await settled(memory.clock, other, 0, 3)
        assert len(answer["leases"]) == 1


async def test_a_new_instance_ends_what_the_old_one_waits_for(memory: Caller) -> None:
    agent = await memory.register(instance_id="i1")
    async with asyncio.TaskGroup() as group:
        held = group.create_task(agent.call("/claim", HELD | {"claim_id": "c"}))
        await memory.clock.advance(NS_PER_S)
        await memory.register(instance_id="i2")
        _, answer, _ = await settled(memory.clock, held, 0, 3)
    assert answer["leases"] == []


async def test_a_wake_up_whose_agent_left_goes_to_the_next(memory: Caller) -> None:
    agents = [await memory.register(agent_key=f"{n}" * 32) for n in range(2)]
    async with asyncio.TaskGroup() as group:
        gone, waiting = (
            group.create_task(agent.call("/claim", HELD | {"claim_id": "c"})) for agent in agents
        )
        await memory.clock.advance(NS_PER_S)
        await memory.tasks(1)
        gone.cancel()  # before it looked
        _, answer, _ = await settled(memory.clock, waiting, 0, 3)
    assert len(answer["leases"]) == 1


async def test_shutdown_ends_held_claims(memory: Caller) -> None:
    agent = await memory.register()
    async with asyncio.TaskGroup() as group:
        claim = group.create_task(
            agent.call("/claim", {"capacities": {"tcp": 1}, "claim_id": "c", "wait_ms": 50_000})
        )
        await memory.clock.advance(NS_PER_S)
        memory.plane.close()
        status, answer, _ = await settled(memory.clock, claim, 0, 3)
    assert (status, answer["leases"]) == (200, [])
    status, answer, _ = await memory.agent("GET", "/readyz")
    assert (status, answer["error"], answer["retryable"]) == (503, "ERR_UNAVAILABLE", True)


async def test_an_original_agent_is_held_and_its_capacities_are_a_budget(memory: Caller) -> None:
    agent = await memory.register(agent_key=None, hostname="old")
    agent.headers = ORIGINAL
    await memory.tasks(10)
    assert len(await agent.claim(2)) == 4, "2 x capacity"
    async with asyncio.TaskGroup() as group:
        claim = group.create_task(agent.call("/claim", {"capacities": {"tcp": 2}}))
        await memory.clock.advance(19 * NS_PER_S)
        assert not claim.done()
        status, answer, _ = await settled(memory.clock, claim, 500, 4)
    assert (status, answer["leases"]) == (200, [])


async def test_an_original_agent_gets_more_as_soon_as_its_budget_has_room(caller: Caller) -> None:
    """Its claim was held to the end: two leases of a full pool every 20 s, whatever waited."""
    agent = await caller.register(agent_key=None, hostname="old")
    agent.headers = ORIGINAL
    await caller.tasks(10)
    held = await agent.claim(2)
    for lease in held:
        async with asyncio.TaskGroup() as group:
            claim = group.create_task(agent.call("/claim", {"capacities": {"tcp": 2}}))
            await caller.clock.advance(NS_PER_S)
            assert not claim.done()
            item = {"lease_id": lease["lease_id"], "observations": []}
            await agent.call("/report", {"completed": [item], "cancelled": []})
            status, answer, _ = await settled(caller.clock, claim, 0, 3)
        assert (status, len(answer["leases"])) == (200, 1)


async def test_an_original_agent_gets_more_when_its_leases_expire(memory: Caller) -> None:
    agent = await memory.register(agent_key=None, hostname="old")
    agent.headers = ORIGINAL
    await memory.tasks(5, max_attempts=1)
    assert len(await agent.claim(2)) == 4
    await memory.clock.advance(15 * NS_PER_S)
    async with asyncio.TaskGroup() as group:
        claim = group.create_task(agent.call("/claim", {"capacities": {"tcp": 2}}))
        await memory.clock.advance(8 * NS_PER_S)
        assert not claim.done()
        assert await memory.plane.sweep(may_expire=True) == 4
        status, answer, _ = await settled(memory.clock, claim, 0, 3)
    assert (status, len(answer["leases"])) == (200, 1)


async def test_an_original_agent_without_room_keeps_work_from_nobody(memory: Caller) -> None:
    """It was woken for work that it could not take, and nobody else was."""
    full = await memory.register(agent_key=None, hostname="old")
    full.headers = ORIGINAL
    await memory.tasks(4)
    assert len(await full.claim(2)) == 4
    other = await memory.register()
    async with asyncio.TaskGroup() as group:
        in_vain = group.create_task(full.call("/claim", {"capacities": {"tcp": 2}}))
        await memory.clock.advance(NS_PER_S)
        body = {"capacities": {"tcp": 1}, "wait_ms": 15_000}
        waiting = group.create_task(other.call("/claim", body))
        await memory.clock.advance(NS_PER_S)
        await memory.tasks(1)
        status, answer, _ = await settled(memory.clock, waiting, 0, 3)
        assert (status, len(answer["leases"])) == (200, 1)
        assert not in_vain.done()
        in_vain.cancel()


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"capacities": {"tcp": -1}}, "$.capacities.tcp"),
        ({"capacities": {}, "max_leases": 0}, "$.max_leases"),
        ({"capacities": {}, "max_leases": 1001}, "$.max_leases"),
        ({"capacities": {}, "wait_ms": 55_001}, "$.wait_ms"),
        ({"capacities": {}, "claim_id": ""}, "$.claim_id"),
        ({"capacities": {"tcp": "x"}}, "$.capacities[...]"),
        ({"capacities": []}, "$.capacities"),
    ],
)
async def test_bad_claims_name_the_field(memory: Caller, body: dict[str, Any], path: str) -> None:
    agent = await memory.register()
    status, answer, _ = await agent.call("/claim", body)
    assert (status, answer["error"], answer["retryable"]) == (400, "ERR_VALIDATION", False)
    assert answer["details"]["violations"][0]["path"] == path
    assert len(answer["request_id"]) == 32


async def test_unknown_kinds_and_fields_are_ignored(memory: Caller) -> None:
    agent = await memory.register(future={"a": 1})
    await memory.tasks(1)
    leases = await agent.claim(capacities={"tcp": 1, "quic": 9}, future=[1])
    assert len(leases) == 1


async def test_a_disabled_agent_is_told_so(caller: Caller) -> None:
    agent = await caller.register()
    await caller.operator("PATCH", f"/v1/agents/{agent.agent_id}", {"disabled": True})
    status, answer, _ = await agent.call("/claim", {"capacities": {"tcp": 1}})
    assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")
    status, answer, _ = await caller.agent(
        "POST", "/register", {"hostname": "probe-1", "agent_key": "k1" * 16}
    )
    assert (status, answer["error"]) == (403, "ERR_FORBIDDEN")


# ── extend, release ──


async def test_an_original_extends_without_shortening_and_reads_a_bare_array(
    caller: Caller,
) -> None:
    agent = await caller.register(agent_key=None, hostname="old")
    agent.headers = ORIGINAL
    await caller.tasks(1)
    (lease,) = await agent.claim(1)
    await caller.clock.advance(2 * NS_PER_S)
    status, answer, _ = await agent.call(
        "/extend", {"lease_ids": [lease["lease_id"], 12], "extend_by_ms": 500}
    )
    assert status == 200
    assert answer == [{"lease_id": lease["lease_id"], "new_deadline_ms": 18_000}]


async def test_extend_says_what_became_of_each_lease(caller: Caller) -> None:
    agent = await caller.register()
    other = await caller.register(agent_key="o" * 32)
    check = {"kind": "tcp", "targets": ["192.0.2.1:1"]}
    _, made, _ = await caller.operator("POST", "/v1/checks", check)
    (revoked,) = await agent.claim(1, claim_id="r")
    await caller.operator("POST", f"/v1/checks/{made['check_id']}/cancel")
    await caller.tasks(2)
    (mine,) = await agent.claim(1, claim_id="m")
    (theirs,) = await other.claim(1)
    ids = [mine["lease_id"], theirs["lease_id"], revoked["lease_id"], 2**63 + 9]
    await caller.clock.advance(5 * NS_PER_S)
    _, answer, _ = await agent.call("/extend", {"lease_ids": ids, "extend_by_ms": 20_000})
    assert answer["outcomes"] == [{"lease_id": ids[0], "new_deadline_ms": 20_000}]
    assert answer["revoked"] == ids[1:]
    statuses = [one["status"] for one in answer["results"]]
    assert statuses == ["extended", "fenced", "cancelled", "unknown"]


async def test_an_expired_lease_is_revived_until_somebody_else_has_it(caller: Caller) -> None:
    agent = await caller.register()
    other = await caller.register(agent_key="o" * 32)
    await caller.tasks(1)
    (lease,) = await agent.claim(1)
    await caller.clock.advance(23 * NS_PER_S)
    assert await caller.plane.sweep(may_expire=True) == 1
    body = {"lease_ids": [lease["lease_id"]], "extend_by_ms": 20_000}
    _, answer, _ = await agent.call("/extend", body)
    assert answer["results"][0]["status"] == "extended"
    await caller.clock.advance(NS_PER_S)
    assert await other.claim(1) == []
    await caller.clock.advance(23 * NS_PER_S)
    await caller.plane.sweep(may_expire=True)
    await caller.clock.advance(60 * NS_PER_S)
    (again,) = await other.claim(1)
    assert again["attempt"] == 2
    _, answer, _ = await agent.call("/extend", body)
    assert answer["results"][0]["status"] == "fenced"


async def test_released_leases_go_back_without_an_attempt(caller: Caller) -> None:
    agent = await caller.register()
    other = await caller.register(agent_key="o" * 32)
    await caller.tasks(3)
    leases = await agent.claim(2, claim_id="a")
    await agent.claim(1, claim_id="b")
    body = {"lease_ids": [leases[0]["lease_id"], 5], "claim_ids": ["b"]}
    _, stranger, _ = await other.call("/release", body)
    assert stranger == {"released": 0}
    _, answer, _ = await agent.call("/release", body)
    assert answer == {"released": 2}
    assert [lease["attempt"] for lease in await other.claim(9)] == [1, 1]
    assert await agent.report(leases[0]["lease_id"]) == ["fenced"]


async def test_too_many_ids_are_refused(memory: Caller) -> None:
    agent = await memory.register()
    body = {"lease_ids": list(range(1, 1002)), "extend_by_ms": 1}
    status, answer, _ = await agent.call("/extend", body)
    assert (status, answer["details"]["violations"][0]["path"]) == (400, "$.lease_ids")


# ── report ──


async def test_results_are_accepted_once(caller: Caller) -> None:
    agent = await caller.register()
    other = await caller.register(agent_key="o" * 32)
    (task_id,) = await caller.tasks(1)
    (lease,) = await agent.claim(1)
    lease_id = lease["lease_id"]
    assert await other.report(lease_id) == ["fenced"]
    assert await agent.report(lease_id, 2**60, lease_id) == ["accepted", "unknown", "duplicate"]
    assert await agent.report(lease_id, outcome="target_error") == ["duplicate"]
    assert await other.report(lease_id) == ["fenced"]
    _, answer, _ = await caller.operator("GET", "/v1/results")
    (result,) = answer["results"]
    assert (result["task_id"], result["outcome"], result["attempt"]) == (task_id, "ok", 1)


async def test_a_late_result_wins_until_the_task_is_granted_again(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(2)
    first, second = await agent.claim(2)
    await caller.clock.advance(30 * NS_PER_S)
    await caller.plane.sweep(may_expire=True)
    assert await agent.report(first["lease_id"]) == ["late_accepted"]
    await caller.clock.advance(60 * NS_PER_S)
    (again,) = await agent.claim(5, claim_id="x")
    assert again["task_id"] == second["task_id"]
    assert await agent.report(second["lease_id"]) == ["fenced"]
    assert await agent.report(again["lease_id"]) == ["accepted"]


async def test_agent_errors_are_tried_again_then_buried_with_their_result(
    caller: Caller,
) -> None:
    agent = await caller.register()
    (task_id,) = await caller.tasks(1, max_attempts=2)
    for attempt in (1, 2):
        (lease,) = await agent.claim(1, claim_id=f"c{attempt}")
        assert lease["attempt"] == attempt
        assert await agent.report(lease["lease_id"], outcome="agent_error") == ["accepted"]
        await caller.clock.advance(60 * NS_PER_S)
    assert await agent.claim(1, claim_id="c3") == []
    _, dead, _ = await caller.operator("GET", "/v1/dead-letters")
    (letter,) = dead["dead_letters"]
    assert (letter["task_id"], letter["attempt"]) == (task_id, 2)
    assert letter["reason"] == "the agent could not measure, attempt 2 of 2"
    _, final, _ = await caller.operator("GET", "/v1/results")
    assert [one["outcome"] for one in final["results"]] == ["agent_error"]
    _, every, _ = await caller.operator("GET", "/v1/results?final=any")
    assert len(every["results"]) == 2


async def test_cancelled_costs_no_attempt_but_not_for_ever(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1, max_attempts=1)
    for number in range(11):
        (lease,) = await agent.claim(1, claim_id=f"c{number}")
        assert lease["attempt"] == 1
        await agent.report(lease["lease_id"], outcome="cancelled")
    assert await agent.claim(1, claim_id="last") == []
    _, dead, _ = await caller.operator("GET", "/v1/dead-letters")
    assert "came back unworked more than 10 times" in dead["dead_letters"][0]["reason"]


async def test_the_dead_may_still_report(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1, max_attempts=1)
    (lease,) = await agent.claim(1)
    await caller.clock.advance(30 * NS_PER_S)
    await caller.plane.sweep(may_expire=True)
    _, dead, _ = await caller.operator("GET", "/v1/dead-letters")
    assert dead["dead_letters"][0]["reason"].startswith("the lease expired")
    assert await agent.report(lease["lease_id"]) == ["late_accepted"]
    assert await agent.report(lease["lease_id"]) == ["duplicate"]
    _, dead, _ = await caller.operator("GET", "/v1/dead-letters")
    assert dead["dead_letters"] == []


async def test_a_bad_item_costs_itself(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(2)
    first, second = await agent.claim(2)
    bad = result_item(first["lease_id"]) | {"observations": "none"}
    empty = result_item(first["lease_id"], "")
    good = result_item(second["lease_id"], "a_newer_outcome")
    body = {"completed": [bad, empty, good], "cancelled": [7]}
    status, answer, _ = await agent.call("/report", body)
    assert (status, answer["acknowledged"]) == (200, 1)
    statuses = [one["status"] for one in answer["results"]]
    assert statuses == ["invalid", "invalid", "accepted", "invalid"]
    assert answer["results"][0]["error"].startswith("ERR_VALIDATION")
    _, results, _ = await caller.operator("GET", "/v1/results")
    assert [one["outcome"] for one in results["results"]] == ["a_newer_outcome"]


async def test_an_originals_report_is_always_200(memory: Caller) -> None:
    agent = await memory.register(agent_key=None, hostname="old")
    agent.headers = ORIGINAL
    await memory.tasks(1)
    (lease,) = await agent.claim(1)
    item = {"lease_id": lease["lease_id"], "observations": []}
    bodies: list[dict[str, Any]] = [
        {"completed": [{"lease_id": 999, "observations": []}], "cancelled": []},
        {"completed": "nonsense", "cancelled": []},
        {"completed": [], "cancelled": []},
    ]
    for body in bodies:
        status, answer, _ = await agent.call("/report", body)
        assert (status, answer) == (200, {"acknowledged": 0})
    named = {"name": "tcp_summary", "value": {"success": False}}
    item["observations"] = [named]
    status, answer, _ = await agent.call("/report", {"completed": [item], "cancelled": []})
    assert (status, answer) == (200, {"acknowledged": 1})
    _, results, _ = await memory.operator("GET", "/v1/results")
    assert results["results"][0]["outcome"] == "target_error"


async def test_a_large_report_is_taken_in_groups(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1000)
    leases = await agent.claim(1000)
    assert len(leases) == 1000
    statuses = await agent.report(*(lease["lease_id"] for lease in leases))
    assert statuses == ["accepted"] * 1000


# ── heartbeat, restart, metrics, quotas ──


async def test_heartbeats_tell_what_is_lost(caller: Caller) -> None:
    agent = await caller.register()
    check = {"kind": "tcp", "targets": ["192.0.2.1:1"]}
    _, made, _ = await caller.operator("POST", "/v1/checks", check)
    (lease,) = await agent.claim(1)
    ids = {"active_leases": {"count": 2, "ids": [lease["lease_id"], 2**63 + 1]}}
    _, answer, _ = await agent.call("/heartbeat", ids)
    assert answer["agent_id"] == agent.agent_id
    assert answer["next_deadline_ms"] == 45_000
    assert answer["unknown_leases"] == [2**63 + 1]
    assert "revoked_leases" not in answer
    await caller.operator("DELETE", f"/v1/checks/{made['check_id']}")
    _, answer, _ = await agent.call("/heartbeat", ids)
    assert answer["revoked_leases"] == [lease["lease_id"]]
    assert await agent.report(lease["lease_id"], lease["lease_id"]) == ["fenced", "fenced"]
    status, answer, _ = await agent.call("/heartbeat", {"active_leases": {"ids": ["x"]}})
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")


async def test_a_new_instance_gives_back_what_the_old_one_held(caller: Caller) -> None:
    old = await caller.register(instance_id="1")
    await caller.tasks(2)
    first, _second = await old.claim(2)
    await caller.register(instance_id="1")
    assert await old.claim(5, claim_id="c") == [], "the same instance asked twice"
    new = await caller.register(instance_id="2")
    assert await new.report(first["lease_id"]) == ["late_accepted"], "its spool is not lost"
    (again,) = await new.claim(5)
    assert again["attempt"] == 1


async def test_the_latest_metrics_are_kept_under_one_id(memory: Caller) -> None:
    agent = await memory.register()
    sample = {"name": "claims", "value": 3.0}
    body = {"timestamp": "2026-11-23T00:00:00Z", "counters": [sample]}
    first = await agent.call("/metrics", body)
    again = await agent.call("/metrics", body)
    assert first[0] == 202
    assert first[1] == again[1] == {"accepted": True, "id": "1/2026-11-23T00:00:00Z"}
    status, answer, _ = await agent.call("/metrics", body | {"counters": [sample] * 501})
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    status, answer, _ = await agent.call("/metrics", body | {"gauges": [{"name": "", "value": 1}]})
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")


async def test_quotas(memory: Caller) -> None:
    agent = await memory.register()
    for _ in range(10):
        status, _, _ = await agent.call("/heartbeat", {})
        assert status == 200
    status, answer, headers = await agent.call("/heartbeat", {})
    assert (status, answer["error"], answer["retryable"]) == (429, "ERR_RATE_LIMITED", True)
    assert answer["retry_after_ms"] == 2_000
    assert headers["Retry-After"] == "2"
    other = await memory.register(agent_key="o" * 32)
    assert (await other.call("/heartbeat", {}))[0] == 200, "a bucket per agent"
    await memory.clock.advance(2 * NS_PER_S)
    assert (await agent.call("/heartbeat", {}))[0] == 200


async def test_registering_too_often_is_told_when_to_come_back(memory: Caller) -> None:
    for _ in range(5):
        await memory.register()
    body = {"hostname": "probe-1", "agent_key": "k1" * 16}
    status, answer, _ = await memory.agent("POST", "/register", body)
    assert (status, answer["retry_after_ms"]) == (429, 60_000)


@pytest.mark.parametrize("agent_id", ["0", "-1", "x", "1" * 21, "0" * 20 + "1" + "9" * 5_000])
async def test_an_agent_id_that_is_none_is_refused(caller: Caller, agent_id: str) -> None:
    headers = {"x_agent_id": agent_id, "x_agent_token": "t"}
    status, answer, _ = await caller.agent("POST", "/heartbeat", {"agent_id": 1}, **headers)
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")


async def test_results_are_told_of_although_the_rest_of_a_report_failed(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.wire.REPORT_ITEMS_MAX", 1)
    agent = await caller.register()
    await caller.tasks(2)
    items = [result_item(lease["lease_id"]) for lease in await agent.claim()]
    pulse = caller.plane.results_pulse.next()
    write, calls = caller.plane.writer.write, 0

    async def once(operation: Any, size: int = 1) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise RequestError(ErrorCode.STORAGE_FULL, "no room")
        return await write(operation, size)

    monkeypatch.setattr(caller.plane.writer, "write", once)
    status, _, _ = await agent.call("/report", {"completed": items, "cancelled": []})
    assert (status, calls) == (507, 2)
    assert pulse.is_set()


async def test_agents_are_found_by_the_hostname_they_have_now(caller: Caller) -> None:
    registry = caller.plane.registry
    first = await caller.register(hostname="a", agent_key="a" * 32)
    second = await caller.register(hostname="b", agent_key="b" * 32)
    third = await caller.register(hostname="a", agent_key="c" * 32)
    assert registry.find("a") == [first.agent_id, third.agent_id]
    await caller.register(hostname="b", agent_key="a" * 32)
    assert (registry.find("a"), registry.find("b")) == ([3], [1, 2])
    await caller.register(hostname="c", agent_key="c" * 32)
    assert (registry.find("a"), registry.find("c")) == ([], [third.agent_id])
    assert registry.find(str(second.agent_id)) == [second.agent_id]


async def test_naming_an_agent_does_not_look_at_all_of_them(
    memory: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand tasks of one call may each name one."""
    agent = await memory.register(hostname="a")
    monkeypatch.delattr("netsonde.server.registry.AgentRegistry.all")
    await memory.tasks(3, agent="a")
    assert len(await agent.claim()) == 3
