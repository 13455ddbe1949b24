"""Traces: the routers on the way to a host, every TTL in flight at once.

ICMP echo requests, IPv4 and IPv6, all traces of a family over one native socket. The checksum and
the identifier are constant within a trace, so that routers balancing by flow keep it on one path.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, NamedTuple

from netsonde.clock import NS_PER_MS, Clock
from netsonde.errors import NetsondeError, PrivilegeError, ResolveError, TargetDeniedError
from netsonde.model import FailureSource, Outcome, Reason, TaskKind, TraceSpec
from netsonde.probe.base import Recorder
from netsonde.probe.icmp_errors import explain_icmp, explain_send, source_of
from netsonde.probe.privilege import GRANT_HINT
from netsonde.probe.targets import TargetResolver
from netsonde.probe.trace_lane import TraceEngine, TraceLane, TraceRun, open_engine
from netsonde.probe.trace_path import DUPLICATE, TRANSLATED, USER_CLOCK, Answer, Hop, Path, Stop


class TraceProber:
    """Traces any number of hosts at once over one socket pair per family.

    A run probes `first_hop` to `max_hops`, a window of TTLs at a time, and asks a silent hop up to
    `probes_per_hop` times; a hop that answered is not asked again. It gives one `trace`, whatever
    happened, and is `ok` when the destination answered the echo request.

    `loop_detected`: one router reported expired TTLs at two TTLs, and not at one between them.
    `nat_detected`: a router quoted a probe whose source or destination was not what was sent.
    """

    kind = TaskKind.TRACE

    def __init__(
        self,
        clock: Clock,
        resolver: TargetResolver,
        *,
        engine: Callable[[int], TraceEngine] = open_engine,
    ) -> None:
        self._clock = clock
        self._resolver = resolver
        self._open_engine = engine
        self._lanes: dict[int, TraceLane] = {}

    async def run(self, spec: TraceSpec, record: Recorder) -> None:
        """Trace the first vetted address of spec's host that there is a route to.

        Raises:
            PrivilegeError, SendError: it could not be traced here; the `trace` is in record.
            ResolveError, TargetDeniedError: likewise.
        """
        started_ns = self._clock.monotonic_ns()
        record.env.setdefault("policy_version", self._resolver.policy.version)
        result = _empty_result(spec)
        try:
            addresses = await self._resolver.addresses(spec.host, spec.family)
            await self._trace_first(spec, addresses, result, record)
        except (NetsondeError, asyncio.CancelledError) as error:
            result |= _cut_short(error)
            if isinstance(error, ResolveError):
                record.observe("trace_resolution", {"host": spec.host, "error": str(error)})
            raise
        finally:
            elapsed_ns = self._clock.monotonic_ns() - started_ns
            record.observe("trace", result | {"total_duration_ms": elapsed_ns / NS_PER_MS})

    async def close(self) -> None:
        """Close the sockets. Idempotent."""
        while self._lanes:
            self._lanes.popitem()[1].close()

    async def _trace_first(
        self, spec: TraceSpec, addresses: tuple[str, ...], result: dict[str, Any], record: Recorder
    ) -> None:
        """Trace to the first address that can be sent to, or say why there is none."""
        code = errno.EHOSTUNREACH
        for address in addresses:
            result["address"] = address
            path = Path(spec, _version(address))
            try:
                lane = self._lane(_version(address))
                run = await lane.begin(address, path, spec.probes_per_hop)
            except PrivilegeError:
                raise
            except OSError as error:  # no route, or this host has no such family
                code = error.errno or code
                continue
            await _trace(lane, run, result, record)
            return
        reason, text = explain_send(code)
        result |= {"status": "error", "stop_reason": str(Stop.NO_ROUTE)}
        record.fail(Outcome.AGENT_ERROR, reason, FailureSource.SELF, f"{spec.host}: {text}")

    def _lane(self, version: int) -> TraceLane:
        """Return the lane of a family, opened when it is first needed."""
        if version not in self._lanes:
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            try:
                engine = self._open_engine(family)
            except PermissionError as error:
                raise PrivilegeError(f"trace: {error.strerror}\n{GRANT_HINT}") from error
            self._lanes[version] = TraceLane(engine, self._clock)
        return self._lanes[version]


async def _trace(lane: TraceLane, run: TraceRun, result: dict[str, Any], record: Recorder) -> None:
    """Run one trace that has its slot; whatever ends it, what was seen is in result."""
    source, checksum, _ = lane.engine.flow(run.trace)
    record.env["source"] = str(ip_address(source))
    result["paris_flow"] = checksum
    drops = lane.rx_drops()
    try:
        await run.finish()
        result["stop_reason"] = str(run.path.stop)
        _judge(run.path, result, record)
    finally:
        result |= _seen(run.path) | {"rx_drops": lane.rx_drops() - drops}
        lane.end(run)


# ── verdict ──


class Verdict(NamedTuple):
    """Why a trace is not ok."""

    outcome: Outcome
    reason: Reason
    source: FailureSource
    message: str


def _judge(path: Path, result: dict[str, Any], record: Recorder) -> None:
    if path.stop is Stop.COMPLETED:
        record.ok()
        return
    if path.stop is Stop.TX_ERROR:
        result["status"] = "error"
    if path.stop is Stop.UNREACHABLE:
        result["unreachable"] = _refusal_value(path)
    verdict = _verdict(path)
    record.fail(*verdict[:3], f"{result['host']}: {verdict.message}")


def _refusal_value(path: Path) -> dict[str, Any]:
    hop, answer = _refusal(path)
    reason, text = explain_icmp(path.version, answer.icmp_type, answer.icmp_code)
    return {
        "ttl": hop.ttl,
        "address": answer.address,
        "icmp_type": answer.icmp_type,
        "icmp_code": answer.icmp_code,
        "reason": str(reason),
        "message": text,
    }


def _verdict(path: Path) -> Verdict:
    """Say why a trace that is done did not reach its destination."""
    stop = path.stop
    if stop is Stop.UNREACHABLE:
        hop, answer = _refusal(path)
        reason, text = explain_icmp(path.version, answer.icmp_type, answer.icmp_code)
        message = f"{answer.address} at TTL {hop.ttl} says {text}"
        return Verdict(Outcome.TARGET_ERROR, reason, source_of(reason), message)
    if stop is Stop.TX_ERROR:
        reason, text = explain_send(path.last_errno or 0)
        return Verdict(Outcome.AGENT_ERROR, reason, FailureSource.SELF, text)
    farthest = path.farthest
    where = "no hop answered" if farthest is None else f"TTL {farthest.ttl} answered last"
    reason, text = Reason.TIMEOUT, f"no answer in time; {where}"
    if stop is Stop.LOOP:
        reason, text = Reason.TTL_EXCEEDED, f"the path goes in circles; {where}"
    elif farthest is not None and farthest.ttl == path.last_ttl:
        reason, text = Reason.TTL_EXCEEDED, f"not reached within {path.last_ttl} hops"
    return Verdict(Outcome.TARGET_ERROR, reason, FailureSource.PATH, text)


def _refusal(path: Path) -> tuple[Hop, Answer]:
    hop = path.refused
    if hop is None or hop.answer is None:
        raise RuntimeError("a trace stopped as unreachable, and no hop refused")
    return hop, hop.answer


# ── the observation ──


def _version(address: str) -> int:
    return 6 if ":" in address else 4


def _empty_result(spec: TraceSpec) -> dict[str, Any]:
    """Return a `trace` of nothing; the original's fields come first, in its order."""
    return {
        "host": spec.host,
        "status": "ok",
        "paris_flow": 0,
        "total_duration_ms": 0.0,
        "hops": [],
        "nat_detected": False,
        "loop_detected": False,
        "permission_denied": False,
        "protocols": [],
        "stop_reason": None,
        "address": None,
        "sent": 0,
        "late": 0,
        "duplicates": 0,
        "tx_errors": 0,
        "rx_drops": 0,
        "tx_clock": "user",
        "rx_clock": "kernel",
    }


