"""Runs of the echo engine: their packets, their tokens, how they wait and how they end."""

import itertools
import random
import select
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from netsonde._native.icmp import (
    DUPLICATE,
    REPLY,
    RX_DROP,
    STOPPED,
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
    gather,
    is_quiet,
    poll,
    quiet_host,
    reply_to,
    request,
    submit_all,
)
from support.icmp_wire import DRIVERS, Driver
from support.namespaces import Namespace

pytestmark = [pytest.mark.raw, pytest.mark.netns]

both_drivers = pytest.mark.parametrize("driver", DRIVERS)

SUBMIT_RING = 8192
DONE_RING = 32_768
HOUR_NS = 3600 * SECOND_NS


@pytest.fixture(params=[4, 6])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def quiet() -> Iterator[Namespace]:
    host = quiet_host()
    yield host
    host.close()


@pytest.fixture
def answering() -> Iterator[Namespace]:
    host = Namespace("answering host")
    yield host
    host.close()


@pytest.fixture
def peer(quiet: Namespace, family: Family) -> Iterator[Peer]:
    peer = quiet.call(Peer, family)
    yield peer
    peer.close()


def opened(
    host: Namespace, family: Family, driver: Driver, *, budgets: tuple[PacketBudget, ...] = (),
    capacity: int = 1 << 20, receive_buffer_bytes: int = 8 << 20,
) -> EchoEngine:  # fmt: skip
    engine = host.call(
        EchoEngine, family, budgets=budgets, capacity=capacity,
        receive_buffer_bytes=receive_buffer_bytes,
    )  # fmt: skip
    if driver == "thread":
        engine.start()
    return engine


def await_sent(engine: EchoEngine, count: int) -> None:
    """Turn the engine, or let it turn, until so many packets have been sent."""
    for _ in range(int(PATIENCE_S * 1000)):
        if engine.counters["sent"] >= count:
            break
        select.select([engine], [], [], 0.001)
        assert poll(engine) == []
    assert engine.counters["sent"] == count


def kinds(done: list[Done]) -> Counter[int]:
    return Counter(each.kind for each in done)


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
    runs = (1 << 20) + 2000
    record = pack_requests(
        4, bytes([127, 0, 0, 1]) * 8192, token=0, timeout_ns=1, count=2, interval_ns=HOUR_NS,
        token_shift=1,
    )  # fmt: skip
    with opened(quiet, 4, driver, capacity=2048) as engine:
        taken = seen = 0
        while taken < runs:
            taken += engine.submit(record[: (runs - taken) * 56])
            select.select([engine], [], [], 1)
            seen += len(engine.poll())
        until = time.monotonic() + 3 * PATIENCE_S
        while engine.counters["sent"] < 1 << 20 and time.monotonic() < until:
            select.select([engine], [], [], 1)
            engine.poll()
        select.select([engine], [], [], 0.05)
        assert engine.counters["sent"] == 1 << 20


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
            b"".join(request(n, TARGET[family], timeout_ns=4 * SECOND_NS) for n in range(probes))
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


# ── cancelling ───────────────────────────────────────────────────────────────────────────────────


def stopped(done: list[Done]) -> dict[int, int]:
    return {each.token: each.rtt_ns for each in done if each.kind == STOPPED}


@both_drivers
def test_a_run_is_cancelled_between_two_packets(
    answering: Namespace, family: Family, driver: Driver
) -> None:
    with opened(answering, family, driver) as engine:
        engine.submit(request(5, TARGET[family], count=10, interval_ns=HOUR_NS))
        assert kinds(gather(engine, 1)) == {REPLY: 1}
        engine.cancel(5)
        assert stopped(gather(engine, 1)) == {5: 1}
        assert is_quiet(engine)
        if driver == "loop":
            assert engine.next_turn_ns is None
        assert engine.counters["sent"] == 1


