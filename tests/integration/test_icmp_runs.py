"""Runs of the echo engine: their packets, their tokens, how they wait and how they end."""

import itertools
import select
import time
from collections import Counter

import pytest

from netsonde._native.icmp import (
    DUPLICATE,
    REPLY,
    RX_DROP,
    TIMEOUT,
    TX_ERROR,
    EchoEngine,
    PacketBudget,
    pack_requests,
)
from support.icmp_peer import (
    PATIENCE_S,
    SECOND_NS,
    TARGET,
    Done,
    Family,
    Peer,
    await_sent,
    gather,
    is_quiet,
    kinds,
    poll,
    reply_to,
    request,
    submit_all,
)
from support.icmp_wire import Driver, both_drivers, opened
from support.namespaces import Namespace

pytestmark = [pytest.mark.raw, pytest.mark.netns]

SUBMIT_RING = 8192
RUNS_MAX = 1 << 20
DONE_RING = 32_768
HOUR_NS = 3600 * SECOND_NS


# ── packets and tokens ───────────────────────────────────────────────────────────────────────────


@both_drivers
def test_a_run_is_its_packets_with_tokens_in_a_row(
    answering: Namespace, family: Family, driver: Driver
) -> None:
    with opened(answering, family, driver) as engine:
        engine.submit(
            request(2**64 - 2, TARGET[family], count=5, interval_ns=1_000_000)
            + request(100, TARGET[family], count=70)
        )
        done = gather(engine, 75)
        assert sorted(each.token for each in done) == [
            *range(3), *range(100, 170), 2**64 - 2, 2**64 - 1
        ]  # fmt: skip
        assert kinds(done) == {REPLY: 75}
        assert is_quiet(engine)


@both_drivers
def test_a_flood_lets_others_send(answering: Namespace, driver: Driver) -> None:
    flood, later = 60_000, 1 << 32
    with opened(answering, 4, driver) as engine:
        engine.submit(request(0, TARGET[4], count=flood))
        done = gather(engine, 1)
        engine.submit(request(later, TARGET[4], count=20, interval_ns=1_000_000))
        done += gather(engine, flood + 20 - len(done))
        assert kinds(done) == {REPLY: flood + 20}
        ends = [at for at, each in enumerate(done) if each.token >= later]
        assert ends[0] < flood - 1000  # it did not have to wait for the flood's end


