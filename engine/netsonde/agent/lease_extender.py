"""Keeps leases alive while they are worked on, and ends what expired or was taken back.

Sleeps until the next instant that matters. Asking for more time happens in tasks of its own, so
that a control plane that is slow, refuses or is gone delays no deadline and no other lease.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from netsonde import wire
from netsonde.clock import NS_PER_S, Clock
from netsonde.control_plane import Extension, LeaseExtendClient
from netsonde.errors import ControlPlaneError, ErrorCode, TransportError, log_fields
from netsonde.leases import BATCH_MAX, Ended, LeaseTable
from netsonde.model import Reason

# The loop's timers stand still while the host sleeps, deadlines do not: they are looked at this
# soon after it woke.
LOOK_NS = NS_PER_S
CALLS_MAX = 4  # extensions in flight: beyond, the control plane is not answering anyway

_log = logging.getLogger("netsonde.agent")


class LeaseExtender:
    """Watches the deadlines of a lease table.

    `on_ended` is told of every lease the table let go and why. `gap_ns` says how far apart calls
    must be, `term_ms` the longest term the control plane named. Call `wake` when leases were
    granted.
    """

    def __init__(
        self,
        clock: Clock,
        leases: LeaseTable,
        client: LeaseExtendClient,
        on_ended: Callable[[Ended, Reason], None],
        gap_ns: Callable[[], int] = lambda: 0,
        term_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._leases = leases
        self._client = client
        self._on_ended = on_ended
        self._gap_ns = gap_ns
        self._term_ms = term_ms
        self._changed = asyncio.Event()
        self._waiting: dict[int, None] = {}
        self._asked: set[int] = set()
        self._calls = 0
        self._next_call_ns = 0

    def wake(self) -> None:
        """Look at the table again: its next deadline may have come closer."""
        self._changed.set()

    def revoke(self, lease_ids: Iterable[int]) -> None:
        """End leases the control plane does not want worked on any more."""
        for ended in self._leases.revoke(lease_ids):
            self._on_ended(ended, Reason.CANCELLED)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                now_ns = self._clock.boottime_ns()
                self._expire(now_ns)
                self._gather(now_ns)
                if lease_ids := self._take(now_ns):
                    group.create_task(self._extend(lease_ids))
                await self._clock.wait(self._changed, self._sleep_ns())

    def _expire(self, now_ns: int) -> None:
        while ended := self._leases.pop_expired(now_ns, BATCH_MAX):
            for one in ended:
                self._on_ended(one, Reason.EXPIRED)

    def _gather(self, now_ns: int) -> None:
        """Collect the leases to extend; each is due again later, asked for or not."""
        while due := self._leases.due(now_ns, BATCH_MAX):
            self._waiting |= {lease_id: None for lease_id in due if lease_id not in self._asked}

    def _take(self, now_ns: int) -> list[int]:
        """Choose the leases of a call that may be made now."""
        if self._calls >= CALLS_MAX or now_ns < self._next_call_ns:
            return []
        held = [lease_id for lease_id in self._waiting if lease_id in self._leases]
        lease_ids = held[: wire.LEASE_IDS_PER_EXTEND_MAX]
        self._waiting = dict.fromkeys(held[len(lease_ids) :])
        if lease_ids:
            self._calls += 1
            self._asked.update(lease_ids)
            self._next_call_ns = now_ns + self._gap_ns()
        return lease_ids

    def _sleep_ns(self) -> int | None:
        """Return how long nothing will have to be done, None for as long as nothing changes."""
        instants = [] if self._leases.next_wake_ns is None else [self._leases.next_wake_ns]
        if self._waiting and self._calls < CALLS_MAX:
            instants.append(self._next_call_ns)
        return min(min(instants) - self._clock.boottime_ns(), LOOK_NS) if instants else None

    async def _extend(self, lease_ids: Sequence[int]) -> None:
        """Ask for the longest term; the control plane cuts it for the others.

        A lease of a repeated claim came with the rest of its term, which is no term to ask for.
        """
        terms_ms = [lease.lease_until_ms for key in lease_ids if (lease := self._leases.lease(key))]
        try:
            if terms_ms:
                wanted_ms = max(*terms_ms, self._term_ms())
                self._apply(await self._client.extend(lease_ids, wanted_ms))
        except (ControlPlaneError, TransportError) as error:
            # They are due again while there is time left; at their deadlines they end.
            self.counters["failed"] += 1
            if _turns_away(error):
                self.revoke([one for one in lease_ids if self._leases.stands(one)])
            _log.info(
                "%d leases were not extended: %s",
                len(lease_ids),
                error,
                extra={
                    "action": "extend_failed",
                    "leases": len(lease_ids),
                    "lease_id": lease_ids[0],
                    **log_fields(error),
                },
            )
        finally:
            self._calls -= 1
            self._asked.difference_update(lease_ids)
            self._changed.set()

    def _apply(self, extension: Extension) -> None:
        now_ns = self._clock.boottime_ns()
        self.counters["extended"] += self._leases.extend(extension.deadlines_ns, now_ns)
        self.revoke(extension.revoked)


def _turns_away(error: ControlPlaneError | TransportError) -> bool:
    """Whether the control plane itself, no proxy, wants nothing from this agent any more.

    That is no outage, through which standing leases would be worked on for hours.
    """
    if not isinstance(error, ControlPlaneError):
        return False
    return error.is_verdict and error.code == ErrorCode.FORBIDDEN