@both_drivers
def test_requests_are_cancelled_while_they_wait(quiet: Namespace, driver: Driver) -> None:
    with opened(quiet, 4, driver, budgets=(PacketBudget(0.01),)) as engine:
        engine.submit(b"".join(request(n, TARGET[4]) for n in range(6)))
        await_sent(engine, 1)  # 1 waits in the heap, 2 to 5 in the ring
        for token in (1, 3, 5, 3):
            engine.cancel(token)
        assert [(each.token, each.rtt_ns) for each in gather(engine, 4)] == [
            (1, 0), (3, 0), (5, 0), (3, 0),
        ]  # fmt: skip
        assert engine.counters["sent"] == 1


@both_drivers
def test_the_cancelled_are_skipped_and_the_others_sent(
    answering: Namespace, driver: Driver
) -> None:
    count = 300
    with opened(answering, 4, driver, budgets=(PacketBudget(2000),)) as engine:
        engine.submit(b"".join(request(n, TARGET[4]) for n in range(count)))
        for token in range(1, count, 2):
            engine.cancel(token)
        done = gather(engine, 1)
        while len({each.token for each in done}) < count or not is_quiet(engine):
            done += poll(engine)
        never_sent = {token for token, sent in stopped(done).items() if sent == 0}
        assert set(stopped(done)) == set(range(1, count, 2))
        assert set(stopped(done).values()) <= {0, -1}
        replied = {each.token for each in done if each.kind == REPLY}
        assert replied == set(range(count)) - never_sent


@both_drivers
def test_nothing_is_left_to_cancel_of_what_was_sent_or_never_known(
    answering: Namespace, driver: Driver
) -> None:
    with opened(answering, 4, driver) as engine:
        engine.submit(request(5, TARGET[4], count=3))
        assert kinds(gather(engine, 3)) == {REPLY: 3}
        engine.cancel(5)
        engine.cancel(6)  # the token of a packet, not of a run
        engine.cancel(2**64 - 1)
        assert stopped(gather(engine, 3)) == {5: -1, 6: -1, 2**64 - 1: -1}


def test_cancellations_have_a_limit(quiet: Namespace) -> None:
    with opened(quiet, 4, "loop") as engine:
        for token in range(1024):
            engine.cancel(token)
        with pytest.raises(ValueError, match="too many"):
            engine.cancel(1024)
        assert sorted(stopped(gather(engine, 1024))) == list(range(1024))
        engine.cancel(1024)
        assert stopped(gather(engine, 1)) == {1024: -1}
        assert is_quiet(engine)


@both_drivers
def test_each_run_ends_with_as_many_packets_as_it_says(
    answering: Namespace, driver: Driver
) -> None:
    """Runs are cancelled at random while they are taken from the ring and sent."""
    chance = random.Random(5)
    runs, count = 400, 12
    with opened(answering, 4, driver, budgets=(PacketBudget(20_000),)) as engine:
        done: list[Done] = []
        for n in range(runs):
            engine.submit(
                request(n << 32, TARGET[4], count=count, interval_ns=chance.choice([0, 300_000]))
            )
            if chance.random() < 0.8:
                engine.cancel(chance.randint(max(0, n - 5), n) << 32)
            if chance.random() < 0.3:
                done += poll(engine)
        done += settle(engine)
        replies = Counter(each.token >> 32 for each in done if each.kind == REPLY)
        says: dict[int, list[int]] = {}
        for each in done:
            if each.kind == STOPPED:
                says.setdefault(each.token >> 32, []).append(each.rtt_ns)
        assert set(kinds(done)) == {REPLY, STOPPED}
        for n in range(runs):
            first = says.get(n, [-1])[0]
            assert replies[n] == (count if first == -1 else first)
            assert all(later in {-1, first} for later in says.get(n, [])[1:])


def settle(engine: EchoEngine) -> list[Done]:
    """Poll until the engine has nothing left to do."""
    done: list[Done] = []
    for _ in range(10_000):
        if not select.select([engine], [], [], 0.1)[0]:
            return done
        done += poll(engine)
    raise AssertionError("it never rests")


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
