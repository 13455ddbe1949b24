"""The control plane against a reference model: whatever happens, in whatever order.

The model knows nothing of SQL, leases' states or policies; it keeps what agents were told and
checks the promises (docs/adr/0005): an acknowledged result is there exactly once, a task has at
most one final result, no task vanishes, nobody's lease is given away before its time.
"""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.model import (
    ClaimRequest,
    ExtendRequest,
    RegisterRequest,
    ReleaseRequest,
    Repeat,
    TaskKind,
)
from netsonde.server.claims import Claims
from netsonde.server.core import ControlPlane
from netsonde.server.leasing import HeldTask
from netsonde.server.store import Store
from netsonde.server.store.agents import AgentRow
from netsonde.server.store.dead_letters import DeadQuery
from netsonde.server.store.results import ResultQuery
from netsonde.server.store.tasks import NewTask, pinned_queue
from netsonde.ticks import Grid
from support.stores import (
    STORES,
    TCP_SPEC,
    Caller,
    at_once,
    config,
    control_plane,
    open_store,
    result_item,
)

AGENTS = (0, 1)
MAX_ATTEMPTS = 2
CHECK_ID = 1
EVERY_MS = 7_000
SETTINGS = config(max_attempts=MAX_ATTEMPTS, standing_term_ms=20_000)
SELDOM = st.sampled_from([False, False, False, True])
ACKED = {"accepted", "late_accepted", "duplicate"}


@dataclass
class ModelTask:
    last_lease: int = 0
    safe_until_ns: int = 0  # until when its holder may count on having it alone
    is_revoked: bool = False
    grid: Grid | None = None  # of a standing task
    pin: int | None = None  # its agent, who may be granted it again at any time
    is_of_check: bool = False
    ended_ns: int | None = None  # when a standing task was called off


@dataclass
class Model:
    tasks: dict[int, ModelTask] = field(default_factory=dict)
    of_lease: dict[int, tuple[int, int]] = field(default_factory=dict)  # lease -> task, agent
    acknowledged: set[int] = field(default_factory=set)
    ticks: set[tuple[int, int]] = field(default_factory=set)  # task, tick
    dropped: int = 0
    claims: dict[str, tuple[int, set[int]]] = field(default_factory=dict)


