"""What one trace saw, as its `trace` observation; the original's fields come first, in order."""

import asyncio
import os
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import pairwise
from typing import Any

from netsonde.clock import NS_PER_MS
from netsonde.errors import (
    PrivilegeError,
    ResolveError,
    RouteError,
    TargetDeniedError,
)
from netsonde.model import Reason, TraceSpec
from netsonde.probe.icmp_errors import explain_icmp
from netsonde.probe.trace.answers import Answer, Flag, Hop, Kind, Stop, Traced
from netsonde.probe.trace.driver import PORTS
from netsonde.probe.trace.extensions import decode_extensions
from netsonde.probe.trace.graph import Graph, Node
from netsonde.probe.trace.losses import classify, hop_probes
from netsonde.probe.trace.pmtud import Pmtu


def nothing(spec: TraceSpec) -> dict[str, Any]:
    """Return a `trace` of nothing."""
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
        "source": None,
        "method": spec.method,
        "sent": 0,
        "late": 0,
        "duplicates": 0,
        "tx_errors": 0,
        "rx_drops": 0,
        "tx_clock": "user",
        "rx_clock": "kernel",
    }


def cut_short(error: BaseException) -> dict[str, Any]:
    """Return the fields that say what kept a trace from its end."""
    if isinstance(error, asyncio.CancelledError):
        return {"status": "cancelled", "stop_reason": str(Stop.CANCELLED)}
    if isinstance(error, PrivilegeError):
        return {
            "status": "permission_denied",
            "stop_reason": str(Stop.DENIED),
            "permission_denied": True,
        }
    stop = Stop.TX_ERROR
    if isinstance(error, TargetDeniedError):
        stop = Stop.DENIED
    elif isinstance(error, ResolveError):
        stop = Stop.RESOLVE_FAILED
    elif isinstance(error, RouteError):
        stop = Stop.NO_ROUTE
    return {"status": "error", "stop_reason": str(stop)}


def seen(spec: TraceSpec, traced: Traced) -> dict[str, Any]:
    """Return the fields that say what a trace saw."""
    translated = [each.ttl for each in traced.answers if each.flags & Flag.TRANSLATED]
    is_user_clock = any(each.flags & Flag.USER_CLOCK for each in traced.answers)
    value: dict[str, Any] = {
        "paris_flow": traced.checksum if spec.method == "icmp" else traced.source_port,
        "hops": _hops(spec, traced),
        "nat_detected": bool(translated),
        "loop_detected": has_loop(traced),
        "protocols": [spec.method] * traced.sent,
        "stop_reason": str(traced.stop),
        "source": str(ip_address(traced.source)),
        "sent": traced.sent,
        "late": traced.late,
        "duplicates": traced.duplicates,
        "tx_errors": traced.tx_errors,
        "rx_drops": traced.rx_drops,
        "rx_clock": "user" if is_user_clock else "kernel",
    }
    if spec.method != "icmp":
        value["port"] = spec.port or PORTS[spec.method]
    if translated:
        value["nat_ttl"] = min(translated)
    if traced.missed:
        value["answers_missed"] = traced.missed
    return value


def multipath(spec: TraceSpec, graph: Graph) -> dict[str, Any]:
    """Return the `multipath` of a trace: every path that was found."""
    value: dict[str, Any] = {
        "confidence": spec.confidence,
        "nodes": [
            {"ttl": node.ttl, "address": _address(node)}
            | ({"reached_destination": True} if node.is_end else {})
            | ({"per_packet": True} if node in graph.balancers else {})
            for node in graph.nodes
        ],
        "links": [
            {
                "ttl": link.source.ttl,
                "from": _address(link.source),
                "to": _address(link.target),
                "flows": list(link.flows),
            }
            for link in graph.links
        ],
        "flows": graph.flows,
        "sent": graph.probes,
    }
    if graph.is_cut:
        value["cut"] = True
    return value


def pmtu(found: Pmtu) -> dict[str, Any]:
    """Return the `pmtu` of a trace."""
    value: dict[str, Any] = {"mtu": found.mtu, "black_hole": found.black_hole}
    if found.ttl is not None:
        value["ttl"] = found.ttl
    if found.address is not None:
        value["address"] = found.address
    return value


def _address(node: Node) -> str | None:
    return None if node.responder is None else str(ip_address(node.responder))


def shown(spec: TraceSpec, traced: Traced) -> Iterator[Hop]:
    """Yield the hops that were tried, up to the end of the path."""
    end = traced.end_ttl
    if end == 0:
        answered = (hop.ttl for hop in traced.hops if hop.answer)
        end = max(answered, default=traced.first_ttl - 1) + spec.gap_limit
    return (hop for hop in traced.hops if hop.ttl <= end)