def _cut_short(error: BaseException) -> dict[str, Any]:
    """Return the fields that say what kept a trace from its end."""
    if isinstance(error, asyncio.CancelledError):
        return {"status": "cancelled", "stop_reason": str(Stop.CANCELLED)}
    if isinstance(error, PrivilegeError):
        return {
            "status": "permission_denied",
            "stop_reason": str(Stop.DENIED),
            "permission_denied": True,
        }
    if isinstance(error, TargetDeniedError):
        return {"status": "error", "stop_reason": str(Stop.DENIED)}
    if isinstance(error, ResolveError):
        return {"status": "error", "stop_reason": str(Stop.RESOLVE_FAILED)}
    return {"status": "error", "stop_reason": str(Stop.TX_ERROR)}


def _seen(path: Path) -> dict[str, Any]:
    """Return the fields that say what a trace saw."""
    return {
        "hops": [_hop_value(path, hop) for hop in path.shown()],
        "nat_detected": path.is_translated,
        "loop_detected": path.has_loop,
        "protocols": ["icmp"] * path.sent,
        "sent": path.sent,
        "late": path.late,
        "duplicates": path.duplicates,
        "tx_errors": path.tx_errors,
        "rx_clock": "user" if path.is_user_clock else "kernel",
    }


def _hop_value(path: Path, hop: Hop) -> dict[str, Any]:
    answer = hop.answer
    value: dict[str, Any] = {"ttl": hop.ttl}
    if answer is not None:
        value["address"] = answer.address
        value["rtt_ms"] = answer.rtt_ns / NS_PER_MS
    value["protocol"] = "icmp"
    value["success"] = answer is not None
    value["reached_destination"] = answer is not None and path.is_echo(answer)
    if answer is None:
        is_refused = len(hop.refusals) == hop.attempts
        value["error"] = _attempt_error(hop, max(hop.refusals) if is_refused else None)
    elif path.is_refusal(answer):
        reason, _ = explain_icmp(path.version, answer.icmp_type, answer.icmp_code)
        value["error"] = str(reason)
    value["probes"] = _probe_values(path, hop)
    return value


