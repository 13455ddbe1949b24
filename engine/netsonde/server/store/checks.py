"""Checks as a store keeps them."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRow:
    """One check. `document` is its definition; `next_ns` None when no tick is ahead."""

    check_id: int
    document: bytes
    is_enabled: bool
    next_ns: int | None
    created_ns: int
    tick: int = 0
    tasks: int = 0
    skipped: int = 0
    missed: int = 0


class CheckStore(Protocol):
    """Verbs over checks."""

    def new_check_id(self) -> int:
        """Return an id no check has had."""
        ...

    def save_check(self, check: CheckRow) -> None:
        """Insert or replace a check."""
        ...

    def check(self, check_id: int) -> CheckRow | None:
        """Return one check."""
        ...

    def checks(self, after: int, limit: int) -> list[CheckRow]:
        """Return checks by id, those above `after`."""
        ...

    def check_count(self) -> int:
        """Return how many checks there are."""
        ...

    def add_missed(self, check_id: int, by: int) -> None:
        """Add to what a check counts as missed."""
        ...

    def delete_check(self, check_id: int) -> None:
        """Remove a check's definition."""
        ...

    def checks_due(self, now_ns: int, limit: int) -> list[CheckRow]:
        """Return enabled checks whose tick has come."""
        ...

    def next_tick_ns(self) -> int | None:
        """Return when the next check is due."""
        ...
