"""Budget L1: the deadline heap at a million leases against heapq + dict and C++, and its memory.

Every contestant lives through one history: a million leases, then rounds of a batch each of push,
extend, extend, remove and pop. The ids and deadlines come to each in the shape it likes best:
buffers for the native heap and for C++, lists of int for Python. All pops are timed up to a list of
Python ints, and what they return is checked afterwards. The rivals are lazy: they leave stale
entries behind, skip them in pop, and are charged nothing for those that remain in the end.
"""

import ctypes
import heapq
import json
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from benches.harness import OURS, Bench, Budget, Contestant, MissingRivalError
from benches.lease_history import Batch, Historian, History
from netsonde._native.deadlines import DONE, DeadlineHeap

HEAPQ, CPP = "heapq + dict", "C++ priority_queue + unordered_map"
LEASES, ROUNDS, BATCH = 1_000_000, 100, 1000
LARGE = 10_000_000
PAGE_BYTES = 4096
ROOT = Path(__file__).resolve().parent.parent


class Heap(Protocol):
    """What a contestant does, batch by batch."""

    def push(self, batch: Batch) -> None: ...
    def extend(self, batch: Batch) -> None: ...
    def remove(self, batch: Batch) -> None: ...
    def pop(self, now_ns: int) -> list[int]: ...


class NativeHeap:
    def __init__(self) -> None:
        self.heap = DeadlineHeap(2 * LEASES)

    def push(self, batch: Batch) -> None:
        self.heap.push(batch.ids, batch.ends_ns)

    def extend(self, batch: Batch) -> None:
        self.heap.extend(batch.ids, batch.ends_ns)

    def remove(self, batch: Batch) -> None:
        self.heap.drop(batch.ids)

    def pop(self, now_ns: int) -> list[int]:
        return self.heap.pop_due(now_ns, 2 * LEASES).tolist()


class HeapqDict:
    """The usual Python: a heap of (deadline, id), and a dict that says which entry is current."""

    def __init__(self) -> None:
        self.heap: list[tuple[int, int]] = []
        self.deadlines: dict[int, int] = {}

    def push(self, batch: Batch) -> None:
        heap, deadlines, heappush = self.heap, self.deadlines, heapq.heappush
        for lease_id, end_ns in zip(batch.id_list, batch.end_list, strict=True):
            if lease_id not in deadlines:
                deadlines[lease_id] = end_ns
                heappush(heap, (end_ns, lease_id))

    def extend(self, batch: Batch) -> None:
        heap, deadlines, heappush = self.heap, self.deadlines, heapq.heappush
        for lease_id, end_ns in zip(batch.id_list, batch.end_list, strict=True):
            old_ns = deadlines.get(lease_id)
            if old_ns is not None and end_ns > old_ns:
                deadlines[lease_id] = end_ns
                heappush(heap, (end_ns, lease_id))

    def remove(self, batch: Batch) -> None:
        pop = self.deadlines.pop
        for lease_id in batch.id_list:
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

    def push(self, batch: Batch) -> None:
        ids, ends_ns = batch.ids.buffer_info()[0], batch.ends_ns.buffer_info()[0]
        self.library.lazy_push(self.heap, ids, ends_ns, len(batch.ids))

    def extend(self, batch: Batch) -> None:
        ids, ends_ns = batch.ids.buffer_info()[0], batch.ends_ns.buffer_info()[0]
        self.library.lazy_extend(self.heap, ids, ends_ns, len(batch.ids))

    def remove(self, batch: Batch) -> None:
        self.library.lazy_remove(self.heap, batch.ids.buffer_info()[0], len(batch.ids))

    def pop(self, now_ns: int) -> list[int]:
        out = self.out
        count = self.library.lazy_pop(self.heap, now_ns, out.buffer_info()[0], len(out))
        return out[:count].tolist()

    def __del__(self) -> None:
        self.library.lazy_delete(self.heap)


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
        heap.push(batch)
    spent = dict.fromkeys(("push", "extend", "remove", "pop"), 0)
    clock = time.perf_counter_ns
    for round_ in history.rounds:
        times = [clock()]
        heap.push(round_.push)
        times.append(clock())
        heap.extend(round_.extends[0])
        heap.extend(round_.extends[1])
        times.append(clock())
        heap.remove(round_.remove)
        times.append(clock())
        popped = heap.pop(round_.now_ns)
        times.append(clock())
        for index, operation in enumerate(spent):
            spent[operation] += times[index + 1] - times[index]
        if set(popped) != set(round_.due):  # a rival's ties come by id, not by push order
            raise AssertionError(f"{type(heap).__name__} popped other leases than were due")
    each = len(history.rounds) * BATCH
    figures = {name: ns / each / (2 if name == "extend" else 1) for name, ns in spent.items()}
    return {**figures, "mix": sum(spent.values()) / each / 5}


def resident_bytes() -> int:
    """Read this process's resident set."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def measure_memory(leases: int) -> dict[str, float]:
    """Fill a heap; return bytes per lease as the heap says and as the kernel says."""
    step = 10_000
    heap = DeadlineHeap(leases)
    heap.push(array("Q", [2**63]), array("q", [0]))
    heap.drop_one(2**63)
    spread = 0x9E3779B97F4A7C15  # consecutive multiples look random, and none repeats
    before = resident_bytes()
    for begin in range(0, leases, step):
        ids = array("Q", ((i * spread) % 2**64 for i in range(begin, begin + step)))
        ends_ns = array("q", (lease_id >> 1 for lease_id in ids))
        if heap.push(ids, ends_ns).count(DONE) != step:
            raise AssertionError("the heap refused a lease")
    resident = resident_bytes() - before
    figures = {"heap": heap.allocated_bytes / leases, "resident": resident / leases}
    half = heap.pop_due(2**62, leases)
    if len(half) + len(heap) != leases or abs(len(half) / leases - 0.5) > 0.01:
        raise AssertionError(f"{len(half)} of {leases} leases were due")
    return figures


def memory_in_fresh_process(leases: int) -> dict[str, float]:
    """Measure memory where nothing else comes and goes."""
    command = [sys.executable, "-m", "benches.bench_deadlines", str(leases)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def bench() -> Bench:
    """Make the history and the contestants."""
    history = Historian(LEASES, ROUNDS, BATCH).write()
    memory = {
        f"{leases // 1_000_000}M leases, {name}": value
        for leases in (LEASES, LARGE)
        for name, value in memory_in_fresh_process(leases).items()
    }
    contestants: dict[str, Contestant | MissingRivalError] = {
        OURS: lambda: {**live(NativeHeap, history), **memory},
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
