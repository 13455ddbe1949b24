"""The worlds' event loop: what happens on it depends on nothing but the world."""

import asyncio

from support.lease_world.virtual_time import VirtualLoop

TASKS = 50


class _EndError(Exception):
    """Ends a group."""


def order_of_cancelling(kept: list[object]) -> list[int]:
    """Return the order in which a group's tasks hear that it ends; kept: what stays in memory."""
    order: list[int] = []

    async def wait(number: int) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            order.append(number)

    async def end() -> None:
        await asyncio.sleep(1)
        raise _EndError

    async def story() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                kept.extend(group.create_task(wait(number)) for number in range(TASKS))
                group.create_task(end())
        except* _EndError:
            pass

    loop = VirtualLoop()
    try:
        loop.run_until_complete(story())
    finally:
        loop.close()
    return order


def test_tasks_of_a_group_are_cancelled_in_one_order_wherever_they_lie_in_memory() -> None:
    kept: list[object] = []

    orders = [order_of_cancelling(kept) for _ in range(5)]

    assert sorted(orders[0]) == list(range(TASKS))
    assert orders == [orders[0]] * 5
