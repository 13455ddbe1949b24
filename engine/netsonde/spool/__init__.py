"""The durable queue of results: `queue` decides what is written and read, `file` does it."""

from netsonde.spool.file import SpoolRecord, SpoolRecords
from netsonde.spool.queue import GROUP_BYTES_MAX, GROUP_ROWS_MAX, Spool, SpoolLimits

__all__ = [
    "GROUP_BYTES_MAX",
    "GROUP_ROWS_MAX",
    "Spool",
    "SpoolLimits",
    "SpoolRecord",
    "SpoolRecords",
]
