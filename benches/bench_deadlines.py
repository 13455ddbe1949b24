"""Budget L1: the deadline heap at a million leases against heapq + dict and C++, and its memory.

Every contestant lives through one history of a million leases: rounds of a batch each of push,
extend, extend, remove and pop, and a push that is not timed and keeps the number. The rivals are
lazy: an extension or a removal leaves a stale entry behind, which a later pop skips. So the first
rounds are not timed either, until stale entries come up about as fast as they are made.

Ids and deadlines come in the shape each contestant likes best, made beforehand: buffers for the
native heap and for C++, lists of int for Python. All pops are timed up to a list of Python ints.
"""

import ctypes
import heapq
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benches.harness import OURS, Bench, Budget, Contestant, MissingRivalError, Scale, steadily
from benches.lease_history import Batch, Historian, History, Round
from netsonde._native.deadlines import DONE, DeadlineHeap

HEAPQ, CPP = "heapq + dict", "C++ priority_queue + unordered_map"
LEASES, LARGE, BATCH, ROUNDS = 1_000_000, 10_000_000, 1000, 100
UNTIMED = {Scale.QUICK: 150, Scale.FULL: 500}  # rounds
PAGE_BYTES = 4096
ROOT = Path(__file__).resolve().parent.parent


Shaped = tuple[Any, Any]  # ids and deadlines as a contestant likes them


class Heap(Protocol):
    """What a contestant does, batch by batch."""

    def shape(self, batch: Batch) -> Shaped: ...
    def push(self, batch: Shaped) -> None: ...
    def extend(self, batch: Shaped) -> None: ...
    def remove(self, batch: Shaped) -> None: ...
    def pop(self, now_ns: int) -> list[int]: ...


class NativeHeap:
    def __init__(self) -> None:
        self.heap = DeadlineHeap(2 * LEASES)

    def shape(self, batch: Batch) -> Shaped:
        return batch

    def push(self, batch: Shaped) -> None:
        self.heap.push(*batch)

    def extend(self, batch: Shaped) -> None:
        self.heap.extend(*batch)

    def remove(self, batch: Shaped) -> None:
        self.heap.drop(batch[0])

    def pop(self, now_ns: int) -> list[int]:
        return self.heap.pop_due(now_ns, 2 * LEASES).tolist()


class HeapqDict:
    """The usual Python: a heap of (deadline, id), and a dict that says which entry is current."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int]] = []
        self.deadlines: dict[int, int] = {}

    def shape(self, batch: Batch) -> Shaped:
        return batch.ids.tolist(), batch.ends_ns.tolist()

    def push(self, batch: Shaped) -> None:
        heap, deadlines, heappush = self.heap, self.deadlines, heapq.heappush
        for lease_id, end_ns in zip(*batch, strict=True):
            if lease_id not in deadlines:
                deadlines[lease_id] = end_ns
                heappush(heap, (end_ns, lease_id))

    def extend(self, batch: Shaped) -> None:
        heap, deadlines, heappush = self.heap, self.deadlines, heapq.heappush
        for lease_id, end_ns in zip(*batch, strict=True):
            old_ns = deadlines.get(lease_id)
            if old_ns is not None and end_ns > old_ns:
                deadlines[lease_id] = end_ns
                heappush(heap, (end_ns, lease_id))

    def remove(self, batch: Shaped) -> None:
        pop = self.deadlines.pop
        for lease_id in batch[0]:
            pop(lease_id, None)

    def pop(self, now_ns: int) -> list[int]:
        heap, deadlines, heappop = self.heap, self.deadlines, heapq.heappop
        popped = []
        while heap and heap[0][0] <= now_ns:
            end_ns, lease_id = heappop(heap)
            if deadlines.get(lease_id) == end_ns:
                del deadlines[lease_id]
                popped.append(lease_id)
        return popped


class CppHeap:
    """rivals/lazy_heap.cpp through ctypes: one call a batch, as for the native heap."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.heap = ctypes.c_void_p(library.lazy_new(2 * LEASES))
        self.out = array("Q", bytes(8 * 2 * BATCH))

    def shape(self, batch: Batch) -> Shaped:
        return batch

    def push(self, batch: Shaped) -> None:
        ids, ends_ns = batch
        self.library.lazy_push(self.heap, address(ids), address(ends_ns), len(ids))

    def extend(self, batch: Shaped) -> None:
        ids, ends_ns = batch
        self.library.lazy_extend(self.heap, address(ids), address(ends_ns), len(ids))

    def remove(self, batch: Shaped) -> None:
        self.library.lazy_remove(self.heap, address(batch[0]), len(batch[0]))

    def pop(self, now_ns: int) -> list[int]:
        count = self.library.lazy_pop(self.heap, now_ns, address(self.out), len(self.out))
        return self.out[:count].tolist()

    def __del__(self) -> None:
        self.library.lazy_delete(self.heap)


def address(words: "array[int]") -> int:
    """Return where an array's words are."""
    return words.buffer_info()[0]


