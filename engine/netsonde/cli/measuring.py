"""One-shot measuring: many targets at once, each result handed on as soon as it is there."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from netsonde import wire
from netsonde.cli.exits import Exit
from netsonde.clock import Clock, SystemClock
from netsonde.model import FailureSource, Measurement, Outcome, TaskKind, TaskSpec
from netsonde.policy import TargetPolicy
from netsonde.probe import make_probers
from netsonde.probe.base import INTERRUPTED, Prober, Recorder, measure

TARGETS_AT_ONCE_MAX = 64  # bounds sockets well below the usual limit of 1024 open files

Emit = Callable[[TaskSpec, Measurement], None]


def build_specs(
    kind: TaskKind, targets: Sequence[str], options: Mapping[str, Any]
) -> list[TaskSpec]:
    """Build the spec of every target before the first packet leaves.

    Raises:
        RequestError: a target or an option is wrong; names the field and what is allowed.
    """
    return [wire.build_spec(kind, target, options) for target in targets]


async def measure_for_person(kind: TaskKind, specs: Sequence[TaskSpec], emit: Emit) -> None:
    """Measure specs with the real probers under the policy for a person at the command line."""
    clock, policy = SystemClock(), TargetPolicy.person()
    prober = make_probers(clock, policy)[kind]
    try:
        await measure_all(prober, specs, emit, clock=clock, env={"policy_version": policy.version})
    finally:
        await prober.close()


async def measure_all(
    prober: Prober[Any],
    specs: Sequence[TaskSpec],
    emit: Emit,
    *,
    clock: Clock,
    env: Mapping[str, Any],
) -> None:
    """Measure specs concurrently; when cancelled, emit what each had seen so far."""
    slots = asyncio.Semaphore(TARGETS_AT_ONCE_MAX)
    async with asyncio.TaskGroup() as group:
        for spec in specs:
            group.create_task(
                _measure_one(prober, spec, emit, slots, lambda: Recorder(clock, dict(env)))
            )


async def _measure_one(
    prober: Prober[Any],
    spec: TaskSpec,
    emit: Emit,
    slots: asyncio.Semaphore,
    new_record: Callable[[], Recorder],
) -> None:
    async with slots:
        record = new_record()  # now, because it remembers when the measurement started
        try:
            await measure(prober, spec, record)
        except asyncio.CancelledError:
            record.fail(*INTERRUPTED)
            with suppress(BrokenPipeError):  # the reader may have been interrupted with us
                emit(spec, record.measurement())
            raise
        emit(spec, record.measurement())


def exit_of(outcome: Outcome, failure_source: str | None) -> Exit:
    """Return the exit code of one result."""
    match outcome:
        case Outcome.OK:
            return Exit.OK
        case Outcome.AGENT_ERROR:
            return Exit.CANNOT
        case Outcome.REJECTED if failure_source == FailureSource.SELF:
            return Exit.USAGE  # no policy forbids it: what was asked for cannot be asked
        case _:
            return Exit.TARGET_FAILED
