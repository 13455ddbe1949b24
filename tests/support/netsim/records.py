"""The simulator's records (truth.h, counts.h, topology.h), and what they are in Python."""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from support.netsim.fates import End, Fate, Kind, Reply

TARGET = struct.Struct("=16s25I4x3Q")  # truth.h: struct target_record
REQUEST = struct.Struct("=q16s16s8s16s3IH10B")  # struct request_record
ANSWER = struct.Struct("=2qI2BH")  # struct answer_record
ROUTER = struct.Struct("=4Q")  # topology.h: struct router_counts
LINK = struct.Struct("=5Q")  # struct edge_counts

ICMP = {4: 1, 6: 58}


class RouterCounts(NamedTuple):
    """Counts of one router.

    probes: that arrived, also those it forwarded. answers: errors decided upon, also those lost on
    their way back. withheld: errors not sent because it is silent. limited: because of its limit.
    """

    probes: int
    answers: int
    withheld: int
    limited: int


class LinkCounts(NamedTuple):
    """Counts of one link: packets that came through and that did not, each way."""

    forward: int
    lost: int
    returned: int
    lost_on_return: int
    too_big: int


class Target(NamedTuple):
    """Counts of one target; counts.h says what each is. Turn-around: handed to the kernel less
    arrived, over `replied` (min is 2**64 - 1 when nothing was)."""

    requests: int
    dropped: int
    limited: int
    errors: int
    replied: int
    duplicates: int
    reordered: int
    elsewhere: int
    truncated: int
    forged: int
    corrupted: int
    foreign_errors: int
    noise: int
    lost: int
    lost_on_return: int
    withheld: int
    expired: int
    too_big: int
    refused: int
    port_unreachable: int
    syn_acks: int
    resets: int
    unsent: int
    pending: int
    turnaround_sum_ns: int
    turnaround_min_ns: int
    turnaround_max_ns: int


@dataclass(frozen=True)
class Totals:
    """Sums over all targets, and what belongs to no target (network.h)."""

    requests: int
    dropped: int
    limited: int
    errors: int
    replied: int
    duplicates: int
    reordered: int
    elsewhere: int
    truncated: int
    forged: int
    corrupted: int
    foreign_errors: int
    noise: int
    lost: int
    lost_on_return: int
    withheld: int
    expired: int
    too_big: int
    refused: int
    port_unreachable: int
    syn_acks: int
    resets: int
    unsent: int
    pending: int
    frames: int
    neighbours: int
    malformed: int
    unrouted: int
    other: int
    overflow: int
    ring_drops: int
    clock_step_ns: int
    late_sum_ns: int
    late_max_ns: int
    late_100us: int


class Answer(NamedTuple):
    """One packet the simulator sent, or tried to: sent_ns is 0 when the kernel refused it.

    Instants are CLOCK_REALTIME; sent_ns is when it was handed to the kernel, at most within_us
    early or late: the system call that sent it took as long.
    """

    due_ns: int
    sent_ns: int
    kind: Kind
    variant: str
    within_us: int


class Flow(NamedTuple):
    """What load balancers look at; a traceroute keeps it the same for a destination."""

    source: str
    destination: str
    protocol: int
    first: bytes  # 4 bytes: ports, or type, code and checksum
    ident: bytes  # of an ICMP message
    label: int  # of IPv6


class Probe(NamedTuple):
    """One probe as it arrived, and what was sent on account of it, in order of sending.

    head: the first 8 bytes of what follows the IP header; ident and sequence are its last 4.
    payload: the first 16 bytes of it. genuine: replies and duplicates that were planned; planned:
    packets of every kind. n: its number among the target's requests, from 0. ip_word: IPv4
    identification and fragment field, or IPv6 flow label. On a route: how its journey ended, after
    how many links, at which router (None: at none, or at the destination), and what became of the
    answer.
    """

    arrival_ns: int
    source: str
    destination: str
    head: bytes
    payload: bytes
    n: int
    ip_word: int
    router: str | None
    payload_bytes: int
    family: int
    fate: Fate
    genuine: int
    planned: int
    ttl: int
    tos: int
    protocol: int
    end: End
    reply: Reply
    hops: int
    answers: list[Answer]

    @property
    def ident(self) -> int:
        return int.from_bytes(self.head[4:6])

    @property
    def sequence(self) -> int:
        return int.from_bytes(self.head[6:8])

    @property
    def flow(self) -> Flow:
        """What its way depends on."""
        return Flow(
            self.source, self.destination, self.protocol, self.head[:4],
            self.head[4:6] if self.protocol == ICMP[self.family] else b"",
            self.ip_word if self.family == 6 else 0,
        )  # fmt: skip

    def sent(self, *kinds: Kind) -> list[Answer]:
        """Return the answers of these kinds that the kernel took."""
        return [each for each in self.answers if each.kind in kinds and each.sent_ns]
