"""Routes of the network simulator against what a packet socket sees: who answers which TTL."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import pytest

from support import packets
from support.netsim import End, Reply
from support.netsim.client import Family
from support.netsim.paths import paths_to
from support.netsim.tracer import TARGET, Method, Play, Tracer, routed, router_address

pytestmark = [pytest.mark.raw, pytest.mark.netns]

EXPIRED = {4: (11, 0), 6: (3, 0)}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
METHODS: tuple[Method, ...] = get_args(Method)
MS = 1_000_000


def sources(tracer: Tracer, ttls: Sequence[int], method: Method = "icmp", **more: Any) -> list[str]:
    """Who answers these TTLs, each asked once."""
    for ttl in ttls:
        tracer.send(TARGET[tracer.family], ttl, method, **more)
    return [seen.source for seen in tracer.read()]


def names(family: Family, *routers: str) -> list[str]:
    return [router_address(family, name) for name in routers]


@pytest.mark.parametrize("method", METHODS)
def test_a_ttl_expires_at_its_hop(play: Play, family: Family, method: Method) -> None:
    tracer = play(routed(["a1", "a2", "a3"]))
    sent = [tracer.send(TARGET[family], ttl, method) for ttl in (1, 2, 3)]
    seen = tracer.read()
    assert [each.source for each in seen] == names(family, "a1", "a2", "a3")
    for each, probe in zip(seen, sent, strict=True):
        assert (each.kind, each.is_sound) == (EXPIRED[family], True)
        assert each.quoted.ttl == 1
        at = 8 if family == 4 else 7
        unchanged = [n for n in range(len(probe.packet)) if n not in (at, 10, 11) or family == 6]
        assert all(each.quote[n] == probe.packet[n] for n in unchanged if n != at)
        assert family == 6 or packets.checksum(each.quote[:20]) == 0
        assert len(each.quote) == len(probe.packet)


def test_an_echo_request_is_answered_by_the_destination(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", "a2"]))
    sent = [tracer.send(TARGET[family], ttl, flow=7) for ttl in (3, 4, 64)]
    seen = tracer.read()
    assert [each.source for each in seen] == [TARGET[family]] * 3
    for each, probe in zip(seen, sent, strict=True):
        assert (each.kind, each.is_sound) == ((packets.ECHO_REPLY[family], 0), True)
        assert each.message[4:] == probe.message[4:]


def test_a_udp_datagram_finds_no_port(play: Play, family: Family) -> None:
    tracer = play(routed(["a1"]))
    sent = tracer.send(TARGET[family], 9, "udp")
    (seen,) = tracer.read()
    assert (seen.source, seen.kind, seen.is_sound) == (
        TARGET[family],
        PORT_UNREACHABLE[family],
        True,
    )
    assert (seen.quoted.ttl, seen.quoted.message) == (8, sent.message)


@pytest.mark.parametrize(("tcp", "flags"), [("syn_ack", 0x12), ("reset", 0x14)])
def test_a_syn_is_acknowledged(play: Play, family: Family, tcp: str, flags: int) -> None:
    tracer = play(routed(["a1"], destination={"tcp": tcp}))
    sent = tracer.send(TARGET[family], 9, "tcp", payload=b"data")
    (seen,) = tracer.read()
    assert (seen.source, seen.protocol, seen.is_sound) == (TARGET[family], 6, True)
    assert seen.message[:4] == sent.message[2:4] + sent.message[:2]
    acknowledged = int.from_bytes(sent.message[4:8]) + 1 + 4
    assert (int.from_bytes(seen.message[8:12]), seen.message[13]) == (acknowledged, flags)


@pytest.mark.parametrize("method", METHODS)
def test_a_destination_may_say_nothing(play: Play, family: Family, method: Method) -> None:
    silence = {"echo": "nothing", "udp": "nothing", "tcp": "nothing"}
    tracer = play(routed(["a1"], destination=silence))
    assert sources(tracer, range(1, 4), method) == names(family, "a1")
    truth = tracer.network.stop()
    assert (truth.totals.withheld, truth.totals.expired) == (2, 1)
    assert [probe.end for probe in truth.probes[1:3]] == [End.ARRIVED] * 2


@pytest.mark.parametrize("method", METHODS)
def test_another_address_may_answer(play: Play, family: Family, method: Method) -> None:
    other = {"from4": "10.22.0.9", "from6": "fd22::9"}
    tracer = play(routed(["a1"], destination=other))
    (seen,) = tracer.ask(TARGET[family], 2, method)
    assert (seen.source, seen.is_sound) == (other[f"from{family}"], True)


def test_a_destination_limits_its_answers(play: Play, family: Family) -> None:
    limit = {"rate_limit": {"per_second": 0.001, "burst": 2}}
    tracer = play(routed(["a1"], destination=limit))
    assert sources(tracer, range(2, 7), "udp") == [TARGET[family]] * 2
    assert tracer.network.stop().totals.limited == 3


def test_replies_have_come_over_as_many_routers(play: Play, family: Family) -> None:
    tracer = play(
        routed(
            ["a1", "a2", "a3"], {"a2": {"reply_ttl": 64}}, return_hops=5,
            destination={"reply_ttl": 128},
        )
    )  # fmt: skip
    for ttl in range(1, 5):
        tracer.send(TARGET[family], ttl)
    assert [each.ttl for each in tracer.read()] == [250, 64 - 6, 255 - 7, 128 - 8]


def test_silent_routers_forward(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", "a2", "a3"], {"a2": {"silent": True}}))
    assert sources(tracer, range(1, 5)) == [*names(family, "a1", "a3"), TARGET[family]]
    truth = tracer.network.stop()
    assert truth.routers["a2"] == (3, 0, 1, 0)
    assert [probe.reply for probe in truth.probes[:4]] == [Reply.COMES, Reply.WITHHELD, 0, 0]
    assert truth.probes[1].router == "a2"


def test_a_router_without_an_address_is_silent(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", "a2"], {"a1": {f"address{family}": None}}))
    assert sources(tracer, range(1, 3)) == names(family, "a2")


def test_a_rate_limit_silences_a_router(play: Play, family: Family) -> None:
    limit = {"rate_limit": {"per_second": 0.001, "burst": 3}}
    tracer = play(routed(["a1", "a2"], {"a1": limit}))
    for _ in range(8):
        tracer.send(TARGET[family], 1)
    tracer.send(TARGET[family], 2)
    assert [each.source for each in tracer.read()] == names(family, "a1", "a1", "a1", "a2")
    truth = tracer.network.stop()
    assert truth.routers["a1"] == (9, 3, 0, 5)
    assert (truth.totals.limited, truth.totals.expired) == (5, 4)
    assert Counter(probe.reply for probe in truth.probes) == {Reply.COMES: 5, Reply.LIMITED: 5}


def test_errors_may_come_more_than_once(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", "a2"], {"a1": {"copies": 3}}))
    expected = names(family, "a1", "a1", "a1", "a2")
    assert sources(tracer, [1, 2]) == expected
    truth = tracer.network.stop()
    assert (truth.totals.expired, truth.routers["a1"].answers) == (4, 1)
    assert len(truth.probes[0].answers) == 3


def test_a_loop_goes_round(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", "a2", "a3"], end="a2"))
    expected = names(family, "a1", "a2", "a3", "a2", "a3", "a2")
    assert sources(tracer, range(1, 7)) == expected
    assert sources(tracer, range(254, 256)) == names(family, "a2", "a3")
    paths = paths_to(tracer.network.scenario, TARGET[family])
    assert [list(paths.addresses(ttl)) for ttl in range(1, 7)] == [[each] for each in expected]
    assert (paths.stop_reason(), paths.end_ttls) == ("loop", ())


def test_a_route_may_lead_nowhere(play: Play, family: Family) -> None:
    tracer = play(routed(["a1", "a2"], end="nowhere"))
    assert sources(tracer, range(1, 6)) == names(family, "a1", "a2")
    truth = tracer.network.stop()
    assert [probe.end for probe in truth.probes[2:5]] == [End.NOWHERE] * 3
    assert truth.totals.withheld == 3


def test_delays_add_up_each_way(play: Play, family: Family) -> None:
    links = [{"between": ["a1", "a2"], "delay_ms": 10, "return_delay_ms": 1, "jitter_ms": 2}]
    slow = {"a2": {"answer_delay_ms": 20}}
    tracer = play(routed(["a1", "a2", "a3"], slow, link={"delay_ms": 3}, links=links))
    for _, ttl in itertools.product(range(10), range(1, 5)):
        tracer.send(TARGET[family], ttl)
    assert len(tracer.read()) == 40
    probes = tracer.network.stop().probes[:40]
    assert all(each.answers[0].sent_ns >= each.answers[0].due_ns for each in probes)
    rtts = {
        ttl: [each.answers[0].due_ns - each.arrival_ns for each in probes if each.ttl == ttl]
        for ttl in range(1, 5)
    }
    assert set(rtts[1]) == {6 * MS}
    assert all((6 + 11 + 20) * MS <= rtt <= (6 + 15 + 20) * MS for rtt in rtts[2])
    assert all((12 + 11) * MS <= rtt <= (12 + 15) * MS for rtt in rtts[3])
    assert len(set(rtts[2])) > 5


@pytest.mark.parametrize("way", ["loss", "return_loss"])
def test_links_lose_one_way(play: Play, family: Family, way: str) -> None:
    tracer = play(routed(["a1"], links=[{"between": ["host", "a1"], way: 0.5}]))
    assert 0 < len(sources(tracer, [1] * 40)) < 40
    totals = tracer.network.stop().totals
    assert (totals.lost == 0) == (way == "return_loss")
    assert (totals.lost_on_return == 0) == (way == "loss")


def test_links_lose_each_way(play: Play, family: Family) -> None:
    links = [{"between": ["a1", "a2"], "loss": 0.3, "return_loss": 0.2}]
    tracer = play(routed(["a1", "a2"], links=links))
    for _ in range(100):
        tracer.send(TARGET[family], 1)
        tracer.send(TARGET[family], 2)
    seen = Counter(each.source for each in tracer.read())
    truth = tracer.network.stop()
    first, lossy = truth.links["tested", "host", "a1"], truth.links["tested", "a1", "a2"]
    assert first == (200, 0, 100 + lossy.returned, 0, 0)
    assert (lossy.forward + lossy.lost, lossy.returned + lossy.lost_on_return) == (
        100, lossy.forward,
    )  # fmt: skip
    assert 15 <= lossy.lost <= 45
    assert 3 <= lossy.lost_on_return <= 30
    assert seen == dict(zip(names(family, "a1", "a2"), (100, lossy.returned), strict=True))
    assert truth.totals.lost == lossy.lost
    assert truth.totals.lost_on_return == lossy.lost_on_return == 100 - lossy.lost - lossy.returned
    assert Counter((probe.end, probe.reply) for probe in truth.probes if probe.ttl == 2) == {
        (End.EXPIRED, Reply.COMES): lossy.returned,
        (End.EXPIRED, Reply.LOST): lossy.lost_on_return,
        (End.LOST, Reply.WITHHELD): lossy.lost,
    }
