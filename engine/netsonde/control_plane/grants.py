"""What claims and extensions bring: leases with instants of this host's clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Protocol

import msgspec

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.control_plane.exchange import Answer
from netsonde.model import Lease
from netsonde.wire import Claimed, RejectedLease

NOT_HELD_STATUSES = frozenset({"fenced", "unknown", "cancelled"})


@dataclass(frozen=True, slots=True)
class ClaimGrant:
    """What a claim brought: leases and the instants, on CLOCK_BOOTTIME, at which they end here.

    `rejected` are granted leases nobody can work on; give them to `hand_back`.
    """

    leases: Sequence[Lease] = ()
    deadlines_ns: Sequence[int] = ()
    rejected: tuple[RejectedLease, ...] = ()
    response: Claimed = field(default_factory=Claimed)

    def part(self, begin: int, end: int) -> "ClaimGrant":
        """Return the leases from begin up to end."""
        return ClaimGrant(self.leases[begin:end], self.deadlines_ns[begin:end])

    def where(self, chosen: Sequence[bool]) -> "ClaimGrant":
        """Return the leases that were chosen."""
        if all(chosen):
            return self
        return ClaimGrant([*compress(self.leases, chosen)], [*compress(self.deadlines_ns, chosen)])


@dataclass(frozen=True, slots=True)
class Extension:
    """What an extension brought: new deadlines by lease id, and leases to stop working on.

    `capped` are leases whose deadline is their last one.
    """

    deadlines_ns: Mapping[int, int]
    revoked: tuple[int, ...] = ()
    capped: tuple[int, ...] = ()

    def __or__(self, other: "Extension") -> "Extension":
        return Extension(
            {**self.deadlines_ns, **other.deadlines_ns},
            self.revoked + other.revoked,
            self.capped + other.capped,
        )


class LeaseExtendClient(Protocol):
    """What extends leases; all that a lease extender needs of a control plane."""

    async def extend(self, lease_ids: Sequence[int], extend_by_ms: int) -> Extension:
        """Ask for extend_by_ms more, from now, on every lease.

        Raises:
            ControlPlaneError: the control plane refused.
            TransportError: there was no usable answer.
        """
        ...


def read_claim(answer: Answer, term_ms: int) -> ClaimGrant:
    """Read a claim's answer; term_ms bounds the deadlines of servers that send instants.

    Raises:
        DecodeError: the answer is not a claim's.
    """
    return granted(wire.decode_claim(answer.response.body), answer, term_ms)


def granted(claimed: Claimed, answer: Answer, term_ms: int) -> ClaimGrant:
    """Find the instants at which claimed leases end here."""
    leases: Sequence[Lease] = claimed.leases
    untils_ms = [lease.lease_until_ms for lease in leases]
    afters_ms = [lease.granted_after_ms for lease in leases]
    terms = {  # most are alike
        told: _term(*told, answer, term_ms) for told in {*zip(untils_ms, afters_ms, strict=True)}
    }
    if len(terms) == 1:
        (ends_ns,) = (ends_ns for _, ends_ns in terms.values())
        deadlines_ns = [ends_ns] * len(leases)
    else:
        deadlines_ns = [terms[told][1] for told in zip(untils_ms, afters_ms, strict=True)]
    if any(until_ms != told[0] for told, (until_ms, _) in terms.items()):
        leases = [
            msgspec.structs.replace(lease, lease_until_ms=terms[told][0])
            for lease, told in zip(leases, zip(untils_ms, afters_ms, strict=True), strict=True)
        ]
    return ClaimGrant(leases, deadlines_ns, claimed.rejected, claimed)


def read_extend(answer: Answer, ids: Sequence[int], term_ms: int) -> Extension:
    """Read an extension's answer; leases that were not asked for are ignored.

    Raises:
        DecodeError: the answer is not an extension's.
    """
    response = wire.decode_extend(answer.response.body)
    asked = set(ids)
    deadlines_ns = {
        outcome.lease_id: wire.lease_deadline_ns(
            answer.sent_ns, _relative_ms(outcome.new_deadline_ms, answer, term_ms), None
        )
        for outcome in response.outcomes
        if outcome.lease_id in asked
    }
    revoked = set(response.revoked)
    revoked |= {item.lease_id for item in response.results if item.status in NOT_HELD_STATUSES}
    capped = {item.lease_id for item in response.results if item.status == "capped"}
    return Extension(
        deadlines_ns,
        tuple(sorted((revoked & asked) - deadlines_ns.keys())),
        tuple(sorted(capped & asked)),
    )


def _term(
    lease_until_ms: int, granted_after_ms: int | None, answer: Answer, term_ms: int
) -> tuple[int, int]:
    """Return a lease's term in ms and when it ends here."""
    until_ms = _relative_ms(lease_until_ms, answer, term_ms)
    # A grant cannot have happened after its answer came, whatever the server measured.
    held_ms = (answer.received_ns - answer.sent_ns) // NS_PER_MS
    granted_ms = min(max(granted_after_ms or 0, 0), held_ms)
    return until_ms, wire.lease_deadline_ns(answer.sent_ns, until_ms, granted_ms)


def _relative_ms(value_ms: int, answer: Answer, term_ms: int) -> int:
    return wire.relative_ms(value_ms, date_epoch_ms=answer.date_epoch_ms, term_ms=term_ms)
