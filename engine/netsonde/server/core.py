"""The control plane's verbs for agents: extend, release, report, and the sweep behind them.

Claims have a module of their own.

Every verb is one operation on the store, decided by `leasing` inside the transaction. What it
means for those who wait is announced only after the commit.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import (
    ID_MAX,
    ExtendRequest,
    ReleaseRequest,
    ReportResult,
    ReportStatus,
    TaskKind,
)
from netsonde.server import audit, idempotency, rollups, uploads
from netsonde.server.access import EXPIRED_KEPT_NS, OperatorTokens
from netsonde.server.config import ServerConfig
from netsonde.server.configs import Configs
from netsonde.server.fleet import Fleet
from netsonde.server.leasing import (
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
from netsonde.server.storage import StorageGuard
from netsonde.server.store import Store, StoreWriter
from netsonde.server.store.agents import AgentRow
from netsonde.server.store.tasks import ANY_QUEUE, ExtendedLease, pinned_queue
from netsonde.server.waiting import Pulse, Waiters

SWEEP_MAX = 1_000  # leases per sweep transaction, so that it delays a claim by milliseconds
FORGET_NS = 3600 * NS_PER_S  # how often leases are looked for that nobody reports under
SPOOLED_NS = 7 * 86_400 * NS_PER_S  # how long a host that was off may keep results after that
ID_LIST_MAX = wire.LEASE_IDS_PER_EXTEND_MAX


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
        self.storage = StorageGuard(config, self.time)
        writer.on_full = self.storage.met_full
        self.lease_ids = LeaseIds(store.last_lease_id())
        store.follow(lambda: (self.time.now_ns(), self.lease_ids.last))
        self.registry = AgentRegistry(config, self.time, self.policy, writer)
        self.fleet = Fleet(self.time, writer)
        self.operators = OperatorTokens(self.time, writer)
        self.waiters = Waiters()
        self.configs = Configs(self.registry, writer, self.time, self.waiters)
        self.results_pulse = Pulse()
        self.checks_pulse = Pulse()
        self.is_ready = True
        self.requests: dict[str, Counter[tuple[str, str]]] = {}  # of each API, by call and class
        self._label_queues: dict[int, Mapping[str, str]] = {}
        self._forgot_ns = self.time.now_ns()
        self.is_roster_new = True
        self.review_ns = 0  # when standing checks may choose their agents again
        self.registry.on_change = self._note_roster
        self.registry.load(store)
        self.configs.load(store)
        self.operators.load(store)
        self.fleet.load(store, self.registry.all())
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

    def queues_of(self, agent: AgentRow) -> frozenset[int]:
        """Return the queues an agent may draw from: none while it is drained."""
        if agent.agent_id in self.fleet.drained:
            return frozenset()
        labels = self.registry.labels(agent.agent_id)
        matching = {
            queue for queue, wanted in self._label_queues.items() if matches_labels(wanted, labels)
        }
        return frozenset({ANY_QUEUE, pinned_queue(agent.agent_id)} | matching)

    def close(self) -> None:
        """Turn new work away and end every wait."""
        self.is_ready = False
        self.waiters.close()
        self.results_pulse.close()
        self.checks_pulse.close()

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
        if len(request.keep_lease_ids) > wire.LINES_MAX:
            raise _refusal("keep_lease_ids", f"at most {wire.LINES_MAX} leases are kept")
        _check_range("keep_lease_ids", request.keep_lease_ids)
        kept = set(request.keep_lease_ids)
        keys = {claim_key(claim_id) for claim_id in request.claim_ids}
        self.waiters.end(agent.agent_id, keys)  # before the operation: nothing is granted after it

        def operation(store: Store) -> list[tuple[HeldTask, Change]]:
            now_ns = self.time.now_ns()
            wanted = {one for one in ids if self.lease_ids.may_have_minted(one)}
            for key in keys:
                wanted |= {task.lease_id for task in store.granted_under(agent.agent_id, key)}
            wanted -= kept
            held = [
                task for task in store.by_lease(wanted).values() if task.agent_id == agent.agent_id
            ]
            back = [(task, self.policy.give_back(task, now_ns, keeps_lease=False)) for task in held]
            store.apply([change for _, change in back], now_ns)
            store.count("returned", len(back))
            return back

        back = await self.writer.write(operation, len(ids) + len(keys))
        self.changed(back)
        return len(back)

    # ── report ──

    async def report(self, agent: AgentRow, items: Sequence[wire.ReportItem]) -> list[ReportResult]:
        """Take results; the answer is in the order of the items and comes after the commit."""
        answers: list[ReportResult] = []
        for start in range(0, len(items), wire.REPORT_ITEMS_MAX):
            part = items[start : start + wire.REPORT_ITEMS_MAX]
            group = ReportGroup(agent.agent_id, part, self.policy, self.lease_ids, self.time)
            await self.writer.write(group.run, len(part))
            self.changed(group.changes)
            decided = group.answers()
            # Of this group by itself: the next one may fail, or its caller go away.
            if any(answer.status in _TAKEN for answer in decided):
                self.results_pulse.fire()
            answers += decided
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
        self.changed(expired)
        return len(expired)

    async def housekeep(self) -> None:
        """Persist how far the clock is though nothing is written; forget what is over."""
        is_due = self.time.now_ns() - self._forgot_ns >= FORGET_NS

        def operation(store: Store) -> int:
            now_ns = self.time.now_ns()
            store.keep_clock(now_ns, self.lease_ids.last)
            store.forget_before(now_ns - idempotency.KEPT_NS, idempotency.FORGET_MAX)
            audit.forget(store, now_ns - self.config.audit_ms * NS_PER_MS)
            store.forget_uploads(now_ns - idempotency.KEPT_NS, uploads.FORGET_LINES)
            if is_due:
                store.forget_standing(now_ns - self.policy.offline_ns - SPOOLED_NS)
                store.forget_tokens(now_ns - EXPIRED_KEPT_NS)
            return now_ns

        now_ns = await self.writer.write(operation)
        if is_due:
            self._forgot_ns = now_ns
            self.operators.drop_expired(now_ns - EXPIRED_KEPT_NS)
        await self.registry.flush_seen()
        await self.fleet.flush()
        await self.operators.flush_used()

    async def roll_up(self) -> None:
        """Sum metrics up as far as they have come, by steps after each of which others write."""
        while await self.writer.write(lambda store: rollups.step(store, self.time.now_ns())):
            await self.clock.sleep(0)

    def changed(self, changes: Sequence[tuple[HeldTask, Change]]) -> None:
        """Wake those who wait for what a committed transaction took from its holders."""
        self.announce(_announced(changes))
        self.waiters.refill({held.agent_id for held, _ in changes})

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


def claim_key(claim_id: str | None) -> int:
    """Return what the store keeps of a claim_id: 63 bits, compared within one agent only."""
    if claim_id is None:
        return 0
    digest = hashlib.sha256(claim_id.encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8]) >> 1


def _distinct_ids(field: str, ids: Sequence[int]) -> list[int]:
    if len(ids) > ID_LIST_MAX:
        raise _refusal(field, f"at most {ID_LIST_MAX} {field} are allowed, not {len(ids)}")
    _check_range(field, ids)
    return list(dict.fromkeys(ids))


def _check_range(field: str, ids: Sequence[int]) -> None:
    if not all(0 <= one <= ID_MAX for one in ids):
        raise _refusal(field, f"{field} are 0 to {ID_MAX}")


def _announced(changes: Iterable[tuple[HeldTask, Change]]) -> list[Announcement]:
    return [
        Announcement(held.queue, held.kind, change.run_ns)
        for held, change in changes
        if isinstance(change, Requeued)
    ]


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field}", message),))
