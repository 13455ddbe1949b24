"""A time limit counts what the target took, and not what this host was away."""

import asyncio
import time

import pytest

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.probe.limits import LATE_S, time_limit

LIMIT_NS = 5 * NS_PER_MS


def stand_still() -> None:
    """Hold up the loop, as a process that is stopped holds up its own."""
    time.sleep(LIMIT_NS / NS_PER_S + 3 * LATE_S)


async def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError):
        await wait(LIMIT_NS)


@pytest.mark.parametrize("timeout_ns", [0, -3600 * NS_PER_S])
async def test_no_time_at_all_is_over_at_once(timeout_ns: int) -> None:
    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            await wait(timeout_ns)


async def test_what_is_done_in_time_is_left_alone() -> None:
    async with time_limit(3600 * NS_PER_S):
        await asyncio.sleep(0)


async def test_an_answer_that_came_while_the_loop_stood_still_counts() -> None:
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    def away() -> None:
        stand_still()
        answer.set_result("here")  # what the loop reads once it runs again

    async with time_limit(LIMIT_NS):
        loop.call_soon(away)
        assert await answer == "here"


async def test_no_answer_is_none_after_a_standstill_too() -> None:
    asyncio.get_running_loop().call_soon(stand_still)
    with pytest.raises(TimeoutError):
        await wait(LIMIT_NS)


async def test_other_errors_and_cancellation_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        async with time_limit(3600 * NS_PER_S):
            raise ZeroDivisionError
    async with asyncio.TaskGroup() as group:
        task = group.create_task(wait(3600 * NS_PER_S))
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()


async def wait(limit_ns: int) -> None:
    """Wait for what never comes."""
    async with time_limit(limit_ns):
        await asyncio.get_running_loop().create_future()
