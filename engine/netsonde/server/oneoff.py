"""One-off tasks: a bulk of them, read item by item, queued in one transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from netsonde import wire
from netsonde.errors import RequestError
from netsonde.model import TARGET_FIELDS, TaskKind
from netsonde.server.api import refuse
from netsonde.server.checks import ATTEMPTS_MAX, PRIORITY_MAX
from netsonde.server.registry import AgentRegistry
from netsonde.server.store import Store
from netsonde.server.store.base import ANY_QUEUE, NewTask, pinned_queue

TASKS_MAX = 10_000  # one-off tasks per request


class TaskIn(Struct, frozen=True, kw_only=True):
    """One one-off task as an operator writes it."""

    kind: str
    spec: dict[str, Any]
    agent: int | str | None = None
    priority: int = 0
    max_attempts: int | None = None


@dataclass(frozen=True, slots=True)
class _Refused:
    error: RequestError


class Plan:
    """What a bulk of items becomes: tasks where they are right, refusals where they are not."""

    def __init__(
        self,
        raw: Iterable[dict[str, Any]],
        registry: AgentRegistry,
        default_attempts: int,
        now_ns: int,
    ) -> None:
        self._registry = registry
        self._default_attempts = default_attempts
        self._now_ns = now_ns
        self._read = [self._task(item) for item in raw]
        self._tasks = [one for one in self._read if isinstance(one, NewTask)]

    def run(self, store: Store) -> list[dict[str, Any]]:
        """Queue the tasks; return each item's answer, in the order of the items."""
        ids = iter(store.add_tasks(self._tasks) if self._tasks else ())
        return [
            {"task_id": next(ids)} if isinstance(one, NewTask) else _item_error(one.error)
            for one in self._read
        ]

    def made(self) -> Sequence[tuple[int, TaskKind, int]]:
        """Return `(queue, kind, count)` of the tasks."""
        counts: dict[tuple[int, TaskKind], int] = {}
        for task in self._tasks:
            counts[task.queue, task.kind] = counts.get((task.queue, task.kind), 0) + 1
        return [(queue, kind, count) for (queue, kind), count in counts.items()]

    def _task(self, raw: dict[str, Any]) -> NewTask | _Refused:
        try:
            return self._understood(wire.decode(TaskIn, wire.encode(raw), strict=True))
        except RequestError as error:
            return _Refused(error)

    def _understood(self, item: TaskIn) -> NewTask:
        kind = _kind(item.kind)
        target_field = TARGET_FIELDS[kind]
        options = dict(item.spec)
        inner = options.pop("kind", item.kind)
        if inner != item.kind:
            refuse("spec.kind", f"spec is of kind {inner!r}, the task of kind {item.kind}")
        target = options.pop(target_field, None)
        if not isinstance(target, str):
            refuse(f"spec.{target_field}", f"{target_field} is needed, as text")
        attempts = self._default_attempts if item.max_attempts is None else item.max_attempts
        if not 1 <= attempts <= ATTEMPTS_MAX:
            refuse("max_attempts", f"max_attempts must be 1 to {ATTEMPTS_MAX}")
        if abs(item.priority) > PRIORITY_MAX:
            refuse("priority", f"priority must be -{PRIORITY_MAX} to {PRIORITY_MAX}")
        return NewTask(
            kind=kind,
            spec=wire.encode(wire.build_spec(kind, target, options)),
            run_ns=self._now_ns,
            max_attempts=attempts,
            queue=self._pin(item.agent),
            priority=item.priority,
        )

    def _pin(self, agent: int | str | None) -> int:
        if agent is None:
            return ANY_QUEUE
        found = self._registry.find(str(agent))
        if len(found) != 1:
            refuse("agent", f"{len(found)} agents are named {agent!r}, one is needed")
        return pinned_queue(found[0])


def _kind(text: str) -> TaskKind:
    for kind in TaskKind:
        if kind == text:
            return kind
    return refuse("kind", f"kind must be one of {', '.join(TaskKind)}, not {text[:50]!r}")


def _item_error(error: RequestError) -> dict[str, Any]:
    answer: dict[str, Any] = {"error": error.code, "message": str(error)}
    if error.violations:
        answer["violations"] = [
            {"path": path, "message": message} for path, message in error.violations
        ]
    return answer
