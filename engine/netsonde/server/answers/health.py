"""How the process is, and how full its store."""

from typing import Literal

from msgspec import Struct

from netsonde.server.answers.values import Count, Instant


class Health(Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["ok"]


class StorageFigures(Struct, frozen=True, kw_only=True):
    """How large the store is, in bytes; `refused` is how often new work was, for want of room."""

    database_bytes: Count
    used_bytes: Count
    free_bytes: Count | None
    max_database_bytes: Count | None
    reserve_bytes: Count
    refused: Count


class StorageShortage(StorageFigures, frozen=True, kw_only=True):
    """The figures, and what there is too little of."""

    shortage: str


class Readiness(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The process works; `degraded`: it takes results, and no new work for want of room."""

    status: Literal["ok", "degraded"]
    storage: StorageShortage | None = None


class Storage(StorageFigures, frozen=True, kw_only=True):
    """How full the store is, and what of it is kept; null is no bound."""

    status: Literal["ok", "degraded"]
    storage: StorageShortage | None = None
    retain_results_ms: Count | None
    retain_dead_letters_ms: Count | None
    first_result_id: Count
    oldest_result_at: Instant | None
    counters: dict[str, Count]
