"""Claims: granting what is ready, waiting for what is not, in one answer or as a stream."""

from collections.abc import AsyncGenerator, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import ClaimRequest, TaskKind
from netsonde.server.config import CLAIM_WAIT_MAX_MS
from netsonde.server.core import ControlPlane, claim_key
from netsonde.server.leasing import RESUME_WINDOW_NS, HeldTask
from netsonde.server.store import Store
from netsonde.server.store.agents import AgentRow
from netsonde.server.store.tasks import Grant, GrantedTask
from netsonde.server.waiting import Waiter

IN_FLIGHT_MAX = 100_000  # leases of one agent; the heap of an agent holds ten times as many
LEGACY_PREFETCH = 2  # an original agent's capacities are its pool sizes, not its free slots
PING_NS = 10 * NS_PER_S  # how long a stream may say nothing


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim was granted, and the instant that its durations count from."""

    tasks: tuple[GrantedTask, ...]
    now_ns: int


@dataclass(frozen=True, slots=True)
class Revoked:
    """Leases whose work is no longer wanted."""

    lease_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Configured:
    """There is a newer configuration for the agent."""

    revision: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Nothing happened for a while."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A stream's last event: why it ends."""

    reason: str


ClaimEvent = Claimed | Revoked | Configured | Ping | Ended


class Claims:
    """Grants work of one control plane."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._turn = 0

    async def claim(
        self, agent: AgentRow, request: ClaimRequest, received_ns: int, *, is_legacy: bool
    ) -> Claimed:
        """Grant work, waiting for it as long as the request allows.

        A repeated claim_id ends the wait of the request it repeats, which nobody listens to.

        Raises:
            RequestError: ERR_VALIDATION.
        """
        demand = _Demand.of(request)
        wait_ms = self._plane.config.legacy_hold_ms if is_legacy else (request.wait_ms or 0)
        deadline_ns = received_ns + wait_ms * NS_PER_MS
        clock = self._plane.clock
        with self._waiting(agent, request, demand, is_legacy=is_legacy) as waiter:
            while True:
                claimed = await self._look(agent, demand, waiter)
                remaining_ns = deadline_ns - claimed.now_ns
                is_over = remaining_ns <= 0 or self._plane.waiters.is_closed or not demand.room
                if claimed.tasks or is_over or waiter.is_over:
                    return claimed
                waiter.is_owing = await clock.wait(waiter.event, remaining_ns)

    def stream(
        self, agent: AgentRow, request: ClaimRequest, received_ns: int
    ) -> AsyncGenerator[ClaimEvent]:
        """Grant work as it comes, until the capacities are used up or the wait is over.

        Raises:
            RequestError: ERR_VALIDATION, before the first event.
        """
        demand = _Demand.of(request, streamed=True)
        deadline_ns = received_ns + (request.wait_ms or 0) * NS_PER_MS
        return self._stream(agent, request, demand, deadline_ns)

    async def _stream(
        self, agent: AgentRow, request: ClaimRequest, demand: "_Demand", deadline_ns: int
    ) -> AsyncGenerator[ClaimEvent]:
        clock, waiters = self._plane.clock, self._plane.waiters
        said_ns = self._plane.time.now_ns()
        revision = self._plane.configs.revision_for(agent)
        with self._waiting(agent, request, demand) as waiter:
            waiter.hears_revocations = True
            while True:
                claimed = await self._look(agent, demand, waiter)
                if waiter.revoked:
                    revoked, waiter.revoked = waiter.revoked, ()
                    said_ns = claimed.now_ns
                    yield Revoked(revoked)
                if waiter.is_config_new:
                    waiter.is_config_new = False
                    newest = self._plane.configs.revision_for(agent)
                    if newest is not None and newest != revision:
                        revision, said_ns = newest, claimed.now_ns
                        yield Configured(newest)
                if claimed.tasks:
                    demand.spend(claimed.tasks)
                    said_ns = claimed.now_ns
                    yield claimed
                    if not demand.room:
                        yield Ended("credits")
                        return
                    continue  # one transaction takes so many; there may be more
                remaining_ns = deadline_ns - claimed.now_ns
                if waiters.is_closed:
                    yield Ended("shutdown")
                    return
                if remaining_ns <= 0 or waiter.is_over or not demand.room:
                    yield Ended("wait")
                    return
                quiet_ns = claimed.now_ns - said_ns
                if quiet_ns >= PING_NS:
                    said_ns, quiet_ns = claimed.now_ns, 0
                    yield Ping()
                wait_ns = min(remaining_ns, PING_NS - quiet_ns)
                waiter.is_owing = await clock.wait(waiter.event, wait_ns)

    @contextmanager
    def _waiting(
        self,
        agent: AgentRow,
        request: ClaimRequest,
        demand: "_Demand",
        *,
        is_legacy: bool = False,
    ) -> Iterator[Waiter]:
        """Make a claim known to those who have work, for as long as it is held."""
        waiters = self._plane.waiters
        if request.claim_id is not None:
            waiters.end(agent.agent_id, {demand.claim_key})
        waiter = Waiter(self._plane.queues_of(agent), demand.room, agent.agent_id, demand.claim_key)
        waiter.budget = demand.room if is_legacy else None
        waiters.add(waiter)
        try:
            yield waiter
        finally:
            waiters.remove(waiter)
            if (waiter.is_owing or waiter.event.is_set()) and not waiters.is_closed:
                waiters.wake_all(waiter.queues)  # somebody else's work, then

    async def _look(self, agent: AgentRow, demand: "_Demand", waiter: Waiter) -> Claimed:
        """Grant what is ready now."""
        waiter.is_owing = waiter.is_owing or waiter.event.is_set()
        waiter.event.clear()
        waiter.queues = self._plane.queues_of(agent)
        limit = min(demand.left, wire.LEASES_PER_CLAIM_MAX)

        def operation(store: Store) -> Claimed:
            now_ns = self._plane.time.now_ns()
            if waiter.is_over:
                return Claimed((), now_ns)
            if demand.may_resume and (resumed := _resumed(store, agent, demand, now_ns)):
                return Claimed(resumed, now_ns)
            if store.is_barred(agent.agent_id):
                return Claimed((), now_ns)
            self._plane.storage.admit()
            room = dict(demand.room)
            if waiter.budget is not None:
                _spend(room, store.held_by(agent.agent_id))
                waiter.capacities = dict(room)  # others are woken for what it cannot take
            if not room or store.holds_more_than(agent.agent_id, IN_FLIGHT_MAX - limit):
                return Claimed((), now_ns)
            tasks = self._take(store, waiter, room, limit, now_ns)
            return Claimed(tuple(tasks), now_ns)

        claimed = await self._plane.writer.write(operation, limit)
        waiter.is_owing = waiter.is_over
        demand.may_resume = False if claimed.tasks else demand.may_resume
        return claimed

    def _take(
        self, store: Store, waiter: Waiter, room: Mapping[TaskKind, int], limit: int, now_ns: int
    ) -> list[GrantedTask]:
        """Take from the agent's own queue first: nobody else can do that work."""
        taken: list[GrantedTask] = []
        self._turn += 1
        policy, lease_ids = self._plane.policy, self._plane.lease_ids
        for kind in _in_turn(room, self._turn):
            left = room[kind]
            until_ns = now_ns + policy.term_ns(kind)
            standing_ns = now_ns + policy.standing_term_ns
            is_legacy = waiter.budget is not None  # an original agent knows no standing tasks
            for queue in sorted(waiter.queues):
                wanted = min(left, limit - len(taken))
                if wanted <= 0:
                    break
                grant = Grant(
                    agent_id=waiter.agent_id,
                    claim_key=waiter.claim_key,
                    first_lease_id=lease_ids.next(now_ns, wanted),
                    now_ns=now_ns,
                    until_ns=until_ns,
                    due_ns=policy.due_ns(kind, until_ns),
                    standing_until_ns=None if is_legacy else standing_ns,
                    standing_due_ns=policy.due_ns(kind, standing_ns, is_standing=True),
                )
                granted = store.take(queue, kind, wanted, grant)
                if granted:
                    lease_ids.last = granted[-1].lease_id
                    taken += granted
                    left -= len(granted)
        return taken


