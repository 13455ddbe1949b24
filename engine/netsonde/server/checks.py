"""Checks: what an operator wants measured, and the tasks that one tick of it makes."""

import functools
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from msgspec import UNSET, Struct, UnsetType

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import TARGET_FIELDS, TaskKind, TaskSpec
from netsonde.server.about import counted, sized, within
from netsonde.server.runs import write_repeat
from netsonde.server.selection import (
    AGENTS_MAX,
    Carrier,
    Selection,
    check_selection,
    chosen,
    queues_of,
    queues_of_tick,
)
from netsonde.server.store import Store
from netsonde.server.store.checks import CheckRow
from netsonde.server.store.tasks import NewTask
from netsonde.server.targets import require_measurable

TARGETS_MAX = 1_000  # of one check; more are more checks
CHECKS_MAX = 10_000
EVERY_MIN_MS = 100
EVERY_MAX_MS = 31 * 86_400_000
ATTEMPTS_MAX = 100
PRIORITY_MAX = 100
NAME_MAX_CHARS = 200
NOBODY_YET_NS = NS_PER_S  # a check that runs once looks for its agents this often
DUE_MAX = 100  # checks per scheduler transaction, each up to TARGETS_MAX tasks and their agents

EveryMs = Annotated[int, within(EVERY_MIN_MS, EVERY_MAX_MS)]
JitterMs = Annotated[int, within(0, EVERY_MAX_MS - 1)]
StaleAfterMs = Annotated[int, within(1, EVERY_MAX_MS)]
Attempts = Annotated[int, within(1, ATTEMPTS_MAX)]
Priority = Annotated[int, within(-PRIORITY_MAX, PRIORITY_MAX)]
_TARGETING = frozenset({"kind", "targets", "spec"})  # fields that say what is measured
Made = tuple[int, TaskKind, int]  # tasks as (queue, kind, count)


