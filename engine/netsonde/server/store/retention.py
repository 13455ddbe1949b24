"""What a store lets go, a few rows at a time, and how large it is."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

STEP_MAX_BYTES = 4 << 20  # of bodies in one step: their pages are walked when they are freed


@dataclass(frozen=True, slots=True)
class StoreSize:
    """How large a store is.

    `used_bytes` are those of `file_bytes` that hold something: the rest is used again. `free_bytes`
    are what the file system has left, None where there is none.
    """

    file_bytes: int
    used_bytes: int
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class KeyFloor:
    """Below it nobody remembers which results there were: the lease ids, the ticks' instants."""

    lease_id: int = 0
    scheduled_ns: int = 0


@dataclass(frozen=True, slots=True)
class SpecPage:
    """Specs that nothing refers to, and where to go on looking; None at the end."""

    unused: tuple[int, ...]
    after: int | None


class RetentionStore(Protocol):
    """Verbs over what has an age. Each drops at most `limit` rows and returns how many."""

    def drop_results(self, before_ns: int | None, floor: KeyFloor, limit: int) -> int:
        """Drop the oldest results, received before an instant or (None) whenever.

        Their keys are kept, so that one that is reported again is a duplicate; but for those below
        `floor`, to which `key_floor` then rises.
        """
        ...

    def drop_keys(self, floor: KeyFloor, limit: int) -> int:
        """Drop keys of results that have gone and are below `floor`; `key_floor` rises to it."""
        ...

    def key_floor(self) -> KeyFloor:
        """Return below what results cannot be recognised any more."""
        ...

    def drop_dead_letters(self, before_ns: int, limit: int) -> int:
        """Drop the oldest dead letters, of tasks given up before an instant."""
        ...

    def unused_specs(self, after: int, limit: int) -> SpecPage:
        """Look through as many specs, those with ids above `after`, for unused ones."""
        ...

    def drop_specs(self, spec_ids: Collection[int]) -> int:
        """Drop those of these specs that are still unused."""
        ...

    def oldest_result_ns(self) -> int | None:
        """Return when the oldest result was received."""
        ...

    def size(self) -> StoreSize:
        """Return how large this store is."""
        ...
