"""Whether a trace reached its destination, and what to say when it did not."""

from typing import Any, NamedTuple

from netsonde.model import FailureSource, Outcome, Reason, TraceSpec
from netsonde.probe.base import Recorder
from netsonde.probe.icmp_errors import explain_icmp, explain_send, source_of
from netsonde.probe.trace.answers import Answer, Stop, Traced


class Verdict(NamedTuple):
    """Why a trace is not ok."""

    outcome: Outcome
    reason: Reason
    source: FailureSource
    message: str


def judge(spec: TraceSpec, traced: Traced, address: str, record: Recorder) -> dict[str, Any]:
    """Put the verdict of a trace that ran to its end into record; return what the result says."""
    if traced.stop is Stop.COMPLETED:
        record.ok()
        return {}
    found = _verdict(spec, traced, 6 if ":" in address else 4)
    record.fail(*found[:3], f"{spec.host}: {found.message}")
    if traced.stop is Stop.TX_ERROR:
        return {"status": "error"}
    if (refusal := refusal_of(traced)) is not None:
        return {"unreachable": _refusal_value(refusal)}
    return {}


def refusal_of(traced: Traced) -> Answer | None:
    """Return the answer in which a router refused to go on, where that ended the trace."""
    if traced.stop is not Stop.UNREACHABLE:
        return None
    return traced.hops[traced.end_ttl - traced.first_ttl].answer


def _verdict(spec: TraceSpec, traced: Traced, version: int) -> Verdict:
    """Say why a trace that is done did not reach its destination."""
    if (refusal := refusal_of(traced)) is not None:
        reason, text = explain_icmp(version, refusal.icmp_type, refusal.icmp_code)
        message = f"{refusal.address} at TTL {refusal.ttl} says {text}"
        return Verdict(Outcome.TARGET_ERROR, reason, source_of(reason), message)
    if traced.stop is Stop.TX_ERROR:
        reason, text = explain_send(traced.errno)
        return Verdict(Outcome.AGENT_ERROR, reason, FailureSource.SELF, text)
    farthest = max((hop.ttl for hop in traced.hops if hop.answer), default=None)
    where = "no hop answered" if farthest is None else f"TTL {farthest} answered last"
    reason, text = Reason.TIMEOUT, f"no answer in time; {where}"
    if traced.stop is Stop.LOOP:
        reason, text = Reason.TTL_EXCEEDED, f"the path goes in circles; {where}"
    elif farthest == spec.max_hops:
        reason, text = Reason.TTL_EXCEEDED, f"not reached within {farthest} hops"
    return Verdict(Outcome.TARGET_ERROR, reason, FailureSource.PATH, text)


def _refusal_value(refusal: Answer) -> dict[str, Any]:
    reason, text = explain_icmp(refusal.version, refusal.icmp_type, refusal.icmp_code)
    return {
        "ttl": refusal.ttl,
        "address": refusal.address,
        "icmp_type": refusal.icmp_type,
        "icmp_code": refusal.icmp_code,
        "reason": str(reason),
        "message": text,
    }
