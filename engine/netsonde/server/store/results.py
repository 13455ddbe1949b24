"""Results as a store keeps them."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from netsonde.model import TaskKind


class NewResult(Struct, frozen=True, kw_only=True, gc=False):
    """One result as it was reported. `body` is the validated item; `is_final` ends its task."""

    lease_id: int
    task_id: int
    agent_id: int
    kind: TaskKind
    outcome: str
    attempt: int
    received_ns: int
    is_final: bool
    spec_id: int
    body: bytes
    check_id: int | None = None
    scheduled_ns: int | None = None
    tick: int | None = None


class StoredResult(Struct, frozen=True, kw_only=True, gc=False):
    """One result with its place in the order of commits and its task's spec."""

    result_id: int
    lease_id: int
    task_id: int
    agent_id: int
    kind: TaskKind
    outcome: str
    attempt: int
    is_final: bool
    spec: bytes
    body: bytes
    check_id: int | None
    scheduled_ns: int | None
    tick: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultQuery:
    """Which results to read, at most `limit`, after (or, descending, before) `position`.

    `through` is the last id to look at, in either direction; with `bytes_max` a page ends with the
    row that reaches it.
    """

    limit: int
    position: int | None = None
    descending: bool = False
    check_id: int | None = None
    agent_id: int | None = None
    task_id: int | None = None
    kind: TaskKind | None = None
    outcome: str | None = None
    from_ns: int | None = None
    to_ns: int | None = None
    final_only: bool = True
    through: int | None = None
    bytes_max: int | None = None


def page_of(query: ResultQuery, rows: Iterable[StoredResult]) -> list[StoredResult]:
    """Take rows until the page is full; the rest is never read."""
    page: list[StoredResult] = []
    left_bytes = query.bytes_max
    for row in rows:
        page.append(row)
        if left_bytes is not None:
            left_bytes -= _size(row)
        if is_full(query, page, left_bytes):
            break
    return page


def is_full(
    query: ResultQuery, page: Sequence[StoredResult], left_bytes: int | None = None
) -> bool:
    """Whether a page ended because it was full: there may be more before `through`."""
    if left_bytes is None and query.bytes_max is not None:
        left_bytes = query.bytes_max - sum(map(_size, page))
    return len(page) >= query.limit or (left_bytes is not None and left_bytes <= 0)


def _size(row: StoredResult) -> int:
    return len(row.body) + len(row.spec)


@dataclass(frozen=True, slots=True)
class ResultBounds:
    """The id of the oldest result that is kept, and of the newest that ever was.

    Without any the oldest is the one after the newest.
    """

    oldest: int
    newest: int


class ResultStore(Protocol):
    """Verbs over results."""

    def add_results(self, results: Sequence[NewResult]) -> None:
        """Append results; their lease ids are new, or with ticks their `(task, scheduled)`."""
        ...

    def result_owners(self, lease_ids: Collection[int]) -> dict[int, int]:
        """Return the agent of each of these lease ids that has a result; ticks have none."""
        ...

    def results(self, query: ResultQuery) -> list[StoredResult]:
        """Return results in the order of commits."""
        ...

    def look_end(self, query: ResultQuery, rows_max: int) -> int | None:
        """Return the id that a look over so many rows ends with; None: there are no more.

        It is what `through` wants: reading a page up to it passes no more rows than about those.
        """
        ...

    def result_bounds(self) -> ResultBounds:
        """Return from which id to which there are results; ids grow with the commits."""
        ...

    def next_result(self, position: int) -> int | None:
        """Return the id of the first result after a position; None when there is none yet."""
        ...
