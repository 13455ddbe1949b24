"""A lease is never lost, never late, never counted twice: worlds by their seeds.

NETSONDE_LEASE_SEEDS says how many of them, or which (`1001-2000`); a failure names its seed, which
`simulate` repeats.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from netsonde.server import leasing
from netsonde.server.leasing import ExtendStatus, Extension, HeldTask
from netsonde.server.store import MemoryStore, SqliteStore
from netsonde.server.store.base import Reached
from netsonde.spool import Spool
from support.lease_world import FAULTS_MIN, LEASES_MIN, Fault, WrongError, simulate
from support.lease_world.command import seeds_of
from support.lease_world.server import ServerHost

SEEDS = seeds_of(os.environ.get("NETSONDE_LEASE_SEEDS", "100"))
FAILPOINTS_HIT = 0.9
PLANTED_SEEDS = 60  # a planted bug is found within so many worlds


def test_every_lease_ends_in_one_accepted_result_or_goes_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults: Counter[Fault] = Counter()
    for seed in SEEDS:
        world = simulate(seed)
        assert world.grants >= LEASES_MIN
        assert world.faults.total() >= FAULTS_MIN
        faults += world.faults
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(SEEDS)} worlds: " + ", ".join(f"{faults[each]} {each}" for each in Fault)
        )
    assert sum(faults[each] > 0 for each in Fault) >= FAILPOINTS_HIT * len(Fault)


def test_a_seed_makes_one_world() -> None:
    assert simulate(7) == simulate(7)


def simulate_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        simulate(seed)


# ── planted bugs ──

Plant = Callable[[pytest.MonkeyPatch], None]


def acknowledgement_before_commit(patch: pytest.MonkeyPatch) -> None:
    """Reports are answered before their results are durable."""
    plain = ServerHost.lose

    def lose(self: ServerHost, store: Any, result: Any) -> Any:
        if result is not None:  # of a claim, an extension: a report's work returns nothing
            return plain(self, store, result)
        store.rollback()
        asyncio.get_running_loop().call_later(0.2, self.crash)
        return result

    patch.setattr(ServerHost, "lose", lose)


def fence_ignored(patch: pytest.MonkeyPatch) -> None:
    """A result wins its task under any lease that the task ever had."""
    for store in (MemoryStore, SqliteStore):
        plain_take, plain_by_lease = store.take, store.by_lease
        of_lease: dict[int, tuple[int, int]] = {}

        def take(self: Any, queue: int, kind: Any, limit: int, grant: Any, plain: Any = plain_take,
                 of_lease: Any = of_lease) -> Any:  # fmt: skip
            granted = plain(self, queue, kind, limit, grant)
            of_lease |= {task.lease_id: (task.task_id, grant.agent_id) for task in granted}
            return granted

        def by_lease(self: Any, lease_ids: Any, plain: Any = plain_by_lease,
                     of_lease: Any = of_lease) -> Any:  # fmt: skip
            found = plain(self, lease_ids)
            current = {task.task_id: task for agent in range(1, 4) for task in self.held_by(agent)}
            for lease_id in set(lease_ids) - found.keys():
                task_id, agent_id = of_lease.get(lease_id, (0, 0))
                if task_id in current:
                    found[lease_id] = leasing.HeldTask(
                        **{name: getattr(current[task_id], name)
                           for name in HeldTask.__struct_fields__}
                        | {"lease_id": lease_id, "agent_id": agent_id}
                    )  # fmt: skip
            return found

        patch.setattr(store, "take", take)
        patch.setattr(store, "by_lease", by_lease)


def extension_that_shortens(patch: pytest.MonkeyPatch) -> None:
    """An extension ends after what was asked for, whatever the lease had left."""

    def extend(
        self: leasing.LeasingPolicy, held: HeldTask | None, agent_id: int, by_ns: int, now_ns: int
    ) -> Extension:
        if held is None or held.agent_id != agent_id:
            return Extension(ExtendStatus.FENCED)
        return Extension(ExtendStatus.EXTENDED, now_ns + min(by_ns, self.term_ns(held.kind)) // 2)

    patch.setattr(leasing.LeasingPolicy, "extend", extend)


def slot_freed_before_the_result_is_durable(patch: pytest.MonkeyPatch) -> None:
    """The spool says that it has results which it could not write."""
    plain = Spool.append_many

    async def append_many(
        self: Spool, lease_ids: Sequence[int], bodies: Sequence[bytes], cancelled: Sequence[bool]
    ) -> int:
        try:
            return await plain(self, lease_ids, bodies, cancelled)
        except Exception:
            return len(bodies)  # the bug that is planted

    patch.setattr(Spool, "append_many", append_many)


def sweeper_without_grace(patch: pytest.MonkeyPatch) -> None:
    """Leases are taken back the moment they end."""
    patch.setattr(leasing.LeasingPolicy, "due_ns", lambda _self, _kind, until_ns, **_: until_ns)


def clock_kept_by_housekeeping_alone(patch: pytest.MonkeyPatch) -> None:
    """A commit keeps how far the lease ids are, but not the clock."""
    for store in (MemoryStore, SqliteStore):

        def follow(self: Any, reached: Reached, plain: Any = store.follow) -> None:
            plain(self, lambda: (0, reached()[1]))

        patch.setattr(store, "follow", follow)


# Each with what the oracle says first of it.
PLANTS: Mapping[Plant, str] = {
    acknowledgement_before_commit: "answered (accepted|late_accepted) with 0 rows",
    fence_ignored: "a result of a lease that is not its last",
    extension_that_shortens: "an extension shortened it",
    slot_freed_before_the_result_is_durable: "measured and never reported",
    sweeper_without_grace: "taken back .* after its end",
    clock_kept_by_housekeeping_alone: "clock is .* behind what it wrote",
}


@pytest.mark.parametrize(("plant", "found_as"), PLANTS.items())
def test_a_planted_bug_is_found(
    plant: Plant, found_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(WrongError, match=f"seed [0-9]+: .*{found_as}"):
        simulate_all(range(1, PLANTED_SEEDS + 1))