@dataclass(slots=True)
class _Demand:
    """What a claim may still be granted: `room` by kind, `left` in all.

    Leases that an earlier answer under the same claim_id brought are looked for first, once.
    """

    room: dict[TaskKind, int]
    left: int
    claim_key: int
    may_resume: bool

    @classmethod
    def of(cls, request: ClaimRequest, *, streamed: bool = False) -> "_Demand":
        """Check a claim; kinds we do not know are not ours to fill.

        Raises:
            RequestError: ERR_VALIDATION.
        """
        most = request.max_leases
        if most is not None and not 0 < most <= wire.LEASES_PER_CLAIM_MAX:
            raise _refusal("max_leases", f"max_leases must be 1 to {wire.LEASES_PER_CLAIM_MAX}")
        if request.wait_ms is not None and not 0 <= request.wait_ms <= CLAIM_WAIT_MAX_MS:
            raise _refusal("wait_ms", f"wait_ms must be 0 to {CLAIM_WAIT_MAX_MS}")
        if request.claim_id is not None and not 0 < len(request.claim_id) <= 128:
            raise _refusal("claim_id", "claim_id must have 1 to 128 characters")
        for name, count in request.capacities.items():
            if count < 0:
                raise _refusal(f"capacities.{name}", "a capacity must be 0 or more")
        known = {kind: request.capacities.get(kind, 0) for kind in TaskKind}
        return cls(
            room={kind: min(count, IN_FLIGHT_MAX) for kind, count in known.items() if count},
            left=most or (wire.LINES_MAX if streamed else wire.LEASES_PER_CLAIM_MAX),
            claim_key=claim_key(request.claim_id),
            may_resume=request.claim_id is not None,
        )

    def spend(self, tasks: Collection[GrantedTask]) -> None:
        """Take off what was granted."""
        self.left -= len(tasks)
        for task in tasks:
            if task.kind in self.room:
                self.room[task.kind] -= 1
        for kind, room in list(self.room.items()):
            if room <= 0 or self.left <= 0:
                del self.room[kind]


def _resumed(
    store: Store, agent: AgentRow, demand: _Demand, now_ns: int
) -> tuple[GrantedTask, ...]:
    return tuple(
        task
        for task in store.granted_under(agent.agent_id, demand.claim_key)
        if _is_resumed(task, now_ns)
    )


def _is_resumed(task: GrantedTask, now_ns: int) -> bool:
    """Whether a repeated claim finds it: a standing lease that got lost would wait an hour."""
    is_recent = task.granted_ns >= now_ns - RESUME_WINDOW_NS or task.repeat is not None
    return is_recent and task.until_ns > now_ns


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


def _refusal(field: str, message: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field}", message),))
