"""The `trace` observation: a field for all that was seen, and none for what was not."""

import asyncio
import errno
import struct
from ipaddress import ip_address
from typing import Any

import pytest

from netsonde._native import icmp
from netsonde.errors import (
    ConfigError,
    ErrorCode,
    NetsondeError,
    PrivilegeError,
    RequestError,
    ResolveError,
    RouteError,
    SendError,
    TargetDeniedError,
)
from netsonde.model import TraceSpec
from netsonde.probe.trace import observations
from netsonde.probe.trace.answers import Flag, Kind
from netsonde.probe.trace.graph import Graph, Link, Node
from netsonde.probe.trace.pmtud import Pmtu
from support.packets import checksum
from support.trace_endings import CHECKSUM, SOURCE_PORT, SOURCES, Ending, answer, echo

SPEC = TraceSpec(host="h.example")


def seen(ending: Ending, **fields: Any) -> dict[str, Any]:
    return observations.seen(TraceSpec(host="h.example", **fields), ending.traced())


def hops(*answers: Any, method: str = "icmp", **fields: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = seen(Ending(answers=answers, **fields), method=method)["hops"]
    return found


def probe(**fields: Any) -> dict[str, Any]:
    """Return what is said of one answer with these fields."""
    ((value,),) = (hop["probes"] for hop in hops(answer(1, **fields)))
    found: dict[str, Any] = value
    return found


def structure(*objects: bytes) -> bytes:
    bare = b"\x20\0\0\0" + b"".join(objects)
    return b"\x20\0" + struct.pack("!H", checksum(bare)) + bare[4:]


# ── the trace ────────────────────────────────────────────────────────────────────────────────────


def test_what_was_seen_is_told_in_full() -> None:
    ending = Ending(answers=[answer(1), echo(2)], end_ttl=2, attempts=b"\1\1\1", rx_drops=3)
    value = seen(ending)
    assert value | {"hops": None} == {
        "paris_flow": CHECKSUM,
        "hops": None,
        "nat_detected": False,
        "loop_detected": False,
        "protocols": ["icmp"] * 3,
        "stop_reason": "completed",
        "source": SOURCES[4],
        "sent": 3,
        "late": 0,
        "duplicates": 0,
        "tx_errors": 0,
        "rx_drops": 3,
        "rx_clock": "kernel",
    }
    assert [hop["ttl"] for hop in value["hops"]] == [1, 2]


def test_what_was_seen_is_among_the_fields_of_nothing_and_in_their_order() -> None:
    names = list(observations.nothing(SPEC))
    told = [name for name in seen(Ending(answers=[answer(1)])) if name in names]
    assert set(told) == set(seen(Ending(answers=[answer(1)])))
    assert told == sorted(told, key=names.index)


@pytest.mark.parametrize(
    ("fields", "port"),
    [
        ({"method": "udp"}, 33434),
        ({"method": "tcp"}, 80),
        ({"method": "udp", "port": 53}, 53),
    ],
)
def test_a_flow_with_ports_tells_them(fields: dict[str, Any], port: int) -> None:
    value = seen(Ending(answers=[answer(1)]), **fields)
    assert (value["port"], value["paris_flow"]) == (port, SOURCE_PORT)
    assert value["protocols"] == [fields["method"]]


def test_answers_out_of_turn_are_counted() -> None:
    answers = [answer(1), answer(1, flags=Flag.DUPLICATE), answer(2, flags=Flag.LATE)]
    value = seen(Ending(answers=answers, missed=2))
    assert (value["late"], value["duplicates"], value["answers_missed"]) == (1, 1, 2)


def test_the_first_quote_that_was_translated_tells_where_the_nat_is() -> None:
    answers = [answer(4, flags=Flag.TRANSLATED), answer(3, flags=Flag.TRANSLATED), answer(1)]
    value = seen(Ending(answers=answers))
    assert (value["nat_detected"], value["nat_ttl"]) == (True, 3)
    assert "nat_ttl" not in seen(Ending(answers=[answer(1)]))


def test_one_stamp_of_our_own_is_told() -> None:
    answers = [answer(1), answer(2, flags=Flag.USER_CLOCK)]
    assert seen(Ending(answers=answers))["rx_clock"] == "user"


@pytest.mark.parametrize(
    ("routers", "is_loop"),
    [("123", False), ("1123", False), ("121", True), ("1213", True), ("12.1", True), ("1.", False)],
)
def test_a_router_that_is_met_again_is_a_loop(routers: str, is_loop: bool) -> None:
    answers = [answer(ttl, f"192.0.2.{each}") for ttl, each in enumerate(routers, 1) if each != "."]
    assert seen(Ending(answers=answers))["loop_detected"] is is_loop


def test_a_destination_that_is_a_router_too_is_no_loop() -> None:
    answers = [answer(1, "192.0.2.1"), answer(2, "192.0.2.2"), echo(3, "192.0.2.1")]
    assert seen(Ending(answers=answers))["loop_detected"] is False


def test_silence_is_shown_as_far_as_the_gap_that_ended_it() -> None:
    ending = Ending(answers=[answer(2)], stop=icmp.STOPPED_GAP_LIMIT, attempts=b"\1" * 12)
    assert [hop["ttl"] for hop in seen(ending, gap_limit=3)["hops"]] == [1, 2, 3, 4, 5]
    ending = Ending(stop=icmp.STOPPED_GAP_LIMIT, attempts=b"\1" * 12)
    assert [hop["ttl"] for hop in seen(ending, gap_limit=3)["hops"]] == [1, 2, 3]


# ── hops ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_hop_has_the_original_fields_and_every_probe() -> None:
    assert hops(answer(1, quoted_tos=4)) == [
        {
            "ttl": 1,
            "address": "192.0.2.1",
            "rtt_ms": 1.0,
            "protocol": "icmp",
            "success": True,
            "reached_destination": False,
            "probes": [
                {
                    "attempt": 0,
                    "address": "192.0.2.1",
                    "rtt_ms": 1.0,
                    "reply_ttl": 64,
                    "icmp_type": 11,
                    "icmp_code": 0,
                    "late": False,
                    "duplicate": False,
                    "quoted_ttl": 1,
                    "quoted_tos": 4,
                }
            ],
        }
    ]


def test_a_silent_hop_says_so_for_each_attempt() -> None:
    first, second = hops(echo(2), end_ttl=2, attempts=b"\2\1")
    assert first == {
        "ttl": 1,
        "protocol": "icmp",
        "success": False,
        "reached_destination": False,
        "error": "timeout",
        "probes": [{"attempt": 0, "error": "timeout"}, {"attempt": 1, "error": "timeout"}],
        "loss_class": "silent",
        "loss_confidence": first["loss_confidence"],
    }
    assert 0 < first["loss_confidence"] <= 1
    assert (second["reached_destination"], "loss_class" in second) == (True, False)
    assert "quoted_ttl" not in second["probes"][0]


def test_a_late_answer_is_told_beside_the_timeout() -> None:
    (hop,) = hops(answer(1, attempt=1, flags=Flag.LATE), answer(1, attempt=2), attempts=b"\3")
    assert [(each["attempt"], each.get("late"), each.get("error")) for each in hop["probes"]] == [
        (0, None, "timeout"),
        (1, True, None),
        (1, None, "timeout"),
        (2, False, None),
    ]
    assert hop["success"] is True


def test_a_hop_with_late_answers_only_did_not_answer() -> None:
    (hop,) = hops(answer(1, flags=Flag.LATE), end_ttl=1)
    assert (hop["success"], hop["error"], "address" in hop) == (False, "timeout", False)


def test_a_duplicate_is_told_and_is_no_attempt_without_an_answer() -> None:
    (hop,) = hops(answer(1), answer(1, "192.0.2.9", flags=Flag.DUPLICATE))
    assert [each["duplicate"] for each in hop["probes"]] == [False, True]
    assert hop["address"] == "192.0.2.1"


def test_a_probe_that_the_kernel_refused_is_no_timeout() -> None:
    refused: dict[str, Any] = {"kind": Kind.REFUSED, "rtt_ns": -1, "icmp_code": errno.ENOBUFS}
    (hop,) = hops(answer(1, **refused), end_ttl=1, attempts=b"\2")
    says = "tx_error: No buffer space available"
    assert [each["error"] for each in hop["probes"]] == [says, "timeout"]
    assert hop["error"] == "timeout"
    (hop,) = hops(answer(1, **refused), end_ttl=1)
    assert hop["error"] == says
    (hop,) = hops(answer(1, **refused), answer(1, attempt=1), attempts=b"\2")
    assert ("error" in hop, hop["probes"][0]) == (False, {"attempt": 0, "error": says})


@pytest.mark.parametrize(
    ("method", "is_end", "error"), [("udp", True, None), ("icmp", False, "unreachable_port")]
)
def test_a_closed_port_is_the_end_of_a_trace_by_udp(
    method: str, is_end: bool, error: str | None
) -> None:
    (hop,) = hops(answer(1, icmp_type=3, icmp_code=3), method=method)
    assert (hop["success"], hop["reached_destination"], hop.get("error")) == (True, is_end, error)


@pytest.mark.parametrize(("kind", "name"), [(Kind.SYN_ACK, "syn_ack"), (Kind.RST, "rst")])
def test_an_answer_by_tcp_is_no_icmp(kind: Kind, name: str) -> None:
    (hop,) = hops(answer(1, kind=kind), method="tcp")
    (value,) = hop["probes"]
    assert (hop["reached_destination"], value["tcp"]) == (True, name)
    assert not {"icmp_type", "icmp_code", "quoted_ttl"} & set(value)


def test_what_is_seldom_is_a_field_only_then() -> None:
    assert not {"nat", "rx_clock", "mtu", "extensions", "mpls"} & set(probe())
    assert probe(flags=Flag.TRANSLATED)["nat"] is True
    assert probe(flags=Flag.USER_CLOCK)["rx_clock"] == "user"
    assert probe(icmp_type=3, icmp_code=4, mtu=1400)["mtu"] == 1400


# ── extensions ───────────────────────────────────────────────────────────────────────────────────


def test_labels_are_told_with_the_object_they_came_in() -> None:
    word = struct.pack("!I", 1000 << 12 | 5 << 9 | 1 << 8 | 254)
    value = probe(extension=structure(struct.pack("!HBB", 8, 1, 1) + word))
    assert value["mpls"] == [{"label": 1000, "tc": 5, "bottom": True, "ttl": 254}]
    assert value["extensions"] == [{"class": 1, "type": 1, "data": word.hex()}]
    assert not {"interfaces", "extensions_untrusted"} & set(value)


def test_an_interface_is_told_as_far_as_the_router_does() -> None:
    value = probe(extension=structure(struct.pack("!HBBI", 8, 2, 8, 17)))  # an index only
    assert value["interfaces"] == [{"role": "arrival", "if_index": 17}]
    assert "mpls" not in value


def test_an_extension_that_is_damaged_is_told_raw() -> None:
    raw = b"\x20\0\x12\x34\0\x08\x01\x01\0\0\0\0"
    value = probe(extension=raw)
    assert value["extensions_untrusted"] == raw.hex()
    assert not {"mpls", "extensions", "interfaces"} & set(value)


# ── what kept it from its end ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "status", "stop"),
    [
        (asyncio.CancelledError(), "cancelled", "cancelled"),
        (PrivilegeError("no"), "permission_denied", "denied"),
        (TargetDeniedError("no"), "error", "denied"),
        (ResolveError("no"), "error", "resolve_failed"),
        (RouteError("no"), "error", "no_route"),
        (SendError("send", 105, "no"), "error", "tx_error"),
        (RequestError(ErrorCode.VALIDATION, "no"), "error", "tx_error"),
        (ConfigError("no"), "error", "tx_error"),
        (NetsondeError("no"), "error", "tx_error"),
    ],
)
def test_what_cut_it_short_is_told(error: BaseException, status: str, stop: str) -> None:
    value = observations.cut_short(error)
    is_ours = isinstance(error, PrivilegeError)
    denied = {"permission_denied": True} if is_ours else {}
    assert value == {"status": status, "stop_reason": stop} | denied