def has_loop(traced: Traced) -> bool:
    """Whether one router answered at two TTLs and not at one between them."""
    ttls: dict[bytes, list[int]] = {}
    for hop in traced.hops:
        if hop.answer is not None and hop.answer.is_expiry:
            ttls.setdefault(hop.answer.responder, []).append(hop.ttl)
    return any(after - before > 1 for each in ttls.values() for before, after in pairwise(each))


def _hops(spec: TraceSpec, traced: Traced) -> list[dict[str, Any]]:
    probed = hop_probes(traced)
    losses = {each.ttl: loss for each, loss in zip(probed, classify(probed), strict=True)}
    values = []
    for hop in shown(spec, traced):
        value = _hop(spec, hop)
        if (loss := losses.get(hop.ttl)) is not None:
            value["loss_class"] = str(loss.loss_class)
            value["loss_confidence"] = round(loss.confidence, 3)
        values.append(value)
    return values


def _hop(spec: TraceSpec, hop: Hop) -> dict[str, Any]:
    answer = hop.answer
    value: dict[str, Any] = {"ttl": hop.ttl}
    if answer is not None:
        value["address"] = answer.address
        value["rtt_ms"] = answer.rtt_ns / NS_PER_MS
    value["protocol"] = spec.method
    value["success"] = answer is not None
    value["reached_destination"] = answer is not None and answer.is_end(spec.method)
    if answer is None:
        refusals = [each for each in hop.answers if each.kind == Kind.REFUSED]
        value["error"] = _missing(refusals[-1] if len(refusals) == hop.attempts else None)
    elif answer.kind == Kind.ERROR and not answer.is_expiry and not answer.is_end(spec.method):
        value["error"] = str(explain_icmp(answer.version, answer.icmp_type, answer.icmp_code)[0])
    value["probes"] = _probes(hop)
    return value


def _probes(hop: Hop) -> list[dict[str, Any]]:
    """Return every answer and every attempt without one, by attempt."""
    refused = {each.attempt: each for each in hop.answers if each.kind == Kind.REFUSED}
    in_time = {each.attempt for each in hop.answers if each.is_counted}
    values = [_answer(each) for each in hop.answers if each.kind != Kind.REFUSED]
    values += [
        {"attempt": attempt, "error": _missing(refused.get(attempt))}
        for attempt in range(hop.attempts)
        if attempt not in in_time
    ]
    return sorted(values, key=lambda value: value["attempt"])


def _missing(refusal: Answer | None) -> str:
    """Say why a probe has no answer in time."""
    if refusal is None:
        return str(Reason.TIMEOUT)
    return f"{Reason.TX_ERROR}: {os.strerror(refusal.icmp_code)}"


def _answer(answer: Answer) -> dict[str, Any]:
    value: dict[str, Any] = {
        "attempt": answer.attempt,
        "address": answer.address,
        "rtt_ms": answer.rtt_ns / NS_PER_MS,
        "reply_ttl": answer.reply_ttl,
        "icmp_type": answer.icmp_type,
        "icmp_code": answer.icmp_code,
        "late": bool(answer.flags & Flag.LATE),
        "duplicate": bool(answer.flags & Flag.DUPLICATE),
    }
    if answer.kind == Kind.ERROR:
        value |= {"quoted_ttl": answer.quoted_ttl, "quoted_tos": answer.quoted_tos}
    elif answer.kind != Kind.ECHO:
        del value["icmp_type"], value["icmp_code"]
        value["tcp"] = "rst" if answer.kind == Kind.RST else "syn_ack"
    if answer.flags & Flag.TRANSLATED:
        value["nat"] = True
    if answer.flags & Flag.USER_CLOCK:
        value["rx_clock"] = "user"
    if answer.mtu:
        value["mtu"] = answer.mtu
    if answer.extension:
        value |= _extension(answer)
    return value


def _extension(answer: Answer) -> dict[str, Any]:
    """Return what a router attached: what can be trusted decoded, the rest raw, in hexadecimal."""
    found = decode_extensions(answer.extension)
    if not found.is_trusted:
        return {"extensions_untrusted": answer.extension.hex()}
    value: dict[str, Any] = {}
    if found.mpls:
        value["mpls"] = [
            {
                "label": each.label,
                "tc": each.traffic_class,
                "bottom": each.bottom,
                "ttl": each.ttl,
            }
            for each in found.mpls
        ]
    if found.interfaces:
        value["interfaces"] = [
            {name: part for name, part in each._asdict().items() if part is not None}
            for each in found.interfaces
        ]
    value["extensions"] = [
        {"class": each.class_num, "type": each.c_type, "data": each.payload.hex()}
        for each in found.objects
    ]
    return value
