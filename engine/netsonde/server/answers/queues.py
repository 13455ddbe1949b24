"""How much waits and runs."""

from msgspec import Struct

from netsonde.model import TaskKind
from netsonde.server.answers.values import Count


class Queue(Struct, frozen=True, kw_only=True):
    """How full a queue is: `any`, `agent:<id>` or `labels:{…}`."""

    queue: str
    kind: TaskKind
    ready: Count
    delayed: Count
    leased: Count
    oldest_ms: int | None


class QueueTotal(Struct, frozen=True, kw_only=True):
    """How much waits and runs of a kind, in all queues together."""

    kind: TaskKind
    queues: Count
    ready: Count
    delayed: Count
    leased: Count
    oldest_ms: int | None


class Queues(Struct, frozen=True, kw_only=True):
    """What waits and what runs."""

    queues: tuple[Queue, ...]
    totals: tuple[QueueTotal, ...]
    dead_letters: Count
    counters: dict[str, Count]
