"""Tasks that used up their attempts, and what became of them."""

from typing import Literal

from msgspec import Struct

from netsonde.model import TaskKind, TaskSpec
from netsonde.server.answers.values import Count, Cursor, Id, Instant


class DeadLetter(Struct, frozen=True, kw_only=True):
    """A task that used up its attempts."""

    task_id: Id
    check_id: Id | None
    kind: TaskKind
    spec: TaskSpec
    reason: str
    attempt: Count
    max_attempts: Count
    agent_id: Id | None
    died_at: Instant


class DeadLetterPage(Struct, frozen=True, kw_only=True):
    """Some dead letters, the youngest task first."""

    dead_letters: tuple[DeadLetter, ...]
    cursor: Cursor


class OneRequeued(Struct, frozen=True, kw_only=True):
    """A dead letter that is a task again."""

    task_id: Id
    requeued: Literal[1]


class OneDeleted(Struct, frozen=True, kw_only=True):
    """A dead letter that was given up for good."""

    task_id: Id
    deleted: Literal[1]


class ManyRequeued(Struct, frozen=True, kw_only=True):
    """How many dead letters are tasks again; `more`: others are left."""

    requeued: Count
    more: bool


class ManyDeleted(Struct, frozen=True, kw_only=True):
    """How many dead letters were given up for good; `more`: others are left."""

    deleted: Count
    more: bool
