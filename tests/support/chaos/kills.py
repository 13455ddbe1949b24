"""Agents are killed between the moment a result is durable and the moment its answer arrives.

The proxy holds a report, by turns before it reaches the server and after the server has committed
it; the agent that waits for the answer is killed and started again. Tasks are pinned, so that
nobody else can measure them meanwhile: each result that was held must be accepted, once.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

from msgspec import Struct

from support.chaos.evidence import Evidence, Trapped
from support.chaos.lanes import Lane, Trap
from support.chaos.processes import Process, now_ns
from support.chaos.rig import DRY_S, PAGE_WAIT_S, PROGRESS_S, until
from support.chaos.settings import Settings
from support.chaos.stage import Stage, staged

TASKS = 4  # queued for each kill
STEP_TIMEOUT_S = 120.0  # until a report comes, until it comes again


class Kills:
    """Kills so many times, on all lanes side by side."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        self._times = settings.times
        self._begun = 0
        self._done = 0
        self._next_task = 0
        self._begun_s = monotonic()

    async def run(self) -> list[str]:
        """Kill until it was often enough; return what did not end well."""
        async with staged(self._settings, self._directory) as stage:
            await stage.operator.wait_agents(self._settings.agents)
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(self._tell())
                reading = group.create_task(_read(stage))
                async with asyncio.TaskGroup() as lanes:
                    for lane, agent in zip(stage.lanes, stage.agents, strict=True):
                        lanes.create_task(self._work(stage, lane, agent))
                await until(lambda: stage.operator.live() == 0, DRY_S)
                telling.cancel()
                reading.cancel()
            while await stage.operator.read_page():
                pass
            return await stage.drain()

    async def _work(self, stage: Stage, lane: Lane, agent: Process) -> None:
        """Kill one lane's agent while there are kills to be done."""
        while self._begun < self._times:
            is_after = self._begun % 2 == 1
            self._begun += 1
            lane.trap = trap = Trap(is_after=is_after)
            first, self._next_task = self._next_task, self._next_task + TASKS
            async with asyncio.timeout(STEP_TIMEOUT_S):
                await stage.operator.submit(first, TASKS, agent=f"chaos-{lane.agent}")
                lease_ids = await trap.caught
            await agent.end()
            lane.trap = None
            lane.answered.clear()
            stage.events.write(
                Trapped(at=now_ns(), agent=lane.agent, is_after=is_after, lease_ids=lease_ids)
            )
            await agent.start()
            async with asyncio.timeout(STEP_TIMEOUT_S):
                while not lane.answered.issuperset(lease_ids):
                    lane.heard.clear()
                    await lane.heard.wait()
            self._done += 1

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            seconds = monotonic() - self._begun_s
            print(
                f"chaos kills: {seconds:.0f} s, {self._done} of {self._times}",
                file=sys.stderr,
                flush=True,
            )


class KillVerdict(Struct, frozen=True, kw_only=True):
    """What became of the results that were held when their agent was killed."""

    times: int
    results: int
    once: int
    lost: int
    doubled: int
    answers: Mapping[str, int]  # to the reports that were made again, by status

    @property
    def holds(self) -> bool:
        """Whether each was accepted exactly once."""
        return self.once == self.results > 0

    def summary(self, seconds: float, commit: str) -> str:
        """Return the one line."""
        answers = ", ".join(f"{status} {count}" for status, count in sorted(self.answers.items()))
        return (
            f"chaos kills: times {self.times}, results {self.results}, accepted once {self.once},"
            f" lost {self.lost}, doubled {self.doubled}, reported again: {answers},"
            f" {seconds:.0f} s, commit {commit}"
        )


def judge_kills(evidence: Evidence) -> KillVerdict:
    """Count what became of every result that was held. Pure."""
    rows = Counter(row.lease_id for row in evidence.results)
    final = Counter(row.task_id for row in evidence.results if row.is_final)
    task_of = {row.lease_id: row.task_id for row in evidence.results}
    traps = [one for one in evidence.events if isinstance(one, Trapped)]
    held: dict[int, int] = {}  # by lease id: when its agent was killed
    for trap in traps:
        for lease_id in trap.lease_ids:
            held.setdefault(lease_id, trap.at)
    lost = sum(rows[lease_id] == 0 for lease_id in held)
    once = sum(rows[one] == 1 and final[task_of[one]] == 1 for one in held)
    answers = Counter(
        status
        for exchange in evidence.exchanges
        for lease_id, status in exchange.results
        if lease_id in held and exchange.begun > held[lease_id]
    )
    return KillVerdict(
        times=len(traps),
        results=len(held),
        once=once,
        lost=lost,
        doubled=len(held) - once - lost,
        answers=answers,
    )


async def _read(stage: Stage) -> None:
    while True:
        if not await stage.operator.read_page():
            await asyncio.sleep(PAGE_WAIT_S)
