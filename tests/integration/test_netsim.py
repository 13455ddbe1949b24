"""The network simulator against what a plain socket sees on the wire: behaviours and truth.

Nothing here waits for time to pass: a fence, a host that answers later than everything else, tells
by its reply that all other packets have been sent.
"""

import contextlib
import os
import socket
import struct
import subprocess
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from support import packets
from support.netsim import (
    GENUINE,
    SCENARIOS,
    Fate,
    Kind,
    Probe,
    SimulatorError,
    TruthHoleError,
    make_scenario,
    simulated,
)
from support.netsim.client import (
    ETHERTYPE,
    FENCE,
    IDENT,
    PATIENCE_S,
    UNREAD_MAX,
    Client,
    Family,
    Seen,
    target,
)
from support.netsim.program import netsim_program
from support.netsim.scenario import Scenario

pytestmark = [pytest.mark.raw, pytest.mark.netns]

ROUTER = {4: "10.9.9.1", 6: "fd09::1"}
FENCE_MS = 100
REPLY_MS = 5
UNREACHABLE = {4: (3, 13), 6: (1, 1)}

Table = dict[str, Any]


def scenario(behaviour: Table, *, others: Table | None = None, **table: Any) -> Scenario:
    """A scenario of the fence and one behaviour, or more."""
    return make_scenario(
        {
            "seed": 7,
            "record": "probes",
            "hosts": [
                {"prefixes": ["10.0.0.0/16", "fd00::/64"], "behaviour": "tested"},
                {"prefixes": ["10.255.0.0/16", "fdff::/64"], "behaviour": "fence"},
            ],
            "behaviour": {
                **(others or {}),
                "tested": {"delay": {"distribution": "constant", "ms": REPLY_MS}, **behaviour},
                "fence": {"delay": {"distribution": "constant", "ms": FENCE_MS}},
            },
            **table,
        }
    )


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


Play = Callable[..., Client]


@pytest.fixture
def play(family: Family) -> Iterator[Play]:
    """Start a network of one behaviour and return a client on it."""
    with contextlib.ExitStack() as stack:

        def start(behaviour: Table, *, neighbours: Any = "static", **table: Any) -> Client:
            network = stack.enter_context(
                simulated(scenario(behaviour, **table), neighbours=neighbours)
            )
            client = Client(network, family)
            stack.callback(client.close)
            return client

        yield start


def probes_of(client: Client) -> list[Probe]:
    """The truth of what a client sent, without the fence."""
    probes = client.network.stop().probes
    assert [probe.sequence for probe in probes] == list(client.sent)
    return [probe for probe in probes if probe.destination != FENCE[client.family]]


def test_replies_are_what_a_host_would_send(play: Play) -> None:
    client = play({"reply_ttl": 57})
    client.ping_each(3)
    for size in (0, 1, 15, 16, 17, 999, 1400):
        client.ping(target(client.family, 9), size)
    seen = client.read()
    assert len(seen) == 10
    assert all(client.is_genuine(each) and each.ttl == 57 for each in seen)
    assert all(client.checksum(each) == 0 for each in seen)
    assert [each.source for each in seen] == [client.sent[each.sequence][0] for each in seen]


def test_truth_is_what_was_on_the_wire(play: Play) -> None:
    client = play({"loss": 0.3, "duplicate": {"share": 0.3, "copies": 2}})
    client.ping_each(20, rounds=5)
    seen = Counter(each.sequence for each in client.read())
    truth = client.network.stop()
    for probe in probes_of(client):
        address, message = client.sent[probe.sequence]
        assert (probe.destination, probe.ident) == (address, IDENT)
        assert (probe.payload, probe.payload_bytes) == (message[8:24], 40)
        assert len(probe.sent(*GENUINE)) == probe.genuine == seen[probe.sequence]
        assert (probe.genuine == 0) == bool(probe.fate & Fate.DROPPED)
    assert truth.totals.requests == 101
    assert truth.totals.replied + truth.totals.duplicates == seen.total() + 1
    assert 0 < truth.totals.dropped < 100
    assert truth.totals.unsent == truth.totals.pending == truth.totals.malformed == 0
    assert truth.undelivered == 0
    one = truth.targets[target(client.family, 1)]
    assert one.requests == 5
    assert one.replied + one.dropped == 5
    assert one.duplicates % 2 == 0
    if one.replied:
        assert one.turnaround_min_ns >= REPLY_MS * 1_000_000
        assert one.turnaround_sum_ns <= one.turnaround_max_ns * one.replied


