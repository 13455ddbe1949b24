"""The verbs, against our control plane and both original ones, lossy networks included."""

import asyncio
import json
from typing import Any

import pytest

from netsonde import __version__
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.control_plane.cadence import CADENCE, LEGACY_CADENCE
from netsonde.control_plane.grants import LeaseExtendClient
from netsonde.control_plane.memory import (
    Answered,
    Delayed,
    Garbled,
    LostRequest,
    LostResponse,
    Oversized,
    Truncated,
)
from netsonde.control_plane.transport import Headers
from netsonde.errors import ControlPlaneError, TransportError
from netsonde.model import (
    HeartbeatRequest,
    PingSpec,
    RegisterRequest,
)
from support.clients import ALL, LEGACY, item, rig
from support.control_planes import (
    GoControlPlane,
    RustControlPlane,
    ScriptedControlPlane,
    lease,
)
from support.driving import finish

MARGIN_NS = 450 * NS_PER_MS  # 1 % of 45 s


# ── who we are ───────────────────────────────────────────────────────────────────────────────────


@ALL
async def test_every_verb_works_with_every_control_plane(kind: type[ScriptedControlPlane]) -> None:
    it = await rig(kind).registered()
    it.server.leases = [lease(1)]

    grant = await it.claim()
    beat = await finish(it.clock, it.client.heartbeat(HeartbeatRequest(agent_id=0)))
    extension = await finish(it.clock, it.client.extend([1], 45_000))
    results = await it.report([item(1)])
    released = await finish(it.clock, it.client.release([2]))

    assert [found.lease_id for found in grant.leases] == [1]
    assert beat.agent_id == 7
    assert set(extension.deadlines_ns) == {1}
    assert [(result.lease_id, result.status) for result in results] == [(1, "accepted")]
    assert released == 1
    assert it.client.is_legacy is (kind is not ScriptedControlPlane)


async def test_requests_say_who_asks() -> None:
    it = await rig().registered()
    await it.claim()

    register, claim = (Headers(request.headers) for request in it.transport.requests)

    assert register["Netsonde-Protocol"] == claim["Netsonde-Protocol"] == "1"
    assert claim["User-Agent"] == f"netsonde/{__version__}"
    assert (claim["X-Agent-Id"], claim["X-Agent-Token"]) == ("7", "token-1")
    assert "X-Agent-Token" not in register
    assert it.transport.requests[-1].is_held


async def test_a_call_before_register_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="claim before register"):
        await rig().claim()


@pytest.mark.parametrize("prefix", ["/v1/agents", "", "/v1", "/api/v1"])
async def test_the_prefix_is_found_once_and_kept(prefix: str) -> None:
    it = rig()
    it.server.prefixes = (prefix,)
    await it.registered()
    asked = len(it.transport.requests)

    await it.claim()
    await it.registered()

    paths = [request.path for request in it.transport.requests]
    assert paths[asked:] == [f"{prefix}/claim", f"{prefix}/register"]
    assert it.client.prefix == prefix


async def test_no_agent_api_anywhere_is_a_refusal() -> None:
    it = rig()
    it.server.prefixes = ()

    with pytest.raises(ControlPlaneError) as caught:
        await it.registered()

    assert caught.value.status == 404
    assert len(it.transport.requests) == 4


@pytest.mark.parametrize(
    "answer",
    [
        {"agent_id": 0, "lease_duration_ms": 1, "heartbeat_timeout_ms": 1, "auth_token": "t"},
        b'{"agent_id":18446744073709551616,"lease_duration_ms":1,"heartbeat_timeout_ms":1,'
        b'"auth_token":"t"}',
        {"agent_id": 1, "lease_duration_ms": 1, "heartbeat_timeout_ms": 1, "auth_token": "a\nb"},
        {"agent_id": 1},
        b"<html>welcome to the hotel</html>",
        b"",
    ],
)
async def test_an_identity_nobody_can_use_is_no_identity(answer: Any) -> None:
    it = rig()
    it.server.answers["register"] = [(200, answer)] * 4

    with pytest.raises(TransportError, match="register: the answer makes no sense"):
        await it.registered()

    assert it.client.identity is None
    assert it.client.counters["garbled_answers"] == 4


