"""Uploads as a store keeps them: which lines of which stream have become tasks."""

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct


class UploadedLine(Struct, frozen=True, gc=False):
    """What a line became. `digest` is that of its text."""

    digest: bytes
    task_id: int


class UploadStore(Protocol):
    """Verbs over the lines that were uploaded under an Idempotency-Key."""

    def uploaded(self, key: str, lines: range) -> dict[int, UploadedLine]:
        """Return those of these lines, by number, that have become tasks under this key."""
        ...

    def keep_uploaded(self, key: str, lines: Mapping[int, UploadedLine], now_ns: int) -> None:
        """Keep what lines have become; they are new."""
        ...

    def forget_uploads(self, before_ns: int, limit: int) -> int:
        """Drop at most limit lines under keys not used since an instant; return how many."""
        ...
