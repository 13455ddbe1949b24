"""Giving leases back unworked: by release, or to original control planes as cancelled."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from netsonde import wire
from netsonde.clock import Clock
from netsonde.control_plane.calls import ABSENT_STATUSES, lease_id_parts, release_call
from netsonde.control_plane.exchange import Exchange
from netsonde.errors import ControlPlaneError
from netsonde.model import Measurement, Observation, Outcome
from netsonde.wire import RejectedLease

ReportCancelled = Callable[[Sequence[bytes], int], Awaitable[object]]


class Returns:
    """Gives leases back. `report` hands in encoded items of cancelled leases, in so many attempts.

    An original control plane has no call for it: it is told that they were cancelled.
    """

    def __init__(self, exchange: Exchange, clock: Clock, report: ReportCancelled) -> None:
        self._exchange = exchange
        self._clock = clock
        self._report = report

    async def release(
        self,
        lease_ids: Sequence[int],
        claim_ids: Sequence[str],
        keep: Sequence[int],
        attempts: int,
    ) -> int:
        """Give leases back, and what is held of claims but for those to keep; return how many."""
        if not lease_ids and not claim_ids:
            return 0
        if self._exchange.is_legacy:
            return await self._cancel(dict.fromkeys(lease_ids, "released"), attempts)
        released = 0
        for number, ids in enumerate(lease_id_parts(lease_ids) or [()]):
            # What cannot all be named ends by itself: what runs must not be given back.
            claims = tuple(claim_ids) if number == 0 and len(keep) <= wire.LINES_MAX else ()
            kept = tuple(keep) if claims else ()
            try:
                released += await self._exchange.call(release_call(ids, claims, kept), attempts)
            except ControlPlaneError as error:
                if error.status not in ABSENT_STATUSES:
                    raise
                released += await self._cancel(dict.fromkeys(ids, "released"), attempts)
        return released

    async def hand_back(self, rejected: Sequence[RejectedLease], attempts: int) -> int:
        """Give back leases this agent cannot work on; return how many went back."""
        reasons = {item.lease_id: item.message for item in rejected if item.lease_id}
        if self._exchange.is_legacy:
            return await self._cancel(reasons, attempts)
        return await self.release(tuple(reasons), (), (), attempts)

    async def _cancel(self, reasons: Mapping[int, str], attempts: int) -> int:
        """Report leases as cancelled without having been started."""
        items = [
            wire.encode_report_item(
                lease_id,
                Measurement(
                    outcome=Outcome.REJECTED,
                    started_at_ns=self._clock.realtime_ns(),
                    duration_ns=0,
                    observations=(Observation("agent_rejected", {"message": reason}),),
                ),
            )
            for lease_id, reason in reasons.items()
        ]
        if not items:
            return 0
        await self._report(items, attempts)
        return len(items)