def _probe_values(path: Path, hop: Hop) -> list[dict[str, Any]]:
    """Return every answer and every attempt without one, by attempt."""
    answers = hop.others if hop.answer is None else [hop.answer, *hop.others]
    values = [_answer_value(path, answer) for answer in answers]
    in_time = {answer.attempt for answer in answers if not path.is_late(answer)}
    values += [
        {"attempt": attempt, "error": _attempt_error(hop, attempt)}
        for attempt in range(hop.attempts)
        if attempt not in in_time
    ]
    return sorted(values, key=lambda value: value["attempt"])


def _attempt_error(hop: Hop, attempt: int | None) -> str:
    code = None if attempt is None else hop.refusals.get(attempt)
    return str(Reason.TIMEOUT) if code is None else f"{Reason.TX_ERROR}: {os.strerror(code)}"


def _answer_value(path: Path, answer: Answer) -> dict[str, Any]:
    value: dict[str, Any] = {
        "attempt": answer.attempt,
        "address": answer.address,
        "rtt_ms": answer.rtt_ns / NS_PER_MS,
        "reply_ttl": answer.reply_ttl,
        "icmp_type": answer.icmp_type,
        "icmp_code": answer.icmp_code,
        "late": path.is_late(answer),
        "duplicate": bool(answer.flags & DUPLICATE),
    }
    if not path.is_echo(answer):
        value |= {"quoted_ttl": answer.quoted_ttl, "quoted_tos": answer.quoted_tos}
    if answer.flags & TRANSLATED:
        value["nat"] = True
    if answer.flags & USER_CLOCK:
        value["rx_clock"] = "user"
    return value
