"""Runs of the echo engine that are cancelled: how far each came, and that it ends there."""

import random
import select
import time
from collections import Counter

import pytest

from netsonde._native.icmp import REPLY, STOPPED, EchoEngine, PacketBudget
from support.icmp_peer import (
    PATIENCE_S,
    SECOND_NS,
    TARGET,
    Done,
    Family,
    await_sent,
    gather,
    is_quiet,
    kinds,
    poll,
    request,
)
from support.icmp_wire import Driver, both_drivers, opened
from support.namespaces import Namespace

pytestmark = [pytest.mark.raw, pytest.mark.netns]

HOUR_NS = 3600 * SECOND_NS


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


def test_without_a_thread_a_cancelled_run_sends_no_more_at_the_next_submission(
    answering: Namespace, family: Family
) -> None:
    """Its next packet is due by then, and nobody has polled since it was cancelled."""
    with opened(answering, family, "loop") as engine:
        engine.submit(request(5, TARGET[family], count=1000, interval_ns=20_000_000))
        done = gather(engine, 1)
        sent, due_ns = engine.counters["sent"], engine.next_turn_ns
        engine.cancel(5)
        assert due_ns is not None
        while time.monotonic_ns() <= due_ns:
            select.select([], [], [], 0.001)
        engine.submit(request(1 << 32, TARGET[family]))
        assert engine.counters["sent"] == sent + 1
        done += gather(engine, sent + 2 - len(done))
        assert kinds(done) == {REPLY: sent + 1, STOPPED: 1}
        assert stopped(done) == {5: sent}


def test_without_a_thread_cancelling_wakes_whoever_turns_the_engine(
    answering: Namespace, family: Family
) -> None:
    with opened(answering, family, "loop") as engine:
        engine.submit(request(5, TARGET[family], count=2, interval_ns=HOUR_NS))
        assert kinds(gather(engine, 1)) == {REPLY: 1}
        assert is_quiet(engine)
        engine.cancel(5)
        assert select.select([engine], [], [], PATIENCE_S)[0]
        assert stopped(poll(engine)) == {5: 1}


@both_drivers
def test_a_stopped_run_says_how_many_of_its_packets_were_sent(
    answering: Namespace, family: Family, driver: Driver
) -> None:
    """At one packet in 100 s after the first two it cannot get further than it says."""
    with opened(answering, family, driver, budgets=(PacketBudget(0.01),)) as engine:
        engine.submit(request(5, TARGET[family], count=3))
        assert kinds(gather(engine, 1)) == {REPLY: 1}
        engine.cancel(5)
        assert stopped(gather(engine, 1)) == {5: 1}
        engine.cancel(5)
        assert stopped(gather(engine, 1)) == {5: -1}
    with opened(answering, family, driver) as engine:
        engine.submit(request(5, TARGET[family], count=40, interval_ns=2_000_000))
        done = gather(engine, 7)
        engine.cancel(5)
        while not stopped(done):
            done += gather(engine, 1)
        count = stopped(done)[5]
        assert 7 <= count < 40
        assert is_quiet(engine)
        assert sum(each.kind == REPLY for each in done + poll(engine)) == count
        assert engine.counters["sent"] == count


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
