"""The control plane's clock after a crash: no instant that was stored is later than it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.server.background import schedule_forever
from netsonde.server.store import Store
from support.stores import STORES, Caller, RegisteredAgent, control_plane, open_store

BACK_NS = 3600 * NS_PER_S
GAP_NS = 4 * NS_PER_S  # housekeeping comes every 5 s


class Host:
    """A control plane that crashes, on a host whose wall clock is then set back."""

    def __init__(self, name: str, directory: Path) -> None:
        self.clock = ManualClock()
        self._name, self._directory = name, directory
        self.store: Store = open_store(name, directory)
        self.caller = self._start()

    def _start(self) -> Caller:
        return Caller(control_plane(self.store, self.clock), self.clock)

    async def crash(self) -> int:
        """Begin again without a word of farewell; return what the clock had reached."""
        reached_ns = self.caller.plane.time.now_ns()
        if self._name != "memory":
            self.store.close()
            self.store = open_store(self._name, self._directory)
        self.clock.step_realtime(-BACK_NS)
        self.caller = self._start()
        return reached_ns


@pytest.fixture(params=STORES)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host]:
    made = Host(request.param, tmp_path)
    yield made
    made.store.close()


async def upload(caller: Caller, _: RegisteredAgent) -> None:
    await caller.tasks(3)


async def run_check(caller: Caller, agent: RegisteredAgent) -> None:
    """Let a check run a second time, without anybody's call."""
    document: dict[str, Any] = {"kind": "tcp", "spec": {"port": 80}, "targets": ["192.0.2.1"]}
    document |= {"select": {"any": True}, "every_ms": GAP_NS // NS_PER_MS, "jitter_ms": 0}
    status, *_ = await caller.operator("POST", "/v1/checks", document)
    assert status == 201
    async with asyncio.TaskGroup() as group:
        ticks = group.create_task(schedule_forever(caller.plane))
        await caller.clock.advance(GAP_NS)
        ticks.cancel()


async def release(caller: Caller, agent: RegisteredAgent) -> None:
    await caller.tasks(1)
    (lease,) = await agent.claim(1)
    await caller.clock.advance(GAP_NS)
    await agent.call("/release", {"lease_ids": [lease["lease_id"]], "claim_ids": []})


async def fail(caller: Caller, agent: RegisteredAgent) -> None:
    await caller.tasks(1)
    (lease,) = await agent.claim(1)
    await caller.clock.advance(GAP_NS)
    assert await agent.report(lease["lease_id"], outcome="agent_error") == ["accepted"]


Write = Callable[[Caller, RegisteredAgent], Awaitable[None]]


@pytest.mark.parametrize("write", [upload, run_check, release, fail])
async def test_what_was_written_before_a_crash_is_not_in_the_future(
    host: Host, write: Write
) -> None:
    agent = await host.caller.register()
    await host.clock.advance(GAP_NS)
    await write(host.caller, agent)

    reached_ns = await host.crash()

    assert host.caller.plane.time.now_ns() == reached_ns


async def test_work_queued_before_a_crash_is_granted_after_it(host: Host) -> None:
    await host.caller.register()
    await host.clock.advance(GAP_NS)
    await host.caller.tasks(3)
    await host.crash()
    agent = await host.caller.register()
    assert len(await agent.claim(10)) == 3


async def test_lease_ids_go_on_after_a_crash(host: Host) -> None:
    agent = await host.caller.register()
    await host.caller.tasks(2)
    (before,) = await agent.claim(1)
    await host.crash()
    agent = await host.caller.register()
    (after,) = await agent.claim(1)
    assert after["lease_id"] > before["lease_id"]