class CheckDefinition(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A check as an operator writes it."""

    kind: TaskKind
    targets: Annotated[tuple[str, ...], counted(1, TARGETS_MAX)]
    name: Annotated[str, sized(1, NAME_MAX_CHARS)] | None = None
    spec: dict[str, Any] = {}
    select: Selection = Selection()
    every_ms: EveryMs | None = None
    jitter_ms: JitterMs = 0
    stale_after_ms: StaleAfterMs | None = None
    max_attempts: Attempts | None = None
    priority: Priority = 0
    enabled: bool = True


class CheckPatch(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to change of a check; null stands for the default, where there is one."""

    kind: TaskKind | UnsetType = UNSET
    targets: Annotated[tuple[str, ...], counted(1, TARGETS_MAX)] | UnsetType = UNSET
    name: Annotated[str, sized(1, NAME_MAX_CHARS)] | None = None
    spec: dict[str, Any] | None = None
    select: Selection | None = None
    every_ms: EveryMs | None = None
    jitter_ms: JitterMs | None = None
    stale_after_ms: StaleAfterMs | None = None
    max_attempts: Attempts | None = None
    priority: Priority | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """What one tick did: the tasks it made, and how many it left out."""

    check: CheckRow
    made: tuple[Made, ...]
    skipped: int

    @property
    def tasks(self) -> int:
        """How many tasks were made."""
        return sum(count for _, _, count in self.made)


def read_definition(body: bytes) -> CheckDefinition:
    """Decode and check a definition.

    Raises:
        RequestError: naming the field and what is allowed.
    """
    definition = _read(body)
    for place, spec in enumerate(_built(definition)):
        require_measurable(spec, f"targets[{place}]")
    return definition


def _read(body: bytes) -> CheckDefinition:
    definition = wire.decode(CheckDefinition, body, max_bytes=wire.ADMIN_MAX_BYTES, strict=True)
    _check_numbers(definition)
    check_selection(definition.select)
    return definition


def patched(document: bytes, patch: bytes) -> CheckDefinition:
    """Put the fields of a patch over a stored definition; null means the default.

    Raises:
        RequestError: naming the field and what is allowed.
    """
    wire.decode(CheckPatch, patch, max_bytes=wire.ADMIN_MAX_BYTES, strict=True)
    merged = {**wire.parse(document), **wire.parse(patch)}
    try:
        changed = wire.encode({name: one for name, one in merged.items() if one is not None})
    except TypeError as error:
        raise _refusal("", "a number is beyond 64 bits") from error
    if wire.parse(patch).keys() & _TARGETING:
        return read_definition(changed)
    definition = _read(changed)  # what it measures stands, as old as it may be
    specs_of(definition)
    return definition


def is_renamed_only(old: bytes, new: bytes) -> bool:
    """Whether two stored definitions measure the same in the same way."""
    return {**wire.parse(old), "name": None} == {**wire.parse(new), "name": None}


def specs_of(definition: CheckDefinition) -> tuple[bytes, ...]:
    """Return the encoded spec of every target, without repetitions.

    Raises:
        RequestError: naming the target and what is allowed.
    """
    return tuple(dict.fromkeys(map(wire.encode, _built(definition))))


def _built(definition: CheckDefinition) -> Iterator[TaskSpec]:
    """Yield the spec of every target, in their order."""
    target_field = TARGET_FIELDS[definition.kind]
    if target_field in definition.spec:
        raise _refusal(f"spec.{target_field}", f"{target_field} comes from targets, not from spec")
    for place, target in enumerate(definition.targets):
        try:
            yield wire.build_spec(definition.kind, target, definition.spec)
        except RequestError as error:
            paths = tuple((f"$.targets[{place}]", text) for _, text in error.violations)
            raise RequestError(error.code, str(error), violations=paths) from error


@functools.lru_cache(maxsize=1024)
def understood(document: bytes) -> tuple[CheckDefinition, tuple[bytes, ...]]:
    """Decode a stored definition; a check ticks for months on the same bytes."""
    definition = wire.decode(CheckDefinition, document, max_bytes=wire.ADMIN_MAX_BYTES)
    return definition, specs_of(definition)


def run_tick(
    store: Store,
    check: CheckRow,
    carriers: Collection[Carrier],
    now_ns: int,
    *,
    default_attempts: int,
    is_extra: bool = False,
) -> Tick:
    """Make the tasks of one tick and set the next one; an extra tick leaves the schedule alone."""
    definition, specs = understood(check.document)
    made: tuple[Made, ...] = ()
    if is_standing(definition):
        if not is_extra:
            made, check = stand(store, check, carriers, now_ns, default_attempts=default_attempts)
        carrying = chosen(definition.select, check.check_id, carriers)
        queues = queues_of(one for one in carrying if one.is_legacy or is_extra)
    else:
        queues = queues_of_tick(store, definition.select, carriers, check.tick)
    live = store.live_of_check(check.check_id, now_ns) if queues else set()
    wanted = [(queue, spec) for queue in queues for spec in specs]
    fresh = [pair for pair in wanted if pair not in live]
    scheduled_ns = now_ns if is_extra or check.next_ns is None else check.next_ns
    next_ns = check.next_ns if is_extra else _next_ns(check, definition, bool(queues), now_ns)
    stale_ns = _stale_ns(definition, None if is_extra else next_ns, now_ns)
    when = {"stale_ns": stale_ns, "scheduled_ns": scheduled_ns}
    store.add_tasks(_tasks(check, fresh, now_ns, default_attempts, **when))
    skipped = len(wanted) - len(fresh)
    store.count("overlap", skipped)
    changed = replace(
        check,
        tasks=check.tasks + len(fresh),
        skipped=check.skipped + skipped,
        tick=check.tick + 1,
        next_ns=next_ns,
    )
    store.save_check(changed)
    return Tick(changed, (*made, *_counted(definition.kind, fresh)), skipped)


def is_standing(definition: CheckDefinition) -> bool:
    """Whether a check runs by itself on agents chosen beforehand, as standing tasks."""
    select = definition.select
    is_pinned = bool(select.agents) or select.all or (select.count or 1) > 1
    return definition.every_ms is not None and is_pinned


def stand(
    store: Store,
    check: CheckRow,
    carriers: Collection[Carrier],
    now_ns: int,
    *,
    default_attempts: int,
    is_later: bool = False,
) -> tuple[tuple[Made, ...], CheckRow]:
    """Give every agent of a standing check its tasks, and take them from those it lost.

    New tasks begin with the period that has begun, or is_later with the one after it. Original
    agents are left out, which know no standing tasks. If there are any, the check ticks.
    """
    definition, specs = understood(check.document)
    carrying = chosen(definition.select, check.check_id, carriers)
    queues = queues_of(one for one in carrying if not one.is_legacy)
    wanted = {(queue, spec): None for queue in queues for spec in specs}
    standing = store.standing_of_check(check.check_id)
    fresh = [pair for pair in wanted if pair not in standing]
    lost = [task_id for pair, task_id in standing.items() if pair not in wanted]
    store.count("cancelled", store.withdraw(lost, now_ns))
    every_ms = definition.every_ms or 0
    every_ns = every_ms * NS_PER_MS
    anchor_ns = now_ns - (now_ns - check.created_ns) % every_ns + is_later * every_ns
    repeat = write_repeat(every_ms, definition.jitter_ms, definition.stale_after_ms)
    when = {"scheduled_ns": anchor_ns, "repeat": repeat}
    store.add_tasks(_tasks(check, fresh, now_ns, default_attempts, **when))
    is_idle = check.next_ns is None and len(queues) < len(carrying)
    next_ns = _next_ns(check, definition, True, now_ns) if is_idle else check.next_ns
    changed = replace(check, tasks=check.tasks + len(fresh), next_ns=next_ns)
    if changed != check:
        store.save_check(changed)
    return _counted(definition.kind, fresh), changed


def stand_again(
    store: Store,
    check: CheckRow,
    carriers: Collection[Carrier],
    now_ns: int,
    *,
    default_attempts: int,
) -> tuple[Made, ...]:
    """Let a standing check whose tasks were cancelled go on with its next tick, as others do."""
    if not check.is_enabled or not is_standing(understood(check.document)[0]):
        return ()
    return stand(store, check, carriers, now_ns, default_attempts=default_attempts, is_later=True)[
        0
    ]


def _tasks(
    check: CheckRow,
    pairs: Iterable[tuple[int, bytes]],
    now_ns: int,
    default_attempts: int,
    **when: Any,
) -> list[NewTask]:
    """Make a check's tasks of these queues and specs; when: what they differ by, tick or grid."""
    definition, _ = understood(check.document)
    return [
        NewTask(
            kind=definition.kind,
            spec=spec,
            run_ns=now_ns,
            max_attempts=definition.max_attempts or default_attempts,
            queue=queue,
            priority=definition.priority,
            check_id=check.check_id,
            **when,
        )
        for queue, spec in pairs
    ]


def _counted(kind: TaskKind, pairs: Collection[tuple[int, bytes]]) -> tuple[Made, ...]:
    counts = Counter(queue for queue, _ in pairs)
    return tuple((queue, kind, count) for queue, count in counts.items())


def _next_ns(
    check: CheckRow, definition: CheckDefinition, has_agents: bool, now_ns: int
) -> int | None:
    """Return the next instant of a check's own grid; what was missed is not made up."""
    if definition.every_ms is None:
        return None if has_agents else now_ns + NOBODY_YET_NS
    if is_standing(definition) and not has_agents:
        return None
    every_ns = definition.every_ms * NS_PER_MS
    ticked_ns = now_ns if check.next_ns is None else check.next_ns
    # Counted from the tick itself: with much jitter a little lateness is in the next place already.
    place = (ticked_ns - check.created_ns) // every_ns + 1
    next_ns = _instant_ns(check, definition, place)
    if next_ns > now_ns:
        return next_ns
    return _instant_ns(check, definition, (now_ns - check.created_ns) // every_ns + 1)


def _instant_ns(check: CheckRow, definition: CheckDefinition, place: int) -> int:
    spread = random.Random(check.check_id * 1_000_003 + place)  # noqa: S311 (spread, not secrecy)
    jitter_ns = spread.randrange(definition.jitter_ms * NS_PER_MS + 1)
    return check.created_ns + place * (definition.every_ms or 0) * NS_PER_MS + jitter_ns


def _stale_ns(definition: CheckDefinition, next_ns: int | None, now_ns: int) -> int | None:
    """Return when a tick's tasks are too old; unless told, when the next tick makes new ones."""
    if definition.stale_after_ms is not None:
        return now_ns + definition.stale_after_ms * NS_PER_MS
    if definition.every_ms is None:
        return None
    return now_ns + definition.every_ms * NS_PER_MS if next_ns is None else next_ns


def _check_numbers(definition: CheckDefinition) -> None:
    every_ms = definition.every_ms
    bounds: tuple[tuple[str, int | None, int, int], ...] = (
        ("every_ms", every_ms, EVERY_MIN_MS, EVERY_MAX_MS),
        ("jitter_ms", definition.jitter_ms, 0, (every_ms or 1) - 1),
        ("stale_after_ms", definition.stale_after_ms, 1, EVERY_MAX_MS),
        ("max_attempts", definition.max_attempts, 1, ATTEMPTS_MAX),
        ("priority", definition.priority, -PRIORITY_MAX, PRIORITY_MAX),
        ("select.count", definition.select.count, 1, AGENTS_MAX),
    )
    for field, value, low, high in bounds:
        if value is not None and not low <= value <= high:
            raise _refusal(field, f"{field} must be {low} to {high}, not {value}")
    if not 1 <= len(definition.targets) <= TARGETS_MAX:
        raise _refusal("targets", f"targets must have 1 to {TARGETS_MAX} entries")
    if definition.name is not None and not 0 < len(definition.name) <= NAME_MAX_CHARS:
        raise _refusal("name", f"name must have 1 to {NAME_MAX_CHARS} characters")


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field}", message),))
