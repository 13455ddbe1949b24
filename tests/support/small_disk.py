"""A control plane on a disk that gets full, run in a mount namespace of its own.

    python -m support.small_disk FOLDER

mounts a small tmpfs on FOLDER, reports results until the disk refuses them, makes room, goes on,
and prints what happened as JSON. `in_namespace` starts it so that it may mount.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from netsonde.clock import NS_PER_S, ManualClock, SystemClock
from netsonde.server.core import ControlPlane
from netsonde.server.store import SqliteStore, ThreadWriter
from netsonde.server.store.results import ResultQuery
from support.stores import Caller, RegisteredAgent, config, result_item

DISK_MIB = 24
RESERVE_BYTES = 6 << 20
BALLAST_BYTES = 2 << 20  # each of two files that others keep, which are removed at last
BODY_BYTES = 60_000  # half of it is left when it is stored
TASKS = 1_000
GROUP = 10
CANNOT_MOUNT = 77


@dataclass
class Story:
    """What happened, in its order."""

    events: list[str] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    refused: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def note(self, event: str) -> None:
        """Add an event, unless it was the last one."""
        if self.events[-1:] != [event]:
            self.events.append(event)


def in_namespace(folder: Path) -> Story | None:
    """Run the story; None where this host does not let one mount."""
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m"]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [*command, "support.small_disk", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=60,
    )
    if done.returncode == CANNOT_MOUNT or "unshare" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return Story(**json.loads(done.stdout))


def main(folder: Path) -> int:
    """Mount the disk, live the story, print it."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return CANNOT_MOUNT
    sys.stdout.write(json.dumps(asdict(asyncio.run(live(folder)))))
    return 0


async def live(folder: Path) -> Story:
    """Fill the disk with results, and make room again."""
    story = Story()
    ballast = folder / "ballast"
    more = folder / "more"
    for file in (ballast, more):
        file.write_bytes(b"x" * BALLAST_BYTES)
    store = SqliteStore.open(folder / "server.db")
    writer = ThreadWriter(store, store.reader, SystemClock())
    settings = config(storage_reserve_bytes=RESERVE_BYTES, quota_scale=1_000)
    clock = ManualClock()
    plane = ControlPlane(settings, clock, writer, store, random.Random(1))
    caller = Caller(plane, clock)
    agent = await caller.register()
    await caller.tasks(TASKS)
    leases = [lease["lease_id"] for lease in await agent.claim(TASKS - 1)]
    waiting = [leases[start : start + GROUP] for start in range(0, len(leases), GROUP)]
    while waiting and story.events[-1:] != ["report refused"]:
        await look(plane, agent, story)
        if await report(agent, story, waiting[0]):
            waiting.pop(0)
    ballast.unlink()
    await clock.advance(10 * NS_PER_S)
    await look(plane, agent, story)
    await report(agent, story, waiting[0])
    await report(agent, story, waiting[0])  # as an agent that did not hear the answer
    await writer.close()
    more.unlink()  # a disk that is full to the last byte has no room for a journal to open with
    again = SqliteStore.open(folder / "server.db")
    story.kept = [row.lease_id for row in again.results(ResultQuery(limit=10_000))]
    again.close()
    return story


async def look(plane: ControlPlane, agent: RegisteredAgent, story: Story) -> None:
    """Measure as the server does, and ask for work under a claim_id of its own."""
    plane.storage.measured(await plane.writer.read(lambda store: store.size()))
    status, answer, _ = await agent.call("/claim", {"capacities": {"dns": 1}})
    story.note("claim" if status == 200 else "claim refused")
    if status != 200:
        assert answer["error"] == "ERR_STORAGE_FULL", answer
    _, health, _ = await agent.caller.agent("GET", "/readyz")
    if story.health[-1:] != [health["status"]]:
        story.health.append(health["status"])


async def report(agent: RegisteredAgent, story: Story, leases: list[int]) -> bool:
    """Report results; a refusal takes none of them."""
    items: list[Any] = []
    for lease_id in leases:
        value = {"x": random.Random(lease_id).randbytes(BODY_BYTES // 2).hex()}
        observations = [{"name": "tcp_summary", "value": value}]
        items.append(result_item(lease_id) | {"observations": observations})
    status, answer, _ = await agent.call("/report", {"completed": items, "cancelled": []})
    story.note("report" if status == 200 else "report refused")
    if status != 200:
        assert answer["error"] in ("ERR_STORAGE_FULL", "ERR_UNAVAILABLE"), answer
        assert answer["retryable"]
        story.refused += 1
        return False
    story.statuses = dict(Counter(one["status"] for one in answer["results"]))
    story.acknowledged += [
        one["lease_id"] for one in answer["results"] if one["status"] == "accepted"
    ]
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
