"""Report items from columns (ext/reports.pyx)."""

from typing import TypeVar

_Word = TypeVar("_Word", bound=str)

# Lists of one length; texts are JSON as our encoder makes it.
def write_items(
    lease_ids: list[int],
    started_at_ns: list[int],
    durations_ns: list[int],
    outcomes: list[_Word],
    observations: list[bytes],
    envs: list[bytes],
    *,
    before: list[bytes] | None = None,
    after: list[bytes] | None = None,
) -> list[bytes]: ...
def leading_ids(items: list[bytes]) -> list[int]: ...  # 0 for an item that does not begin with one
