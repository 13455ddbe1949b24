"""Measuring without a task: leases whose probers answer at once, in one call for each kind."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import compress
from operator import not_
from typing import Any

from netsonde import wire
from netsonde.agent.bounds import Bounds
from netsonde.clock import Clock
from netsonde.model import Lease, TaskKind
from netsonde.probe.base import InstantProber, Moment, Prober, env_of, failure_of
from netsonde.wire import ResultColumns


class AtOnce:
    """Those of an agent's probers that answer without waiting; `kinds` are theirs."""

    def __init__(
        self, clock: Clock, probers: Mapping[TaskKind, Prober[Any]], bounds: Bounds
    ) -> None:
        self._clock = clock
        self._bounds = bounds
        self._probers = {
            kind: prober for kind, prober in probers.items() if isinstance(prober, InstantProber)
        }
        self.kinds = frozenset(self._probers)

    def measure(
        self, batches: Mapping[TaskKind, Sequence[Lease]], began: Moment, env: dict[str, Any]
    ) -> ResultColumns:
        """Measure leases, kind by kind; the results are in the batches' order."""
        full_env = env_of(began, env)
        return ResultColumns.joined(
            [self._columns_of(kind, batch, began, full_env) for kind, batch in batches.items()]
        )

    def _columns_of(
        self, kind: TaskKind, leases: Sequence[Lease], began: Moment, env: dict[str, Any]
    ) -> ResultColumns:
        """Measure; a prober's bug must still give every lease a result."""
        try:
            specs = self._bounds.specs(leases)
            return self._probers[kind].measure_many(specs, began, env).checked(len(specs))
        except Exception as error:
            failure = failure_of(error)
            count = len(leases)
            return ResultColumns(
                outcomes=[failure.outcome] * count,
                started_at_ns=[began.realtime_ns] * count,
                durations_ns=[self._clock.monotonic_ns() - began.monotonic_ns] * count,
                observations=[wire.encode_observations(())] * count,
                env=env,
                errors=[failure.as_value()] * count,
            )


def parted_by_kind(leases: Sequence[Lease]) -> Mapping[TaskKind, list[Lease]]:
    """Return the leases of each kind."""
    by_kind: defaultdict[TaskKind, list[Lease]] = defaultdict(list)
    for lease in leases:
        by_kind[lease.kind].append(lease)
    return by_kind


def parted(
    leases: Sequence[Lease], chosen: Sequence[bool]
) -> tuple[Sequence[Lease], Sequence[Lease]]:
    """Return the leases that were chosen, and the others."""
    if all(chosen):
        return leases, ()
    return [*compress(leases, chosen)], [*compress(leases, map(not_, chosen))]