def test_nothing_is_sent_early(play: Play) -> None:
    client = play({"jitter": {"distribution": "uniform", "min_ms": 0, "max_ms": 20}})
    client.ping_each(50)
    client.read()
    for probe in probes_of(client):
        (reply,) = probe.answers
        delay_ns = reply.due_ns - probe.arrival_ns
        assert REPLY_MS * 1_000_000 <= delay_ns <= (REPLY_MS + 20) * 1_000_000
        assert reply.sent_ns >= reply.due_ns


@pytest.mark.parametrize(
    "delay",
    [
        {"distribution": "uniform", "min_ms": 3, "max_ms": 9},
        {"distribution": "normal", "mean_ms": 6, "deviation_ms": 5, "min_ms": 3, "max_ms": 9},
        {"distribution": "lognormal", "median_ms": 6, "sigma": 2, "min_ms": 3, "max_ms": 9},
    ],
)
def test_a_host_keeps_its_delay(play: Play, delay: Table) -> None:
    client = play({"delay": delay})
    client.ping_each(30, rounds=3)
    client.read()
    delays: dict[str, set[int]] = {}
    for probe in probes_of(client):
        own = probe.answers[0].due_ns - probe.arrival_ns
        delays.setdefault(probe.destination, set()).add(own)
    assert all(len(own) == 1 for own in delays.values())
    assert len({min(own) for own in delays.values()}) > 8
    assert all(3_000_000 <= min(own) <= 9_000_000 for own in delays.values())


def test_a_simulator_can_be_put_before_every_other_process(family: Family) -> None:
    try:
        with simulated(scenario({}), punctual=True) as network:
            client = Client(network, family)
            assert os.sched_getscheduler(network.process.pid) == os.SCHED_FIFO
            client.ping_each(3)
            assert len(client.read()) == 3
            client.close()
    except PermissionError:
        pytest.skip("needs CAP_SYS_NICE outside of a user namespace")


def test_replies_of_equal_delay_keep_their_order(play: Play) -> None:
    client = play({})
    client.ping_each(100)
    assert [each.sequence for each in client.read()] == list(range(100))


def test_reordered_replies_are_overtaken(play: Play) -> None:
    client = play({"reorder": {"share": 0.3, "delay_ms": 20}})
    client.ping_each(1, rounds=60)
    order = [each.sequence for each in client.read()]
    probes = probes_of(client)
    late = {probe.sequence for probe in probes if probe.fate & Fate.REORDERED}
    assert 0 < len(late) < 60
    assert client.network.stop().totals.reordered == len(late)
    first_sent = {probe.sequence: probe.answers[0].sent_ns for probe in probes}
    assert order == sorted(order, key=lambda sequence: first_sent[sequence])
    for probe in probes:
        least_ms = REPLY_MS + (20 if probe.sequence in late else 0)
        assert first_sent[probe.sequence] - probe.arrival_ns >= least_ms * 1_000_000


def test_losses_come_in_bursts(play: Play) -> None:
    client = play({"burst_loss": {"to_bad": 1, "to_good": 1, "loss_bad": 1}})
    client.ping_each(1, rounds=8)
    assert [each.sequence for each in client.read()] == [1, 3, 5, 7]


def test_a_seed_repeats_every_decision(family: Family) -> None:
    def fates(seed: int, order: int) -> dict[tuple[str, int], tuple[int, list[tuple[Any, ...]]]]:
        table = {"loss": 0.3, "forged": {"share": 0.5}, "duplicate": {"share": 0.2}}
        with simulated(scenario(table, seed=seed)) as network:
            client = Client(network, family)
            for number in list(range(1, 21))[::order]:
                for _ in range(4):
                    client.ping(target(family, number))
            client.read()
            client.close()
            return {
                (probe.destination, probe.n): (
                    probe.fate,
                    sorted((each.kind, each.variant) for each in probe.answers),
                )
                for probe in probes_of(client)
            }

    first = fates(1, order=1)
    assert fates(1, order=-1) == first
    assert fates(2, order=1) != first


