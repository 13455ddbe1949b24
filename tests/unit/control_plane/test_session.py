"""Registration for ever, credentials across restarts, heartbeats, and what is logged."""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.control_plane.client import ControlPlaneClient
from netsonde.control_plane.memory import (
    Answered,
    Garbled,
    LostResponse,
    MemoryControlPlaneTransport,
)
from netsonde.control_plane.session import AgentRuntime
from netsonde.errors import ControlPlaneError, StorageError, TransportError
from netsonde.model import HeartbeatRequest, RegisterRequest
from support.control_planes import RustControlPlane, ScriptedControlPlane
from support.driving import finish


class Rig:
    """One run of an agent's session; `restarted` is the next run on the same disk."""

    def __init__(
        self,
        folder: Path,
        server: ScriptedControlPlane | None = None,
        clock: ManualClock | None = None,
        base_url: str = "http://one",
    ) -> None:
        self.clock = clock or ManualClock()
        self.server = server or ScriptedControlPlane(self.clock)
        self.path = folder / "credentials.json"
        self.transport = MemoryControlPlaneTransport(self.server, self.clock, base_url)
        self.client = ControlPlaneClient(self.transport, self.clock, Random(1))
        self.lost: list[tuple[int, ...]] = []
        self.session = AgentRuntime(
            self.client,
            self.clock,
            self.path,
            describe=lambda: RegisterRequest(hostname="h", instance_id="i-1"),
            beat=lambda: HeartbeatRequest(agent_id=0, state="active"),
            on_lost=lambda ids: self.lost.append(tuple(ids)),
        )

    async def started(self) -> "Rig":
        await finish(self.clock, self.session.start())
        return self

    def restarted(self, base_url: str = "http://one") -> "Rig":
        return Rig(self.path.parent, self.server, self.clock, base_url)

    def stored(self) -> Any:
        return json.loads(self.path.read_text())


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def messages(caplog: pytest.LogCaptureFixture, action: str) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if getattr(record, "action", None) == action
    ]


# ── registration ─────────────────────────────────────────────────────────────────────────────────


async def test_the_first_start_makes_an_identity_and_keeps_it(rig: Rig) -> None:
    await rig.started()

    sent = rig.server.bodies["register"][0]
    assert sent == {"hostname": "h", "instance_id": "i-1", "agent_key": rig.stored()["agent_key"]}
    assert rig.stored()["registration"]["auth_token"] == "token-1"
    assert rig.client.identity is not None
    assert rig.client.identity.agent_id == 7


async def test_the_key_is_on_disk_before_anybody_hears_of_it(rig: Rig) -> None:
    on_disk: list[str] = []
    server = rig.server

    async def handler(request: Any) -> Any:
        on_disk.append(rig.stored()["agent_key"])
        return await server(request)

    rig.transport._handler = handler
    await rig.started()

    assert on_disk == [rig.server.bodies["register"][0]["agent_key"]]


async def test_a_restart_registers_again_as_the_same_agent(rig: Rig) -> None:
    await rig.started()
    again = await rig.restarted().started()

    first, second = rig.server.bodies["register"]
    assert first["agent_key"] == second["agent_key"]
    assert again.stored()["registration"]["auth_token"] == "token-2"