async def test_a_registration_that_makes_no_sense_is_not_quoted() -> None:
    it = rig()
    it.server.answers["register"] = [(200, {"auth_token": "secret", "agent_id": "?"})] * 4

    with pytest.raises(TransportError) as caught:
        await it.registered()

    assert "secret" not in str(caught.value)


async def test_a_registration_that_cannot_be_stored_makes_no_sense() -> None:
    it = rig()
    names = ("agent_id", "lease_duration_ms", "heartbeat_timeout_ms")
    answer = {"auth_token": "t"} | dict.fromkeys(names, 1) | {"claim_wait_ms": 2**64}
    it.server.answers["register"] = [(200, json.dumps(answer).encode())] * 4

    with pytest.raises(TransportError, match="a number in it has more than 64 bits"):
        await it.registered()


async def test_cadence_is_gentle_until_the_protocol_is_seen() -> None:
    it = rig()
    assert it.client.cadence == LEGACY_CADENCE
    await it.registered()
    assert it.client.cadence == CADENCE

    legacy = await rig(RustControlPlane).registered()
    assert legacy.client.cadence == LEGACY_CADENCE
    assert (LEGACY_CADENCE.heartbeat_ms, LEGACY_CADENCE.claim_ms) == (10_000, 5_000)


# ── patience ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault",
    [
        LostRequest(),
        LostResponse(),
        Oversized(),
        Truncated(20),
        Garbled(b"<html>proxy</html>"),
        Garbled(b'{"leases":' + b'{"a":' * 5000),
        Garbled(b"\xff\xfe\x00"),
        Answered(500, b"oops"),
        Answered(502, b"<html>bad gateway</html>"),
        Answered(503, b'{"error":"timeout"}'),
        Answered(408, b""),
        Answered(429, b"slow down", {"Retry-After": "0"}),
        Answered(504, b'{"error":"ERR_DEADLINE","message":"m","retryable":true}'),
        Answered(418, b'{"error":"ERR_NEW","message":"m","retryable":true}'),
    ],
)
async def test_what_may_pass_is_tried_again(fault: Any) -> None:
    it = await rig().registered()
    it.transport.inject(fault, path_end="/claim", times=3)
    it.server.leases = [lease(1)]

    grant = await it.claim()

    lost = isinstance(fault, LostResponse | Oversized | Truncated | Garbled)
    assert len(grant.leases) == (0 if lost else 1)  # the scripted server cannot resume
    assert it.client.counters["retries"] == 3


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b"bad json", "ERR_VALIDATION"),
        (403, b'{"error":"ERR_FORBIDDEN","message":"disabled","retryable":false}', "ERR_FORBIDDEN"),
        (404, b"", "ERR_NOT_FOUND"),
        (418, b'{"error":"ERR_TEAPOT","message":"m","retryable":false}', "ERR_TEAPOT"),
        (302, b"", "ERR_NOT_FOUND"),
    ],
)
async def test_a_refusal_is_raised_at_once(status: int, body: bytes, code: str) -> None:
    it = await rig().registered()
    it.transport.inject(Answered(status, body, {"Location": "https://x"}), path_end="/claim")

    with pytest.raises(ControlPlaneError) as caught:
        await it.claim()

    assert (caught.value.status, caught.value.code) == (status, code)
    assert it.client.counters["claim_requests"] == 1


async def test_attempts_are_bounded() -> None:
    it = await rig().registered()
    it.transport.is_partitioned = True

    with pytest.raises(TransportError, match="claim: the connection broke"):
        await it.claim(attempts=3)

    assert it.client.counters["claim_requests"] == 3
    assert it.client.counters["claim_failed"] == 1


