"""What became of tasks that were handed in, in one body or as lines."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from netsonde.errors import ErrorCode
from netsonde.model import ErrorEnvelope
from netsonde.server.answers.values import Count, Id


class Violation(Struct, frozen=True, kw_only=True):
    """A field that is wrong, and what is allowed."""

    path: str
    message: str


class TaskAnswer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one item: a task, or why there is none."""

    task_id: Id | None = None
    error: ErrorCode | None = None
    message: str | None = None
    violations: tuple[Violation, ...] = ()


class TaskAnswers(Struct, frozen=True, kw_only=True):
    """What became of the items, in their order."""

    tasks: tuple[TaskAnswer, ...]


class TaskLine(TaskAnswer, frozen=True, kw_only=True, omit_defaults=True, tag="a", tag_field="t"):
    """What became of one line, counted from 1, of all streams under the same Idempotency-Key."""

    line: Annotated[int, Meta(ge=1)]


class UploadEndLine(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag="end", tag_field="t"
):
    """The answer's last line: all lines up to `through` are answered."""

    reason: Literal["done", "lines", "time", "error"]
    through: Count | None = None
    error: ErrorEnvelope | None = None
