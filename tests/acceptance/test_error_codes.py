"""Every code of the contract: the control plane answers with it, the agent does what its row says.

The answer that the agent is given is the one that a real control plane gave. A code without a row
fails.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from netsonde import wire
from netsonde.agent.metrics_sender import MetricsSender
from netsonde.clock import NS_PER_S
from netsonde.errors import CODES, ErrorCode
from netsonde.model import TaskKind
from support.control_planes import V1, lease
from support.fleet import make_agent, run_for, started
from support.probers import gated
from support.reactions import (
    AgentSide,
    Reaction,
    asks_for_single_answers,
    begins_anew,
    drops_the_item,
    keeps_the_last_good_one,
    needs_an_operator,
    raises_at_once,
    rejects_the_target,
    reloads_then_registers,
    stops_claiming,
    tries_again,
    tries_other_prefixes,
)
from support.refusals import PROVOCATIONS, PROXYS, Refused, Stage, fenced, limit, unknown
from support.spools import inline_spools
from support.stores import callers

NAMING = {ErrorCode.VALIDATION, ErrorCode.TARGET_DENIED, ErrorCode.CONFIG_INVALID}
ITEMS = {
    ErrorCode.LEASE_FENCED: (fenced, "fenced"),
    ErrorCode.LEASE_UNKNOWN: (unknown, "unknown"),
}
SPLIT = {400, 413, 422}  # of a report: the body is at fault


ROWS: Mapping[ErrorCode, tuple[Reaction, ...]] = {
    ErrorCode.VALIDATION: (raises_at_once, drops_the_item),
    ErrorCode.MALFORMED_JSON: (raises_at_once, drops_the_item),
    ErrorCode.UNAUTHORIZED: (reloads_then_registers,),
    ErrorCode.TOKEN_EXPIRED: (reloads_then_registers,),
    ErrorCode.ENROLMENT_REQUIRED: (needs_an_operator,),
    ErrorCode.FORBIDDEN: (stops_claiming, needs_an_operator),
    ErrorCode.NOT_FOUND: (raises_at_once, asks_for_single_answers, tries_other_prefixes),
    ErrorCode.METHOD_NOT_ALLOWED: (raises_at_once, asks_for_single_answers, tries_other_prefixes),
    ErrorCode.NOT_ACCEPTABLE: (raises_at_once, asks_for_single_answers),
    ErrorCode.TIMEOUT: (tries_again,),
    ErrorCode.CONFLICT: (needs_an_operator,),
    ErrorCode.CURSOR_EXPIRED: (raises_at_once, begins_anew),
    ErrorCode.TOO_LARGE: (raises_at_once, drops_the_item),
    ErrorCode.MEDIA_TYPE: (raises_at_once, asks_for_single_answers),
    ErrorCode.TARGET_DENIED: (raises_at_once, drops_the_item, rejects_the_target),
    ErrorCode.CONFIG_INVALID: (raises_at_once, drops_the_item, keeps_the_last_good_one),
    ErrorCode.RATE_LIMITED: (tries_again,),
    ErrorCode.BACKEND: (tries_again,),
    ErrorCode.UPSTREAM: (tries_again,),
    ErrorCode.UNAVAILABLE: (tries_again,),
    ErrorCode.DEADLINE: (tries_again,),
    ErrorCode.STORAGE_FULL: (tries_again,),
}
REACTIONS = [(code, reaction) for code, reactions in ROWS.items() for reaction in reactions]
KEEPING = [code for code in ROWS if CODES[code].status not in SPLIT]


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    for caller in callers("memory", tmp_path):
        yield Stage(caller, tmp_path, monkeypatch)


# ── row by row ──


def test_every_code_has_a_row() -> None:
    assert set(ROWS) == set(PROVOCATIONS) == set(CODES)
    assert {*ROWS, *ITEMS, ErrorCode.LIMIT} == set(ErrorCode)


@pytest.mark.parametrize("code", [code for code in PROVOCATIONS if code not in PROXYS])
async def test_the_control_plane_answers_with_it(code: ErrorCode, stage: Stage) -> None:
    refused = await PROVOCATIONS[code](stage)

    said = refused.envelope
    assert (refused.status, said["error"]) == (CODES[code].status, code)
    assert said["retryable"] is CODES[code].retryable
    assert said["message"]
    assert "secret" not in said["message"]
    assert said["request_id"] == refused.headers["X-Request-Id"]
    assert refused.headers["Netsonde-Protocol"] == "1"
    violations = said.get("details", {}).get("violations", [])
    assert bool(violations) is (code in NAMING)
    assert all(one["path"].startswith("$") and one["message"] for one in violations)
    if code in (ErrorCode.RATE_LIMITED, ErrorCode.UNAVAILABLE, ErrorCode.STORAGE_FULL):
        assert said["retry_after_ms"] >= 1_000
        assert int(refused.headers["Retry-After"]) * 1000 >= said["retry_after_ms"]
    assert ("WWW-Authenticate" in refused.headers) is (refused.status == 401)
    assert ("Allow" in refused.headers) is (refused.status == 405)


@pytest.mark.parametrize("code", list(PROVOCATIONS))
async def test_the_agent_knows_it(code: ErrorCode, stage: Stage) -> None:
    refused = await PROVOCATIONS[code](stage)

    read = wire.decode_error(refused.status, refused.body, refused.headers.get("Retry-After"))

    assert (read.code, read.retryable) == (code, CODES[code].retryable)
    assert read.is_verdict is (code not in PROXYS)


@pytest.mark.parametrize(
    ("code", "reaction"), REACTIONS, ids=[f"{code}-{one.__name__}" for code, one in REACTIONS]
)
async def test_the_agent_does_what_its_row_says(
    code: ErrorCode, reaction: Reaction, stage: Stage, tmp_path: Path
) -> None:
    refused = await PROVOCATIONS[code](stage)
    stage.patch.undo()

    await reaction(AgentSide(tmp_path, refused))


@pytest.mark.parametrize("code", KEEPING)
async def test_no_result_is_lost_to_it(code: ErrorCode, stage: Stage, tmp_path: Path) -> None:
    refused = await PROVOCATIONS[code](stage)
    stage.patch.undo()
    inline_spools(stage.patch)
    side = AgentSide(tmp_path, refused)
    side.server.leases = [lease(1)]
    side.refuse("report", times=5)
    probers = gated()
    probers[TaskKind.PING].gate.set()
    agent = make_agent(side.clock, tmp_path / "agent", side.transport, probers)
    async with started(agent):
        await run_for(side.clock, 400)
        counters = agent.counters

    taken = [item["lease_id"] for one in side.server.bodies["report"] for item in one["completed"]]
    assert taken == [1]
    assert counters["reporter.status_accepted"] == 1


# ── of one item ──


@pytest.mark.parametrize("code", list(ITEMS))
async def test_an_item_of_it_is_dropped(code: ErrorCode, stage: Stage, tmp_path: Path) -> None:
    provoke, status = ITEMS[code]
    told = await provoke(stage)
    assert (told["status"], told["error"]) == (status, code)
    inline_spools(stage.patch)
    side = AgentSide(tmp_path, Refused(200, b"", {}))
    side.server.leases = [lease(1)]
    answer = {"acknowledged": 0, "results": [told | {"lease_id": 1}]}
    side.server.answers["report"] = [(200, answer)] * 10
    probers = gated()
    probers[TaskKind.PING].gate.set()
    agent = make_agent(side.clock, tmp_path / "agent", side.transport, probers)
    async with started(agent):
        await run_for(side.clock, 60)
        counters = agent.counters

    assert counters[f"reporter.status_{status}"] == 1
    assert side.server.calls("report") == 1, "it is not sent again"


async def test_a_sample_over_a_limit_is_dropped(stage: Stage, tmp_path: Path) -> None:
    told = await limit(stage)
    (rejected,) = told["rejected"]
    assert (rejected["path"], rejected["error"]) == ("$.gauges[0]", ErrorCode.LIMIT)
    side = await AgentSide(tmp_path, Refused(202, wire.encode(told), V1)).started()
    await side.claim()
    side.refuse("metrics", times=2)
    sender = MetricsSender(side.clock, side.client, list, "i", 30 * NS_PER_S)
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(sender.run())
        await run_for(side.clock, 70)
        sending.cancel()
    assert sender.counters["rejected"] == 2
    sent = [one for one in side.transport.requests if one.path.endswith("/metrics")]
    assert [wire.parse(one.body)["seq"] for one in sent] == [1, 2, 3], "none is sent again"
