"""The cast of a run: server, target, agents and the proxy between, started and ended in order."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from signal import SIGKILL, SIGTERM

from support.chaos import evidence
from support.chaos.evidence import Session, Spooled
from support.chaos.journal import Journal
from support.chaos.lanes import Lane
from support.chaos.operator_client import Operator
from support.chaos.processes import SOURCES, TESTS, Process, now_ns
from support.chaos.proxy import Proxy
from support.chaos.publisher import signing_key
from support.chaos.settings import SLOTS, Settings

AGENT = """\
control_plane = "http://127.0.0.1:{port}"
state_dir = "{state}"
hostname = "chaos-{number}"
targets = ["127.0.0.0/8"]
log_level = "warning"
metrics_interval_s = 5
trusted_keys = [{keys}]

[capacities]
dns = 0
http = {slots}
tcp = 0
ping = 0
trace = 0
"""
DATABASE = "server.db"
STREAMLESS_EVERY = 3  # every third agent is behind a proxy that carries no streams


class StageError(Exception):
    """A part of the run could not be started."""


class Stage:
    """What a run works with. Made by `staged`."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.directory = directory
        self.events = Journal(directory / evidence.EVENTS)
        exchanges = Journal(directory / evidence.EXCHANGES)
        self.proxy = Proxy(settings.server_port, exchanges)
        self.lanes: list[Lane] = []
        self.agents: list[Process] = []
        self.server = Process(
            "server",
            [
                "support.chaos.server_program", "--directory", str(directory),
                "--port", str(settings.server_port),
                "--operator-port", str(settings.operator_port),
            ],
            directory / "server.log",
            self.events,
        )  # fmt: skip
        self.operator = Operator(
            f"http://127.0.0.1:{settings.operator_port}",
            settings.target_port,
            self.database,
            self.events,
        )

    @property
    def database(self) -> Path:
        """The server's database."""
        return self.directory / DATABASE

    def add_agent(self, port: int) -> Process:
        """Make the next agent, which speaks to the control plane through a port of the proxy."""
        number = len(self.agents)
        settings = self.directory / f"agent-{number}.toml"
        state = self.directory / f"agent-{number}"
        keys = ", ".join(f'"{key}"' for key in self._trusted())
        settings.write_text(
            AGENT.format(port=port, state=state, number=number, slots=SLOTS, keys=keys)
        )
        process = Process(
            f"agent-{number}",
            ["netsonde", "agent", "run", "--config", str(settings)],
            self.directory / f"agent-{number}.log",
            self.events,
        )
        self.agents.append(process)
        return process

    def _trusted(self) -> list[str]:
        """Return the public keys that agents believe; the stranger's is a planted bug."""
        whose = ["operator"]
        if self.settings.plant == "stranger-trusted":
            whose.append("stranger")
        return [signing_key(self.settings.seed, one).public.text for one in whose]

    async def drain(self) -> list[str]:
        """End everything as an operator would; return what did not end well."""
        async with asyncio.TaskGroup() as group:
            ending = {one.who: group.create_task(one.end(SIGTERM)) for one in self.agents}
        statuses = {who: task.result() for who, task in ending.items()}
        await self.operator.read_counted()
        statuses["server"] = await self.server.end(SIGTERM)
        for number in range(len(self.agents)):
            ids = spooled(self.directory / f"agent-{number}" / "spool.db")
            self.events.write(Spooled(agent=number, lease_ids=ids))
        return [f"{who} ended with status {status}" for who, status in statuses.items() if status]

    async def kill(self) -> None:
        """End whatever still runs."""
        for process in (*self.agents, self.server):
            if process.is_running:
                await process.end(SIGKILL)


@asynccontextmanager
async def staged(settings: Settings, directory: Path) -> AsyncIterator[Stage]:
    """Start everything; at the end nothing of it runs any more."""
    stage = Stage(settings, directory)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_target(settings, directory))
        stack.push_async_callback(stage.kill)
        stage.events.write(Session(at=now_ns(), boot_id=boot_id(), commit=commit()))
        await stage.server.start()
        await stack.enter_async_context(stage.operator)
        await stage.operator.wait_ready()
        for number in range(settings.agents):
            lane = Lane(number, is_streaming=number % STREAMLESS_EVERY > 0)
            stage.lanes.append(lane)
            port = await stack.enter_async_context(stage.proxy.serving(lane))
            await stage.add_agent(port).start()
        yield stage


@asynccontextmanager
async def _target(settings: Settings, directory: Path) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.chaos.target",
        "--log", str(directory / evidence.EXECUTIONS),
        "--seed", str(settings.seed), "--port", str(settings.target_port),
        env={**os.environ, "PYTHONPATH": SOURCES},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if not await process.stdout.readline():
            raise StageError(f"the target did not start on port {settings.target_port}")
        yield
    finally:
        process.stdin.close()  # also when the rig is killed: the target ends with its input
        await process.wait()


def spooled(path: Path) -> list[int]:
    """Return the lease ids that a spool nobody uses still holds."""
    if not path.exists():
        return []
    ids: list[int] = []
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT heads, unacknowledged FROM batch").fetchall()
    for heads, unacknowledged in rows:
        bits = int.from_bytes(unacknowledged, "little")
        ids += [
            int.from_bytes(heads[at * HEAD_BYTES : at * HEAD_BYTES + 8], "little")
            for at in range(len(heads) // HEAD_BYTES)
            if bits >> at & 1
        ]
    return ids


HEAD_BYTES = 13  # of a record: lease id, body length, whether it was cancelled


def boot_id() -> str:
    """Return this boot's id: instants of another one cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def commit() -> str:
    """Return what is being tested, with a + when it is not what was committed."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
        cwd=TESTS, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"
