"""A signed configuration from the operator's hand to the agent's lanes, and back as ack or nack."""

from pathlib import Path
from typing import Any

import pytest

from netsonde.agent import Agent
from netsonde.clock import ManualClock
from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from support.configs import KEY, OTHER_KEY, document, envelope
from support.fleet import Fleet, make_agent, run_for, started
from support.probers import gated
from support.spools import inline_spools

PING = TaskKind.PING
TRUSTED: dict[str, Any] = {"trusted_keys": (KEY.public.text,)}


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    inline_spools(monkeypatch)


async def publish(fleet: Fleet, *args: Any, **changes: Any) -> None:
    body = document(envelope(*args, **changes))
    status, answer, _ = await fleet.operator.operator("POST", "/v1/configs", body)
    assert status == 201, answer


async def status_of(fleet: Fleet, revision: int) -> dict[str, Any]:
    path = f"/v1/configs/{revision}/status"
    code, answer, _ = await fleet.operator.operator("GET", path)
    assert code == 200, answer
    (agent,) = answer["agents"]
    assert answer["counts"][agent["status"]] == 1
    state: dict[str, Any] = agent
    return state


def free(agent: Agent) -> int:
    assert agent._parts is not None
    return agent._parts.worker.free().get(PING, 0)


async def test_a_published_revision_is_applied_and_acknowledged(
    clock: ManualClock, tmp_path: Path
) -> None:
    fleet = Fleet(clock, tmp_path)
    agent = make_agent(clock, tmp_path, fleet.transport(), gated(), **TRUSTED)
    async with fleet.running(), started(agent):
        await run_for(clock, 20)
        assert free(agent) == 4
        await publish(fleet, 1, {"kinds": {"ping": {"concurrency": 2}}})
        await run_for(clock, 20)
        assert free(agent) == 2
        assert (await status_of(fleet, 1))["status"] == "ack"
        await publish(fleet, 2, {"kinds": {"ping": {"concurrency": 3}}})
        await run_for(clock, 40)
        assert free(agent) == 3
        assert (await status_of(fleet, 2))["applied"] == 2


async def test_what_is_signed_by_a_stranger_changes_nothing(
    clock: ManualClock, tmp_path: Path
) -> None:
    fleet = Fleet(clock, tmp_path)
    agent = make_agent(clock, tmp_path, fleet.transport(), gated(), **TRUSTED)
    async with fleet.running(), started(agent):
        await publish(fleet, 1, {"kinds": {"ping": {"concurrency": 2}}}, OTHER_KEY)
        await run_for(clock, 60)
        assert free(agent) == 4
        state = await status_of(fleet, 1)
        assert (state["status"], state["reason"]) == ("nack", "unknown_key")
        assert "applied" not in state


async def test_a_wrong_ceiling_ends_the_agent_before_it_says_a_word(
    clock: ManualClock, tmp_path: Path
) -> None:
    fleet = Fleet(clock, tmp_path)
    path = tmp_path / "ceiling.toml"
    path.write_text("[kinds.pnig]\nconcurrency = 1\n")
    transport = fleet.transport()
    agent = make_agent(clock, tmp_path, transport, gated(), ceiling_file=path, **TRUSTED)
    with pytest.raises(ConfigError, match="pnig"):
        await agent.run()
    assert not transport.requests


async def test_a_restarted_agent_goes_on_with_what_was_in_force(
    clock: ManualClock, tmp_path: Path
) -> None:
    fleet = Fleet(clock, tmp_path)
    async with fleet.running():
        await publish(fleet, 7, {"kinds": {"ping": {"concurrency": 1}}})
        agent = make_agent(clock, tmp_path, fleet.transport(), gated(), **TRUSTED)
        async with started(agent):
            await run_for(clock, 5)
            assert free(agent) == 1
        again = make_agent(clock, tmp_path, fleet.transport(), gated(), **TRUSTED)
        async with started(again):
            await run_for(clock, 1)
            assert free(again) == 1
