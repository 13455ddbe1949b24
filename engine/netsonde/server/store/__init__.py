"""Where the control plane keeps its state: one protocol, a store in memory, a store in SQLite."""

from netsonde.server.store.base import Store
from netsonde.server.store.memory import MemoryStore
from netsonde.server.store.sqlite import SqliteStore
from netsonde.server.store.writer import InlineWriter, StoreWriter, ThreadWriter

__all__ = [
    "InlineWriter",
    "MemoryStore",
    "SqliteStore",
    "Store",
    "StoreWriter",
    "ThreadWriter",
]