@pytest.mark.parametrize(
    ("headers", "body", "least_s"),
    [
        ({"Retry-After": "7"}, b"", 7),
        ({}, b'{"error":"ERR_RATE_LIMITED","message":"m","retry_after_ms":2500}', 2.5),
        (
            {"Retry-After": "3"},
            b'{"error":"ERR_RATE_LIMITED","message":"m","retry_after_ms":2500}',
            3,
        ),
        ({"Retry-After": "0"}, b"", 1),
        ({}, b"", 1),
        ({"Retry-After": "9" * 5000}, b"", 1),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"", 1),
        ({"Retry-After": "-5"}, b"", 1),
    ],
)
async def test_the_servers_wish_to_be_left_alone_is_obeyed(
    headers: dict[str, str], body: bytes, least_s: float
) -> None:
    it = await rig().registered()
    it.transport.inject(Answered(429, body, headers), path_end="/claim")
    before_ns = it.clock.boottime_ns()

    await it.claim()

    assert least_s * NS_PER_S <= it.clock.boottime_ns() - before_ns <= (least_s + 1) * NS_PER_S


async def test_the_next_call_obeys_what_the_last_one_was_told() -> None:
    it = await rig().registered()
    it.transport.inject(Answered(429, b"", {"Retry-After": "60"}), path_end="/claim")
    with pytest.raises(ControlPlaneError):
        await it.claim(attempts=1)
    before_ns = it.clock.boottime_ns()

    await it.report([item(1)])
    assert it.clock.boottime_ns() == before_ns  # another verb is not meant

    await it.claim()
    assert it.clock.boottime_ns() - before_ns == 60 * NS_PER_S


async def test_a_loop_of_failing_calls_is_no_storm() -> None:
    it = await rig().registered()
    it.transport.is_partitioned = True
    start_ns = it.clock.boottime_ns()

    while it.clock.boottime_ns() - start_ns < 3600 * NS_PER_S:
        with pytest.raises(TransportError):
            await it.claim()

    requests = it.client.counters["claim_requests"]
    assert 120 < requests < 360  # a request every 10 to 30 s on average, retries included
    assert it.client.counters["retry_budget_empty"] > 0


async def test_a_starved_budget_leaves_reports_their_retries() -> None:
    it = await rig().registered()
    it.transport.inject(LostRequest(), path_end="/claim", times=200)
    while not it.client.counters["retry_budget_empty"]:
        with pytest.raises(TransportError):
            await it.claim()
    it.transport.inject(LostRequest(), path_end="/report", times=3)

    assert [result.status for result in await it.report([item(1)])] == ["accepted"]


async def test_every_request_has_a_timeout() -> None:
    it = await rig().registered()
    it.transport.inject(Delayed(response_ns=3600 * NS_PER_S), times=4)
    before_ns = it.clock.boottime_ns()

    with pytest.raises(TransportError, match="within 30 s"):
        await it.claim(wait_ms=20_000, attempts=1)
    assert it.clock.boottime_ns() - before_ns == 30 * NS_PER_S

    for work, seconds in (
        (it.client.extend([1], 1000, attempts=1), 10),
        (it.client.report([item(1)], (), attempts=1), 30),
        (it.client.heartbeat(HeartbeatRequest(agent_id=0), attempts=1), 10),
    ):
        with pytest.raises(TransportError, match=f"within {seconds} s"):
            await finish(it.clock, work)


# ── identity lost ────────────────────────────────────────────────────────────────────────────────


