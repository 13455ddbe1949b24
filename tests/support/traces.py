"""Hand-made `trace` observations, as `netsonde.probe.trace` writes them."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from netsonde.clock import NS_PER_MS
from netsonde.probe.trace.answers import Answer, Kind

EXPIRED = (11, 0)
EXPIRED_6 = (3, 0)


def probe(
    address: str,
    rtt_ms: float,
    attempt: int = 0,
    icmp: tuple[int, int] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Make an answer of a hop; icmp: type and code, a TTL that has expired unless given."""
    icmp_type, icmp_code = icmp or (EXPIRED_6 if ":" in address else EXPIRED)
    return {
        "attempt": attempt,
        "address": address,
        "rtt_ms": rtt_ms,
        "reply_ttl": 60,
        "icmp_type": icmp_type,
        "icmp_code": icmp_code,
        "late": False,
        "duplicate": False,
        **more,
    }


def lost(attempt: int = 0, error: str = "timeout") -> dict[str, Any]:
    """Make an attempt that has no answer."""
    return {"attempt": attempt, "error": error}


def hop(ttl: int, *probes: dict[str, Any], reached: bool = False, **more: Any) -> dict[str, Any]:
    """Make a hop of its probes."""
    answers = [each for each in probes if "address" in each]
    value: dict[str, Any] = {"ttl": ttl}
    if answers:
        value |= {"address": answers[0]["address"], "rtt_ms": answers[0]["rtt_ms"]}
    value |= {"protocol": "icmp", "success": bool(answers), "reached_destination": reached}
    return value | more | {"probes": list(probes)}


def trace_value(host: str, *hops: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Make a `trace` that was completed, unless more says otherwise."""
    return {
        "host": host,
        "status": "ok",
        "total_duration_ms": 1234.5,
        "hops": list(hops),
        "stop_reason": "completed",
        "address": host,
        "method": "icmp",
        "sent": sum(len(each["probes"]) for each in hops),
        **more,
    }


def reached(host: str, routers: Sequence[str] = ()) -> dict[str, Any]:
    """Make a `trace` over routers to a host: TTL n answers after n ms."""
    hops = [hop(ttl, probe(each, float(ttl))) for ttl, each in enumerate(routers, start=1)]
    last = len(hops) + 1
    echo = (129, 0) if ":" in host else (0, 0)
    hops.append(hop(last, probe(host, float(last), icmp=echo), reached=True))
    return trace_value(host, *hops)


def answer(
    ttl: int,
    address: str,
    rtt_ms: float,
    attempt: int = 0,
    flags: int = 0,
    kind: Kind = Kind.ERROR,
) -> Answer:
    """Make what the prober tells of a hop that has answered."""
    packed = ip_address(address).packed
    icmp_type, icmp_code = EXPIRED if len(packed) == 4 else EXPIRED_6
    return Answer(
        ttl=ttl, attempt=attempt, kind=kind, responder=packed, icmp_type=icmp_type,
        icmp_code=icmp_code, sent_ns=0, rtt_ns=round(rtt_ms * NS_PER_MS), reply_ttl=60,
        quoted_ttl=1, quoted_tos=0, flags=flags, mtu=0, extension=b"",
    )  # fmt: skip