async def test_an_original_server_is_not_asked_for_a_token_at_every_restart(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    rig = await Rig(tmp_path, RustControlPlane(clock, prefixes=("",)), clock).started()
    again = await rig.restarted().started()

    await finish(clock, again.client.claim({"ping": 1}, claim_id="c"))

    assert rig.server.registrations == 1
    assert again.client.is_legacy is True
    assert again.client.term_ms == 60_000
    assert again.transport.requests[-1].path == "/claim"  # the prefix was kept


async def test_a_token_is_not_shown_to_another_control_plane(tmp_path: Path) -> None:
    clock = ManualClock()
    rig = await Rig(tmp_path, RustControlPlane(clock), clock).started()

    moved = await rig.restarted(base_url="http://other").started()

    assert rig.server.registrations == 2
    assert all("X-Agent-Token" not in request.headers for request in moved.transport.requests)
    assert moved.stored()["control_plane"] == "http://other"
    assert rig.server.bodies["register"][0]["agent_key"] == moved.stored()["agent_key"]


async def test_a_damaged_file_makes_a_new_agent(rig: Rig) -> None:
    await rig.started()
    rig.path.write_bytes(rig.path.read_bytes()[:30])

    again = await rig.restarted().started()

    first, second = rig.server.bodies["register"]
    assert first["agent_key"] != second["agent_key"]
    assert again.path.with_name("credentials.json.damaged-0").exists()


async def test_without_a_disk_for_the_key_nothing_starts(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    rig = Rig(blocked)

    with pytest.raises(StorageError, match="credentials"):
        await rig.started()
    assert rig.server.registrations == 0


async def test_a_registration_that_cannot_be_kept_is_used(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    server = rig.server

    async def handler(request: Any) -> Any:
        answer = await server(request)
        rig.path.with_name("credentials.json.new").mkdir()  # from here on nothing can be written
        return answer

    rig.transport._handler = handler
    await rig.started()

    assert rig.client.identity is not None
    assert len(messages(caplog, "credentials_not_kept")) == 1


async def test_registration_is_tried_for_ever_and_logged_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig.transport.is_partitioned = True
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(rig.session.start())
        for _ in range(24 * 60):
            await rig.clock.advance(60 * NS_PER_S)
        assert not starting.done()
        attempts = len(rig.transport.requests)
        assert 24 * 12 < attempts < 24 * 60  # at most every five minutes, on average every half

        rig.transport.is_partitioned = False
        for _ in range(6):
            await rig.clock.advance(60 * NS_PER_S)
        await starting

    assert len(messages(caplog, "control_plane_lost")) == 1
    assert "register: the connection broke" in messages(caplog, "control_plane_lost")[0]
    assert len(messages(caplog, "control_plane_back")) == 1


@pytest.mark.parametrize("status", [401, 403, 409])
async def test_a_refused_registration_is_an_operators_problem_retried_at_the_cap(
    rig: Rig, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    body = (
        b'{"error":"ERR_ENROLMENT_REQUIRED","message":"no enrolment token","retryable":false,'
        b'"request_id":"r1"}'
    )
    rig.transport.inject(Answered(status, body), path_end="/register", times=3)
    before_ns = rig.clock.boottime_ns()

    await rig.started()

    assert rig.clock.boottime_ns() - before_ns == 900 * NS_PER_S
    (said,) = messages(caplog, "control_plane_refuses")
    assert "no enrolment token" in said
    assert "make a token there with `netsonde token create --enrol`" in said
    assert "it asks again every 300 s" in said
    refusals = [one for one in caplog.records if vars(one).get("action") == "control_plane_refuses"]
    assert [vars(one)["request_id"] for one in refusals] == ["r1"]


async def test_another_reason_against_a_token_is_said_too(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    for reason in ("none", "expired", "expired"):
        body = b'{"error":"ERR_ENROLMENT_REQUIRED","message":"%s"}' % reason.encode()
        rig.transport.inject(Answered(401, body), path_end="/register")
    await rig.started()
    assert len(messages(caplog, "control_plane_refuses")) == 2


async def test_a_wrong_address_is_said_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    prefixes, rig.server.prefixes = rig.server.prefixes, ()
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(rig.session.start())
        for _ in range(30):
            await rig.clock.advance(60 * NS_PER_S)
        rig.server.prefixes = prefixes
        for _ in range(6):
            await rig.clock.advance(60 * NS_PER_S)
        await starting

    assert len(messages(caplog, "control_plane_refuses")) == 1
    assert "ERR_NOT_FOUND (404)" in messages(caplog, "control_plane_refuses")[0]


async def test_a_lost_answer_to_register_locks_nobody_out(rig: Rig) -> None:
    rig.transport.inject(LostResponse(), path_end="/register", times=2)

    await rig.started()

    assert {body["agent_key"] for body in rig.server.bodies["register"]} == {
        rig.stored()["agent_key"]
    }
    assert rig.stored()["registration"]["auth_token"] == "token-3"


# ── refused tokens ───────────────────────────────────────────────────────────────────────────────


async def test_a_storm_of_401_is_one_registration(rig: Rig) -> None:
    await rig.started()
    rig.server.forget_tokens()

    async def everybody() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(rig.client.claim({"ping": 1}, claim_id=str(number)))
                group.create_task(rig.client.extend([number + 1], 1000))

    await finish(rig.clock, everybody())

    assert rig.server.registrations == 2
    assert rig.stored()["registration"]["auth_token"] == "token-2"


async def test_a_token_another_process_stored_is_used_first(rig: Rig) -> None:
    await rig.started()
    other = await rig.restarted().started()
    assert rig.server.tokens == {"token-2"}

    await finish(rig.clock, rig.client.claim({"ping": 1}, claim_id="c"))

    assert rig.server.registrations == 2
    assert rig.client.identity == other.client.identity


async def test_tokens_that_are_refused_at_once_are_asked_for_ever_more_slowly(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.started()
    asked_ns: list[int] = []
    register = rig.server.register

    async def no_good(body: Any) -> Any:
        asked_ns.append(rig.clock.boottime_ns())
        answer = await register(body)
        rig.server.forget_tokens()
        return answer

    monkeypatch.setattr(rig.server, "register", no_good)
    rig.server.forget_tokens()

    async def claims() -> None:
        while rig.clock.boottime_ns() < 3 * 3600 * NS_PER_S:
            with pytest.raises(ControlPlaneError):
                await rig.client.claim({"ping": 1}, claim_id="c")

    await finish(rig.clock, claims())

    last_hour = [at_ns for at_ns in asked_ns if at_ns > 2 * 3600 * NS_PER_S]
    assert 5 < len(last_hour) < 150


async def test_calls_wait_for_the_first_registration(rig: Rig) -> None:
    rig.transport.inject(Answered(503), path_end="/register")

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(rig.session.start())
            claim = group.create_task(_after_a_turn(rig))
        assert claim.result().leases == ()

    await finish(rig.clock, both())

    assert rig.server.registrations == 1


async def _after_a_turn(rig: Rig) -> Any:
    await asyncio.sleep(0)
    return await rig.client.claim({"ping": 1}, claim_id="c")


# ── heartbeats ───────────────────────────────────────────────────────────────────────────────────


async def run_for(rig: Rig, seconds: int, meanwhile: Callable[[int], None] | None = None) -> None:
    async with asyncio.TaskGroup() as group:
        running = group.create_task(rig.session.run())
        for second in range(seconds):
            if meanwhile is not None:
                meanwhile(second)
            await rig.clock.advance(NS_PER_S)
        running.cancel()


async def test_heartbeats_come_three_to_a_timeout_and_are_numbered(rig: Rig) -> None:
    await rig.started()

    await run_for(rig, 300)

    beats = rig.server.bodies["heartbeat"]
    assert 20 <= len(beats) <= 24  # every 13.5 to 15 s of a 45 s timeout
    assert [beat["seq"] for beat in beats] == list(range(1, len(beats) + 1))
    assert beats[0] == {"agent_id": 7, "state": "active", "seq": 1}


@pytest.mark.parametrize(
    ("answer", "most_s", "least_s"),
    [
        ({"heartbeat_interval_ms": 30_000}, 30, 27),
        ({"heartbeat_interval_ms": 1}, 2, 2),
        ({"heartbeat_interval_ms": 10**15}, 600, 600),
        ({}, 15, 13.5),
    ],
)
async def test_the_server_sets_the_interval_within_reason(
    rig: Rig, answer: dict[str, int], most_s: float, least_s: float
) -> None:
    await rig.started()
    rig.server.answers["heartbeat"] = [(200, answer)]
    await finish(rig.clock, rig.session.heartbeat())

    intervals = [rig.session.beat_interval_ns() / NS_PER_S for _ in range(50)]

    assert least_s <= min(intervals) <= max(intervals) <= most_s


async def test_the_interval_before_anything_was_named_is_a_default(rig: Rig) -> None:
    assert rig.client.registration is None

    assert 13.5 <= rig.session.beat_interval_ns() / NS_PER_S <= 15


async def test_a_file_that_became_unreadable_does_not_stop_registering(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.started()
    rig.path.unlink()
    rig.path.mkdir()
    rig.server.forget_tokens()

    await finish(rig.clock, rig.client.claim({"ping": 1}, claim_id="c"))

    assert rig.server.registrations == 2
    assert len(messages(caplog, "credentials_unreadable")) == 1


async def test_a_file_of_another_control_plane_is_not_taken_over(rig: Rig) -> None:
    await rig.started()
    await rig.restarted(base_url="http://other").started()

    await finish(rig.clock, rig.client.claim({"ping": 1}, claim_id="c"))

    assert rig.server.registrations == 3
    assert rig.stored()["control_plane"] == "http://one"


async def test_an_identity_given_by_the_operator_is_used_as_it_is(rig: Rig) -> None:
    await rig.started()
    given = rig.restarted()
    assert rig.client.registration is not None
    given.client.adopt(rig.client.registration, is_legacy=None)

    await given.started()

    assert rig.server.registrations == 1


async def test_an_original_server_gets_one_heartbeat_in_ten_seconds_at_most(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    rig = await Rig(tmp_path, RustControlPlane(clock), clock).started()
    assert rig.client.registration is not None
    rig.server.answers["heartbeat"] = [(200, {"agent_id": 7, "heartbeat_interval_ms": 1000})]

    await run_for(rig, 60)

    assert rig.server.calls("heartbeat") <= 6


async def test_leases_the_server_does_not_want_worked_on_are_handed_over(rig: Rig) -> None:
    await rig.started()
    answer = {"agent_id": 7, "revoked_leases": [1, 2], "unknown_leases": [3]}
    rig.server.answers["heartbeat"] = [(200, answer), (200, {"agent_id": 7})]

    await finish(rig.clock, rig.session.heartbeat())
    await finish(rig.clock, rig.session.heartbeat())

    assert rig.lost == [(1, 2, 3)]
    assert rig.session.last_heartbeat is not None
    assert rig.session.last_heartbeat.agent_id == 7


async def test_an_outage_is_logged_once_and_so_is_its_end(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await rig.started()

    def outage(second: int) -> None:
        rig.transport.is_partitioned = 60 <= second < 360

    await run_for(rig, 600, outage)

    (lost,) = messages(caplog, "control_plane_lost")
    assert "http://one: heartbeat: the connection broke" in lost
    assert "results wait in the spool" in lost
    (back,) = messages(caplog, "control_plane_back")
    assert "after 2" in back or "after 3" in back  # between 285 and 305 s


async def test_one_failing_verb_among_working_ones_does_not_flap(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await rig.started()
    rig.transport.inject(Garbled(b"<html>"), path_end="/claim", times=10)

    async def work() -> None:
        for number in range(10):
            with pytest.raises(TransportError, match="makes no sense"):
                await rig.client.claim({"ping": 1}, claim_id=str(number), attempts=1)
            await rig.session.heartbeat()
        await rig.client.claim({"ping": 1}, claim_id="last")

    await finish(rig.clock, work())

    assert len(messages(caplog, "control_plane_lost")) == 1
    assert len(messages(caplog, "control_plane_back")) == 1


async def test_too_many_requests_are_no_outage(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.started()
    rig.transport.inject(Answered(429), path_end="/heartbeat", times=8)

    await finish(rig.clock, rig.session.heartbeat())

    assert messages(caplog, "control_plane_lost") == []


async def test_a_forbidden_agent_asks_at_the_cap_and_says_so_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.started()
    body = b'{"error":"ERR_FORBIDDEN","message":"disabled","retryable":false}'
    rig.transport.inject(Answered(403, body), path_end="/claim", times=3)
    before_ns = rig.clock.boottime_ns()

    async def claims() -> None:
        for number in range(3):
            with pytest.raises(ControlPlaneError):
                await rig.client.claim({"ping": 1}, claim_id=str(number))
        await rig.client.claim({"ping": 1}, claim_id="allowed")

    await finish(rig.clock, claims())

    assert rig.clock.boottime_ns() - before_ns == 90 * NS_PER_S
    assert len(messages(caplog, "control_plane_refuses")) == 1


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


async def test_commands_are_handed_over_with_every_answer(rig: Rig) -> None:
    await rig.started()
    listed: list[list[tuple[int, str]]] = []
    rig.session.on_commands = lambda commands: listed.append([(c.id, c.type) for c in commands])
    rig.server.answers["heartbeat"] = [
        (200, {"agent_id": 7, "commands": [{"id": 5, "type": "drain", "why": "x"}]}),
        (200, {"agent_id": 7, "commands": [{"id": 6, "type": "dance"}]}),
        (200, {"agent_id": 7}),
        (200, b""),
    ]

    await run_for(rig, 60)

    assert listed[:4] == [[(5, "drain")], [(6, "dance")], [], []]


async def test_news_is_told_as_soon_as_a_heartbeat_may_be_sent(rig: Rig) -> None:
    await rig.started()
    sent_s: list[float] = []
    server, started_ns = rig.server, rig.clock.boottime_ns()

    async def handler(request: Any) -> Any:
        sent_s.append((rig.clock.boottime_ns() - started_ns) / NS_PER_S)
        return await server(request)

    def news(second: int) -> None:
        if second in (4, 5):
            rig.session.hurry()

    rig.transport._handler = handler
    await run_for(rig, 30, news)

    assert sent_s[:3] == [0, 4, 6], "at once, but no two of them within two seconds"
    assert sent_s[3] - sent_s[2] > 13


async def test_news_hurries_the_next_heartbeat_within_the_quota(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).started()
    least_ns = rig.client.cadence.heartbeat_ms * 1_000_000
    async with asyncio.TaskGroup() as group:
        task = group.create_task(rig.session.run())
        await rig.clock.settle()
        assert rig.server.calls("heartbeat") == 1
        for beats in (2, 3):
            rig.session.hurry()
            rig.session.hurry()
            await rig.clock.advance(least_ns - 1)
            assert rig.server.calls("heartbeat") == beats - 1
            await rig.clock.advance(1)
            assert rig.server.calls("heartbeat") == beats
        await rig.clock.advance(5 * NS_PER_S)
        assert rig.server.calls("heartbeat") == 3
        task.cancel()


async def test_a_configured_interval_is_kept_within_bounds(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).started()
    rig.session.beat_ms = 60_000
    assert 54 * NS_PER_S <= rig.session.beat_interval_ns() <= 60 * NS_PER_S
    rig.session.beat_ms = 1
    assert rig.session.beat_interval_ns() == rig.client.cadence.heartbeat_ms * 1_000_000
