"""One-off tasks: a bulk of them, read item by item, queued in one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

from msgspec import Struct, structs

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.errors import RequestError
from netsonde.model import TARGET_FIELDS, TaskKind
from netsonde.server.about import within, words
from netsonde.server.api import refuse
from netsonde.server.checks import (
    ATTEMPTS_MAX,
    EVERY_MAX_MS,
    EVERY_MIN_MS,
    PRIORITY_MAX,
    Attempts,
    EveryMs,
    JitterMs,
    Priority,
    StaleAfterMs,
)
from netsonde.server.registry import AgentRegistry
from netsonde.server.runs import write_repeat
from netsonde.server.store import Store
from netsonde.server.store.tasks import ANY_QUEUE, NewTask, pinned_queue
from netsonde.server.targets import require_measurable

TASKS_MAX = 10_000  # one-off tasks per request
TICKS_MAX = 1_000_000


class RepeatIn(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one task repeats; it has an end, for nobody could call it off."""

    every_ms: EveryMs
    ticks: Annotated[int, within(1, TICKS_MAX)]
    jitter_ms: JitterMs = 0
    stale_after_ms: StaleAfterMs | None = None


class TaskIn(Struct, frozen=True, kw_only=True):
    """One one-off task as an operator writes it."""

    kind: Annotated[str, words([*TaskKind])]
    spec: dict[str, Any]
    agent: int | str | None = None
    priority: Priority = 0
    max_attempts: Attempts | None = None
    repeat: RepeatIn | None = None


@dataclass(frozen=True, slots=True)
class _Refused:
    error: RequestError


class Plan:
    """What a bulk of items becomes: tasks where they are right, refusals where they are not."""

    def __init__(
        self,
        items: Iterable[bytes],
        registry: AgentRegistry,
        default_attempts: int,
        now_ns: int,
    ) -> None:
        self._registry = registry
        self._default_attempts = default_attempts
        self._now_ns = now_ns
        self._read = [self._task(item) for item in items]
        self._tasks: list[NewTask] = []

    def run(
        self, store: Store, known: Mapping[int, dict[str, Any]] = MappingProxyType({})
    ) -> list[dict[str, Any]]:
        """Queue the tasks; return each item's answer, in the order of the items.

        Items, by their place, whose answer is `known` are not looked at.
        """
        new = {
            at: one
            for at, one in enumerate(self._read)
            if isinstance(one, NewTask) and at not in known
        }
        self._tasks = list(new.values())
        ids = iter(store.add_tasks(self._tasks) if new else ())
        return [
            known[at]
            if at in known
            else _item_error(one.error)
            if isinstance(one, _Refused)
            else {"task_id": next(ids)}
            for at, one in enumerate(self._read)
        ]

    def made(self) -> Sequence[tuple[int, TaskKind, int]]:
        """Return `(queue, kind, count)` of the tasks that `run` queued."""
        counts: dict[tuple[int, TaskKind], int] = {}
        for task in self._tasks:
            counts[task.queue, task.kind] = counts.get((task.queue, task.kind), 0) + 1
        return [(queue, kind, count) for (queue, kind), count in counts.items()]

    def _task(self, item: bytes) -> NewTask | _Refused:
        try:
            return self._understood(wire.decode(TaskIn, item, strict=True))
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
        spec = wire.build_spec(kind, target, options)
        require_measurable(spec)
        task = NewTask(
            kind=kind,
            spec=wire.encode(spec),
            run_ns=self._now_ns,
            max_attempts=attempts,
            queue=self._pin(item.agent),
            priority=item.priority,
        )
        return task if item.repeat is None else self._repeated(task, item.repeat)

    def _repeated(self, task: NewTask, repeat: RepeatIn) -> NewTask:
        """Make a task standing; it is stale when its last tick can begin no more."""
        bounds: tuple[tuple[str, int | None, int, int], ...] = (
            ("every_ms", repeat.every_ms, EVERY_MIN_MS, EVERY_MAX_MS),
            ("jitter_ms", repeat.jitter_ms, 0, repeat.every_ms - 1),
            ("ticks", repeat.ticks, 1, TICKS_MAX),
            ("stale_after_ms", repeat.stale_after_ms, 1, EVERY_MAX_MS),
        )
        for field, value, low, high in bounds:
            if value is not None and not low <= value <= high:
                refuse(f"repeat.{field}", f"repeat.{field} must be {low} to {high}, not {value}")
        agent = self._registry.get(-task.queue) if task.queue != ANY_QUEUE else None
        if agent is None or agent.is_legacy:
            refuse("repeat", "repeat needs an agent that knows it: name one, no original agent")
        length_ms = repeat.ticks * repeat.every_ms + repeat.jitter_ms
        return structs.replace(
            task,
            scheduled_ns=self._now_ns,
            stale_ns=self._now_ns + length_ms * NS_PER_MS,
            repeat=write_repeat(
                repeat.every_ms, repeat.jitter_ms, repeat.stale_after_ms, repeat.ticks
            ),
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
