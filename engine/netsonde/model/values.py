"""The bounds of ids, and what values are made of that come by the thousand."""

from msgspec import Struct

ID_MAX = 2**64 - 1  # foreign ids are carried untouched; the ones we mint stay below 2^53
MINTED_ID_MAX = 2**53 - 1  # exact in every JSON reader


class Leaf(Struct, frozen=True, omit_defaults=True, gc=False):
    """A value that comes by the thousand and refers to none that could refer back to it.

    So the collector need not know of it: half a million live leases cost its passes nothing.
    """
