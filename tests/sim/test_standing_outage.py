"""Six hours without a control plane, in virtual time: no tick is missed, everything arrives once.

The figures that are printed are of virtual time: they show when runs were begun, not how fast this
machine is. `tests/acceptance/test_standing_outage.py` has those of real processes.
NETSONDE_STANDING_SEEDS says how many worlds of trouble there are.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.model import Outcome
from support.lease_world.faults import Fault
from support.lease_world.standing import StandingWorld, by_task, lateness_ns, percentile, world

SEEDS = int(os.environ.get("NETSONDE_STANDING_SEEDS", "20"))
HOUR_S = 3600
STORES = {"memory": 1, "sqlite": 2}  # seeds that choose them
EVERY_S = 60
AGENTS = 2
LATE_MAX_MS = 50  # two latencies of the network: so well the server's clock is known


async def outage(it: StandingWorld, hours: float) -> list[dict[str, Any]]:
    """Measure for ten minutes, lose the control plane, get it back; return all results."""
    await it.begin()
    await asyncio.sleep(600)
    it.server.crash()
    await asyncio.sleep(hours * HOUR_S)
    spooled = sum(agent.rows() for agent in it.agents)
    runs = len(it.oracle.runs)
    it.server.start()
    await asyncio.sleep(600)
    assert spooled > runs * 0.9 * hours * HOUR_S / (hours * HOUR_S + 600), "it was an outage"
    for agent in it.agents:
        agent.drain()  # so that what runs ends, and arrives
    await asyncio.sleep(60)
    assert not any(agent.is_running for agent in it.agents)
    return await it.results()


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{text}")


@pytest.mark.parametrize("store", STORES)
def test_six_hours_without_a_control_plane(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    with world(STORES[store], every_ms=EVERY_S * 1000, agents=AGENTS) as it:
        results = it.run(outage(it, hours=6))
        runs = Counter((run.host.name, run.target) for run in it.oracle.runs)
        agents = it.oracle.hosts

    ticks = by_task(results, lambda result: int(result["tick"]))
    assert len(ticks) == AGENTS * 4
    whole = (6 * HOUR_S + 2 * 600) // EVERY_S
    for task_id, numbers in ticks.items():
        assert sorted(numbers) == list(range(len(numbers))), f"task {task_id}: missed or twice"
        assert len(numbers) >= whole - 1
    arrived = Counter((agents[one["agent_id"]], one["spec"]["host"]) for one in results)
    assert arrived == runs, "what was measured arrived, once"
    assert {one["outcome"] for one in results} == {Outcome.OK.value}
    assert {one["attempt"] for one in results} == {1}

    late = lateness_ns(results)
    p99_ms, worst_ms = percentile(late, 99) / NS_PER_MS, late[-1] / NS_PER_MS
    tell(
        capsys,
        f"{store}: {len(results)} ticks of {len(ticks)} standing leases through 6 h of outage, "
        f"0 missed, 0 twice; schedule lateness p50 {percentile(late, 50) / NS_PER_MS:.1f} ms, "
        f"p99 {p99_ms:.1f} ms, worst {worst_ms:.1f} ms (virtual time)",
    )
    assert late[0] / NS_PER_MS >= -LATE_MAX_MS
    assert p99_ms <= LATE_MAX_MS


def test_leases_that_expired_meanwhile_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    """A partition: the server lives, takes every lease back, and grants it anew or revives it."""

    async def story(it: StandingWorld) -> tuple[list[dict[str, Any]], dict[str, int]]:
        made = await it.begin()
        await asyncio.sleep(60)
        for agent in it.agents:
            agent.partition(2 * HOUR_S * NS_PER_S)
        await asyncio.sleep(2 * HOUR_S + 120)
        for agent in it.agents:
            agent.drain()
        await asyncio.sleep(60)
        check = await it.operate(f"/v1/checks/{made['check_id']}")
        return await it.results(), check

    with world(2) as it:
        results, check = it.run(story(it))
        assert it.oracle.expired_leases >= 3 * 4
        assert len(results) == len(it.oracle.runs), "measured twice, or not arrived"
    for numbers in by_task(results, lambda result: int(result["tick"])).values():
        assert sorted(numbers) == list(range(len(numbers)))
    assert check["missed"] == 0
    assert check["tasks"] == 3 * 4, "none was made anew"


def test_past_the_offline_limit_nothing_is_measured() -> None:
    async def story(it: StandingWorld) -> int:
        await it.begin()
        await asyncio.sleep(60)
        it.server.crash()
        await asyncio.sleep(1.5 * HOUR_S)
        return max(run.began_ns for run in it.oracle.runs)

    with world(1, standing_term_ms=600_000, offline_ms=3_600_000) as it:
        last_ns = it.run(story(it))
    assert 4_200 - 600 * 0.45 - 60 <= last_ns / NS_PER_S <= 4_200 + 70


def test_a_suspended_host_misses_what_it_slept_through_and_no_more() -> None:
    async def story(it: StandingWorld) -> tuple[list[dict[str, Any]], dict[str, Any], int]:
        made = await it.begin()
        await asyncio.sleep(100)
        it.agents[0].clock.suspend(1_000 * NS_PER_S)
        it.agents[1].clock.step(7_200 * NS_PER_S)  # the wall clock decides nothing
        await asyncio.sleep(1_200)
        await it.settle()
        check = await it.operate(f"/v1/checks/{made['check_id']}")
        passed = it.counted("standing.missed") + it.counted("standing.skipped")
        return await it.results(), check, passed

    with world(2, jitter_ms=0) as it:
        results, check, counted = it.run(story(it))
    sizes = {task: len(ticks) for task, ticks in by_task(results, lambda one: one["tick"]).items()}
    missed = sum(max(sizes.values()) - size for size in sizes.values())
    assert len([size for size in sizes.values() if size < max(sizes.values()) - 2]) == 4
    assert check["missed"] == counted == missed
    assert 4 * 48 <= missed <= 4 * 50


# ── whatever goes wrong ──

CHANCES = {
    Fault.REQUEST_LOST: 0.02,
    Fault.RESPONSE_LOST: 0.03,
    Fault.REQUEST_DOUBLED: 0.03,
    Fault.RESPONSE_CUT: 0.01,
    Fault.RESPONSE_GARBLED: 0.01,
    Fault.PROXY_ERROR: 0.01,
    Fault.SLOW: 0.03,
    Fault.SERVER_CRASH_BEFORE_COMMIT: 0.004,
    Fault.SERVER_CRASH_AFTER_COMMIT: 0.004,
    Fault.SERVER_DISK_FULL: 0.01,
    Fault.AGENT_DISK_FULL: 0.03,
}


async def trouble(it: StandingWorld) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    made = await it.begin()
    it.is_troubled = True
    end_ns = it.now_ns + 300 * NS_PER_S
    while it.now_ns < end_ns:
        await asyncio.sleep(it.rng.random() * 8)
        _disturb(it)
        await asyncio.sleep(it.rng.random() * 4)
        _keep_running(it)
    it.is_troubled = False
    for _ in range(60):
        await asyncio.sleep(1)
        _keep_running(it)
    for agent in it.agents:
        agent.drain()
    await asyncio.sleep(60)
    for agent in it.agents:
        agent.start()
    await it.settle()
    return await it.results(), await it.operate(f"/v1/checks/{made['check_id']}")


def _disturb(it: StandingWorld) -> None:
    agent, some_ns = it.rng.choice(it.agents), it.rng.randrange(40) * NS_PER_S
    events: Sequence[Callable[[], None]] = (
        it.server.crash,
        agent.kill,
        agent.drain,
        lambda: agent.partition(some_ns),
        lambda: agent.clock.suspend(some_ns // 2),
        lambda: it.server.clock.suspend(some_ns // 2),
        lambda: agent.clock.step(90 * some_ns),
    )
    it.rng.choice(events)()


def _keep_running(it: StandingWorld) -> None:
    if it.server.plane is None:
        it.server.start()
    for agent in it.agents:
        if not agent.clock.is_suspended:
            agent.start()


@pytest.mark.parametrize("seed", range(1, 1 + SEEDS))
def test_whatever_goes_wrong_a_tick_has_one_result_and_is_measured_by_its_agent(seed: int) -> None:
    settings = {"standing_term_ms": 10_000, "heartbeat_interval_ms": 2_000, "grace_ms": 500}
    with world(seed, every_ms=4_000, jitter_ms=1_500, chances=CHANCES, **settings) as it:
        results, check = it.run(trouble(it))
        runs, agents = it.oracle.runs, it.oracle.hosts
        assert max(it.oracle.most_at_once.values()) == 1, "a run began while the last one went on"
        assert it.faults.total() > 0
    keys = Counter((one["task_id"], one["tick"]) for one in results)
    assert set(keys.values()) == {1}
    whole = Counter((run.host.name, run.target) for run in runs)
    good = Counter(
        (agents[one["agent_id"]], one["spec"]["host"])
        for one in results
        if one["outcome"] == Outcome.OK.value
    )
    assert all(good[key] <= whole[key] for key in good), "a result that nobody measured"
    kept = Counter((run.host.name, run.target) for run in runs if run.host not in it.oracle.killed)
    arrived = Counter((agents[one["agent_id"]], one["spec"]["host"]) for one in results)
    assert all(arrived[key] >= kept[key] for key in kept), "measured, and never arrived"
    gaps = sum(
        max(ticks) + 1 - len(ticks)
        for ticks in by_task(results, lambda one: int(one["tick"])).values()
    )
    assert check["missed"] == gaps
    assert len(results) > 0.4 * 12 * 300 / 4, "most of it was measured all the same"