@both_drivers
def test_every_run_gets_its_share(answering: Namespace, driver: Driver) -> None:
    runs, each_sends = 50, 2000
    with opened(answering, 4, driver) as engine:
        engine.submit(b"".join(request(n << 32, TARGET[4], count=each_sends) for n in range(runs)))
        done = gather(engine, runs * each_sends)
        half = Counter(each.token >> 32 for each in done[: len(done) // 2])
        assert min(half.values()) > each_sends // 4


@both_drivers
def test_a_million_runs_fit_and_more_wait(quiet: Namespace, driver: Driver) -> None:
    """The pace of their one target lets one packet through; the other runs wait for theirs."""
    records = pack_requests(
        4, bytes([127, 0, 0, 1]) * SUBMIT_RING, token=0, timeout_ns=1, token_shift=1
    )
    fit = 1 + RUNS_MAX + SUBMIT_RING
    with opened(quiet, 4, driver, target_pps=0.001) as engine:
        taken, until = 0, time.monotonic() + 3 * PATIENCE_S
        while taken < fit:
            taken += engine.submit(records)
            select.select([engine], [], [], 0.01)
            engine.poll()
            assert time.monotonic() < until, f"{taken} of {fit} were taken"
        for _ in range(20):
            assert engine.submit(records) == 0
            select.select([engine], [], [], 0.01)
            engine.poll()
        assert taken == fit
        assert engine.counters["sent"] == 1


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────


@both_drivers
def test_a_full_ring_takes_fewer_and_says_when_there_is_room(
    quiet: Namespace, family: Family, driver: Driver
) -> None:
    """Nothing completes, so only the room itself can make the descriptor readable."""
    count = 30_000
    requests = b"".join(request(n, TARGET[family], timeout_ns=60 * SECOND_NS) for n in range(count))
    with opened(quiet, family, driver, budgets=(PacketBudget(100_000),)) as engine:
        assert engine.submit(requests) == SUBMIT_RING
        assert submit_all(engine, requests[SUBMIT_RING * 56 :]) == []
        await_sent(engine, count)
        assert engine.in_flight == count


@both_drivers
def test_nobody_in_the_ring_is_overtaken_by_many(
    quiet: Namespace, peer: Peer, family: Family, driver: Driver
) -> None:
    with opened(quiet, family, driver, budgets=(PacketBudget(20_000),)) as engine:
        engine.submit(b"".join(request(n, TARGET[family], size=16 + n) for n in range(200)))
        await_sent(engine, 200)
        order = [len(message) - 8 - 16 for message in peer.requests()]
        assert sorted(order) == list(range(200))
        assert max(abs(at - number) for at, number in enumerate(order)) <= 16


def test_unread_completions_stop_the_engine_and_lose_nothing(
    quiet: Namespace, peer: Peer, family: Family
) -> None:
    """Nobody polls: completions fill their ring, then packets the socket, and drops are counted."""
    probes = 100  # as many as the peer's own queue holds for sure
    with opened(quiet, family, "thread", receive_buffer_bytes=1 << 20) as engine:
        engine.submit(request(DONE_RING, TARGET[family], timeout_ns=60 * SECOND_NS))
        await_sent(engine, 1)
        reply = reply_to(peer.requests()[0], family)
        dropped = fill(engine, peer, reply, DONE_RING - 2000)
        engine.submit(
            b"".join(request(n, TARGET[family], timeout_ns=2 * SECOND_NS) for n in range(probes))
        )
        until = time.monotonic() + PATIENCE_S
        while engine.counters["sent"] < 1 + probes and time.monotonic() < until:
            select.select([], [], [], 0.001)
        assert engine.counters["sent"] == 1 + probes
        messages = peer.requests()
        assert len(messages) == probes
        fill(engine, peer, reply, DONE_RING - 256 + 1)
        before, began = engine.counters["turns"], time.monotonic()
        peer.send(reply, times=5000)  # now the socket's queue is full as well
        for message in messages:
            peer.send(reply_to(message, family))
        select.select([], [], [], 0.3)
        turns = engine.counters["turns"] - before
        assert turns < 1500 * (time.monotonic() - began)  # it waits, it does not spin
        assert engine.unread <= DONE_RING
        done: list[Done] = []
        while sum(each.token < probes for each in done) < probes:
            done += gather(engine, 1)
        ended = kinds([each for each in done if each.token < probes])
        assert set(ended) <= {REPLY, RX_DROP}
        assert ended[RX_DROP] > 0
        assert engine.counters["rx_drops"] - dropped >= len(messages) - ended[REPLY]
        assert set(kinds(done)) == {REPLY, RX_DROP, DUPLICATE}


def fill(engine: EchoEngine, peer: Peer, reply: bytes, unread: int) -> int:
    """Send a reply again and again until so much is unread; returns what the queue dropped."""
    until = time.monotonic() + PATIENCE_S
    while engine.unread < unread and time.monotonic() < until:
        peer.send(reply, times=50)
        assert peer.requests() == []  # it sees its own replies too: its queue must not fill
    assert engine.unread >= unread
    return engine.counters["rx_drops"]


# ── every packet exactly once ────────────────────────────────────────────────────────────────────


@both_drivers
def test_every_packet_completes_once_whatever_happens_to_it(
    quiet: Namespace, peer: Peer, family: Family, driver: Driver
) -> None:
    nowhere = "198.51.100.1" if family == 4 else "2001:db8::1"
    with opened(quiet, family, driver, capacity=64) as engine:
        wanted = 600
        engine.submit(
            b"".join(
                request(n * 3, nowhere if n % 3 == 0 else TARGET[family], count=3,
                        interval_ns=n % 4 * 500_000, timeout_ns=20_000_000)
                for n in range(wanted // 3)
            )
        )  # fmt: skip
        done: list[Done] = []
        for turn in itertools.count():
            for message in peer.requests()[turn % 2 :: 2]:
                peer.send(reply_to(message, family))
            done += poll(engine)
            select.select([engine], [], [], 0.01)
            if sum(each.kind in {REPLY, TIMEOUT, TX_ERROR} for each in done) >= wanted:
                break
            assert turn < 100_000
        final = [each for each in done if each.kind in {REPLY, TIMEOUT, TX_ERROR, RX_DROP}]
        assert sorted(each.token for each in final) == list(range(wanted))
        assert kinds(final)[TX_ERROR] == 201
