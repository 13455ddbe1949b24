"""Lets go of what has not begun: before the agent ends, or until an operator wants it again.

An agent that stands by stays registered: what runs is finished and reported, nothing is claimed.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from netsonde.agent.dispatcher import Dispatcher
from netsonde.agent.standing import StandingLeases
from netsonde.agent.worker import Worker
from netsonde.control_plane import ControlPlaneClient, ControlPlaneError, TransportError
from netsonde.errors import log_fields
from netsonde.leases import LeaseTable

RELEASE_ATTEMPTS = 2

_log = logging.getLogger("netsonde.agent")


@dataclass(frozen=True, slots=True)
class Unstarted:
    """Leases to give back, claims whose other leases are, and leases of those that are kept."""

    lease_ids: Sequence[int]
    claim_ids: Sequence[str]
    keep: Sequence[int]


class Standby:
    """Stops an agent's work and lets it go on. `may_work` is set while it may claim."""

    def __init__(
        self,
        client: ControlPlaneClient,
        leases: LeaseTable,
        worker: Worker,
        standing: StandingLeases,
        dispatcher: Dispatcher,
    ) -> None:
        self.may_work = asyncio.Event()
        self.may_work.set()
        self._client = client
        self._leases = leases
        self._worker = worker
        self._standing = standing
        self._dispatcher = dispatcher
        self._is_closed = False

    @property
    def is_on(self) -> bool:
        """Whether the agent stands by."""
        return not self.may_work.is_set()

    async def drain(self) -> None:
        """Claim no more and give back what has not begun; the rest goes on to its end."""
        if self.is_on:
            return
        _log.info(
            "an operator drained this agent: it finishes what runs and claims nothing until it is"
            " resumed",
            extra={"action": "standing_by"},
        )
        await self.give_back(self._let_go())

    async def resume(self) -> None:
        """Claim again, unless the agent is about to end."""
        if not self.is_on or self._is_closed:
            return
        _log.info("an operator resumed this agent: it claims work", extra={"action": "resumed"})
        self._dispatcher.resume()
        self.may_work.set()

    def close(self) -> Unstarted:
        """Claim never again; return what is to be given back."""
        self._is_closed = True
        return self._let_go()

    def _let_go(self) -> Unstarted:
        self.may_work.clear()
        claim_ids, known = self._dispatcher.stop()
        standing = self._standing.stop()
        unstarted = self._worker.drop_unstarted()
        self._standing.dropped(unstarted)
        lease_ids = list(dict.fromkeys([*unstarted, *standing]))
        self._leases.release_many(lease_ids)
        keep = [lease_id for lease_id in known if lease_id in self._leases]
        return Unstarted(lease_ids, claim_ids, keep)

    async def give_back(self, unstarted: Unstarted) -> None:
        """Release leases; those that cannot be end by themselves."""
        try:
            await self._client.release(
                unstarted.lease_ids,
                unstarted.claim_ids,
                keep=unstarted.keep,
                attempts=RELEASE_ATTEMPTS,
            )
        except (ControlPlaneError, TransportError) as error:
            if unstarted.lease_ids:
                _log.warning(
                    "%d unstarted leases were not given back (%s): they end by themselves",
                    len(unstarted.lease_ids),
                    error,
                    extra={
                        "action": "release_failed",
                        "leases": len(unstarted.lease_ids),
                        "lease_id": unstarted.lease_ids[0],
                        **log_fields(error),
                    },
                )
