"""One group of reported results, decided and written in one transaction."""

from collections.abc import Sequence

from msgspec import Struct

from netsonde import wire
from netsonde.errors import ErrorCode
from netsonde.model import Outcome, ReportResult, ReportStatus
from netsonde.server.leasing import (
    Change,
    Died,
    HeldTask,
    LeaseIds,
    LeasingPolicy,
    Requeued,
    ServerTime,
)
from netsonde.server.runs import FENCED, RunGroup
from netsonde.server.store import Store
from netsonde.server.store.results import NewResult
from netsonde.server.store.tasks import DeadLetter

OUTCOME_MAX_CHARS = 64  # of an outcome newer than this server


_OUTCOMES = {outcome.value: outcome for outcome in Outcome}  # calling the enum takes a microsecond
_TAKEN = frozenset({ReportStatus.ACCEPTED, ReportStatus.LATE_ACCEPTED})


class _Answer(Struct, frozen=True):
    status: ReportStatus
    error: str | None = None


class ReportGroup:
    """Wins each lease by its id and agent, then stores the results of those won.

    `run` may be called once more after a rollback: it begins from nothing.
    """

    def __init__(
        self,
        agent_id: int,
        items: Sequence[wire.ReportItem],
        policy: LeasingPolicy,
        lease_ids: LeaseIds,
        time: ServerTime,
    ) -> None:
        self._agent_id = agent_id
        self._items = items
        self._policy = policy
        self._lease_ids = lease_ids
        self._time = time
        self._answers: list[_Answer] = []
        self._results: list[NewResult] = []
        self._unburied: list[int] = []
        self.changes: list[tuple[HeldTask, Change]] = []

    def answers(self) -> list[ReportResult]:
        """Return each item's status, in the order of the items."""
        return [
            ReportResult(lease_id=item.lease_id, status=answer.status, error=answer.error)
            for item, answer in zip(self._items, self._answers, strict=True)
        ]

    def run(self, store: Store) -> None:
        """Decide every item and write what was won."""
        now_ns = self._time.now_ns()
        self._answers, self._results, self._unburied, self.changes = [], [], [], []
        ids = {
            item.lease_id
            for item in self._items
            if item.problem is None and self._lease_ids.may_have_minted(item.lease_id)
        }
        held = {
            lease_id: task
            for lease_id, task in store.by_lease(ids).items()
            if task.agent_id == self._agent_id
        }
        runs = RunGroup(store, self._agent_id, ids, self._policy, now_ns)
        rest = ids - held.keys() - runs.leases.keys()
        owners = store.result_owners(rest) if rest else {}
        rest -= owners.keys()
        floor = store.key_floor()  # of a lease below it nobody remembers whether it had a result
        rest = {lease_id for lease_id in rest if lease_id >= floor.lease_id}
        dead = store.dead_by_lease(rest) if rest else {}
        runs.look_up(self._items)
        decided: dict[int, _Answer] = {}
        for item in self._items:
            if item.problem is None and item.lease_id in runs.leases:
                self._answers.append(self._ran(item, runs, held))
                continue
            earlier = decided.get(item.lease_id) if item.problem is None else None
            if earlier is None:
                answer = self._decide(item, held, owners, dead, now_ns)
            else:
                is_taken = earlier.status in _TAKEN
                answer = _Answer(ReportStatus.DUPLICATE) if is_taken else earlier
            if answer.status is not ReportStatus.INVALID:
                decided.setdefault(item.lease_id, answer)
            self._answers.append(answer)
        self._results += runs.results
        runs.write()
        self._write(store, now_ns)

    def _decide(
        self,
        item: wire.ReportItem,
        held: dict[int, HeldTask],
        owners: dict[int, int],
        dead: dict[int, DeadLetter],
        now_ns: int,
    ) -> _Answer:
        lease_id = item.lease_id
        if item.problem is not None:
            return _Answer(ReportStatus.INVALID, f"{ErrorCode.VALIDATION}: {item.problem}")
        if lease_id in held:
            return self._won(item, held[lease_id], now_ns)
        if lease_id in owners:
            mine = owners[lease_id] == self._agent_id
            return _Answer(ReportStatus.DUPLICATE) if mine else _fenced()
        letter = dead.get(lease_id)
        if letter is not None and letter.agent_id == self._agent_id:
            granted_ns = min(self._lease_ids.minted_ns(lease_id), now_ns)
            return self._raised(item, letter, granted_ns, now_ns)
        if self._lease_ids.may_have_minted(lease_id):
            return _fenced()
        return _Answer(ReportStatus.UNKNOWN, ErrorCode.LEASE_UNKNOWN)

    def _ran(self, item: wire.ReportItem, runs: RunGroup, held: dict[int, HeldTask]) -> _Answer:
        text = wire.classify(runs.leases[item.lease_id].kind, item)
        if not 0 < len(text) <= OUTCOME_MAX_CHARS:
            return _bad_outcome()
        return _Answer(*runs.decide(item, held, text))

    def _won(self, item: wire.ReportItem, held: HeldTask, now_ns: int) -> _Answer:
        text = wire.classify(held.kind, item)
        if not 0 < len(text) <= OUTCOME_MAX_CHARS:
            return _bad_outcome()
        verdict = self._policy.report(held, _known_outcome(text), now_ns)
        if verdict.change is not None:
            self.changes.append((held, verdict.change))
        if verdict.status is ReportStatus.FENCED:
            return _fenced()
        self._results.append(
            NewResult(
                lease_id=held.lease_id,
                task_id=held.task_id,
                agent_id=self._agent_id,
                kind=held.kind,
                outcome=text,
                attempt=max(held.attempt, 1),
                received_ns=now_ns,
                is_final=verdict.is_final,
                spec_id=held.spec_id,
                body=wire.timed_item(item, held.granted_ns, now_ns),
                check_id=held.check_id,
                scheduled_ns=held.scheduled_ns,
            )
        )
        return _Answer(verdict.status)

    def _raised(
        self, item: wire.ReportItem, letter: DeadLetter, granted_ns: int, now_ns: int
    ) -> _Answer:
        """Take the result of a task that had been given up: nobody else was granted it."""
        text = wire.classify(letter.kind, item)[:OUTCOME_MAX_CHARS] or Outcome.AGENT_ERROR
        if _known_outcome(text) not in (Outcome.AGENT_ERROR, Outcome.CANCELLED):
            self._unburied.append(letter.task_id)
        self._results.append(
            NewResult(
                lease_id=letter.lease_id,
                task_id=letter.task_id,
                agent_id=self._agent_id,
                kind=letter.kind,
                outcome=text,
                attempt=letter.attempt,
                received_ns=now_ns,
                is_final=True,
                spec_id=letter.spec_id,
                body=wire.timed_item(item, granted_ns, now_ns),
                check_id=letter.check_id,
                scheduled_ns=letter.scheduled_ns,
            )
        )
        return _Answer(ReportStatus.LATE_ACCEPTED)

    def _write(self, store: Store, now_ns: int) -> None:
        store.apply([change for _, change in self.changes], now_ns)
        store.add_results(self._results)
        if self._unburied:
            store.unbury(self._unburied)
        late = sum(answer.status is ReportStatus.LATE_ACCEPTED for answer in self._answers)
        died = sum(isinstance(change, Died) for _, change in self.changes)
        back = sum(
            isinstance(change, Requeued) and change.returns > held.returns
            for held, change in self.changes
        )
        for counter, by in (("late", late), ("dead", died), ("returned", back)):
            store.count(counter, by)


def _known_outcome(text: str) -> Outcome:
    """Read an outcome; one that is newer than this server ends its task as a measurement does."""
    return _OUTCOMES.get(text, Outcome.OK)


def _fenced() -> _Answer:
    return _Answer(*FENCED)


def _bad_outcome() -> _Answer:
    message = f"outcome must have 1 to {OUTCOME_MAX_CHARS} characters"
    return _Answer(ReportStatus.INVALID, f"{ErrorCode.VALIDATION}: {message}")
