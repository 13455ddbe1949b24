"""What routers of the network simulator say and quote: lengths, extensions, NAT, MTU, refusals."""

import socket
import struct
from typing import Any, get_args

import pytest

from support import packets
from support.netsim import End, Kind, Reply
from support.netsim.client import Family
from support.netsim.paths import Narrow, paths_to
from support.netsim.tracer import (
    CHECKSUM_AT,
    NUMBER,
    TARGET,
    Method,
    Play,
    Seen,
    Sent,
    Tracer,
    address_in,
    routed,
    router_address,
    transport_checksum,
)

pytestmark = [pytest.mark.raw, pytest.mark.netns]

METHODS: tuple[Method, ...] = get_args(Method)
UNREACHABLE = {4: 3, 6: 1}
HEADER = {4: 20, 6: 40}
ROOM = {4: 576 - 20 - 8, 6: 1280 - 40 - 8}
MPLS = {"mpls": [{"label": 0xABCDE, "tc": 5, "ttl": 9}, {"label": 17}]}
STACK = bytes.fromhex("abcdea09 00011101")
TRANSLATED = {4: "10.23.0.1", 6: "fd23::1"}


def exchange(tracer: Tracer, ttl: int, method: Method = "icmp", **more: Any) -> tuple[Sent, Seen]:
    """Send one probe, return it and what came of it."""
    sent = tracer.send(TARGET[tracer.family], ttl, method, **more)
    (seen,) = tracer.read()
    assert seen.is_sound
    return sent, seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quoted", [8, 28, "full"])
def test_quotes_have_their_length(
    play: Play, family: Family, method: Method, quoted: int | str
) -> None:
    tracer = play(routed(["a1"], {"a1": {"quoted": quoted}}, destination={"quoted": quoted}))
    for size, ttl in ((40, 1), (1400, 1), (40, 2), (1400, 2)):
        if ttl == 2 and method != "udp":
            continue
        sent, seen = exchange(tracer, ttl, method, payload=bytes(size))
        room = ROOM[family] - HEADER[family]
        kept = min(len(sent.message), quoted if isinstance(quoted, int) else room)
        assert seen.quoted.message == sent.message[:kept]
        assert address_in(seen.quote, family, "destination") == TARGET[family]


@pytest.mark.parametrize("quoted_ttl", [0, 1])
def test_routers_quote_their_ttl(play: Play, family: Family, quoted_ttl: int) -> None:
    tracer = play(routed(["a1", "a2"], {"a2": {"quoted_ttl": quoted_ttl}}))
    _, seen = exchange(tracer, 2)
    assert seen.quoted.ttl == quoted_ttl


