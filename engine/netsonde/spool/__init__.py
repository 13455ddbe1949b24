"""The durable queue of results: `queue` decides what is written and read, `file` does it.

`groups` is what is known of the file without reading it, `at_hand` what need not be read.
"""

from netsonde.spool.queue import GROUP_BYTES_MAX, GROUP_ROWS_MAX, Spool, SpoolLimits
from netsonde.spool.records import SpoolRecord, SpoolRecords

__all__ = [
    "GROUP_BYTES_MAX",
    "GROUP_ROWS_MAX",
    "Spool",
    "SpoolLimits",
    "SpoolRecord",
    "SpoolRecords",
]
