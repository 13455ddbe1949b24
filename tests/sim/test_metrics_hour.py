"""An hour of a fleet's metrics: a hundred agents of five hundred series, taken and asked for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_S, ManualClock
from support.stores import STORES, Caller, RegisteredAgent, callers

AGENTS, SERIES = 100, 500
INTERVAL_S = 600
ROUNDS = 3600 // INTERVAL_S
KINDS = ("dns", "http", "ping", "tcp", "trace")


def envelope(agent_id: int, round_: int) -> dict[str, Any]:
    """Half counters that grow by a known rate, half gauges that do not stand still."""
    labels = [{"kind": kind} for kind in KINDS]
    each = SERIES // 2 // len(KINDS)
    return {
        "timestamp": "t",
        "instance_id": "i",
        "seq": round_,
        "start_time": "s",
        "counters": [
            {"name": f"c{n}_total", "value": round_ * INTERVAL_S * (n + agent_id), "labels": label}
            for n in range(each)
            for label in labels
        ],
        "gauges": [
            {"name": f"g{n}", "value": round_ + n, "labels": label}
            for n in range(each)
            for label in labels
        ],
    }


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path, quota_scale=1000)


async def test_an_hour_of_a_fleet(caller: Caller) -> None:
    fleet = [await registered(caller, number) for number in range(AGENTS)]
    for round_ in range(ROUNDS + 1):
        for agent in fleet:
            status, answer, _ = await agent.call("/metrics", envelope(agent.agent_id, round_))
            assert (status, answer["stored"]) == (202, SERIES)
        await passed(caller.clock, caller)

    async def ask(path: str) -> Any:
        status, answer, _ = await caller.operator("GET", f"/v1/metrics/{path}")
        assert status == 200, answer
        return answer

    answer = await ask("query?name=c3_total&agg=rate&step=10m")
    assert len(answer["series"]) == AGENTS * len(KINDS)
    for series in answer["series"]:
        assert len(series["points"]) in (ROUNDS - 1, ROUNDS)
        rates = [value for _, value in series["points"]]
        assert rates == pytest.approx([3 + series["agent_id"]] * len(rates))
    answer = await ask("query?name=g7&agg=max&step=1h&agent=probe-40")
    assert max(value for one in answer["series"] for _, value in one["points"]) == ROUNDS + 7
    latest = await ask("latest?agent=probe-40&limit=1000")
    assert len(latest["metrics"]) == SERIES
    assert json.dumps(latest["metrics"]).count('"type": "counter"') == SERIES // 2


async def registered(caller: Caller, number: int) -> RegisteredAgent:
    return await caller.register(hostname=f"probe-{number}", agent_key=f"{number:032x}")


async def passed(clock: ManualClock, caller: Caller) -> None:
    """Let the interval pass, and the control plane do what it does by itself meanwhile."""
    for _ in range(5):
        await clock.advance(INTERVAL_S * NS_PER_S // 5)
        await caller.plane.roll_up()
