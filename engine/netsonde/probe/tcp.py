"""TCP checks: race a host's addresses to one port and tell every attempt's end apart."""

from collections.abc import Sequence
from typing import Any

from netsonde.clock import NS_PER_MS, Clock
from netsonde.errors import ResolveError
from netsonde.model import FailureSource, Outcome, Reason, TaskKind, TcpSpec
from netsonde.probe.base import Recorder, early_end_in
from netsonde.probe.connect import (
    Attempt,
    Dial,
    Dialer,
    attempts_to,
    decisive_failure,
    first_connected,
    race,
)
from netsonde.probe.limits import time_limit
from netsonde.probe.targets import RESOLVE_TIMEOUT_NS, Resolution, TargetResolver


class TcpProber:
    """Measures TCP connects: `tcp_attempt` per address, then one `tcp_summary`.

    `timeout_ms` covers everything, name resolution included. A closed port is a result.
    """

    kind = TaskKind.TCP

    def __init__(self, clock: Clock, resolver: TargetResolver, *, dial: Dial | None = None) -> None:
        self._clock = clock
        self._resolver = resolver
        self._dial = dial or Dialer(clock)

    async def run(self, spec: TcpSpec, record: Recorder) -> None:
        """Connect to spec's host and port; see `Prober.run`."""
        record.env.setdefault("policy_version", self._resolver.policy.version)
        started_ns = self._clock.monotonic_ns()
        timeout_ns = spec.timeout_ms * NS_PER_MS
        summary: dict[str, Any] = {
            "success": False,
            "address": None,
            "rtt_ms": None,
            "errno": None,
            "host": spec.host,
            "port": spec.port,
        }
        try:
            with early_end_in(summary):
                found = await self._resolver.resolve(
                    spec.host, spec.family, timeout_ns=min(timeout_ns, RESOLVE_TIMEOUT_NS)
                )
                now_ns = self._clock.monotonic_ns()
                summary["resolve_ms"] = (now_ns - started_ns) / NS_PER_MS
                left_ns = max(timeout_ns - (now_ns - started_ns), 0)
                await self._race(spec, found, left_ns, summary, record)
        except ResolveError as error:
            record.observe(
                "tcp_resolution", {"host": spec.host, "port": spec.port, "error": str(error)}
            )
            raise
        finally:
            elapsed_ns = self._clock.monotonic_ns() - started_ns
            record.observe("tcp_summary", summary | {"total_ms": elapsed_ns / NS_PER_MS})

    async def _race(
        self,
        spec: TcpSpec,
        found: Resolution,
        left_ns: int,
        summary: dict[str, Any],
        record: Recorder,
    ) -> None:
        if found.denied:
            summary["denied"] = list(found.denied)
        with attempts_to(found.addresses, spec.port) as attempts:
            cut_short = Reason.CANCELLED
            try:
                async with time_limit(left_ns):
                    await race(self._clock, attempts, self._dial)
            except TimeoutError:
                cut_short = Reason.TIMEOUT
            finally:
                summary["attempts"] = observe_attempts(attempts, cut_short, record)
            winner = first_connected(attempts)
            if winner is None:
                _lose(spec, attempts, cut_short, summary, record)
            else:
                record.env.setdefault("source", winner.local)
                summary |= {"success": True, **_timing(winner)}
                record.ok()

    async def close(self) -> None:
        """Release nothing: connections live no longer than their run."""


def observe_attempts(attempts: Sequence[Attempt], cut_short: Reason, record: Recorder) -> int:
    """Add one `tcp_attempt` per attempt that was started; return how many those are."""
    started = [each for each in attempts if each.is_made]
    for attempt in started:
        record.observe("tcp_attempt", _attempt_value(attempt, cut_short))
    return len(started)


def _attempt_value(attempt: Attempt, cut_short: Reason) -> dict[str, Any]:
    failure = attempt.failure
    value = {"attempt": attempt.number, "success": attempt.sock is not None} | _timing(attempt)
    value |= {"error": failure.text if failure else None, "cancelled": False}
    if failure is not None:
        value |= {"errno": failure.errno, "reason": failure.reason}
    elif attempt.superseded:
        value["reason"] = "superseded"
    elif attempt.sock is None:
        value |= {"reason": cut_short, "cancelled": cut_short is Reason.CANCELLED}
        if cut_short is Reason.TIMEOUT:
            value["error"] = "no answer in time"
    return value


def _timing(attempt: Attempt) -> dict[str, Any]:
    rtt_ns, syn_rtt_ns = attempt.rtt_ns, attempt.syn_rtt_ns
    return {
        "address": attempt.endpoint,
        "rtt_ms": None if rtt_ns is None else rtt_ns / NS_PER_MS,
        "rtt_clock": attempt.rtt_clock,
        "syn_rtt_ms": None if syn_rtt_ns is None else syn_rtt_ns / NS_PER_MS,
        "retransmits": attempt.retransmits,
        "errno": None,
    }


def _lose(
    spec: TcpSpec,
    attempts: Sequence[Attempt],
    cut_short: Reason,
    summary: dict[str, Any],
    record: Recorder,
) -> None:
    failure = decisive_failure(attempts)
    if failure is None or (cut_short is Reason.TIMEOUT and failure.source is FailureSource.SELF):
        text = f"no answer from {spec.host} port {spec.port} within {spec.timeout_ms} ms"
        last = next((each for each in reversed(attempts) if each.started_ns is not None), None)
        summary |= {"error": text, "reason": Reason.TIMEOUT}
        summary["address"] = last.endpoint if last else None
        record.fail(Outcome.TARGET_ERROR, Reason.TIMEOUT, FailureSource.TARGET, text)
        return
    told = next(each for each in attempts if each.failure is failure)
    rtt_ns = told.rtt_ns
    summary |= {"address": told.endpoint, "error": failure.text, "reason": failure.reason}
    summary |= {"errno": failure.errno, "rtt_ms": None if rtt_ns is None else rtt_ns / NS_PER_MS}
    record.fail(failure.outcome, failure.reason, failure.source, f"{told.endpoint}: {failure.text}")