def error_table(**more: Any) -> Table:
    (type4, code4), (type6, code6) = UNREACHABLE[4], UNREACHABLE[6]
    return {
        "type4": type4, "code4": code4, "type6": type6, "code6": code6,
        "from4": ROUTER[4], "from6": ROUTER[6], **more,
    }  # fmt: skip


def quoted(client: Client, seen: Seen) -> tuple[str, bytes]:
    """The destination and message an error quotes; its own form is checked."""
    assert client.checksum(seen) == 0
    assert (seen.message[0], seen.message[1]) == UNREACHABLE[client.family]
    parsed = packets.parse_ip(client.family, seen.message[8:], quoted=True)
    assert not isinstance(parsed, str)
    protocol, _, _, source, destination, body = parsed
    assert protocol == packets.PROTOCOL[client.family]
    assert str(ip_address(source)) == client.network.address(client.family)
    if client.family == 4:
        assert packets.checksum(seen.message[8:28]) == 0
    return str(ip_address(destination)), body


def without_checksum(client: Client, message: bytes) -> bytes:
    """The kernel fills in an ICMPv6 checksum, so what was sent has another."""
    return message if client.family == 4 else message[:2] + message[4:]


@pytest.mark.parametrize(("quote", "kept"), [(8, 8), (64, 64), ("full", None)])
def test_errors_quote_the_request(play: Play, quote: int | str, kept: int | None) -> None:
    client = play({"error": error_table(quoted=quote)})
    client.ping(target(client.family, 1), 56)
    client.ping(target(client.family, 2), 1400)
    room = 548 - 20 if client.family == 4 else 1232 - 40
    seen = client.read()
    assert len(seen) == 2
    for each, (address, message) in zip(seen, client.sent.values(), strict=False):
        assert each.source == ROUTER[client.family]
        destination, body = quoted(client, each)
        assert destination == address
        expected = message[: min(len(message), kept or room)]
        assert without_checksum(client, body) == without_checksum(client, expected)
    truth = client.network.stop()
    assert (truth.totals.errors, truth.totals.replied) == (2, 1)


def test_a_share_of_errors_leaves_the_rest(play: Play) -> None:
    client = play({"error": error_table(share=0.5)})
    client.ping_each(40)
    seen = client.read()
    errors = [each for each in seen if each.source == ROUTER[client.family]]
    assert 0 < len(errors) < 40
    assert len(seen) == 40
    assert client.network.stop().totals.errors == len(errors)


@pytest.mark.parametrize(("per", "replies"), [("host", 6), ("prefix", 3)])
def test_a_rate_limit_silences(play: Play, per: str, replies: int) -> None:
    client = play({"rate_limit": {"per": per, "per_second": 0.001, "burst": 3}})
    client.ping_each(2, rounds=5)
    assert len(client.read()) == replies
    totals = client.network.stop().totals
    assert (totals.replied, totals.limited) == (replies + 1, 10 - replies)


def test_a_rate_limit_says_an_error(play: Play) -> None:
    limit = {"per": "host", "per_second": 0.001, "burst": 1, "beyond": "error"}
    client = play({"rate_limit": {**limit, "error": error_table(quoted=8)}})
    client.ping_each(1, rounds=3)
    genuine, *errors = client.read()
    assert client.is_genuine(genuine)
    assert [quoted(client, each)[1][6:8] for each in errors] == [b"\0\1", b"\0\2"]
    assert [probe.fate for probe in probes_of(client)] == [0, Fate.LIMITED, Fate.LIMITED]


def test_another_address_answers(play: Play) -> None:
    client = play({"elsewhere": {"share": 1, "from4": ROUTER[4], "from6": ROUTER[6]}})
    client.ping_each(2)
    seen = client.read()
    assert [each.source for each in seen] == [ROUTER[client.family]] * 2
    assert all(client.checksum(each) == 0 for each in seen)
    assert [each.message[4:] for each in seen] == [client.sent[n][1][4:] for n in (0, 1)]
    assert client.network.stop().totals.elsewhere == 2