# ── every path, and the largest packet ───────────────────────────────────────────────────────────


def test_every_path_is_told() -> None:
    one, other, end = (
        Node(1, ip_address("192.0.2.1").packed),
        Node(1, None),
        Node(2, ip_address("198.51.100.7").packed, is_end=True),
    )
    links = (Link(one, end, (1, 3)), Link(other, end, (2,)))
    graph = Graph((one, other, end), links, frozenset({one}), flows=9, probes=20)
    value = observations.multipath(TraceSpec(host="h.example", confidence=99), graph)
    assert value == {
        "confidence": 99,
        "nodes": [
            {"ttl": 1, "address": "192.0.2.1", "per_packet": True},
            {"ttl": 1, "address": None},
            {"ttl": 2, "address": "198.51.100.7", "reached_destination": True},
        ],
        "links": [
            {"ttl": 1, "from": "192.0.2.1", "to": "198.51.100.7", "flows": [1, 3]},
            {"ttl": 1, "from": None, "to": "198.51.100.7", "flows": [2]},
        ],
        "flows": 9,
        "sent": 20,
    }
    assert observations.multipath(SPEC, graph._replace(is_cut=True))["cut"] is True


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (Pmtu(1500), {"mtu": 1500, "black_hole": False}),
        (
            Pmtu(1400, 3, "192.0.2.3"),
            {"mtu": 1400, "black_hole": False, "ttl": 3, "address": "192.0.2.3"},
        ),
        (Pmtu(1400, 3, None, True), {"mtu": 1400, "black_hole": True, "ttl": 3}),
    ],
)
def test_the_largest_packet_is_told(found: Pmtu, value: dict[str, Any]) -> None:
    assert observations.pmtu(found) == value
