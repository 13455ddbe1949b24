"""What an agent says of itself."""

import asyncio
from pathlib import Path

import pytest

from netsonde.agent.telemetry import (
    COLLECT_ALL_PASSES,
    COLLECT_NS,
    TICK_NS,
    Telemetry,
    boot_id,
    inventory,
    open_files,
    rss_bytes,
)
from netsonde.clock import NS_PER_MS, NS_PER_S, ClockQuality, ManualClock
from netsonde.spool import Spool, SpoolLimits


class LateClock(ManualClock):
    """Wakes sleepers late, as a busy loop does."""

    late_ns = 0

    async def sleep(self, delay_ns: int) -> None:
        await super().sleep(delay_ns + self.late_ns)


async def test_the_loops_lag_is_what_one_tick_in_a_hundred_exceeds(spool: Spool) -> None:
    clock = LateClock()
    telemetry = Telemetry(clock, spool)
    assert telemetry.health()["loop_lag_ms_p99"] == 0
    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(telemetry.run())
        await clock.advance(198 * TICK_NS)
        assert telemetry.lag_p99_ns() == 0
        clock.late_ns = 40 * NS_PER_MS
        await clock.advance(10 * TICK_NS)
        assert telemetry.health()["loop_lag_ms_p99"] == 40.0
        sampling.cancel()


async def test_health_says_that_the_spool_is_full(clock: ManualClock, tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path / "small.db", SpoolLimits(rows=1), clock)
    try:
        await spool.append(1, b"12345", cancelled=False)
        assert Telemetry(clock, spool).health()["spool"]["full"] is True
    finally:
        await spool.close()


async def test_health_tells_how_long_results_have_waited(clock: ManualClock, spool: Spool) -> None:
    telemetry = Telemetry(clock, spool)
    await spool.append(1, b"12345", cancelled=False)
    await clock.advance(3 * NS_PER_S)

    assert telemetry.health()["spool"] == {
        "rows": 1,
        "bytes": 5,
        "oldest_ms": 3000,
        "full": False,
    }
    clock.step_realtime(-3600 * NS_PER_S)
    assert telemetry.health()["spool"]["oldest_ms"] == 0


def test_the_process_is_measured() -> None:
    assert 1 << 20 < rss_bytes() < 1 << 40
    before = open_files()
    with open("/dev/null"):  # noqa: PTH123 (any descriptor will do)
        assert open_files() == before + 1
    assert len(boot_id() or "") == 36


def test_the_inventory_names_this_host() -> None:
    told = inventory({"site": "ams"}, frozenset({"b", "a"}), {"raw_icmp": True})

    assert told["os"] == "linux"
    assert told["cpus"] >= 1
    assert told["mem_bytes"] > 1 << 26
    assert (told["addresses"], told["labels"]) == (["a", "b"], {"site": "ams"})
    assert told["capabilities"] == {"raw_icmp": True}


async def test_garbage_is_collected_on_a_slow_cadence(
    clock: ManualClock, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    monkeypatch.setattr("netsonde.agent.telemetry.gc.collect", passes.append)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(Telemetry(clock, spool).run())
        await clock.advance(COLLECT_ALL_PASSES * COLLECT_NS)
        running.cancel()

    assert passes == [1] * (COLLECT_ALL_PASSES - 1) + [2]


async def test_health_says_how_good_the_wall_clock_is(clock: ManualClock, spool: Spool) -> None:
    clock.set_quality(ClockQuality(False))
    assert Telemetry(clock, spool).health()["clock"] == {
        "synchronised": False,
        "estimated_error_ms": None,
        "maximum_error_ms": None,
    }
