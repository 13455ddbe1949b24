"""What becomes of probes, in names: the enumerations of kinds.h, journey.h and truth.h."""

from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import get_args

from support.netsim.behaviours import Checksum, Difference, ForgedPayload, NoiseKind


class Fate(IntFlag):
    """What was decided about a request."""

    DROPPED = 1
    LIMITED = 2
    REORDERED = 4
    ELSEWHERE = 8


class Kind(IntEnum):
    """What a packet of the simulator is."""

    REPLY = 1
    DUPLICATE = 2
    TRUNCATED = 3
    ERROR = 4
    FORGED = 5
    CORRUPTED = 6
    FOREIGN_ERROR = 7
    NOISE = 8
    EXPIRED = 9
    TOO_BIG = 10
    REFUSED = 11
    PORT_UNREACHABLE = 12
    SYN_ACK = 13
    RESET = 14


class End(IntEnum):
    """How a probe's journey ended; NONE: there is no route to its destination."""

    NONE = 0
    ARRIVED = 1
    EXPIRED = 2
    REFUSED = 3
    TOO_BIG = 4
    LOST = 5
    NOWHERE = 6


class Reply(IntEnum):
    """What became of the answer. WITHHELD: whoever should answer says nothing."""

    COMES = 0
    WITHHELD = 1
    LIMITED = 2
    LOST = 3


GENUINE = (Kind.REPLY, Kind.DUPLICATE)
VARIANTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.REPLY: ("destination", "elsewhere"),
    Kind.DUPLICATE: ("destination", "elsewhere"),
    Kind.TRUNCATED: ("destination", "elsewhere"),
    Kind.ERROR: ("error", "rate_limit"),
    Kind.FORGED: get_args(ForgedPayload),
    Kind.CORRUPTED: get_args(Checksum),
    Kind.FOREIGN_ERROR: get_args(Difference),
    Kind.NOISE: get_args(NoiseKind),
    **{Kind(kind): ("",) for kind in range(Kind.EXPIRED, Kind.RESET + 1)},
}