def test_replies_are_truncated(play: Play) -> None:
    client = play({"truncate": {"share": 1, "payload_bytes": 11}})
    client.ping(target(client.family, 1))
    client.ping(target(client.family, 1), 5)
    seen = client.read()
    assert [each.message[4:] for each in seen] == [client.sent[n][1][4:19] for n in (0, 1)]
    assert all(client.checksum(each) == 0 for each in seen)
    totals = client.network.stop().totals
    assert (totals.truncated, totals.replied) == (2, 1)


@pytest.mark.parametrize("payload", ["random", "zero", "altered"])
def test_forged_replies_know_all_but_the_payload(play: Play, payload: str) -> None:
    client = play({"loss": 1, "forged": {"share": 1, "copies": 3, "payload": [payload]}})
    client.ping_each(10)
    seen = client.read()
    assert len(seen) == 30
    for each in seen:
        address, message = client.sent[each.sequence]
        assert (each.source, each.ident, client.checksum(each)) == (address, IDENT, 0)
        assert len(each.message) == len(message)
        differing = [n for n in range(8, 48) if each.message[n] != message[n]]
        assert differing
        if payload == "zero":
            assert not any(each.message[8:])
        if payload == "altered":
            assert len(differing) == 1
            assert differing[0] < 24
    probes = probes_of(client)
    assert {answer.variant for probe in probes for answer in probe.answers} == {payload}
    assert client.network.stop().totals.forged == 30


def bits_between(left: bytes, right: bytes) -> int:
    return (int.from_bytes(left) ^ int.from_bytes(right)).bit_count()


@pytest.mark.parametrize("checksum", ["bad", "recomputed"])
def test_corrupted_replies_have_one_bit_wrong(play: Play, checksum: str) -> None:
    client = play({"loss": 1, "corrupted": {"share": 1, "checksum": [checksum]}})
    client.ping_each(60)
    seen = client.read()
    order = [
        probe.sequence for _, probe in sorted((p.answers[0].sent_ns, p) for p in probes_of(client))
    ]
    assert len(seen) == 60
    for each, sequence in zip(seen, order, strict=True):
        expected = client.reply_to(sequence)
        if checksum == "bad":
            assert client.checksum(each) != 0
            assert bits_between(each.message, expected) == 1
        else:
            assert client.checksum(each) == 0
            assert bits_between(each.message[4:24], expected[4:24]) == 1
            assert each.message[24:] == expected[24:]
    assert client.network.stop().totals.corrupted == 60


@pytest.mark.parametrize("quote", [8, "full"])
@pytest.mark.parametrize("difference", ["ident", "sequence", "destination", "payload"])
def test_foreign_errors_quote_what_was_never_sent(
    play: Play, difference: str, quote: int | str
) -> None:
    injected = {"share": 1, "differs_in": [difference], "error": error_table(quoted=quote)}
    client = play({"loss": 1, "foreign_error": injected})
    client.ping_each(20)
    seen = client.read()
    sent = {(address, message[4:24]) for address, message in client.sent.values()}
    heads = {(address, message[4:8]) for address, message in client.sent.values()}
    assert len(seen) == 20
    for each in seen:
        assert each.source == ROUTER[client.family]
        destination, body = quoted(client, each)
        if quote == "full":
            assert (destination, body[4:24]) not in sent
            assert len(body) == 48
        else:
            assert len(body) == 8
        if difference == "payload":
            assert (destination, body[4:8]) in heads
            number = int.from_bytes(body[6:8])
            assert client.family == 6 or body[2:4] != client.sent[number][1][2:4]
        elif difference == "destination":
            assert destination not in {address for address, _ in client.sent.values()}
        elif difference == "ident":
            assert int.from_bytes(body[4:6]) != IDENT
    assert client.network.stop().totals.foreign_errors == 20