async def test_a_refused_token_is_renewed_once_per_call() -> None:
    it = await rig().registered()
    renewals: list[Any] = []

    async def reauthenticate(refused: Any) -> None:
        renewals.append(refused)
        await it.client.register(RegisterRequest(hostname="h"))

    it.client.connect(reauthenticate=reauthenticate, observe=lambda verb, failure: None)
    it.server.forget_tokens()
    it.server.leases = [lease(1)]

    assert len((await it.claim()).leases) == 1
    assert [refused.token for refused in renewals] == ["token-1"]
    assert it.server.bodies["claim"][-1]["agent_id"] == 7

    it.server.answers["claim"] = [(401, b"no")] * 2
    with pytest.raises(ControlPlaneError) as caught:
        await it.claim()
    assert caught.value.status == 401
    assert len(renewals) == 2


# ── claims ───────────────────────────────────────────────────────────────────────────────────────


async def test_every_attempt_of_a_claim_repeats_its_id() -> None:
    it = await rig().registered()
    it.transport.inject(LostResponse(), path_end="/claim", times=2)

    await it.claim(wait_ms=5000, max_leases=9)

    assert (
        it.server.bodies["claim"]
        == [
            {
                "agent_id": 7,
                "capacities": {"ping": 4},
                "claim_id": "c-1",
                "max_leases": 9,
                "wait_ms": 5000,
            }
        ]
        * 3
    )


@pytest.mark.parametrize("capacities", [{}, {"ping": 0}, {"ping": 0, "dns": -1}])
async def test_without_a_free_slot_nothing_is_asked(capacities: dict[str, int]) -> None:
    it = await rig().registered()

    assert (await it.claim(capacities=capacities)).leases == ()
    assert it.server.calls("claim") == 0


async def test_full_kinds_are_left_out() -> None:
    it = await rig().registered()

    await it.claim(capacities={"ping": 0, "dns": 3})

    assert it.server.bodies["claim"][0]["capacities"] == {"dns": 3}


async def test_a_deadline_counts_from_this_attempts_sending() -> None:
    it = await rig().registered()
    it.transport.inject(LostRequest(), path_end="/claim")
    it.transport.inject(
        Delayed(request_ns=300 * NS_PER_MS, response_ns=500 * NS_PER_MS), path_end="/claim"
    )
    it.server.leases = [lease(1, granted_after_ms=200)]

    (deadline_ns,) = (await it.claim()).deadlines_ns

    sent_ns = it.clock.boottime_ns() - 800 * NS_PER_MS
    assert sent_ns > NS_PER_S  # the first attempt was earlier
    assert deadline_ns == sent_ns + (200 + 45_000) * NS_PER_MS - MARGIN_NS


@pytest.mark.parametrize("granted_after_ms", [900_000, -5])
async def test_a_grant_cannot_be_later_than_its_answer(granted_after_ms: int) -> None:
    it = await rig().registered()
    it.server.leases = [lease(1, granted_after_ms=granted_after_ms)]

    (deadline_ns,) = (await it.claim()).deadlines_ns

    assert deadline_ns == it.clock.boottime_ns() + 45_000 * NS_PER_MS - MARGIN_NS


async def test_a_claim_waits_as_long_as_the_server_prefers() -> None:
    it = rig()
    it.server.answers["register"] = [
        (
            200,
            {
                "agent_id": 7,
                "lease_duration_ms": 60_000,
                "heartbeat_timeout_ms": 45_000,
                "auth_token": "t",
                "claim_wait_ms": 44_000,
            },
        )
    ]
    it.server.tokens = {"t"}
    await it.registered()

    await it.claim()
    await it.claim(wait_ms=99_000_000)

    assert [body["wait_ms"] for body in it.server.bodies["claim"]] == [44_000, 55_000]
    assert [request.timeout_s for request in it.transport.requests][1:] == [54.0, 65.0]


@LEGACY
async def test_an_original_server_holds_as_long_as_it_likes(
    kind: type[ScriptedControlPlane],
) -> None:
    it = await rig(kind).registered()

    await it.claim(wait_ms=0)

    assert it.transport.requests[-1].timeout_s == 30.0


