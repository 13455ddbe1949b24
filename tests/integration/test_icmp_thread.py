"""The echo engine's own thread: its life, its wake-ups, its appetite, and what is left of it."""

import contextlib
import gc
import os
import random
import select
import signal
import struct
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from netsonde._native.icmp import (
    COMPLETION_FORMAT,
    REPLY,
    RX_KERNEL,
    STOPPED,
    TIMEOUT,
    EchoEngine,
)
from support.icmp_peer import (
    PATIENCE_S,
    SECOND_NS,
    TARGET,
    Family,
    Peer,
    await_rest,
    gather,
    is_quiet,
    poll,
    reply_to,
    request,
    send_one,
)
from support.namespaces import Namespace
from support.threads import await_pump_threads

pytestmark = [pytest.mark.raw, pytest.mark.netns]

SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
COMPLETION_BYTES = struct.calcsize(COMPLETION_FORMAT)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def turns_during(engine: EchoEngine, seconds: float) -> int:
    """How often the engine looks while nobody wants anything of it."""
    before = engine.counters["turns"]
    select.select([], [], [], seconds)
    return engine.counters["turns"] - before


# ── life ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_thread_replaces_the_descriptor_once(quiet: Namespace, family: Family) -> None:
    with quiet.call(EchoEngine, family) as engine:
        before = engine.fileno()
        engine.submit(request(1, TARGET[family]))
        assert engine.fileno() == before
        engine.start()
        after = engine.fileno()
        assert after != before
        await_pump_threads(1)
        with pytest.raises(ValueError, match="has been started"):
            engine.start()
        with pytest.raises(ValueError, match="has been started"):
            _ = engine.next_turn_ns
        poll(engine)
        assert engine.fileno() == after
    await_pump_threads(0)


def test_what_was_begun_without_the_thread_ends_with_it(
    quiet: Namespace, peer: Peer, family: Family
) -> None:
    with quiet.call(EchoEngine, family) as engine:
        message = send_one(engine, peer, token=1)
        engine.submit(
            request(2, TARGET[family], count=3, interval_ns=5_000_000, timeout_ns=20_000_000)
        )
        engine.cancel(9)
        engine.start()
        peer.send(reply_to(message, family))
        done = {each.token: each.kind for each in gather(engine, 5)}
        assert done == {1: REPLY, 2: TIMEOUT, 3: TIMEOUT, 4: TIMEOUT, 9: STOPPED}


def test_completions_from_before_the_start_are_told(quiet: Namespace) -> None:
    with quiet.call(EchoEngine, 4) as engine:
        engine.submit(request(1, "198.51.100.1"))
        assert engine.unread == 1
        engine.start()
        assert len(gather(engine, 1)) == 1


def test_closing_ends_whatever_is_under_way(answering: Namespace, family: Family) -> None:
    for at_work in (0, 1, 100_000):
        engine = answering.call(EchoEngine, family)
        engine.start()
        if at_work:
            engine.submit(request(1, TARGET[family], count=at_work))
            select.select([engine], [], [], 5)
        engine.close()
        engine.close()
        await_pump_threads(0)
        with pytest.raises(ValueError, match="closed"):
            engine.submit(b"")


def test_an_engine_left_running_warns_and_ends(answering: Namespace) -> None:
    engine = answering.call(EchoEngine, 4)
    engine.start()
    engine.submit(request(1, TARGET[4], count=10_000))
    with pytest.warns(ResourceWarning, match="unclosed EchoEngine"):
        del engine
    gc.collect()
    await_pump_threads(0)