@pytest.mark.parametrize(
    "kind", ["foreign_reply", "short", "long_length", "short_length", "lying_quote"]
)
def test_noise(play: Play, kind: str) -> None:
    client = play({"loss": 1, "noise": {"share": 1, "kind": [kind]}})
    client.ping_each(20)
    seen = client.read()
    assert len(seen) == 20
    assert not any(client.is_genuine(each) for each in seen)
    for each in seen:
        claimed = int.from_bytes(each.packet[2:4] if client.family == 4 else each.packet[4:6])
        length = len(each.packet) if client.family == 4 else len(each.message)
        assert (claimed > length) == (kind == "long_length")
        assert (claimed < length) == (kind == "short_length")
        assert (len(each.message) < 8) == (kind == "short")
        if kind == "foreign_reply":
            assert each.ident != IDENT
            assert client.checksum(each) == 0
        if kind == "lying_quote":
            quote = packets.parse_ip(client.family, each.message[8:], quoted=True)
            assert quote == "short"
    assert client.network.stop().totals.noise == 20


def test_the_hostile_network_adds_up(family: Family) -> None:
    table = tomllib.loads((SCENARIOS / "lossy_hostile.toml").read_text())
    with simulated(scenario(table["behaviour"]["hostile"])) as network:
        client = Client(network, family)
        seen = []
        for _ in range(4):
            client.ping_each(UNREAD_MAX)
            seen += client.read()
        totals = network.stop().totals
        client.close()
    genuine = Counter(each.sequence for each in seen if client.is_genuine(each))
    for probe in probes_of(client):
        assert genuine[probe.sequence] == len(probe.sent(*GENUINE)) == probe.genuine
        assert len(probe.answers) == probe.planned
    injected = totals.forged + totals.corrupted + totals.foreign_errors + totals.noise
    assert min(totals.forged, totals.corrupted, totals.foreign_errors, totals.noise) > 0
    assert len(seen) == totals.replied - 4 + totals.duplicates + injected
    assert genuine.total() == totals.replied - 4 + totals.duplicates


@pytest.mark.parametrize("neighbours", ["resolved", "connected"])
def test_neighbours_are_found(play: Play, neighbours: str) -> None:
    client = play({}, neighbours=neighbours)
    client.ping_each(3)
    assert {each.sequence for each in client.read()} == {0, 1, 2}
    asked = client.network.stop().totals.neighbours
    assert asked >= (1 if neighbours == "resolved" else 4)


def test_packet_sockets_need_no_neighbours(play: Play) -> None:
    client = play({})
    network, address = client.network, target(client.family, 1)
    frame_socket = network.host.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    frame_socket.bind((network.interface, 0))

    def mac(text: str) -> bytes:
        return bytes.fromhex(text.replace(":", ""))

    def frame(to: str, *, fault: int = 0) -> bytes:
        message = packets.echo(4, "request", IDENT, 900, b"payload of a frame")
        ends = network.address(client.family), address
        if client.family == 4:
            packet = packets.ipv4(*ends, message)
        else:
            pseudo = b"".join(ip_address(end).packed for end in ends)
            pseudo += struct.pack("!II", len(message), 58)
            message = b"\x80\0\0\0" + message[4:]
            total = packets.checksum(pseudo + message)
            packet = packets.ipv6(*ends, message[:2] + total.to_bytes(2) + message[4:])
        packet = packet[:-1] + bytes([packet[-1] ^ fault])
        return mac(to) + mac(network.host_mac) + ETHERTYPE[client.family].to_bytes(2) + packet

    frame_socket.send(frame(network.simulator_mac))
    frame_socket.send(frame(network.simulator_mac, fault=1))
    frame_socket.send(frame("02:00:00:00:00:99"))
    frame_socket.close()
    assert [(each.source, each.sequence) for each in client.read()] == [(address, 900)]
    totals = network.stop().totals
    assert (totals.requests, totals.malformed) == (2, 1)
    assert totals.other >= 1


