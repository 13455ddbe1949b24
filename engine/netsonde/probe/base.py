"""What every prober is, what it may use and how one run of it becomes a Measurement."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

from netsonde import __version__
from netsonde.clock import Clock, ClockQuality
from netsonde.errors import (
    ConfigError,
    NetsondeError,
    RequestError,
    ResolveError,
    RouteError,
    TargetDeniedError,
)
from netsonde.model import (
    Failure,
    FailureSource,
    Measurement,
    Observation,
    Outcome,
    Reason,
    TaskKind,
)
from netsonde.wire import ResultColumns

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
            ResolveError, TargetDeniedError, RouteError: become `resolve_failed`, `denied` and
                `no_route`.
            RequestError, ConfigError: what the spec asks for cannot be had; becomes `rejected`.
        """
        ...

    async def close(self) -> None:
        """Release sockets. Idempotent."""
        ...


@runtime_checkable
class InstantProber(Prober[SpecT_contra], Protocol[SpecT_contra]):
    """Can also measure many specs at once, without waiting: what it is asked it knows."""

    def measure_many(
        self, specs: Sequence[SpecT_contra], began: "Moment", env: dict[str, Any]
    ) -> ResultColumns:
        """Measure what specs say, a row for each in their order; the columns share `env`."""
        ...


class Moment(NamedTuple):
    """An instant, on the wall clock, with its quality, and on the clock for durations."""

    realtime_ns: int
    monotonic_ns: int
    quality: ClockQuality

    @classmethod
    def now(cls, clock: Clock, quality: ClockQuality | None = None) -> Self:
        """Read both clocks; quality: of the wall clock, where somebody has asked for it."""
        return cls(clock.realtime_ns(), clock.monotonic_ns(), quality or clock.quality())


class RunFailure(NamedTuple):
    """Why a run as a whole is not ok."""

    outcome: Outcome
    reason: Reason
    failure_source: FailureSource
    message: str

    def as_value(self) -> Failure:
        """Return it as a result's error."""
        return Failure(reason=self.reason, failure_source=self.failure_source, message=self.message)


INTERRUPTED = RunFailure(
    Outcome.CANCELLED, Reason.CANCELLED, FailureSource.SELF, "interrupted before it had ended"
)


class Recorder:
    """Collects what one run sees, so that a run that is cut short still has a result.

    began: when the run did, where that was not now.
    """

    def __init__(
        self,
        clock: Clock,
        env: dict[str, Any] | None = None,
        *,
        columnar: bool = True,
        began: Moment | None = None,
    ) -> None:
        self.columnar = columnar  # packets may be told as columns; original peers know none
        self._clock = clock
        self._began = began or Moment.now(clock)
        self._observations: list[Observation] = []
        self._outcome: Outcome | None = None
        self._error: Failure | None = None
        self.env = env_of(self._began, env)

    def observe(self, name: str, value: dict[str, Any], unit: str | None = None) -> None:
        """Add one observation."""
        self._observations.append(Observation(name, value, unit))

    def observed(self, name: str) -> dict[str, Any]:
        """Return the value of the last observation of that name, empty when there is none."""
        for observation in reversed(self._observations):
            if observation.name == name:
                value: dict[str, Any] = observation.value
                return value
        return {}

    @property
    def is_ok(self) -> bool:
        """Whether the verdict so far is that all is well."""
        return self._outcome is Outcome.OK

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
            started_at_ns=self._began.realtime_ns,
            duration_ns=self._clock.monotonic_ns() - self._began.monotonic_ns,
            observations=tuple(self._observations),
            error=error,
            env=self.env,
        )


def env_of(began: Moment, env: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return how a run that began then is measured; env: what its owner knows of that."""
    return {"version": __version__, "clock": began.quality.as_env(), **(env or {})}


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
    except Exception as error:  # a prober's bug must still give the lease a result
        record.fail(*failure_of(error))


def failure_of(error: Exception) -> RunFailure:
    """Return the verdict on a run that ended with this exception."""
    outcome, reason, source = Outcome.AGENT_ERROR, Reason.TX_ERROR, FailureSource.SELF
    match error:
        case TargetDeniedError():
            outcome, reason, source = Outcome.REJECTED, Reason.DENIED, FailureSource.POLICY
        case ResolveError():
            outcome, source = Outcome.TARGET_ERROR, FailureSource.RESOLVER
            reason = Reason.RESOLVE_FAILED
        case RequestError() | ConfigError():  # what was asked for cannot be had here
            outcome, reason = Outcome.REJECTED, Reason.DENIED
        case RouteError():
            outcome, reason = Outcome.TARGET_ERROR, Reason.NO_ROUTE
        case NetsondeError():
            pass
        case _:
            message = f"internal error: {type(error).__name__}: {error}"
            return RunFailure(outcome, Reason.PROTOCOL_ERROR, source, message)
    return RunFailure(outcome, reason, source, str(error))
