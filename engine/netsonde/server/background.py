"""What the control plane does by itself: takes leases back, makes tasks, sums metrics up."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.errors import RequestError, StorageError
from netsonde.server.checks import (
    DUE_MAX,
    Made,
    Tick,
    is_standing,
    run_tick,
    stand,
    understood,
)
from netsonde.server.core import SWEEP_MAX, Announcement, ControlPlane
from netsonde.server.leasing import SweepGate
from netsonde.server.selection import carriers_of
from netsonde.server.store import Store
from netsonde.server.store.checks import CheckRow

SWEEP_MAX_NS = NS_PER_S
SWEEP_MIN_NS = 20 * NS_PER_MS  # terms of a few hundred ms, as simulations use, need no finer
TERM_SHARE = 4  # looks per shortest term
HOUSEKEEP_NS = 5 * NS_PER_S  # how much of the clock a crash may forget after the last write
ROLL_GAP_NS = 5 * NS_PER_S
REVIEW_GAP_NS = NS_PER_S
RETRY_NS = NS_PER_S  # after the storage failed
PUT_OFF_NS = 600 * NS_PER_S  # a check written by another version; who mends it runs it at once

_log = logging.getLogger("netsonde.server")


async def sweep_forever(plane: ControlPlane) -> None:
    """Expire, drop and announce; the storage failing for a while ends nothing."""
    period_ns = min(plane.policy.terms_ns.values()) // TERM_SHARE
    period_ns = min(max(period_ns, SWEEP_MIN_NS), SWEEP_MAX_NS)
    gate = SweepGate(plane.policy.grace_max_ns)
    housekept_ns = plane.time.now_ns()
    trouble = Trouble("sweep")
    while True:
        now_ns = plane.time.now_ns()
        plane.waiters.sooner.clear()
        swept = 0
        try:
            swept = await plane.sweep(may_expire=gate.may_expire(now_ns))
            if now_ns - housekept_ns >= HOUSEKEEP_NS:
                housekept_ns = now_ns
                await plane.housekeep()
            trouble.passed()
        except (StorageError, RequestError) as error:
            trouble.met(error)
        plane.waiters.announce_due(plane.time.now_ns())
        if swept < SWEEP_MAX:
            wait_ns = _until(plane, period_ns)
            gate.plan(now_ns + wait_ns)  # what the sweep took counts as being late
            await plane.clock.wait(plane.waiters.sooner, wait_ns)


async def roll_forever(plane: ControlPlane) -> None:
    """Sum agents' metrics up and drop what is old, however many come."""
    trouble = Trouble("rollups")
    while True:
        try:
            await plane.roll_up()
            trouble.passed()
        except (StorageError, RequestError) as error:
            trouble.met(error)
        await plane.clock.sleep(ROLL_GAP_NS)


def _until(plane: ControlPlane, period_ns: int) -> int:
    next_ns = plane.waiters.next_ns
    if next_ns is None:
        return period_ns
    return min(period_ns, max(next_ns - plane.time.now_ns(), NS_PER_MS))


async def schedule_forever(plane: ControlPlane) -> None:
    """Run the ticks of checks as they come due."""
    trouble = Trouble("schedule")
    while True:
        pulse = plane.checks_pulse.next()
        try:
            wait_ns: int | None = RETRY_NS
            if plane.storage.shortage is None:
                await _review(plane)
                wait_ns = await _run_due(plane)
            trouble.passed()
        except (StorageError, RequestError) as error:
            trouble.met(error)
            wait_ns = RETRY_NS
        if wait_ns is None or wait_ns > 0:
            if plane.checks_pulse.is_closed:
                return
            await plane.clock.wait(pulse, wait_ns)


async def _review(plane: ControlPlane) -> None:
    """Let standing checks choose their agents anew when those have changed.

    Not at once after the last time: a fleet that starts registers for minutes.
    """
    if not plane.is_roster_new or plane.time.now_ns() < plane.review_ns:
        return
    plane.is_roster_new = False
    try:
        after = 0
        while page := await plane.writer.read(lambda store: store.checks(after, DUE_MAX)):  # noqa: B023
            after = page[-1].check_id
            if wanted := [check.check_id for check in page if _follows_agents(check)]:
                await _stand(plane, wanted)
    except BaseException:
        plane.is_roster_new = True
        raise
    finally:
        plane.review_ns = plane.time.now_ns() + REVIEW_GAP_NS


def _follows_agents(check: CheckRow) -> bool:
    try:
        return check.is_enabled and is_standing(understood(check.document)[0])
    except RequestError:
        return False  # its own tick says so


async def _stand(plane: ControlPlane, check_ids: Sequence[int]) -> None:
    carriers = carriers_of(plane.registry)

    def operation(store: Store) -> tuple[list[Made], list[tuple[int, int]]]:
        now_ns = plane.time.now_ns()
        made: list[Made] = []
        revoked: list[tuple[int, int]] = []
        for check in [store.check(check_id) for check_id in check_ids]:
            if check is not None and _follows_agents(check):
                attempts = plane.config.max_attempts
                made += stand(store, check, carriers, now_ns, default_attempts=attempts)[0]
                revoked += store.revoked_of_check(check.check_id)
        return made, revoked

    made, revoked = await plane.writer.write(operation, DUE_MAX)
    now_ns = plane.time.now_ns()
    plane.announce(Announcement(queue, kind, now_ns, count) for queue, kind, count in made)
    plane.waiters.revoke(revoked)


async def _run_due(plane: ControlPlane) -> int | None:
    """Run what is due; return how long until the next tick, None when there is none."""
    next_ns = await plane.writer.read(lambda store: store.next_tick_ns())
    if plane.is_roster_new:
        next_ns = min(plane.review_ns, next_ns or plane.review_ns)
    now_ns = plane.time.now_ns()
    if next_ns is None:
        return None
    if next_ns > now_ns:
        return next_ns - now_ns
    carriers = carriers_of(plane.registry)

    def operation(store: Store) -> tuple[list[Tick], dict[int, bytes]]:
        ticks = []
        for check in store.checks_due(now_ns, DUE_MAX):
            attempts = plane.config.max_attempts
            try:
                ticks.append(run_tick(store, check, carriers, now_ns, default_attempts=attempts))
            except RequestError as error:
                _put_off(store, check, now_ns, error)
        return ticks, store.label_queues()

    ticks, queues = await plane.writer.write(operation, DUE_MAX)
    plane.keep_label_queues(queues)
    for tick in ticks:
        plane.announce(Announcement(queue, kind, now_ns, count) for queue, kind, count in tick.made)
    return 0


def _put_off(store: Store, check: CheckRow, now_ns: int, error: RequestError) -> None:
    """Keep a check that this version does not understand from stopping all the others."""
    _log.error(
        "check %d does not run: %s; change it or remove it",
        check.check_id,
        error,
        extra={"action": "check_not_understood", "check_id": check.check_id},
    )
    store.save_check(replace(check, next_ns=now_ns + PUT_OFF_NS))


class Trouble:
    """Says once that the storage fails, and once that it works again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_met = False

    def met(self, error: Exception) -> None:
        """Note that it failed."""
        if not self._is_met:
            _log.error("%s: %s", self._what, error, extra={"action": f"{self._what}_failed"})
        self._is_met = True

    def passed(self) -> None:
        """Note that it did not."""
        if self._is_met:
            _log.warning("%s works again", self._what, extra={"action": f"{self._what}_recovered"})
        self._is_met = False