def test_a_router_rewrites_the_type_of_service(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", "a2"], {"a1": {"tos": 0x28}}))
    quotes = [exchange(tracer, ttl, tos=0xB8)[1].quote for ttl in (1, 2)]
    toses = [q[1] if family == 4 else int.from_bytes(q[:2]) >> 4 & 0xFF for q in quotes]
    assert toses == [0xB8, 0x28]


# ---- extensions ----


def structure_at(seen: Seen, offset: int) -> tuple[int, int, list[tuple[int, int, int, bytes]]]:
    """Version, checksum over all (0 when right), and objects: length, class, type, data."""
    structure = seen.quote[offset:]
    objects, rest = [], structure[4:]
    while rest:
        length, class_, type_ = struct.unpack("!HBB", rest[:4])
        step = length if 4 <= length <= len(rest) else len(rest)
        objects.append((length, class_, type_, rest[4:step]))
        rest = rest[step:]
    return structure[0] >> 4, packets.checksum(structure), objects


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [20, 301])
def test_label_stacks_follow_the_quote(
    play: Play, family: Family, method: Method, size: int
) -> None:
    tracer = play(routed(["a1"], {"a1": MPLS}))
    exchange(tracer, 1, payload=b"\xff" * 400)  # what a padding must not repeat
    sent, seen = exchange(tracer, 1, method, payload=bytes(size))
    word = 4 if family == 4 else 8
    padded = max(128, -(-len(sent.packet) // word) * word)
    assert seen.length_field == padded
    assert structure_at(seen, padded) == (2, 0, [(12, 1, 1, STACK)])
    assert not any(seen.quote[len(sent.packet) : padded])
    assert seen.quoted.message[: len(sent.message)] == sent.message


@pytest.mark.parametrize("labels", [1, 2])
def test_an_extended_error_keeps_to_its_size(play: Play, family: Family, labels: int) -> None:
    tracer = play(routed(["a1"], {"a1": {"mpls": MPLS["mpls"][-labels:]}}))
    _, seen = exchange(tracer, 1, payload=bytes(1400))
    most = {4: 576, 6: 1280}[family]
    assert most - 8 < len(seen.packet) <= most
    stack = 4 + 4 * labels, 1, 1, STACK[-4 * labels :]
    assert structure_at(seen, seen.length_field) == (2, 0, [stack])


@pytest.mark.parametrize(
    ("extension", "version", "is_right", "lengths"),
    [
        ({"checksum": "wrong"}, 2, False, [12]),
        ({"checksum": "none"}, 2, False, [12]),
        ({"version": 1}, 1, True, [12]),
        ({"object_length": "long"}, 2, True, [76]),
        ({"object_length": "short"}, 2, True, [3]),
        ({"objects": [{"class": 9, "type": 7, "data": "01020304"}]}, 2, True, [12, 8]),
    ],
)
def test_extensions_may_be_strange(
    play: Play, family: Family, extension: dict[str, Any], version: int, is_right: bool,
    lengths: list[int],
) -> None:  # fmt: skip
    tracer = play(routed(["a1"], {"a1": {**MPLS, "extension": extension}}))
    _, seen = exchange(tracer, 1)
    found, total, objects = structure_at(seen, 128)
    assert (found, total == 0, [each[0] for each in objects]) == (version, is_right, lengths)
    assert (seen.quote[130:132] == b"\0\0") == (extension.get("checksum") == "none")
    if "objects" in extension:
        assert objects[1] == (8, 9, 7, bytes([1, 2, 3, 4]))


@pytest.mark.parametrize(("length", "says"), [("zero", 0), ("long", 255), ("short", 1)])
def test_length_fields_may_lie(play: Play, family: Family, length: str, says: int) -> None:
    tracer = play(routed(["a1"], {"a1": {**MPLS, "extension": {"length": length}}}))
    sent, seen = exchange(tracer, 1, payload=bytes(200))
    assert seen.length_field == says * (4 if family == 4 else 8)
    whole = len(seen.quote) - 16
    assert structure_at(seen, whole) == (2, 0, [(12, 1, 1, STACK)])
    assert (whole == 128) == (length == "zero")
    assert seen.quote[HEADER[family] : 120] == sent.packet[HEADER[family] : 120]


# ---- NAT ----


def nat(**more: Any) -> dict[str, Any]:
    return {"nat": {"address4": TRANSLATED[4], "address6": TRANSLATED[6], **more}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ports", [False, True])
@pytest.mark.parametrize("restores", ["everything", "addresses", "nothing"])
def test_quotes_from_behind_a_nat(
    play: Play, family: Family, method: Method, ports: bool, restores: str
) -> None:
    tracer = play(routed(["a1", "a2", "a3"], {"a2": nat(ports=ports, restores=restores)}))
    for ttl in (1, 2):
        sent, seen = exchange(tracer, ttl, method, flow=7)
        assert (seen.quoted.source, seen.quoted.message) == (tracer.source, sent.message)
    sent, seen = exchange(tracer, 3, method, flow=7)
    quoted, at = seen.quoted, CHECKSUM_AT[method]
    port = slice(4, 6) if method == "icmp" else slice(0, 2)
    is_kept = restores != "nothing"
    assert quoted.source == (tracer.source if is_kept else TRANSLATED[family])
    assert (quoted.message[port] == sent.message[port]) == (is_kept or not ports)
    is_covered = ports or method != "icmp" or family == 6
    sums_differ = quoted.message[at : at + 2] != sent.message[at : at + 2]
    assert sums_differ == (is_covered and restores != "everything")
    if restores == "nothing":  # what a router behind the NAT saw is right in itself
        number = NUMBER[method][family]
        assert transport_checksum(family, number, seen.quote, quoted.message) == 0
    paths = paths_to(tracer.network.scenario, TARGET[family], method=method)
    (hop,) = paths.at(3)
    assert (hop.translated != "") == (sums_differ or not is_kept)
    assert paths.nat_ttl == (3 if hop.translated else None)


@pytest.mark.parametrize("method", METHODS)
def test_replies_come_back_through_a_nat(play: Play, family: Family, method: Method) -> None:
    tracer = play(routed(["a1", "a2"], {"a1": nat(ports=True)}))
    sent, seen = exchange(tracer, 3, method, flow=7)
    assert seen.source == TARGET[family]
    if method == "tcp":
        assert seen.message[2:4] == sent.message[:2]
    elif method == "icmp":
        assert seen.message[4:] == sent.message[4:]
    else:
        assert (seen.quoted.source, seen.quoted.message) == (tracer.source, sent.message)


@pytest.mark.parametrize(
    ("restore", "shown"),
    [
        (("nothing", "everything"), ["own", "first", "first"]),
        (("everything", "nothing"), ["own", "own", "second"]),
        (("everything", "everything"), ["own", "own", "own"]),
    ],
)
def test_nats_may_follow_each_other(
    play: Play, family: Family, restore: tuple[str, str], shown: list[str]
) -> None:
    second = {"address4": "10.23.0.2", "address6": "fd23::2", "restores": restore[1]}
    routers = {"a1": nat(restores=restore[0]), "a2": {"nat": second}}
    tracer = play(routed(["a1", "a2", "a3"], routers))
    known = {
        "own": tracer.source, "first": TRANSLATED[family], "second": second[f"address{family}"],
    }  # fmt: skip
    for ttl, name in enumerate(shown, 1):
        sent, seen = exchange(tracer, ttl, "udp")
        assert seen.quoted.source == known[name]
        assert (seen.quoted.message == sent.message) == (name == "own")


# ---- packets that do not get through ----


def too_big(family: Family) -> tuple[int, int]:
    return (3, 4) if family == 4 else (2, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("reported", "says"), [(None, 1300), (0, 0), (1400, 1400)])
def test_a_link_has_an_mtu(
    play: Play, family: Family, method: Method, reported: int | None, says: int
) -> None:
    link = {"between": ["a2", "a3"], "mtu": 1300}
    link |= {} if reported is None else {"reported_mtu": reported}
    tracer = play(routed(["a1", "a2", "a3"], {"a2": MPLS}, links=[link]))
    fixed = {"icmp": 8, "udp": 8, "tcp": 20}[method] + HEADER[family]
    sent, seen = exchange(tracer, 9, method, payload=bytes(1301 - fixed))
    assert (seen.source, seen.kind) == (router_address(family, "a2"), too_big(family))
    assert (seen.mtu, seen.quoted.ttl) == (says, 8)
    assert seen.length_field == (ROOM[4] - 16 if family == 4 else 0)
    assert len(sent.packet) == 1301
    _, arrived = exchange(tracer, 9, method, payload=bytes(1300 - fixed))
    assert arrived.source == TARGET[family]
    _, expired = exchange(tracer, 2, method, payload=bytes(1301 - fixed))
    assert expired.kind == {4: (11, 0), 6: (3, 0)}[family]
    truth = tracer.network.stop()
    assert truth.links["tested", "a2", "a3"].too_big == truth.totals.too_big == 1
    assert truth.probes[0].end == End.TOO_BIG
    paths = paths_to(tracer.network.scenario, TARGET[family])
    assert paths.narrows == {Narrow(2, router_address(family, "a2"), 1300, says)}


def test_a_black_hole_says_nothing(play: Play, family: Family) -> None:
    link = {"between": ["a1", "a2"], "mtu": 1300, "black_hole": True}
    tracer = play(routed(["a1", "a2"], links=[link]))
    assert tracer.ask(TARGET[family], 9, payload=bytes(1400)) == []
    _, seen = exchange(tracer, 9, payload=bytes(1200))
    assert seen.source == TARGET[family]
    truth = tracer.network.stop()
    assert (truth.probes[0].end, truth.probes[0].reply) == (End.TOO_BIG, Reply.WITHHELD)
    assert truth.routers["a1"] == (2, 0, 0, 0)


def test_what_may_be_fragmented_fits(play: Play, family: Family) -> None:
    link = {"between": ["a1", "a2"], "mtu": 1300}
    tracer = play(routed(["a1", "a2"], links=[link]))
    _, seen = exchange(tracer, 9, payload=bytes(1400), fragment=True)
    assert (seen.source == TARGET[family]) == (family == 4)


@pytest.mark.parametrize("first", [False, True])
def test_a_router_refuses(play: Play, family: Family, first: bool) -> None:
    refusal = {"code4": 10, "code6": 6, "protocols": ["udp", "tcp"], "first": first}
    tracer = play(routed(["a1", "a2", "a3"], {"a2": {"refuses": refusal}}))
    refused = (UNREACHABLE[family], {4: 10, 6: 6}[family])
    expired = {4: (11, 0), 6: (3, 0)}[family]
    for method in ("udp", "tcp"):
        kinds = [exchange(tracer, ttl, method)[1] for ttl in (2, 3, 9)]
        assert {each.source for each in kinds} == {router_address(family, "a2")}
        assert [each.kind for each in kinds] == [refused if first else expired, refused, refused]
        assert [each.quoted.ttl for each in kinds] == [1, 2, 8]
    assert exchange(tracer, 9)[1].source == TARGET[family]
    paths = paths_to(tracer.network.scenario, TARGET[family], method="udp")
    assert paths.stop_reason() == "unreachable"
    assert [hop.how for hop in paths.at(9)] == ["refused"]
    assert paths_to(tracer.network.scenario, TARGET[family]).stop_reason() == "completed"


def test_a_router_drops_what_it_refuses(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", "a2"], {"a1": {"refuses": {"silently": True}}}))
    assert exchange(tracer, 1)[1].source == router_address(family, "a1")
    assert tracer.ask(TARGET[family], 2) == []
    truth = tracer.network.stop()
    dropped = truth.probes[2]  # after a fence
    assert (dropped.end, dropped.reply) == (End.REFUSED, Reply.WITHHELD)
    paths = paths_to(tracer.network.scenario, TARGET[family])
    assert paths.stop_reason(gap_limit=5) == "gap_limit"


# ---- with behaviours, and of others ----


def test_behaviours_come_after_the_way(play: Play, family: Family) -> None:
    behaviour = {"loss": 1, "forged": {"share": 1, "copies": 2, "delay_ms": 1}}
    tracer = play(routed(["a1"], behaviour={"tested": behaviour}))
    for ttl in (1, 2):
        tracer.send(TARGET[family], ttl)
    seen = [each.source for each in tracer.read()]
    assert sorted(seen) == sorted([router_address(family, "a1"), *[TARGET[family]] * 4])
    truth = tracer.network.stop()
    first, second = truth.probes[:2]
    assert sorted(each.kind for each in first.answers) == [Kind.FORGED, Kind.FORGED, Kind.EXPIRED]
    assert [each.kind for each in second.answers] == [Kind.FORGED] * 2
    assert (truth.totals.dropped, truth.totals.forged) == (1, 4)


def test_sockets_of_the_kernel_are_probes_too(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", "a2"]))
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    level, option = (
        (socket.IPPROTO_IP, socket.IP_TTL)
        if family == 4
        else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
    )
    with tracer.network.host.call(socket.socket, kind, socket.SOCK_DGRAM) as plain:
        plain.setsockopt(level, option, 2)
        plain.sendto(b"unprivileged", (TARGET[family], 33_434))
    (seen,) = tracer.read()
    assert (seen.source, seen.quoted.message[8:]) == (router_address(family, "a2"), b"unprivileged")
    totals = tracer.network.stop().totals
    assert (totals.malformed, totals.expired) == (0, 1)


def test_what_is_no_probe_is_counted_apart(play: Play, family: Family) -> None:
    tracer = play(routed(["a1"]))
    sent = tracer.send("10.255.0.9" if family == 4 else "fdff::9", 1, "udp")
    assert tracer.read() == []
    broken = bytearray(sent.packet)
    broken[-1] ^= 1
    tracer.put(bytes(broken))
    assert tracer.read() == []
    totals = tracer.network.stop().totals
    assert totals.malformed == 1
    assert totals.other >= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("difference", ["ident", "sequence", "destination", "payload"])
def test_strangers_quote_what_was_never_sent(
    play: Play, family: Family, method: Method, difference: str
) -> None:
    error = {
        "type4": 11,
        "code4": 0,
        "type6": 3,
        "code6": 0,
        "from4": "10.9.9.9",
        "from6": "fd09::9",
    }
    injected = {"share": 1, "differs_in": [difference], "error": error}
    tracer = play(routed(["a1"], behaviour={"tested": {"foreign_error": injected}}))
    sent = [tracer.send(TARGET[family], 1, method, flow=n) for n in range(10)]
    foreign = [seen for seen in tracer.read() if seen.source == error[f"from{family}"]]
    assert len(foreign) == 10
    heads = {each.message for each in sent}
    flow = slice(4, 6) if method == "icmp" else slice(0, 2)
    for seen in foreign:
        quoted = seen.quoted.message
        number = NUMBER[method][family]
        assert transport_checksum(family, number, seen.quote, quoted) == 0
        is_target = address_in(seen.quote, family, "destination") == TARGET[family]
        assert is_target == (difference != "destination")
        assert (quoted in heads) == (
            difference == "destination" and method == "icmp" and family == 4
        )
        is_flow = quoted[flow] in {head[flow] for head in heads}
        assert is_flow == (difference != "ident")