async def test_epoch_deadlines_are_read_by_the_servers_own_clock() -> None:
    it = rig(GoControlPlane)
    await it.registered()
    it.server.leases = [lease(1, lease_until_ms=45_000), lease(2, lease_until_ms=900_000)]
    it.transport.inject(Delayed(request_ns=2 * NS_PER_S), path_end="/claim")

    grant = await it.claim()
    (first, second), (first_ns, second_ns) = grant.leases, grant.deadlines_ns

    sent_ns = it.clock.boottime_ns() - 2 * NS_PER_S
    assert first.lease_until_ms == 44_000  # a second for the cut Date header
    assert first_ns == sent_ns + 44_000 * NS_PER_MS - 440 * NS_PER_MS
    assert second.lease_until_ms == 90_000  # never more than the term of registration
    assert second_ns == sent_ns + 90_000 * NS_PER_MS - 900 * NS_PER_MS


async def test_our_wall_clock_has_no_say_in_epoch_deadlines() -> None:
    it = await rig(GoControlPlane).registered()
    it.server.leases = [lease(1, lease_until_ms=45_000)]
    server = it.server
    assert isinstance(server, GoControlPlane)

    server.clock = ManualClock(realtime_ns=it.clock.realtime_ns() + 10**9 * NS_PER_S)
    (found,) = (await it.claim()).leases

    assert found.lease_until_ms == 44_000


@pytest.mark.parametrize("date", ["", "yesterday", "Tue, 99 Nov 2026 00:00:00 GMT"])
async def test_an_epoch_deadline_without_a_date_is_at_most_the_term(date: str) -> None:
    it = await rig(GoControlPlane).registered()
    server = it.server
    assert isinstance(server, GoControlPlane)
    body = json.dumps({"leases": [lease(1, lease_until_ms=server.epoch_ms(45_000))]}).encode()
    it.transport.inject(Answered(200, body, {"Date": date}), path_end="/claim")

    (found,) = (await it.claim()).leases

    assert found.lease_until_ms == 90_000


async def test_the_rust_servers_nulls_are_absent_options() -> None:
    it = await rig(RustControlPlane).registered()
    it.server.leases = [lease(1)]

    (found,) = (await it.claim()).leases

    assert found.spec == PingSpec(host="192.0.2.1")


@pytest.mark.parametrize("depth", [40, 700, 900])
async def test_a_lease_nested_too_deep_costs_itself(depth: int) -> None:
    it = await rig().registered()
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    good = json.dumps(lease(1)).encode()
    it.server.answers["claim"] = [(200, b'{"leases":[' + deep + b"," + good + b"]}")]

    grant = await it.claim()

    assert [found.lease_id for found in grant.leases] == [1]
    assert len(grant.rejected) == 1


async def test_a_closed_client_says_so() -> None:
    it = await rig().registered()
    await it.client.close()

    with pytest.raises(TransportError, match="the transport is closed"):
        await it.claim()


# ── extensions ───────────────────────────────────────────────────────────────────────────────────


def test_the_client_is_what_a_lease_extender_needs() -> None:
    extender: LeaseExtendClient = rig().client

    assert callable(extender.extend)


@pytest.mark.parametrize("bare", [False, True])
async def test_an_extension_counts_from_its_own_sending(bare: bool) -> None:
    it = await rig().registered()
    outcomes = [{"lease_id": 1, "new_deadline_ms": 45_000}, {"lease_id": 99, "new_deadline_ms": 1}]
    it.server.answers["extend"] = [(200, outcomes if bare else {"outcomes": outcomes})]
    it.transport.inject(Delayed(request_ns=NS_PER_S), path_end="/extend")

    extension = await finish(it.clock, it.client.extend([1, 2], 45_000))

    sent_ns = it.clock.boottime_ns() - NS_PER_S
    assert extension.deadlines_ns == {1: sent_ns + 45_000 * NS_PER_MS - MARGIN_NS}
    assert extension.revoked == ()


