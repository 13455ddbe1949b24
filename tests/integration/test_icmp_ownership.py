"""What an echo engine owns: its thread, its budgets, its memory, and who may let go of them."""

import gc
import os
import select
import signal
import subprocess
import sys

import pytest

from netsonde._native.icmp import REPLY, SIZE_MAX_BYTES, EchoEngine, PacketBudget
from support.icmp_peer import PATIENCE_S, TARGET, Family, await_rest, gather, request
from support.namespaces import Namespace

pytestmark = [pytest.mark.raw, pytest.mark.netns]

no_fork_warning = pytest.mark.filterwarnings(  # from Python 3.12, of a process with threads
    "ignore:.*fork:DeprecationWarning"
)


# ── a forked child ───────────────────────────────────────────────────────────────────────────────


def exit_code(child: int) -> int:
    """Wait for a child; one that hangs is killed and has none."""
    handle = os.pidfd_open(child)
    try:
        ended = select.select([handle], [], [], PATIENCE_S)[0]
        if not ended:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    finally:
        os.close(handle)
    assert ended, "the child hangs"
    return os.waitstatus_to_exitcode(status)


def exit_code_of_closing(engine: EchoEngine, how: str) -> int:
    """Let go of an engine in a forked child."""
    child = os.fork()
    if child == 0:
        try:
            if how == "close":
                engine.close()
            del engine
        finally:
            os._exit(7)
    return exit_code(child)


@no_fork_warning
@pytest.mark.parametrize("how", ["close", "forget"])
def test_a_forked_child_lets_go_of_an_engine_whose_thread_it_does_not_have(
    answering: Namespace, family: Family, how: str
) -> None:
    with answering.call(EchoEngine, family) as engine:
        engine.start()
        engine.submit(request(1, TARGET[family], count=1000, interval_ns=1_000_000))
        gather(engine, 1)
        assert exit_code_of_closing(engine, how) == 7
        engine.cancel(1)  # the parent's has its thread and its descriptors yet
        engine.submit(request(1 << 32, TARGET[family]))
        while all(each.token != 1 << 32 for each in gather(engine, 1)):
            pass


@no_fork_warning
def test_a_forked_child_does_not_tell_its_parents_thread_to_end(answering: Namespace) -> None:
    """Whether waiting for a thread that is not there hangs is up to the C library."""
    with answering.call(EchoEngine, 4) as engine:
        engine.start()
        turns = await_rest(engine)
        assert exit_code_of_closing(engine, "close") == 7
        assert await_rest(engine) == turns


# ── budgets ──────────────────────────────────────────────────────────────────────────────────────


def test_an_engine_keeps_the_budgets_that_nobody_else_holds(
    answering: Namespace, family: Family
) -> None:
    count = 400
    budget = PacketBudget(4000)
    with answering.call(EchoEngine, family, budgets=(budget,)) as engine:
        engine.start()
        engine.submit(request(0, TARGET[family], count=count))
        done = gather(engine, 1)
        del budget
        gc.collect()
        others = [PacketBudget(1e-3) for _ in range(1000)]  # where a freed one would have been
        done += gather(engine, count - len(done))
        assert [each.kind for each in done] == [REPLY] * count
        assert len(others) == 1000


def test_the_collector_does_not_take_an_engine_apart(answering: Namespace, family: Family) -> None:
    """It would clear the budgets first, while the thread that asks them still runs."""
    engine = answering.call(EchoEngine, family, budgets=(PacketBudget(1e6),))
    assert not gc.is_tracked(engine)
    engine.start()
    engine.submit(request(0, TARGET[family], count=100_000))
    gather(engine, 1)
    ring: list[object] = [engine]
    ring.append(ring)
    del engine, ring
    with pytest.warns(ResourceWarning, match="unclosed EchoEngine"):
        gc.collect()


# ── memory ───────────────────────────────────────────────────────────────────────────────────────

# A process of its own: there no heap that other tests have left holds 4 MiB in one piece.
WITHOUT_MEMORY = f"""
import resource, select, struct, sys
from pathlib import Path
from netsonde._native.icmp import COMPLETION_FORMAT, REPLY, EchoEngine, pack_requests

SLACK_BYTES = 2 << 20  # of the 4 MiB that large replies need
family = int(sys.argv[1])
address = bytes([127, 0, 0, 1]) if family == 4 else bytes(15) + b"\\1"
requests = pack_requests(family, address, token=1, timeout_ns=10**9, size={SIZE_MAX_BYTES})
with EchoEngine(family) as engine:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + SLACK_BYTES, unlimited[1]))
    engine.submit(requests)
    for _ in range(5):
        select.select([engine], [], [], 0.01)
        assert engine.poll() == b""
    assert engine.counters["sent"] == 0
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    done = b""
    while not done:
        assert select.select([engine], [], [], {PATIENCE_S})[0]
        done = engine.poll()
    (_, _, _, _, kind, _, _, _, size, *_), = struct.iter_unpack(COMPLETION_FORMAT, done)
    assert (kind, size) == (REPLY, {SIZE_MAX_BYTES})
"""


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="its allocator ends the process instead"
)
def test_what_could_not_be_received_is_not_sent_before_there_is_memory(
    answering: Namespace, family: Family
) -> None:
    done = answering.call(
        subprocess.run, [sys.executable, "-c", WITHOUT_MEMORY, str(family)],
        capture_output=True, text=True, check=False, timeout=3 * PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
