"""Faults are set where there is room for them, and written down with their instants."""

import asyncio
import signal
import sys
from pathlib import Path

from netsonde.clock import NS_PER_MS
from support.chaos.evidence import Began, Drained, Lived, Struck, read_events
from support.chaos.faults import SERVER, Fault, Planned
from support.chaos.journal import Journal
from support.chaos.lanes import Lane
from support.chaos.nemesis import ARMED_MAX, Nemesis
from support.chaos.processes import Process, now_ns

SLEEPER = "import signal; signal.pause()"


def fault(kind: Fault, milliseconds: int = 1, number: int = 0) -> Planned:
    return Planned(number, kind, 0, milliseconds * NS_PER_MS, 1)


class Orders:
    """Takes an operator's orders and writes them down."""

    def __init__(self) -> None:
        self.given: list[tuple[str, int]] = []

    async def drain(self, agent: int) -> None:
        self.given.append(("drain", agent))

    async def resume(self, agent: int) -> None:
        self.given.append(("resume", agent))

    async def revoke(self, agent: int) -> None:
        self.given.append(("revoke", agent))


class Scene:
    """One lane, one agent and one server that do nothing; what happened to them is in a file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "chaos_sleeper.py").write_text(SLEEPER)
        self.journal = Journal(directory / "events.jsonl")
        self.lane = Lane(0)
        self.agent = self._process("agent-0")
        self.server = self._process("server")
        self.orders = Orders()
        self.nemesis = Nemesis(self.server, [self.agent], [self.lane], self.journal, self.orders)

    def _process(self, who: str) -> Process:
        code = f"import runpy; runpy.run_path({str(self.directory / 'chaos_sleeper.py')!r})"
        process = Process(who, [], self.directory / f"{who}.log", self.journal)
        process._command = [sys.executable, "-c", code]
        return process

    def events(self) -> list[object]:
        return list(read_events(self.directory))


async def test_few_message_faults_wait_on_one_lane(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    async with asyncio.TaskGroup() as group:
        answers = [scene.nemesis.set(fault(Fault.ANSWER_CUT), group) for _ in range(ARMED_MAX + 1)]
    assert answers == [True] * ARMED_MAX + [False]
    assert scene.nemesis.pending == ARMED_MAX
    scene.nemesis.disarm()
    assert (scene.nemesis.pending, scene.nemesis.total) == (0, 0)


async def test_weather_is_one_at_a_time_and_passes(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    async with asyncio.TaskGroup() as group:
        assert scene.nemesis.set(fault(Fault.STORM_5XX), group)
        assert not scene.nemesis.set(fault(Fault.PARTITION), group)
    assert scene.lane.storm() is None
    assert scene.nemesis.struck == {Fault.STORM_5XX: 1}
    (struck,) = scene.events()
    assert isinstance(struck, Struck)
    assert struck.ended - struck.begun >= NS_PER_MS


async def test_a_killed_agent_is_started_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.agent.start()
    pid = scene.agent.pid
    async with asyncio.TaskGroup() as group:
        assert scene.nemesis.set(fault(Fault.AGENT_KILLED, number=4), group)
        assert not scene.nemesis.set(fault(Fault.AGENT_STOPPED), group)
    assert scene.agent.is_running
    assert scene.agent.pid != pid
    assert await scene.agent.end() == -signal.SIGKILL
    began, lived, struck, _ = scene.events()
    assert isinstance(began, Began)
    assert isinstance(struck, Struck)
    assert isinstance(lived, Lived)
    assert (began.number, struck.number, lived.how, lived.pid) == (4, 4, "SIGKILL", pid)


async def test_an_agent_is_drained_and_resumed_by_the_operators_calls(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.agent.start()
    away = fault(Fault.AGENT_ORDERED_AWAY, 5)
    async with asyncio.TaskGroup() as group:
        assert not scene.nemesis.set(away, group)  # it has not registered yet
        scene.lane.served_ns = now_ns()
        assert scene.nemesis.set(away, group)
        assert not scene.nemesis.set(fault(Fault.AGENT_KILLED), group)
    await scene.agent.end()
    assert scene.orders.given == [("drain", 0), ("resume", 0)]
    began, drained, struck, _ = scene.events()
    assert isinstance(began, Began)
    assert isinstance(struck, Struck)
    assert isinstance(drained, Drained)
    assert drained.ended - drained.begun >= away.duration_ns
    assert struck.begun <= drained.begun < drained.ended <= struck.ended


async def test_an_agent_is_revoked_once_it_has_registered(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.agent.start()
    scene.lane.served_ns = now_ns()
    async with asyncio.TaskGroup() as group:
        assert scene.nemesis.set(fault(Fault.AGENT_REVOKED, 0), group)
    await scene.agent.end()
    assert scene.orders.given == [("revoke", 0)]
    assert scene.nemesis.struck == {Fault.AGENT_REVOKED: 1}


async def test_what_ended_by_itself_is_left_alone_until_it_is_revived(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.server.start()
    scene.server.signal(signal.SIGKILL)
    assert scene.server._running is not None
    await scene.server._running.wait()
    async with asyncio.TaskGroup() as group:
        stop = Planned(0, Fault.SERVER_STOPPED, 0, 0, 1)
        assert not scene.nemesis.set(stop, group)
    await scene.nemesis.revive()
    assert scene.server.is_running
    await scene.server.end()
    assert [one.how for one in scene.events() if isinstance(one, Lived)] == [
        "by itself",
        "SIGKILL",
    ]
    assert SERVER not in scene.nemesis._busy


async def test_a_limit_is_lowered_and_given_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.agent.start()
    limits = Path(f"/proc/{scene.agent.pid}/limits")

    def open_files() -> str:
        return next(one for one in limits.read_text().splitlines() if "open files" in one)

    before = open_files()
    async with asyncio.TaskGroup() as group:
        scene.nemesis.set(fault(Fault.AGENT_NO_FILES, 50), group)
        await asyncio.sleep(0)
        assert open_files() != before
    assert open_files() == before
    await scene.agent.end()
