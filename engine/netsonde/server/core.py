"""The control plane's verbs for agents: claim, extend, release, report, and the sweep behind them.

Every verb is one operation on the store, decided by `leasing` inside the transaction. What it
means for those who wait is announced only after the commit.
"""

import hashlib
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import (
    ClaimRequest,
    ExtendRequest,
    ReleaseRequest,
    ReportResult,
    ReportStatus,
    TaskKind,
)
from netsonde.server import idempotency
from netsonde.server.config import CLAIM_WAIT_MAX_MS, ServerConfig
from netsonde.server.leasing import (
    RESUME_WINDOW_NS,
    Change,
    Died,
    ExtendStatus,
    Extension,
    HeldTask,
    LeaseIds,
    LeasingPolicy,
    Requeued,
    ServerTime,
    StandingLease,
)
from netsonde.server.registry import AgentRegistry, matches_labels
from netsonde.server.reports import ReportGroup
from netsonde.server.store import Store, StoreWriter
from netsonde.server.store.base import (
    ANY_QUEUE,
    AgentRow,
    ExtendedLease,
    Grant,
    GrantedTask,
    pinned_queue,
)
from netsonde.server.waiting import Pulse, Waiter, Waiters

IN_FLIGHT_MAX = 100_000  # leases of one agent; the heap of an agent holds ten times as many
SWEEP_MAX = 1_000  # leases per sweep transaction, so that it delays a claim by milliseconds
LEGACY_PREFETCH = 2  # an original agent's capacities are its pool sizes, not its free slots
FORGET_NS = 3600 * NS_PER_S  # how often leases are looked for that nobody reports under
SPOOLED_NS = 7 * 86_400 * NS_PER_S  # how long a host that was off may keep results after that
ID_LIST_MAX = wire.LEASE_IDS_PER_EXTEND_MAX


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim was granted, and the instant that its durations count from."""

    tasks: tuple[GrantedTask, ...]
    now_ns: int


@dataclass(frozen=True, slots=True)
class Announcement:
    """Work that became available in a committed transaction."""

    queue: int
    kind: TaskKind
    run_ns: int
    count: int = 1


class ControlPlane:
    """One control plane: its clock, its policy, its store, and who waits on it."""

    def __init__(
        self,
        config: ServerConfig,
        clock: Clock,
        writer: StoreWriter,
        store: Store,
        rng: random.Random,
    ) -> None:
        self.config = config
        self.clock = clock
        self.writer = writer
        self.time = ServerTime(clock, store.clock_ns())
        self.policy = LeasingPolicy(config, rng)
        self.lease_ids = LeaseIds(store.last_lease_id())
        self.registry = AgentRegistry(config, self.time, self.policy, writer)
        self.waiters = Waiters()
        self.results_pulse = Pulse()
        self.checks_pulse = Pulse()
        self.is_ready = True
        self._label_queues: dict[int, Mapping[str, str]] = {}
        self._turn = 0
        self._forgot_ns = self.time.now_ns()
        self.is_roster_new = True
        self.review_ns = 0  # when standing checks may choose their agents again
        self.registry.on_change = self._note_roster
        self.registry.load(store)
        self.keep_label_queues(store.label_queues())
        for queue, kind, run_ns in store.delayed(self.time.now_ns()):
            self.waiters.announce_at(run_ns, queue, kind)

    def keep_label_queues(self, queues: Mapping[int, bytes]) -> None:
        """Learn label queues, so that claims draw from them."""
        new = {queue: labels for queue, labels in queues.items() if queue not in self._label_queues}
        self._label_queues |= {queue: wire.parse(labels) for queue, labels in new.items()}
        if new:
            self.waiters.wake_all()  # who waits already may draw from them too

    def _note_roster(self) -> None:
        self.is_roster_new = True
        self.checks_pulse.fire()

    def close(self) -> None:
        """Turn new work away and end every wait."""
        self.is_ready = False
        self.waiters.close()
        self.results_pulse.close()
        self.checks_pulse.close()

    # ── claim ──

    async def claim(
        self, agent: AgentRow, request: ClaimRequest, received_ns: int, *, is_legacy: bool
    ) -> Claimed:
        """Grant work, waiting for it as long as the request allows.

        A repeated claim_id ends the wait of the request it repeats, which nobody listens to.

        Raises:
            RequestError: ERR_VALIDATION.
        """
        capacities = _capacities(request)
        wait_ms = self.config.legacy_hold_ms if is_legacy else (request.wait_ms or 0)
        deadline_ns = received_ns + wait_ms * NS_PER_MS
        key = _claim_key(request.claim_id)
        if request.claim_id is not None:
            self.waiters.end(agent.agent_id, {key})
        waiter = Waiter(self.queues_of(agent), capacities, agent.agent_id, key)
        self.waiters.add(waiter)
        is_owing = False  # woken for work that it has not looked for yet
        try:
            while True:
                waiter.event.clear()
                waiter.queues = self.queues_of(agent)
                claimed = await self._grant(agent, request, waiter, is_legacy=is_legacy)
                is_owing = waiter.is_over
                remaining_ns = deadline_ns - claimed.now_ns
                is_over = remaining_ns <= 0 or self.waiters.is_closed or not capacities
                if claimed.tasks or is_over or waiter.is_over:
                    return claimed
                is_owing = await self.clock.wait(waiter.event, remaining_ns)
        finally:
            self.waiters.remove(waiter)
            if (is_owing or waiter.event.is_set()) and not self.waiters.is_closed:
                self.waiters.wake_all(waiter.queues)  # somebody else's work, then

    def queues_of(self, agent: AgentRow) -> frozenset[int]:
        """Return the queues an agent may draw from."""
        labels = self.registry.labels(agent.agent_id)
        matching = {
            queue for queue, wanted in self._label_queues.items() if matches_labels(wanted, labels)
        }
        return frozenset({ANY_QUEUE, pinned_queue(agent.agent_id)} | matching)

    async def _grant(
        self, agent: AgentRow, request: ClaimRequest, waiter: Waiter, *, is_legacy: bool
    ) -> Claimed:
        limit = request.max_leases or wire.LEASES_PER_CLAIM_MAX
        key = waiter.claim_key

        def operation(store: Store) -> Claimed:
            now_ns = self.time.now_ns()
            if waiter.is_over:
                return Claimed((), now_ns)
            if request.claim_id is not None:
                resumed = [
                    task
                    for task in store.granted_under(agent.agent_id, key)
                    if _is_resumed(task, now_ns)
                ]
                if resumed:
                    return Claimed(tuple(resumed), now_ns)
            room = dict(waiter.capacities)
            if is_legacy:
                _spend(room, store.held_by(agent.agent_id))
            if not room or store.holds_more_than(agent.agent_id, IN_FLIGHT_MAX - limit):
                return Claimed((), now_ns)
            demand = _Demand(waiter.queues, room, limit, is_once=is_legacy)
            tasks = self._take(store, agent.agent_id, key, demand, now_ns)
            store.keep_clock(now_ns, self.lease_ids.last)
            return Claimed(tuple(tasks), now_ns)

        return await self.writer.write(operation, limit)

    def _take(
        self, store: Store, agent_id: int, key: int, demand: "_Demand", now_ns: int
    ) -> list[GrantedTask]:
        """Take from the agent's own queue first: nobody else can do that work."""
        taken: list[GrantedTask] = []
        self._turn += 1
        for kind in _in_turn(demand.room, self._turn):
            room = demand.room[kind]
            until_ns = now_ns + self.policy.term_ns(kind)
            standing_ns = now_ns + self.policy.standing_term_ns
            for queue in sorted(demand.queues):
                wanted = min(room, demand.limit - len(taken))
                if wanted <= 0:
                    break
                grant = Grant(
                    agent_id=agent_id,
                    claim_key=key,
                    first_lease_id=self.lease_ids.next(now_ns, wanted),
                    now_ns=now_ns,
                    until_ns=until_ns,
                    due_ns=self.policy.due_ns(kind, until_ns),
                    standing_until_ns=None if demand.is_once else standing_ns,
                    standing_due_ns=self.policy.due_ns(kind, standing_ns, is_standing=True),
                )
                granted = store.take(queue, kind, wanted, grant)
                if granted:
                    self.lease_ids.last = granted[-1].lease_id
                    taken += granted
                    room -= len(granted)
        return taken

    # ── extend, release ──

    async def extend(self, agent: AgentRow, request: ExtendRequest) -> list[tuple[int, Extension]]:
        """Extend leases; the answer is in the order of the request.

        Raises:
            RequestError: ERR_VALIDATION.
        """
        ids = _distinct_ids("lease_ids", request.lease_ids)

        def operation(store: Store) -> list[tuple[int, Extension]]:
            now_ns = self.time.now_ns()
            known = self._known(store, agent, ids)
            by_ns = request.extend_by_ms * NS_PER_MS
            answers = [(one, self._extension(known, one, agent, by_ns, now_ns)) for one in ids]
            store.extend(
                [
                    ExtendedLease(
                        task.task_id,
                        extension.until_ns,
                        self.policy.due_ns(
                            task.kind, extension.until_ns, is_standing=task.is_standing
                        ),
                    )
                    for one, extension in answers
                    if extension.until_ns is not None and (task := known.held.get(one)) is not None
                ]
            )
            return answers

        return await self.writer.write(operation, len(ids)) if ids else []

    def _known(self, store: Store, agent: AgentRow, lease_ids: Iterable[int]) -> "_Known":
        """Look leases up: by their tasks, or as earlier ones of the agent's standing tasks."""
        minted = {one for one in lease_ids if self.lease_ids.may_have_minted(one)}
        held = store.by_lease(minted) if minted else {}
        rest = minted - held.keys()
        earlier = store.standing_leases(rest) if rest else {}
        mine = {one: lease for one, lease in earlier.items() if lease.agent_id == agent.agent_id}
        return _Known(held, mine)

    def _extension(
        self, known: "_Known", lease_id: int, agent: AgentRow, by_ns: int, now_ns: int
    ) -> Extension:
        if not self.lease_ids.may_have_minted(lease_id):
            return Extension(ExtendStatus.UNKNOWN)
        if lease_id in known.earlier:
            return self.policy.extend_earlier(known.earlier[lease_id], by_ns, now_ns)
        return self.policy.extend(known.held.get(lease_id), agent.agent_id, by_ns, now_ns)

    async def release(self, agent: AgentRow, request: ReleaseRequest) -> int:
        """Take leases back unworked; return how many.

        Raises:
            RequestError: ERR_VALIDATION.
        """
        ids = _distinct_ids("lease_ids", request.lease_ids)
        if len(request.claim_ids) > ID_LIST_MAX:
            raise _refusal("claim_ids", f"at most {ID_LIST_MAX} claim_ids are allowed")
        keys = {_claim_key(claim_id) for claim_id in request.claim_ids}
        self.waiters.end(agent.agent_id, keys)  # before the operation: nothing is granted after it

        def operation(store: Store) -> list[tuple[HeldTask, Change]]:
            now_ns = self.time.now_ns()
            wanted = {one for one in ids if self.lease_ids.may_have_minted(one)}
            for key in keys:
                wanted |= {task.lease_id for task in store.granted_under(agent.agent_id, key)}
            held = [
                task for task in store.by_lease(wanted).values() if task.agent_id == agent.agent_id
            ]
            back = [(task, self.policy.give_back(task, now_ns, keeps_lease=False)) for task in held]
            store.apply([change for _, change in back], now_ns)
            store.count("returned", len(back))
            return back

        back = await self.writer.write(operation, len(ids) + len(keys))
        self.announce(_announced(back))
        return len(back)

    # ── report ──

    async def report(self, agent: AgentRow, items: Sequence[wire.ReportItem]) -> list[ReportResult]:
        """Take results; the answer is in the order of the items and comes after the commit."""
        answers: list[ReportResult] = []
        for start in range(0, len(items), wire.REPORT_ITEMS_MAX):
            part = items[start : start + wire.REPORT_ITEMS_MAX]
            group = ReportGroup(agent.agent_id, part, self.policy, self.lease_ids, self.time)
            await self.writer.write(group.run, len(part))
            self.announce(_announced(group.changes))
            answers += group.answers()
        if any(answer.status in _TAKEN for answer in answers):
            self.results_pulse.fire()
        return answers

    # ── heartbeat ──

    async def lost_leases(
        self, agent: AgentRow, lease_ids: Iterable[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return which of these leases are revoked, and which are not this agent's at all."""
        ids = list(dict.fromkeys(lease_ids))[:ID_LIST_MAX]
        known = await self.writer.read(lambda store: self._known(store, agent, ids))
        revoked: list[int] = []
        unknown: list[int] = []
        for one in ids:
            extension = self._extension(known, one, agent, 0, self.time.now_ns())
            if extension.status is ExtendStatus.CANCELLED:
                revoked.append(one)
            elif extension.status in (ExtendStatus.FENCED, ExtendStatus.UNKNOWN):
                unknown.append(one)
        return tuple(revoked), tuple(unknown)

    # ── sweep ──

    async def sweep(self, *, may_expire: bool) -> int:
        """Drop stale tasks and take back leases whose grace is over; return how many leases."""
        now_ns = self.time.now_ns()
        if not await self.writer.read(lambda store: store.is_sweep_due(now_ns)):
            return 0

        def operation(store: Store) -> list[tuple[HeldTask, Change]]:
            now_ns = self.time.now_ns()
            store.count("stale", store.drop_stale(now_ns, SWEEP_MAX))
            late = store.due(now_ns, SWEEP_MAX) if may_expire else []
            expired = [(held, self.policy.expire(held, now_ns)) for held in late]
            store.apply([change for _, change in expired], now_ns)
            store.count("expired", len(expired))
            store.count("dead", sum(isinstance(change, Died) for _, change in expired))
            return expired

        expired = await self.writer.write(operation, SWEEP_MAX)
        self.announce(_announced(expired))
        return len(expired)

    async def housekeep(self) -> None:
        """Persist how far the clock is, and forget what needs no remembering."""

        def operation(store: Store) -> None:
            now_ns = self.time.now_ns()
            store.keep_clock(now_ns, self.lease_ids.last)
            store.forget_before(now_ns - idempotency.KEPT_NS)
            if now_ns - self._forgot_ns >= FORGET_NS:
                store.forget_standing(now_ns - self.policy.offline_ns - SPOOLED_NS)
                self._forgot_ns = now_ns

        await self.writer.write(operation)
        await self.registry.flush_seen()

    def announce(self, announcements: Iterable[Announcement]) -> None:
        """Wake those who wait for what a committed transaction made available."""
        now_ns = self.time.now_ns()
        for one in announcements:
            if one.run_ns <= now_ns:
                self.waiters.announce(one.queue, one.kind, one.count)
            else:
                self.waiters.announce_at(one.run_ns, one.queue, one.kind)


_TAKEN = frozenset({ReportStatus.ACCEPTED, ReportStatus.LATE_ACCEPTED})


@dataclass(frozen=True, slots=True)
class _Known:
    held: Mapping[int, HeldTask]
    earlier: Mapping[int, StandingLease]


@dataclass(frozen=True, slots=True)
class _Demand:
    queues: frozenset[int]
    room: Mapping[TaskKind, int]
    limit: int
    is_once: bool  # no standing tasks: an original agent does not know them


def _is_resumed(task: GrantedTask, now_ns: int) -> bool:
    """Whether a repeated claim finds it: a standing lease that got lost would wait an hour."""
    is_recent = task.granted_ns >= now_ns - RESUME_WINDOW_NS or task.repeat is not None
    return is_recent and task.until_ns > now_ns


def _capacities(request: ClaimRequest) -> dict[TaskKind, int]:
    """Check a claim and return its room by kind; kinds we do not know are not ours to fill."""
    if request.max_leases is not None and not 0 < request.max_leases <= wire.LEASES_PER_CLAIM_MAX:
        raise _refusal("max_leases", f"max_leases must be 1 to {wire.LEASES_PER_CLAIM_MAX}")
    if request.wait_ms is not None and not 0 <= request.wait_ms <= CLAIM_WAIT_MAX_MS:
        raise _refusal("wait_ms", f"wait_ms must be 0 to {CLAIM_WAIT_MAX_MS}")
    if request.claim_id is not None and not 0 < len(request.claim_id) <= 128:
        raise _refusal("claim_id", "claim_id must have 1 to 128 characters")
    for name, count in request.capacities.items():
        if count < 0:
            raise _refusal(f"capacities.{name}", "a capacity must be 0 or more")
    known = {kind: request.capacities.get(kind, 0) for kind in TaskKind}
    return {kind: min(count, IN_FLIGHT_MAX) for kind, count in known.items() if count}


def _spend(room: dict[TaskKind, int], held: Collection[HeldTask]) -> None:
    """Turn an original agent's pool sizes into what it may still be granted."""
    for kind in list(room):
        active = sum(task.kind is kind for task in held)
        left = LEGACY_PREFETCH * room[kind] - active
        if left > 0:
            room[kind] = left
        else:
            del room[kind]


def _in_turn(room: Mapping[TaskKind, int], turn: int) -> list[TaskKind]:
    """Order kinds so that no kind is always the one that the limit cuts off."""
    kinds = list(room)
    start = turn % len(kinds)
    return kinds[start:] + kinds[:start]


def _claim_key(claim_id: str | None) -> int:
    """Return what the store keeps of a claim_id: 63 bits, compared within one agent only."""
    if claim_id is None:
        return 0
    digest = hashlib.sha256(claim_id.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8]) >> 1


def _distinct_ids(field: str, ids: Sequence[int]) -> list[int]:
    if len(ids) > ID_LIST_MAX:
        raise _refusal(field, f"at most {ID_LIST_MAX} {field} are allowed, not {len(ids)}")
    return list(dict.fromkeys(ids))


def _announced(changes: Iterable[tuple[HeldTask, Change]]) -> list[Announcement]:
    return [
        Announcement(held.queue, held.kind, change.run_ns)
        for held, change in changes
        if isinstance(change, Requeued)
    ]


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field}", message),))