class ControlPlaneMachine(RuleBasedStateMachine):
    store_name = ""
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="netsonde-machine-"))
        self.clock = ManualClock()
        self.store: Store = open_store(self.store_name, self.directory)
        self.plane: ControlPlane = self._plane()
        self.model = Model()
        self.instances = dict.fromkeys(AGENTS, 0)
        self.agents: dict[int, AgentRow] = {number: self._register(number) for number in AGENTS}
        self.claim_number = 0
        self.drained: set[int] = set()
        self.enqueue(count=3, pin=None, of_check=False)
        for number in AGENTS:
            self.enqueue_standing(pin=number, jitter_ms=3_000, of_check=True)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)

    def _plane(self) -> ControlPlane:
        return control_plane(self.store, self.clock, SETTINGS)

    def _register(self, number: int) -> AgentRow:
        request = RegisterRequest(
            hostname=f"host-{number}",
            agent_key=f"key-{number}" * 5,
            instance_id=f"{number}-{self.instances[number]}",
        )
        agent, _, _ = at_once(self.plane.registry.register(request, is_legacy=False))
        return agent

    @property
    def now_ns(self) -> int:
        return self.plane.time.now_ns()

    # ── what operators do ──

    @rule(count=st.integers(1, 4), pin=st.sampled_from([None, *AGENTS]), of_check=SELDOM)
    def enqueue(self, count: int, pin: int | None, of_check: bool) -> None:
        task = NewTask(
            kind=TaskKind.TCP,
            spec=TCP_SPEC,
            run_ns=self.now_ns,
            max_attempts=MAX_ATTEMPTS,
            queue=0 if pin is None else pinned_queue(self.agents[pin].agent_id),
            check_id=CHECK_ID if of_check else None,
        )
        ids = at_once(self.plane.writer.write(lambda store: store.add_tasks([task] * count)))
        assert not self.model.tasks.keys() & set(ids), "a task id was used twice"
        self.model.tasks |= {task_id: ModelTask() for task_id in ids}

    @rule(
        pin=st.sampled_from(AGENTS), jitter_ms=st.sampled_from([0, 3_000]), of_check=st.booleans()
    )
    def enqueue_standing(self, pin: int, jitter_ms: int, of_check: bool) -> None:
        repeat = Repeat(every_ms=EVERY_MS, jitter_ms=jitter_ms)
        task = NewTask(
            kind=TaskKind.TCP,
            spec=TCP_SPEC,
            run_ns=self.now_ns,
            max_attempts=1,
            queue=pinned_queue(self.agents[pin].agent_id),
            check_id=CHECK_ID if of_check else None,
            scheduled_ns=self.now_ns,
            repeat=wire.encode(repeat).decode(),
        )
        (task_id,) = at_once(self.plane.writer.write(lambda store: store.add_tasks([task])))
        grid = Grid(task_id, self.now_ns, repeat)
        self.model.tasks[task_id] = ModelTask(grid=grid, pin=pin, is_of_check=of_check)

    @rule()
    def cancel_check(self) -> None:
        leased = {
            held.task_id
            for agent in self.agents.values()
            for held in self._held(agent)
            if held.check_id == CHECK_ID and not self.model.tasks[held.task_id].is_revoked
        }
        done = at_once(
            self.plane.writer.write(lambda store: store.cancel_check(CHECK_ID, self.now_ns))
        )
        for task_id in leased:
            self.model.tasks[task_id].is_revoked = True
        for task in self.model.tasks.values():
            if task.grid is not None and task.is_of_check and task.ended_ns is None:
                task.ended_ns = self.now_ns
        self.model.dropped += done - len(leased)

    @rule(number=st.sampled_from(AGENTS), verb=st.sampled_from(["drain", "resume", "resume"]))
    def drain_or_resume(self, number: int, verb: str) -> None:
        self._operate("POST", f"/v1/agents/{self.agents[number].agent_id}/{verb}")
        (self.drained.add if verb == "drain" else self.drained.discard)(number)

    @rule(number=st.sampled_from(AGENTS))
    def revoke_and_enable(self, number: int) -> None:
        path = f"/v1/agents/{self.agents[number].agent_id}"
        self._operate("POST", f"{path}/revoke")
        assert self._held(self.agents[number]) == []
        for task in self.model.tasks.values():
            if self.model.of_lease.get(task.last_lease, (0, -1))[1] == number:
                task.safe_until_ns = 0
        self._operate("PATCH", path, {"disabled": False})
        self.agents[number] = self._register(number)

    @rule()
    def requeue_the_dead(self) -> None:
        dead = self.store.find_dead(DeadQuery(limit=10**6))
        answer = self._operate("POST", "/v1/dead-letters/requeue", {"all": True})
        assert (answer["requeued"], self.store.dead_count()) == (len(dead), 0)
        for _, granted in self.model.claims.values():  # to which the tasks belong no more
            granted.difference_update(letter.lease_id for letter in dead)

    @rule()
    def give_the_dead_up(self) -> None:
        dead = {letter.task_id for letter in self.store.find_dead(DeadQuery(limit=10**6))}
        rows = self.store.results(ResultQuery(limit=10**6))
        self.model.dropped += len(dead - {row.task_id for row in rows if row.tick is None})
        self._operate("POST", "/v1/dead-letters/delete", {"all": True})

    def _operate(self, method: str, path: str, body: object = None) -> Any:
        caller = Caller(self.plane, self.clock)
        status, answer, _ = at_once(caller.operator(method, path, body))
        assert status == 200, answer
        return answer

    def _held(self, agent: AgentRow) -> list[HeldTask]:
        return self.store.held_by(agent.agent_id)

    # ── what agents do ──

    @rule(target=leases, number=st.sampled_from(AGENTS), count=st.integers(1, 5))
    def claim(self, number: int, count: int) -> object:
        self.claim_number += 1
        claim_id = f"claim-{self.claim_number}"
        granted = self._claim(number, claim_id, count)
        self.model.claims[claim_id] = (number, set(granted))
        return multiple(*granted)

    @precondition(lambda self: self.model.claims)
    @rule(target=leases, data=st.data())
    def repeat_claim(self, data: st.DataObject) -> object:
        claim_id = data.draw(st.sampled_from(sorted(self.model.claims)))
        number, before = self.model.claims[claim_id]
        agent_id = self.agents[number].agent_id
        still = {
            held.lease_id
            for held in self.store.held_by(agent_id)
            if held.lease_id in before
            and held.until_ns > self.now_ns
            and (held.is_standing or held.granted_ns >= self.now_ns - 600 * NS_PER_S)
            and not self.model.tasks[held.task_id].is_revoked
        }
        again = set(self._claim(number, claim_id, 3))
        assert again == still if still else not again & before
        self.model.claims[claim_id] = (number, before | again)
        return multiple(*sorted(again - before))

    def _claim(self, number: int, claim_id: str, count: int) -> list[int]:
        agent = self.agents[number]
        request = ClaimRequest(
            agent_id=agent.agent_id, capacities={"tcp": count}, claim_id=claim_id, wait_ms=0
        )
        claimed = at_once(Claims(self.plane).claim(agent, request, self.now_ns, is_legacy=False))
        for task in claimed.tasks:
            known = self.model.tasks[task.task_id]
            if task.lease_id in self.model.of_lease:
                assert self.model.of_lease[task.lease_id] == (task.task_id, number)
                continue
            assert number not in self.drained, "a drained agent was granted work"
            assert task.lease_id > max(self.model.of_lease, default=0), "lease ids must grow"
            if known.grid is None:
                assert known.safe_until_ns <= self.now_ns, "granted while somebody else held it"
            else:
                assert known.pin == number, "granted to another agent than its own"
            assert 1 <= task.attempt <= (MAX_ATTEMPTS if known.grid is None else 1)
            assert task.next_tick == self._next_tick(task.task_id)
            self.model.of_lease[task.lease_id] = (task.task_id, number)
            known.last_lease = task.lease_id
            known.safe_until_ns = task.until_ns
        return [task.lease_id for task in claimed.tasks]

    @rule(lease_id=leases, stranger=SELDOM, by_ms=st.integers(0, 50_000))
    def extend(self, lease_id: int, stranger: bool, by_ms: int) -> None:
        number = self._caller(lease_id, stranger)
        agent = self.agents[number]
        request = ExtendRequest(
            agent_id=agent.agent_id, lease_ids=(lease_id, lease_id), extend_by_ms=by_ms
        )
        ((answered, extension),) = at_once(self.plane.extend(agent, request))
        assert answered == lease_id
        task_id, owner = self.model.of_lease[lease_id]
        task = self.model.tasks[task_id]
        if extension.until_ns is not None:
            assert owner == number
            is_last = task.last_lease == lease_id
            assert is_last or task.grid is not None, "an old lease was extended"
            assert extension.until_ns >= self.now_ns
            # One that was given back is answered for, as its task stands, and is held no more.
            is_held = any(held.lease_id == lease_id for held in self._held(agent))
            if is_last and (is_held or task.grid is None):
                task.safe_until_ns = max(task.safe_until_ns, extension.until_ns)

    @rule(
        lease_id=leases,
        stranger=SELDOM,
        outcome=st.sampled_from(["ok", "ok", "target_error", "agent_error", "cancelled", "new"]),
        twice=st.booleans(),
    )
    def report(self, lease_id: int, stranger: bool, outcome: str, twice: bool) -> None:
        if self.model.tasks[self.model.of_lease[lease_id][0]].grid is not None:
            return  # a tick, below
        number = self._caller(lease_id, stranger)
        agent = self.agents[number]
        item = wire.encode(result_item(lease_id, outcome))
        items = [item, item] if twice else [item]
        body = wire.decode_report(wire.encode_report(agent.agent_id, items, []))
        answers = at_once(self.plane.report(agent, body.items))
        first = answers[0].status
        task_id, owner = self.model.of_lease[lease_id]
        task = self.model.tasks[task_id]
        if first in ("accepted", "late_accepted"):
            assert owner == number, "somebody else's result was taken"
            assert task.last_lease == lease_id, "a fenced result was taken"
            assert lease_id not in self.model.acknowledged
            assert not task.is_revoked
            task.safe_until_ns = 0
        if first == "duplicate":
            assert lease_id in self.model.acknowledged
        if first in ACKED:
            assert owner == number
            self.model.acknowledged.add(lease_id)
            assert [answer.status for answer in answers[1:]] == ["duplicate"] * twice
            (again,) = at_once(self.plane.report(agent, body.items[:1]))
            assert again.status == "duplicate", "the answer was lost, the request repeated"

    @rule(lease_id=leases, stranger=SELDOM, tick=st.integers(0, 5), twice=st.booleans())
    def report_tick(self, lease_id: int, stranger: bool, tick: int, twice: bool) -> None:
        """Report under any lease that a standing task ever had."""
        task_id, owner = self.model.of_lease[lease_id]
        task = self.model.tasks[task_id]
        if task.grid is None:
            return
        number = self._caller(lease_id, stranger)
        number_told, scheduled_at = task.grid.tick(tick)
        item = result_item(lease_id) | {"tick": number_told, "scheduled_at": scheduled_at}
        items = [wire.encode(item)] * (2 if twice else 1)
        body = wire.decode_report(wire.encode_report(self.agents[number].agent_id, items, []))
        answers = at_once(self.plane.report(self.agents[number], body.items))
        statuses = [answer.status for answer in answers]
        if number != owner:
            expected = "fenced"
        elif (task_id, tick) in self.model.ticks:
            expected = "duplicate"
        elif task.ended_ns is not None and task.grid.instant_ns(tick) > task.ended_ns:
            expected = "fenced"
        else:
            is_held = any(held.lease_id == lease_id for held in self._held(self.agents[owner]))
            is_current = is_held and not task.is_revoked and task.safe_until_ns >= self.now_ns
            expected = "accepted" if is_current else "late_accepted"
            self.model.ticks.add((task_id, tick))
        again = "fenced" if expected == "fenced" else "duplicate"
        assert statuses == [expected, again][: len(items)]
        known = self.store.standing_leases([lease_id])[lease_id]
        assert known.next_tick in (None, self._next_tick(task_id))

    def _next_tick(self, task_id: int) -> int:
        return max((tick for one, tick in self.model.ticks if one == task_id), default=-1) + 1

    def _caller(self, lease_id: int, stranger: bool) -> int:
        owner = self.model.of_lease[lease_id][1]
        return AGENTS[owner - 1] if stranger else owner

    @rule(lease_id=leases, stranger=SELDOM)
    def release(self, lease_id: int, stranger: bool) -> None:
        number = self._caller(lease_id, stranger)
        agent = self.agents[number]
        request = ReleaseRequest(agent_id=agent.agent_id, lease_ids=(lease_id,))
        released = at_once(self.plane.release(agent, request))
        task_id, owner = self.model.of_lease[lease_id]
        if released:
            assert owner == number
            assert self.model.tasks[task_id].last_lease == lease_id
            self.model.tasks[task_id].safe_until_ns = 0

    @rule(number=st.sampled_from(AGENTS))
    def restart_agent(self, number: int) -> None:
        self.instances[number] += 1
        before = self.agents[number].agent_id
        self.agents[number] = self._register(number)
        assert self.agents[number].agent_id == before
        for task_id, owner in self.model.of_lease.values():
            if owner == number:
                self.model.tasks[task_id].safe_until_ns = 0

    # ── what time and machines do ──

    @rule(by_ms=st.integers(1, 30_000))
    def wait(self, by_ms: int) -> None:
        at_once(_advanced(self.clock, by_ms * NS_PER_MS))

    @rule()
    def sweep(self) -> None:
        at_once(self.plane.sweep(may_expire=True))

    @rule()
    def everything_expires(self) -> None:
        """Let every lease and every backoff run out, so that attempts are used up."""
        self.wait(30_000)
        self.sweep()
        self.wait(60_000)

    @rule(back_s=st.integers(0, 3600))
    def restart_server(self, back_s: int) -> None:
        at_once(self.plane.housekeep())
        before = self.now_ns
        self.clock.step_realtime(-back_s * NS_PER_S)
        if self.store_name == "sqlite":
            self.store.begin()  # work that a crash interrupts
            self.store.count("lost", 1)
            self.store.close()
            self.store = open_store(self.store_name, self.directory)
        self.plane = self._plane()
        assert self.now_ns >= before
        self.agents = {
            number: self.plane.registry.get(agent.agent_id) or agent
            for number, agent in self.agents.items()
        }

    # ── what must hold ──

    @invariant()
    def every_acknowledged_result_is_there_once(self) -> None:
        rows = self.store.results(ResultQuery(limit=10**6, final_only=False))
        ticks = [(row.task_id, row.tick) for row in rows if row.tick is not None]
        assert len(ticks) == len(set(ticks))
        assert set(ticks) == self.model.ticks
        stored = [row.lease_id for row in rows if row.tick is None]
        assert len(stored) == len(set(stored))
        assert self.model.acknowledged <= set(stored)
        assert set(stored) <= self.model.acknowledged, "a result nobody was told of"

    @invariant()
    def a_task_has_at_most_one_final_result(self) -> None:
        rows = self.store.results(ResultQuery(limit=10**6))
        tasks = [row.task_id for row in rows if row.tick is None]
        assert len(tasks) == len(set(tasks))
        assert all(1 <= row.attempt <= MAX_ATTEMPTS for row in rows)

    @invariant()
    def no_task_vanishes(self) -> None:
        depths = self.store.depths(self.now_ns)
        live = sum(depth.ready + depth.delayed + depth.leased for depth in depths)
        rows = self.store.results(ResultQuery(limit=10**6))
        final = {row.task_id for row in rows if row.tick is None}
        dead = {letter.task_id for letter in self.store.find_dead(DeadQuery(limit=10**6))}
        revoked = {task_id for task_id, task in self.model.tasks.items() if task.is_revoked}
        still = {held.task_id for agent in self.agents.values() for held in self._held(agent)}
        cancelled = self.model.dropped + len(revoked - still)
        assert live + len(final | dead) + cancelled == len(self.model.tasks)
        assert not revoked & (final | dead)

    @invariant()
    def the_dead_have_a_reason(self) -> None:
        for letter in self.store.find_dead(DeadQuery(limit=10**6)):
            assert letter.reason
            assert self.model.tasks[letter.task_id].grid is None, "a standing task died"
            assert 1 <= letter.attempt <= MAX_ATTEMPTS


async def _advanced(clock: ManualClock, by_ns: int) -> None:
    clock._now_ns += by_ns  # nobody sleeps on it, so nobody needs to be woken


@pytest.mark.parametrize("name", STORES)
def test_machine(name: str) -> None:
    machine = type("Machine", (ControlPlaneMachine,), {"store_name": name})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=200 if name == "memory" else 80,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
