"""Time as a dependency."""

import asyncio
import struct

import pytest

from netsonde.clock import (
    NS_PER_MS,
    NS_PER_S,
    QUALITY_NS,
    ClockQuality,
    ManualClock,
    SystemClock,
    clock_quality,
    rfc3339,
)


def test_rfc3339_keeps_nanoseconds() -> None:
    assert rfc3339(1_000_000_000 * NS_PER_S + 1) == "2001-09-09T01:46:40.000000001Z"


def test_rfc3339_before_the_epoch_does_not_borrow() -> None:
    assert rfc3339(-1) == "1969-12-31T23:59:59.999999999Z"


async def test_sleepers_wake_in_deadline_order_at_their_own_instants() -> None:
    clock = ManualClock(start_ns=0)
    woken: list[tuple[str, int]] = []

    async def sleeper(name: str, delay_ns: int) -> None:
        await clock.sleep(delay_ns)
        woken.append((name, clock.monotonic_ns()))

    async with asyncio.TaskGroup() as group:
        for name, delay_ns in (("c", 30), ("a", 10), ("b", 20)):
            group.create_task(sleeper(name, delay_ns))
        await clock.advance(25)

        assert woken == [("a", 10), ("b", 20)]
        assert clock.next_wake_ns == 30

        await clock.advance(5)

    assert woken[-1] == ("c", 30)
    assert clock.next_wake_ns is None


async def test_wait_tells_an_event_from_the_passing_of_time() -> None:
    clock = ManualClock()
    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(clock.wait(event, 10))
        await clock.advance(10)

        assert waiting.result() is False

        waiting = group.create_task(clock.wait(event, 10))
        await clock.settle()
        event.set()
        await clock.settle()

        assert waiting.result() is True
    assert clock.next_wake_ns is None  # the sleeper that lost the race is gone


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(clock.sleep(5))
        await clock.settle()
        task.cancel()
        await clock.settle()

    assert clock.next_wake_ns is None


async def test_stepping_the_wall_clock_moves_no_deadline() -> None:
    clock = ManualClock()
    before = clock.boottime_ns(), clock.monotonic_ns(), clock.realtime_ns()
    clock.step_realtime(-3600 * NS_PER_S)

    assert (clock.boottime_ns(), clock.monotonic_ns()) == before[:2]
    assert clock.realtime_ns() == before[2] - 3600 * NS_PER_S


async def test_the_system_clock_waits_for_an_event_or_gives_up() -> None:
    clock = SystemClock()
    event = asyncio.Event()

    assert await clock.wait(event, 1000) is False
    event.set()
    assert await clock.wait(event, None) is True
    await clock.sleep(-1)
    assert 0 < clock.monotonic_ns() <= clock.boottime_ns()


def timex(maximum_us: int, estimated_us: int, status: int) -> bytes:
    return struct.pack("@Illlli", 0, -5, 7, maximum_us, estimated_us, status).ljust(208, b"\0")


@pytest.mark.parametrize(
    ("state", "given", "quality"),
    [
        (0, timex(12_500, 125, 0x2001), ClockQuality(True, 125_000, 12_500_000)),
        (0, timex(12_500, 0, 0x2001), ClockQuality(True, None, 12_500_000)),
        (1, timex(1, 1, 0x10), ClockQuality(True, 1_000, 1_000)),  # a leap second is ahead
        (5, timex(16_000_000, 16_000_000, 0x40), ClockQuality(False)),
        (-1, bytes(256), ClockQuality(None)),
    ],
)
def test_quality_is_what_the_kernel_was_told(
    state: int, given: bytes, quality: ClockQuality
) -> None:
    assert clock_quality(state, given) == quality


def test_quality_goes_into_a_result_in_milliseconds() -> None:
    good = ClockQuality(True, 125_000, 12_500_000)

    assert good.as_env(steps=2) == {
        "synchronised": True,
        "estimated_error_ms": 0.125,
        "maximum_error_ms": 12.5,
        "steps": 2,
    }
    assert ClockQuality(None).as_env() == {
        "synchronised": None,
        "estimated_error_ms": None,
        "maximum_error_ms": None,
    }


def test_a_manual_clock_is_as_good_as_the_test_wants() -> None:
    clock = ManualClock()
    assert clock.quality() == ClockQuality(True, None, NS_PER_MS)

    clock.set_quality(ClockQuality(False))

    assert clock.quality() == ClockQuality(False)


def test_the_systems_clock_knows_its_quality() -> None:
    quality = SystemClock().quality()

    assert quality.synchronised in (True, False, None)
    assert (quality.maximum_error_ns is not None) == (quality.synchronised is True)


def test_the_kernel_is_asked_for_its_quality_ten_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    def ask(_: object) -> int:
        nonlocal asked
        asked += 1
        return -1

    now_ns = 5 * NS_PER_S
    monkeypatch.setattr("netsonde.clock._adjtimex", ask)
    monkeypatch.setattr("netsonde.clock.time.monotonic_ns", lambda: now_ns)
    clock = SystemClock()
    assert [clock.quality().synchronised for _ in range(3)] == [None] * 3
    assert asked == 1

    now_ns += QUALITY_NS
    clock.quality()
    assert asked == 2