def test_closing_while_other_threads_use_it_is_refused_or_seen(answering: Namespace) -> None:
    for _ in range(30):
        engine = answering.call(EchoEngine, 4)
        engine.start()
        surprises: list[BaseException] = []
        threads = [
            threading.Thread(target=use_until_closed, args=(engine, surprises)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        closed = False
        while not closed:
            with contextlib.suppress(RuntimeError):
                engine.close()
                closed = True
        for thread in threads:
            thread.join()
        assert surprises == []
    await_pump_threads(0)


def use_until_closed(engine: EchoEngine, surprises: list[BaseException]) -> None:
    while True:
        try:
            engine.submit(request(1, TARGET[4], count=50))
            engine.poll()
            engine.cancel(1)
            engine.note_clock_step()
            _ = engine.counters, engine.unread, engine.in_flight
            select.select([], [], [], 0.0001)  # somebody else's turn
        except RuntimeError:
            select.select([], [], [], 0.0001)
        except ValueError as error:
            if "closed" in str(error):
                return
        except BaseException as error:
            surprises.append(error)
            return


def test_a_call_that_fails_leaves_the_engine_usable(quiet: Namespace) -> None:
    with quiet.call(EchoEngine, 4) as engine:
        for wrong in ("soon", 1 << 70):
            with pytest.raises((TypeError, OverflowError)):
                engine.poll(now_ns=wrong)  # type: ignore[arg-type]
        with pytest.raises((TypeError, OverflowError)):
            engine.poll(limit=1 << 40)
        with pytest.raises(ValueError, match="whole records"):
            engine.submit(b"x")
        assert poll(engine) == []


def test_thousands_of_engines_leave_nothing_behind(answering: Namespace) -> None:
    def live(n: int) -> None:
        family: Family = 4 if n % 2 else 6
        engine = answering.call(
            EchoEngine, family, exact=n % 3 == 0, target_pps=100 if n % 5 == 0 else 0
        )
        if n % 4:
            engine.start()
        engine.submit(request(n, TARGET[family], count=3, interval_ns=1_000_000 * (n % 2)))
        engine.poll()
        engine.close()

    for n in range(60):
        live(n)
    gc.collect()
    open_before, resident_before = descriptors(), resident_bytes()
    for n in range(2000):
        live(n)
    gc.collect()
    assert descriptors() == open_before
    await_pump_threads(0)
    if not SANITIZED:  # which keeps what was freed, to see whether it is used
        assert resident_bytes() - resident_before < 8 << 20


# ── wake-ups ─────────────────────────────────────────────────────────────────────────────────────


def test_no_wake_up_is_missed_in_a_million_completions(answering: Namespace) -> None:
    """The reader sleeps on the descriptor whenever it has read everything, at any moment."""
    chance, total = random.Random(6), 200_000 if SANITIZED else 1_000_000
    with answering.call(EchoEngine, 4) as engine:
        engine.start()
        submitted = seen = reads = 0
        while seen < total:
            while submitted < total and submitted - seen < 20_000:
                count = min(chance.choice([1, 2, 50, 3000]), total - submitted)
                assert engine.submit(request(submitted, TARGET[4], count=count)) == 1
                submitted += count
            assert select.select([engine], [], [], PATIENCE_S)[0], engine.counters
            seen += len(engine.poll()) // COMPLETION_BYTES
            reads += 1
        assert seen == total
        assert is_quiet(engine)
        assert reads > total // 20_000
        assert engine.counters["sent"] == total


def test_single_packets_are_told_of_one_by_one(answering: Namespace, family: Family) -> None:
    with answering.call(EchoEngine, family) as engine:
        engine.start()
        for n in range(300):
            engine.submit(request(n, TARGET[family]))
            (done,) = gather(engine, 1)
            assert (done.token, done.kind) == (n, REPLY)


def test_a_timeout_wakes_the_reader(quiet: Namespace, family: Family) -> None:
    with quiet.call(EchoEngine, family) as engine:
        engine.start()
        for ms in (1, 3, 30, 80):
            engine.submit(request(ms, TARGET[family], timeout_ns=ms * 1_000_000))
        done = gather(engine, 4)
        assert [(each.token, each.kind) for each in done] == [
            (ms, TIMEOUT) for ms in (1, 3, 30, 80)
        ]


def test_more_than_one_poll_returns_keeps_the_descriptor_readable(answering: Namespace) -> None:
    count = 20_000  # more than a poll returns, fewer than may be unread
    with answering.call(EchoEngine, 4) as engine:
        engine.start()
        engine.submit(request(0, TARGET[4], count=count))
        until = time.monotonic() + PATIENCE_S
        while engine.unread < count and time.monotonic() < until:
            select.select([], [], [], 0.01)
        assert engine.unread == count
        polls: list[int] = []
        while sum(polls) < count:
            assert select.select([engine], [], [], 0)[0]
            polls.append(len(poll(engine)))
        assert max(polls) < count
        assert is_quiet(engine)


def test_signals_are_the_main_threads(answering: Namespace) -> None:
    alarms = 0

    def count_alarm(_number: int, _frame: object) -> None:
        nonlocal alarms
        alarms += 1

    previous = signal.signal(signal.SIGALRM, count_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
    try:
        for driver in ("loop", "thread"):
            with answering.call(EchoEngine, 4) as engine:
                if driver == "thread":
                    engine.start()
                for n in range(20):
                    assert engine.submit(request(n << 32, TARGET[4], count=1000)) == 1
                assert Counter(each.kind for each in gather(engine, 20_000)) == {REPLY: 20_000}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert alarms > 10


# ── appetite ─────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_thread_sleeps(quiet: Namespace, peer: Peer, family: Family) -> None:
    with quiet.call(EchoEngine, family) as engine:
        engine.start()
        assert turns_during(engine, 0.3) <= 2
        message = send_one_threaded(engine, peer)
        assert turns_during(engine, 0.5) <= 4  # it waits for a reply
        peer.send(reply_to(message, family))
        gather(engine, 1)
        is_quiet(engine)
        assert turns_during(engine, 0.5) <= 4


def send_one_threaded(engine: EchoEngine, peer: Peer) -> bytes:
    engine.submit(request(7, TARGET[peer.family], timeout_ns=60 * SECOND_NS))
    for _ in range(1000):
        messages = peer.requests()
        if messages:
            return messages[0]
        select.select([], [], [], 0.005)
    raise AssertionError("nothing was sent")


def test_unread_completions_do_not_keep_the_thread_awake(
    answering: Namespace, family: Family
) -> None:
    with answering.call(EchoEngine, family) as engine:
        engine.start()
        engine.submit(request(7, TARGET[family], count=3))
        select.select([engine], [], [], PATIENCE_S)
        select.select([], [], [], 0.05)
        assert turns_during(engine, 0.5) <= 4
        assert len(gather(engine, 3)) == 3


def test_a_full_slab_or_ring_is_looked_at_once_a_millisecond(quiet: Namespace) -> None:
    with quiet.call(EchoEngine, 4, capacity=1) as engine:
        engine.start()
        engine.submit(request(0, TARGET[4], count=100, timeout_ns=60 * SECOND_NS) * 100)
        select.select([], [], [], 0.05)
        started = time.monotonic()
        turns = turns_during(engine, 0.3)
        assert turns <= 1200 * (time.monotonic() - started) + 5


def test_other_peoples_packets_cost_a_turn_a_millisecond_at_most(
    quiet: Namespace, peer: Peer, family: Family
) -> None:
    foreign = bytes([0 if family == 4 else 129, 0]) + bytes(14)
    with quiet.call(EchoEngine, family) as engine:
        engine.start()
        before, started = engine.counters["turns"], time.monotonic()
        peer.send(foreign, times=20_000)
        elapsed = time.monotonic() - started
        assert engine.counters["turns"] - before <= 2200 * elapsed + 10


# ── the wall clock ───────────────────────────────────────────────────────────────────────────────


def test_a_clock_step_is_heeded_by_the_thread(quiet: Namespace, peer: Peer, family: Family) -> None:
    with quiet.call(EchoEngine, family) as engine:
        engine.start()
        stepped = send_one_threaded(engine, peer)
        await_rest(engine)  # or the turn that sent it could take the reply in, too
        engine.note_clock_step()
        peer.send(reply_to(stepped, family))
        (first,) = gather(engine, 1)
        clean = send_one_threaded(engine, peer)
        peer.send(reply_to(clean, family))
        (second,) = gather(engine, 1)
        assert (first.clocks & RX_KERNEL, second.clocks & RX_KERNEL) == (0, RX_KERNEL)
        assert 0 <= first.rtt_ns < PATIENCE_S * SECOND_NS
        assert engine.counters["clock_steps"] == 1
