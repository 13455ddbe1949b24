"""What every prober is, what it may use and how one run of it becomes a Measurement."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from netsonde import __version__
from netsonde.clock import Clock
from netsonde.errors import NetsondeError, ResolveError, TargetDeniedError
from netsonde.model import (
    Failure,
    FailureSource,
    Measurement,
    Observation,
    Outcome,
    Reason,
    TaskKind,
)

SpecT_contra = TypeVar("SpecT_contra", contravariant=True)


class Prober(Protocol[SpecT_contra]):
    """Measures one kind of task. One prober object serves every lease of its kind."""

    kind: TaskKind

    async def run(self, spec: SpecT_contra, record: "Recorder") -> None:
        """Measure what spec says; put observations, summary and verdict into record.

        A target that fails is a verdict, not an exception. On cancellation the prober adds the
        summary of what it saw so far and lets CancelledError pass.

        Raises:
            NetsondeError: it could not be measured here; becomes `agent_error`.
            ResolveError, TargetDeniedError: become `resolve_failed` and `denied`.
        """
        ...

    async def close(self) -> None:
        """Release sockets. Idempotent."""
        ...


class Recorder:
    """Collects what one run sees, so that a run that is cut short still has a result."""

    def __init__(self, clock: Clock, env: dict[str, Any] | None = None) -> None:
        self._clock = clock
        self._started_at_ns = clock.realtime_ns()
        self._started_ns = clock.monotonic_ns()
        self._observations: list[Observation] = []
        self._outcome: Outcome | None = None
        self._error: Failure | None = None
        self.env: dict[str, Any] = {"version": __version__, **(env or {})}

    def observe(self, name: str, value: dict[str, Any], unit: str | None = None) -> None:
        """Add one observation."""
        self._observations.append(Observation(name, value, unit))

    def ok(self) -> None:
        """Record the verdict that the target was reached and met every expectation."""
        self._outcome, self._error = Outcome.OK, None

    def fail(
        self,
        outcome: Outcome,
        reason: Reason,
        source: FailureSource,
        message: str,
    ) -> None:
        """Record why the run is not ok."""
        self._outcome = outcome
        self._error = Failure(reason=reason, failure_source=source, message=message)

    def measurement(self) -> Measurement:
        """Freeze what was recorded; without a verdict it is our own error."""
        outcome, error = self._outcome, self._error
        if outcome is None:
            outcome = Outcome.AGENT_ERROR
            error = Failure(
                reason=Reason.TX_ERROR,
                failure_source=FailureSource.SELF,
                message="the prober ended without a verdict",
            )
        return Measurement(
            outcome=outcome,
            started_at_ns=self._started_at_ns,
            duration_ns=self._clock.monotonic_ns() - self._started_ns,
            observations=tuple(self._observations),
            error=error,
            env=self.env,
        )


@contextmanager
def early_end_in(summary: dict[str, Any]) -> Iterator[None]:
    """Write into a run's summary what ends the run before it has measured; it is raised on."""
    try:
        yield
    except TargetDeniedError as error:
        summary |= {"error": str(error), "reason": Reason.DENIED}
        raise
    except ResolveError as error:
        summary |= {"error": str(error), "reason": Reason.RESOLVE_FAILED}
        raise
    except asyncio.CancelledError:
        summary |= {"cancelled": True, "reason": Reason.CANCELLED}
        raise


async def measure(prober: Prober[SpecT_contra], spec: SpecT_contra, record: Recorder) -> None:
    """Run prober once; whatever it raises, save cancellation, becomes the verdict in record."""
    try:
        await prober.run(spec, record)
    except asyncio.CancelledError:
        raise
    except TargetDeniedError as error:
        record.fail(Outcome.REJECTED, Reason.DENIED, FailureSource.POLICY, str(error))
    except ResolveError as error:
        record.fail(Outcome.TARGET_ERROR, Reason.RESOLVE_FAILED, FailureSource.RESOLVER, str(error))
    except NetsondeError as error:
        record.fail(Outcome.AGENT_ERROR, Reason.TX_ERROR, FailureSource.SELF, str(error))
    except Exception as error:  # a prober's bug must still give the lease a result
        record.fail(
            Outcome.AGENT_ERROR,
            Reason.PROTOCOL_ERROR,
            FailureSource.SELF,
            f"internal error: {type(error).__name__}: {error}",
        )
