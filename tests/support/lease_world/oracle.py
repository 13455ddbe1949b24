"""What really happened in a world, and whether it may: the invariants of leases.

The oracle hears of commits from the store, of answers from the network and of measurements from the
probers, never from the agents' or the control plane's own accounts.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from netsonde.agent.lease_extender import LOOK_NS
from netsonde.clock import NS_PER_MS
from netsonde.model import ReportStatus, TaskKind

TAKEN = frozenset({ReportStatus.ACCEPTED, ReportStatus.LATE_ACCEPTED, ReportStatus.DUPLICATE})
PROMPT_NS = 5 * NS_PER_MS  # to end a measurement whose lease has ended: turns of the loop, no waits


class WrongError(AssertionError):
    """Something happened that must not."""


@dataclass(frozen=True, slots=True)
class Host:
    """One life of an agent's process."""

    name: str
    life: int


@dataclass(slots=True)
class Task:
    """One task as the store's commits tell it."""

    name: str
    lease_id: int = 0  # the last granted
    agent_id: int = 0
    until_ns: int = 0  # of it, on the world's clock
    attempt: int = 0
    results: list[int] = field(default_factory=list)  # lease ids, final ones
    is_dead: bool = False


class Oracle:
    """Keeps the truth of one world."""

    def __init__(
        self, capacities: Mapping[TaskKind, int], attempts_max: int, grace_ns: int
    ) -> None:
        self.tasks: dict[int, Task] = {}
        self.names: set[str] = set()  # of tasks that were asked for
        self.measured: Counter[str] = Counter()  # by task name, to the end
        self.acknowledged: set[int] = set()
        self.grants = 0
        self._last_lease_id = 0
        self._queued: set[str] = set()  # names of tasks whose queueing was committed
        self.wrong: list[str] = []
        self.accepted: Counter[int] = Counter()  # rows by lease id
        self._capacities = capacities
        self._attempts_max = attempts_max
        self._grace_ns = grace_ns
        self._reported: set[tuple[str, str]] = set()  # host and task whose report was answered
        self._kept: defaultdict[Host, set[str]] = defaultdict(set)  # tasks measured to the end
        self._leases: dict[int, tuple[str, str]] = {}  # host and task
        self._running: defaultdict[Host, Counter[TaskKind]] = defaultdict(Counter)
        self._agents: dict[int, str] = {}
        self._offset_ns: int | None = None
        self._written_ns = 0  # by the server's clock
        self._allowed_ns: dict[tuple[str, str], int] = {}  # by host and task: until when

    @property
    def leases_expected(self) -> int:
        """At least so many leases there will have been: what was never granted will be."""
        return self.grants + sum(not task.lease_id for task in self.tasks.values())

    # ── the store's commits ──

    def hear(self, told: Callable[[], None]) -> None:
        """Hear what a commit did; what it must not have done is remembered, nobody is told."""
        try:
            told()
        except WrongError:
            pass
        except LookupError as error:
            self.wrong.append(f"a commit about what was never granted: {error!r}")

    def queued(self, names: list[str]) -> None:
        """Tasks were asked for; the control plane may have heard of them."""
        self.names.update(names)

    def wrote(self, now_ns: int) -> None:
        """A transaction changed something at this instant of the server's clock."""
        self._written_ns = now_ns

    def started(self, now_ns: int, offset_ns: int) -> None:
        """A process of the server began, at an instant of its clock; offset_ns: to the world's.

        One whose wall clock was set back goes on where the last one wrote: all leases are longer.
        """
        late_ms = (self._written_ns - now_ns) / NS_PER_MS
        self._must(late_ms <= 0, f"the server's clock is {late_ms:.1f} ms behind what it wrote")
        if self._offset_ns is not None and offset_ns < self._offset_ns:
            longer_ns = self._offset_ns - offset_ns
            for task in self.tasks.values():
                if task.lease_id:
                    task.until_ns += longer_ns
            self._allowed_ns = {key: at + longer_ns for key, at in self._allowed_ns.items()}
        self._offset_ns = offset_ns

    def registered(self, agent_id: int, host: str) -> None:
        """An agent has an id."""
        self._agents[agent_id] = host

    def enqueued(self, task_id: int, name: str) -> None:
        """A task was queued."""
        self._must(name not in self._queued, f"{name} was queued twice")
        self._queued.add(name)
        self.tasks[task_id] = Task(name)

    def granted(
        self, task_id: int, name: str, lease_id: int, agent_id: int, attempt: int, until_ns: int
    ) -> None:
        """A task was leased."""
        self.grants += 1
        task = self.tasks[task_id]
        self._must(lease_id > self._last_lease_id, f"lease {lease_id}: an id that is not new")
        self._last_lease_id = lease_id
        self._must(not task.results and not task.is_dead, f"task {task_id}: granted after its end")
        self._must(attempt <= self._attempts_max, f"task {task_id}: attempt {attempt}")
        task.lease_id, task.agent_id, task.attempt = lease_id, agent_id, attempt
        self._leases[lease_id] = (self._agents[agent_id], name)
        self._allow(task, until_ns)

    def extended(self, task_id: int, until_ns: int) -> None:
        """A lease was made longer."""
        task = self.tasks[task_id]
        self._must(
            until_ns >= task.until_ns - NS_PER_MS, f"task {task_id}: an extension shortened it"
        )
        self._allow(task, until_ns)

    def _allow(self, task: Task, until_ns: int) -> None:
        task.until_ns = until_ns
        host = self._agents[task.agent_id]
        key = (host, task.name)
        self._allowed_ns[key] = max(self._allowed_ns.get(key, 0), until_ns)

    def stored(self, task_id: int, lease_id: int, agent_id: int, *, is_final: bool) -> None:
        """A result was committed."""
        task = self.tasks[task_id]
        self.accepted[lease_id] += 1
        self._must(self.accepted[lease_id] == 1, f"lease {lease_id}: two results")
        self._must(
            lease_id == task.lease_id, f"task {task_id}: a result of a lease that is not its last"
        )
        self._must(agent_id == task.agent_id, f"task {task_id}: a result of another agent")
        if is_final:
            task.results.append(lease_id)
            self._must(len(task.results) == 1, f"task {task_id}: two final results")
            self._must(
                self.measured[task.name] > 0 or task.is_dead,
                f"task {task_id}: a final result, and nobody measured it",
            )

    def expired(self, task_id: int, late_ns: int) -> None:
        """A lease was taken back so long after its end, by the server's clock.

        That is ahead of the world's where the wall clock was set forward before a start.
        """
        self._must(
            late_ns >= self._grace_ns,
            f"task {task_id}: taken back {late_ns / NS_PER_MS:.1f} ms after its end",
        )

    def died(self, task_id: int) -> None:
        """A task was given up."""
        self.tasks[task_id].is_dead = True

    def raised(self, task_id: int) -> None:
        """One that was given up got its result after all."""
        self.tasks[task_id].is_dead = False

    # ── the network ──

    def answered(self, lease_id: int, status: str) -> None:
        """The server answered for a reported item; whether that arrives is another matter."""
        if lease_id in self._leases and status != ReportStatus.RETRY:
            self._reported.add(self._leases[lease_id])
        if status in TAKEN:
            self.acknowledged.add(lease_id)
            self._must(
                self.accepted[lease_id] == 1,
                f"lease {lease_id}: answered {status} with {self.accepted[lease_id]} rows",
            )

    # ── the measurements ──

    def began(self, host: Host, kind: TaskKind, name: str, now_ns: int) -> None:
        """A measurement began."""
        running = self._running[host]
        running[kind] += 1
        self._must(
            running[kind] <= self._capacities[kind],
            f"{host}: {running[kind]} measurements of {kind} at once",
        )
        self._in_time(host, name, now_ns, awake_ns=-LOOK_NS)

    def ended(
        self, host: Host, kind: TaskKind, name: str, now_ns: int, awake_ns: int, *, is_whole: bool
    ) -> None:
        """A measurement ended, by itself or because it was cancelled; awake_ns: of its host."""
        self._running[host][kind] -= 1
        if is_whole:
            self.measured[name] += 1
            self._kept[host].add(name)
        self._in_time(host, name, now_ns, awake_ns)

    def _in_time(self, host: Host, name: str, now_ns: int, awake_ns: int) -> None:
        """Insist on a lease; that one ended is noticed soon after a suspended host wakes."""
        until_ns = self._allowed_ns.get((host.name, name), 0) + PROMPT_NS
        until_ns = max(until_ns, awake_ns + LOOK_NS)
        self._must(
            now_ns <= until_ns,
            f"{host}: {name} measured {(now_ns - until_ns) / NS_PER_MS:.1f} ms too long",
        )

    def vanished(self, host: Host) -> None:
        """A process was killed, and its measurements with it."""
        self._running.pop(host, None)
        self._kept.pop(host, None)  # what it had not written down yet is measured again

    # ── the end ──

    def _must(self, holds: bool, what: str) -> None:
        """Insist; remembered, for servers catch what their work raises."""
        if not holds:
            self.wrong.append(what)
            raise WrongError(what)

    def check_end(self, live: int, rows: dict[str, int], stored: Sequence[int]) -> None:
        """Insist that everything has ended well.

        live: tasks still queued or leased; rows: of each spool; stored: lease ids of all results.
        """
        self._must(sorted(stored) == sorted(self.accepted), "other results than were committed")
        gone = self.acknowledged - set(stored)
        self._must(not gone, f"acknowledged and not stored: {sorted(gone)[:5]}")
        self._must(live == 0, f"{live} tasks have not ended")
        vanished = self.names - self._queued
        self._must(not vanished, f"tasks vanished: {sorted(vanished)[:5]}")
        for task_id, task in self.tasks.items():
            # One that is given up may have a result too: the last agent's, that it could not.
            self._must(bool(task.results) or task.is_dead, f"task {task_id} ended without a result")
            self._must(
                not task.is_dead or task.attempt == self._attempts_max,
                f"task {task_id} was given up after attempt {task.attempt}",
            )
        self._must(not any(rows.values()), f"spools did not empty: {rows}")
        for host, names in self._kept.items():
            lost = {name for name in names if (host.name, name) not in self._reported}
            self._must(not lost, f"{host} measured and never reported {sorted(lost)[:5]}")


def must(holds: bool, what: str) -> None:
    """Insist.

    Raises:
        WrongError: it does not hold.
    """
    if not holds:
        raise WrongError(what)
