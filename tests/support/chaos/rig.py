"""One run: work is queued, faults are set in epochs with calms between, until there were enough."""

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from support.chaos.evidence import Began, Calm, Intended, Page, Struck, Submitted, read_events
from support.chaos.faults import planned
from support.chaos.nemesis import Nemesis
from support.chaos.processes import now_ns
from support.chaos.publisher import Publisher
from support.chaos.settings import RECOVERY_NS, Settings
from support.chaos.stage import Stage, staged

OUTSTANDING = 4_000  # tasks queued and not finished
BULK = 500
TICK_S = 0.02
PAGE_WAIT_S = 0.25
POLL_S = 0.25
# Faults at once beyond one per agent. More befall agents that wait for their next attempt already.
PENDING_SPARE = 2
PROGRESS_S = 5.0
FORGED = {"forged-acknowledgement": "report", "forged-metrics": "metrics"}  # by what is planted
SAMPLE_S = 5.0
QUIET_TIMEOUT_S = 30.0
PUBLISH_S = 6.0  # agents look for a configuration every 10 to 15 s, when there is another
DRY_S = 120.0  # for the rest of the work, when the faults are over


class Rig:
    """Drives one session of a run."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._settings = settings
        self._directory = directory
        self._next_task = 0
        self._next_fault = 0
        self._earlier: Counter[str] = Counter()
        self._finished = 0
        self._cursor = ""
        self._unanswered: Intended | None = None
        self._recall()
        self._begun_s = monotonic()
        self._is_calm = False
        self.stage: Stage
        self.nemesis: Nemesis
        self.publisher: Publisher

    def _recall(self) -> None:
        """Take up what earlier sessions did."""
        for event in read_events(self._directory):
            match event:
                case Intended():
                    self._unanswered = event
                    self._next_task = event.first + event.count
                case Submitted():
                    self._unanswered = None
                case Struck():
                    self._earlier[event.fault] += 1
                    self._next_fault = max(self._next_fault, event.number + 1)
                case Began():
                    self._next_fault = max(self._next_fault, event.number + 1)
                case Page():
                    self._finished += len(event.lease_ids)
                    self._cursor = event.cursor

    @property
    def faults(self) -> int:
        """Faults that struck in all sessions."""
        return self._earlier.total() + self.nemesis.total

    @property
    def is_done(self) -> bool:
        """Whether what was asked for was reached."""
        reached = self.stage.operator.finished >= self._settings.leases
        return reached and self.faults >= self._settings.faults

    async def run(self) -> list[str]:
        """Work until enough was done; return what did not end well."""
        async with staged(self._settings, self._directory) as stage:
            self.stage = stage
            self.nemesis = Nemesis(
                stage.server, stage.agents, stage.lanes, stage.events, stage.operator
            )
            self.publisher = Publisher(
                stage.operator, stage.lanes, stage.events, read_events(self._directory)
            )
            stage.operator.finished, stage.operator.cursor = self._finished, self._cursor
            stage.lanes[0].forges = FORGED.get(self._settings.plant or "")
            await stage.operator.resume_all()
            async with asyncio.TaskGroup() as group:
                steady = [
                    group.create_task(work())
                    for work in (self._submit, self._read, self._revive, self._sample, self._tell)
                ]
                publishing = group.create_task(self._publish())
                await self._torment()
                publishing.cancel()
                await self._run_dry()
                for task in steady:
                    task.cancel()
            return await stage.drain()

    # ── work ──

    async def _submit(self) -> None:
        """Keep the queue filled, and not more."""
        operator, earlier = self.stage.operator, self._unanswered
        if earlier is not None:
            await operator.submit(earlier.first, earlier.count, key=earlier.key)
        while not self.is_done:
            if self._next_task - operator.finished < OUTSTANDING:
                await operator.submit(self._next_task, BULK)
                self._next_task += BULK
            else:
                await asyncio.sleep(TICK_S)

    async def _read(self) -> None:
        """Follow the results."""
        while True:
            if not await self.stage.operator.read_page():
                await asyncio.sleep(PAGE_WAIT_S)

    async def _revive(self) -> None:
        """Bring back what ended by itself."""
        while True:
            await self.nemesis.revive()
            await asyncio.sleep(POLL_S)

    async def _run_dry(self) -> None:
        """Let all that was queued end, and every agent be heard of: it reports what it has."""
        operator, publisher, begun_ns = self.stage.operator, self.publisher, now_ns()
        await publisher.settle(self._settings.seed)
        await until(lambda: operator.live() == 0, DRY_S)
        await until(lambda: all(one.served_ns > begun_ns for one in self.stage.lanes), DRY_S)
        await until(publisher.is_settled, DRY_S)
        await publisher.look(is_last=True)
        while await operator.read_page():
            pass

    async def _publish(self) -> None:
        """Publish configurations, good and bad ones, and look what became of the one before."""
        while True:
            await self.publisher.look()
            await self.publisher.publish(self._settings.seed)
            await asyncio.sleep(PUBLISH_S)

    # ── faults ──

    async def _torment(self) -> None:
        """Epoch after epoch until there were enough leases and faults."""
        while not self.is_done:
            if self.faults < self._settings.faults:
                await self._epoch()
                await self._calm()
            else:
                await asyncio.sleep(TICK_S)

    async def _epoch(self) -> None:
        """Set faults at the pace of the leases, so that both come to their numbers together."""
        settings, nemesis = self._settings, self.nemesis
        ends_at = min(self.faults + settings.epoch_faults, settings.faults)
        async with asyncio.TaskGroup() as group:
            while self.faults < ends_at:
                share = self.stage.operator.finished / max(settings.leases, 1)
                allowed = min(ends_at, int(settings.faults * share) + 1)
                is_room = nemesis.pending < settings.agents + PENDING_SPARE
                if is_room and self.faults + nemesis.pending < allowed:
                    nemesis.set(planned(settings.seed, self._next_fault, settings.agents), group)
                    self._next_fault += 1
                await asyncio.sleep(TICK_S)
        await until(lambda: nemesis.pending == 0, QUIET_TIMEOUT_S)
        nemesis.disarm()

    async def _calm(self) -> None:
        """Set no faults until every lease that was held at the last one's end has ended."""
        operator = self.stage.operator
        ended_ns = self.nemesis.last_ended_ns or now_ns()
        held = set(operator.held())
        left = set(held)
        while left and now_ns() < ended_ns + 2 * RECOVERY_NS:
            await asyncio.sleep(POLL_S)
            left &= set(operator.held())
        self.stage.events.write(
            Calm(
                faults_ended=ended_ns,
                held=len(held),
                recovered=None if left else now_ns(),
                left=sorted(left),
            )
        )

    # ── what is told ──

    async def _sample(self) -> None:
        """Write down the size of every process."""
        while True:
            for process in (self.stage.server, *self.stage.agents):
                if process.is_running:
                    try:
                        self.stage.events.write(process.sample())
                    except OSError:
                        continue  # it was killed this instant
            await asyncio.sleep(SAMPLE_S)

    async def _tell(self) -> None:
        """Say how far the run is."""
        while True:
            await asyncio.sleep(PROGRESS_S)
            seconds = monotonic() - self._begun_s
            done = self.stage.operator.finished
            print(
                f"chaos: {seconds:.0f} s, {done} of {self._settings.leases} leases"
                f" ({(done - self._finished) / seconds:.0f}/s),"
                f" {self.faults} of {self._settings.faults} faults,"
                f" {self.stage.proxy.passed} messages",
                file=sys.stderr,
                flush=True,
            )


async def until(is_true: Callable[[], bool], timeout_s: float) -> None:
    """Look until it is true, or time is up."""
    limit_s = monotonic() + timeout_s
    while not is_true() and monotonic() < limit_s:  # noqa: ASYNC110 (another process makes it so)
        await asyncio.sleep(POLL_S)