def compile_rival() -> ctypes.CDLL:
    """Compile the C++ rival, optimised as the native modules are."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        raise MissingRivalError("no C++ compiler: install g++")
    source = ROOT / "benches" / "rivals" / "lazy_heap.cpp"
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "lazy_heap.so"
        flags = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-fPIC", "-shared"]
        done = subprocess.run(
            [compiler, *flags, source, "-o", library], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise MissingRivalError(f"{compiler} failed: {done.stderr}")
        loaded = ctypes.CDLL(str(library))  # stays mapped when the file is gone
    word, pointer = ctypes.c_size_t, ctypes.c_void_p
    for name, result, arguments in (
        ("new", pointer, [word]),
        ("delete", None, [pointer]),
        ("push", None, [pointer, pointer, pointer, word]),
        ("extend", None, [pointer, pointer, pointer, word]),
        ("remove", None, [pointer, pointer, word]),
        ("pop", word, [pointer, ctypes.c_int64, pointer, word]),
    ):
        function = getattr(loaded, f"lazy_{name}")
        function.restype = result
        function.argtypes = arguments
    return loaded


def live(make: Callable[[], Heap], history: History) -> dict[str, float]:
    """Live through the history; return ns per operation of each kind and of the mix."""
    heap = make()
    for batch in history.fill:
        heap.push(heap.shape(batch))
    spent = [0, 0, 0, 0]
    timed = history.rounds[-ROUNDS:]
    for round_ in history.rounds[:-ROUNDS]:
        live_round(heap, round_)
    for round_ in timed:
        spent = [sum(pair) for pair in zip(spent, live_round(heap, round_), strict=True)]
    push, extends, remove, pop = (ns / len(timed) / BATCH for ns in spent)
    return {
        "push": push,
        "extend": extends / 2,
        "remove": remove,
        "pop": pop,
        "mix": (push + extends + remove + pop) / 5,
    }


def live_round(heap: Heap, round_: Round) -> tuple[int, int, int, int]:
    """Live through one round; return the ns that push, both extends, remove and pop took."""
    clock = time.perf_counter_ns
    push, refill = heap.shape(round_.push), heap.shape(round_.refill)
    first, second = (heap.shape(batch) for batch in round_.extends)
    remove = heap.shape(round_.remove)
    begun = clock()
    heap.push(push)
    pushed = clock()
    heap.extend(first)
    heap.extend(second)
    extended = clock()
    heap.remove(remove)
    removed = clock()
    popped = heap.pop(round_.now_ns)
    ended = clock()
    if set(popped) != set(round_.due):  # a rival's ties come by id, not by push order
        raise AssertionError(f"{type(heap).__name__} popped other leases than were due")
    heap.push(refill)
    return pushed - begun, extended - pushed, removed - extended, ended - removed


def resident_bytes() -> int:
    """Read this process's resident set."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def measure_memory(leases: int) -> dict[str, float]:
    """Fill a heap; return bytes per lease as the heap says and as the kernel says."""
    rng = random.Random(leases)
    heap = DeadlineHeap(leases)
    before = resident_bytes()
    for _ in range(leases // BATCH):
        if heap.push(rng.randbytes(8 * BATCH), rng.randbytes(8 * BATCH)).count(DONE) != BATCH:
            raise AssertionError("the heap refused a lease")
    resident = resident_bytes() - before
    figures = {"allocated": heap.allocated_bytes / leases, "resident": resident / leases}
    due = heap.pop_due(0, leases)
    if len(due) + len(heap) != leases or abs(len(due) / leases - 0.5) > 0.01:
        raise AssertionError(f"{len(due)} of {leases} leases were due")
    return figures


def memory_in_fresh_process(leases: int) -> dict[str, float]:
    """Measure memory where nothing else comes and goes."""
    command = [sys.executable, "-m", "benches.bench_deadlines", str(leases)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return {
        f"{leases // 1_000_000}M leases, {name}": value
        for name, value in json.loads(done.stdout).items()
    }


def bench(scale: Scale) -> Bench:
    """Make the history and the contestants."""
    if scale is Scale.ONCE:
        history = Historian(LEASES // 50, ROUNDS + 1, BATCH).write()
        memory = memory_in_fresh_process(LEASES)
    else:
        history = Historian(LEASES, UNTIMED[scale] + ROUNDS, BATCH).write()
        memory = memory_in_fresh_process(LEASES) | memory_in_fresh_process(LARGE)
    contestants: dict[str, Contestant | MissingRivalError] = {
        OURS: steadily(lambda: live(NativeHeap, history) | memory),
        HEAPQ: partial(live, HeapqDict, history),
    }
    try:
        contestants[CPP] = partial(live, partial(CppHeap, compile_rival()), history)
    except MissingRivalError as missing:
        contestants[CPP] = missing
    return Bench(contestants, budgets(memory))


def budgets(memory: Mapping[str, float]) -> list[Budget]:
    """L1 of docs/performance.md."""
    faster = partial(Budget, id="L1", unit="ns/op", quotient="rival/ours")
    return [
        faster(figure="mix", rival=HEAPQ, at_least=15),
        *(
            faster(figure=figure, rival=HEAPQ, at_least=10)
            for figure in ("push", "extend", "remove", "pop")
        ),
        faster(figure="mix", rival=CPP, at_least=5),
        *(
            Budget(id="L1", figure=figure, unit="B/lease", at_most=56, noisy=False)
            for figure in memory
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(measure_memory(int(sys.argv[1]))))