async def test_what_is_not_ours_any_more_is_revoked() -> None:
    it = await rig().registered()
    statuses = {1: "extended", 2: "fenced", 3: "unknown", 4: "cancelled", 5: "capped", 6: "novel"}
    it.server.answers["extend"] = [
        (
            200,
            {
                "outcomes": [
                    {"lease_id": 1, "new_deadline_ms": 9000},
                    {"lease_id": 5, "new_deadline_ms": 100},
                ],
                "revoked": [7, 1000],
                "results": [
                    {"lease_id": number, "status": status} for number, status in statuses.items()
                ],
            },
        )
    ]

    extension = await finish(it.clock, it.client.extend(range(1, 8), 45_000))

    assert set(extension.deadlines_ns) == {1, 5}
    assert extension.revoked == (2, 3, 4, 7)
    assert extension.capped == (5,)


async def test_many_leases_are_extended_in_parts() -> None:
    it = await rig().registered()

    extension = await finish(it.clock, it.client.extend(range(1, 2502), 45_000))

    assert [len(body["lease_ids"]) for body in it.server.bodies["extend"]] == [1000, 1000, 501]
    assert len(extension.deadlines_ns) == 2501


async def test_a_part_that_gets_no_answer_does_not_cost_the_others() -> None:
    it = await rig().registered()
    it.transport.inject(Delayed(), path_end="/extend")
    it.transport.inject(LostRequest(), path_end="/extend", times=4)

    extension = await finish(it.clock, it.client.extend(range(1, 1502), 45_000))

    assert set(extension.deadlines_ns) == set(range(1, 1001))


async def test_epoch_extensions_become_durations() -> None:
    it = await rig(GoControlPlane).registered()

    extension = await finish(it.clock, it.client.extend([1], 60_000))

    now_ns = it.clock.boottime_ns()
    assert extension.deadlines_ns == {1: now_ns + 59_000 * NS_PER_MS - 590 * NS_PER_MS}


# ── heartbeats ───────────────────────────────────────────────────────────────────────────────────


async def test_a_heartbeat_carries_the_agents_id_and_its_answer_is_relative() -> None:
    it = await rig(GoControlPlane).registered()

    beat = await finish(it.clock, it.client.heartbeat(HeartbeatRequest(agent_id=0, state="active")))

    assert it.server.bodies["heartbeat"] == [{"agent_id": 7, "state": "active"}]
    assert beat.next_deadline_ms == 19_000


@pytest.mark.parametrize("body", [b"", b"{}", b'{"next_deadline_ms":5}'])
async def test_a_heartbeats_answer_may_leave_things_out(body: bytes) -> None:
    it = await rig().registered()
    it.server.answers["heartbeat"] = [(200, body)]

    beat = await finish(it.clock, it.client.heartbeat(HeartbeatRequest(agent_id=0)))

    assert beat.agent_id is None


async def test_a_heartbeat_for_agent_0_is_no_answer() -> None:
    it = await rig().registered()
    it.server.answers["heartbeat"] = [(200, {"agent_id": 0})]

    await finish(it.clock, it.client.heartbeat(HeartbeatRequest(agent_id=0)))

    assert it.client.counters["garbled_answers"] == 1
    assert it.server.calls("heartbeat") == 2


async def test_calls_run_side_by_side() -> None:
    it = await rig().registered()
    it.transport.inject(Delayed(response_ns=5 * NS_PER_S), path_end="/claim")
    async with asyncio.TaskGroup() as group:
        claim = group.create_task(it.client.claim({"ping": 1}, claim_id="c"))
        report = group.create_task(it.client.report([item(1)], ()))
        await it.clock.settle(200)
        assert report.done()
        assert not claim.done()
        await it.clock.advance(5 * NS_PER_S)
        await it.clock.settle(200)
    assert claim.result().leases == ()
