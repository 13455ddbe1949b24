"""What a store is: the verbs of the domain, inside transactions.

A store is synchronous and belongs to one writer at a time. Its verbs run inside a transaction that
the writer opens (`begin`, `savepoint`, `commit`); many operations share one commit. Verbs that
take many rows take them at once. Instants are ns of the server's clock. Rows that come by the
thousand are msgspec Structs, which cost a tenth of a dataclass to make.

No instant is stored that the clock could fall behind of: whoever has the clock lets the store
follow it, and each commit keeps it. A verb that writes instants need not think of that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from netsonde.server.store.access import AccessStore
from netsonde.server.store.agents import AgentStore
from netsonde.server.store.checks import CheckStore
from netsonde.server.store.configs import ConfigStore
from netsonde.server.store.dead_letters import DeadLetterStore
from netsonde.server.store.fleet import FleetStore
from netsonde.server.store.metrics import MetricStore
from netsonde.server.store.results import ResultStore
from netsonde.server.store.retention import RetentionStore
from netsonde.server.store.tasks import TaskStore
from netsonde.server.store.uploads import UploadStore

Reached = Callable[[], tuple[int, int]]  # how far the clock and the lease ids are


@dataclass(frozen=True, slots=True)
class RememberedAnswer:
    """What an Idempotency-Key was answered with."""

    body_digest: bytes
    status: int
    body: bytes


class Store(
    TaskStore,
    ResultStore,
    AgentStore,
    CheckStore,
    FleetStore,
    DeadLetterStore,
    ConfigStore,
    AccessStore,
    MetricStore,
    UploadStore,
    RetentionStore,
    Protocol,
):
    """The control plane's state. Every verb may raise what `fault` explains."""

    # transactions
    def begin(self) -> None:
        """Open a transaction that may write."""
        ...

    def savepoint(self) -> None:
        """Mark the point that `undo` returns to."""
        ...

    def undo(self) -> None:
        """Take back what was done since the savepoint."""
        ...

    def commit(self) -> None:
        """Make everything durable; returns when it is."""
        ...

    def rollback(self) -> None:
        """Give up the open transaction; harmless without one."""
        ...

    def fault(self, error: BaseException) -> Exception | None:
        """Translate a failure of the storage itself; None when error is none of that."""
        ...

    def close(self) -> None:
        """Let go of files. Idempotent."""
        ...

    # the clock and the fence
    def clock_ns(self) -> int:
        """Return the latest instant this store was told."""
        ...

    def keep_clock(self, now_ns: int, last_lease_id: int) -> None:
        """Remember how far the clock and the lease ids are."""
        ...

    def follow(self, reached: Reached) -> None:
        """Remember them with every transaction from now on that changes anything."""
        ...

    def last_lease_id(self) -> int:
        """Return the greatest lease id ever granted from here."""
        ...

    # counters and remembered answers
    def count(self, counter: str, by: int) -> None:
        """Add to a counter that survives restarts."""
        ...

    def counters(self) -> dict[str, int]:
        """Return the counters."""
        ...

    def recall(self, key: str) -> RememberedAnswer | None:
        """Return what a key was answered with."""
        ...

    def remember(self, key: str, answer: RememberedAnswer, now_ns: int) -> None:
        """Keep a key's answer."""
        ...

    def forget_before(self, instant_ns: int, limit: int) -> None:
        """Drop answers that are older, the oldest first, so many at most."""
        ...