def test_the_longest_prefix_decides(play: Play) -> None:
    client = play(
        {},
        hosts=[
            {"prefixes": ["10.0.0.0/8", "fd00::/16"], "behaviour": "lost"},
            {"prefixes": ["10.0.0.0/24", "fd00::/64"], "behaviour": "tested"},
            {"prefixes": ["10.0.0.7/32", "fd00::7/128"], "behaviour": "lost"},
            {"prefixes": ["10.255.0.0/16", "fdff::/64"], "behaviour": "fence"},
        ],
        others={"lost": {"loss": 1}},
    )
    inside, outside = target(client.family, 8), {4: "10.1.0.1", 6: "fd00:0:0:1::1"}[client.family]
    unheard_of = {4: "9.9.9.9", 6: "fc00::1"}[client.family]
    for address in (target(client.family, 7), inside, outside, unheard_of):
        client.ping(address)
    assert [each.source for each in client.read()] == [inside]
    truth = client.network.stop()
    assert truth.totals.unrouted == 1
    assert truth.targets[outside].dropped == 1


def test_what_is_not_due_is_pending(play: Play) -> None:
    client = play({"delay": {"distribution": "constant", "ms": 60_000}})
    client.ping_each(5)
    assert client.read() == []
    truth = client.network.stop()
    assert (truth.totals.pending, truth.totals.replied) == (5, 1)
    assert [probe.genuine for probe in probes_of(client)] == [1] * 5
    assert not any(probe.answers for probe in probes_of(client))


def test_what_arrived_before_the_end_counts(play: Play) -> None:
    client = play({})
    client.ping_each(100)
    totals = client.network.stop().totals
    assert totals.requests == totals.replied + totals.pending == 100


def test_probes_are_recorded_only_when_asked(play: Play) -> None:
    client = play({}, record="targets")
    client.ping_each(3)
    client.read()
    truth = client.network.stop()
    assert truth.probes == []
    assert truth.targets[target(client.family, 2)].replied == 1


@pytest.mark.parametrize("limit", ["hosts", "in_flight"])
def test_a_truth_with_a_hole_is_refused(play: Play, limit: str) -> None:
    client = play({}, limits={limit: 2})
    client.ping(FENCE[client.family])
    client.ping_each(3)
    client.wire.recv(65_535)
    with pytest.raises(TruthHoleError, match=f"overflow .*{limit}"):
        client.network.stop()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 0: ends without: end"),
        ("netsim 2\n", "line 1: does not begin with"),
        ("netsim 1\nbehaviour\nloss 1.5\n", "line 3: 1.5: not loss, or out of bounds"),
        ("netsim 1\nbehaviour\nlos 1\n", "line 3: los: no such setting here"),
        ("netsim 1\nseed x\n", "line 2: x: not seed"),
        ("netsim 1\nbehaviour\nprefix 10.0.0.0/33 0\n", "line 3: 10.0.0.0/33 0: no such prefix"),
        ("netsim 1\nbehaviour\nprefix 10.0.0.0/8 1\n", "line 3: 10.0.0.0/8 1: no such prefix"),
        ("netsim 1\ngateway here\n", "line 2: here: not an address"),
        ("netsim 1\nend\n", "find interface"),
    ],
)
def test_the_program_names_the_line_that_is_wrong(text: str, complaint: str) -> None:
    done = subprocess.run(
        [netsim_program(), "absent0", "/nonexistent"],
        input=text, text=True, capture_output=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert complaint in done.stderr
    assert done.stdout == ""


def test_a_scenario_the_program_refuses_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.netsim.network.scenario_text", lambda _: "netsim 2\n")
    with (
        pytest.raises(SimulatorError, match="did not start: netsim: line 1: does not begin"),
        simulated(scenario({})),
    ):
        pass


def test_a_simulator_that_dies_has_no_truth(play: Play) -> None:
    network = play({}).network
    network.process.kill()
    with pytest.raises(SimulatorError, match="ended with status -9"):
        network.stop()


def test_kinds_have_their_totals(play: Play) -> None:
    client = play({"forged": {"share": 1}, "noise": {"share": 1, "copies": 2}})
    client.ping_each(5)
    client.read()
    kinds = Counter(each.kind for probe in probes_of(client) for each in probe.answers)
    assert kinds == {Kind.REPLY: 5, Kind.FORGED: 5, Kind.NOISE: 10}
