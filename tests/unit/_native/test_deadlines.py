"""The native deadline heap against a list that is sorted anew for every question."""

import os
import random
import subprocess
import sys
import textwrap
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from netsonde._native.deadlines import (
    CAPACITY_MAX,
    DONE,
    FULL,
    KNOWN,
    UNCHANGED,
    UNKNOWN,
    DeadlineHeap,
)

ID_MAX = 2**64 - 1
NS_MIN, NS_MAX = -(2**63), 2**63 - 1
CAPACITY = 40

# Few values, so that ids repeat and deadlines tie; and the edges of both ranges.
some_id = st.one_of(st.integers(0, 60), st.sampled_from([2**32, 2**63, ID_MAX]))
some_ns = st.one_of(st.integers(-5, 40), st.sampled_from([NS_MIN, NS_MAX]))
some_batch = st.lists(st.tuples(some_id, some_ns), max_size=50)


def words(ids: Sequence[int]) -> "array[int]":
    return array("Q", ids)


def instants(deadlines_ns: Sequence[int]) -> "array[int]":
    return array("q", deadlines_ns)


class NaiveHeap:
    """What DeadlineHeap promises, in the plainest way."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.leases: dict[int, int] = {}  # in push order

    def push(self, lease_id: int, deadline_ns: int) -> int:
        if lease_id in self.leases:
            return KNOWN
        if len(self.leases) == self.capacity:
            return FULL
        self.leases[lease_id] = deadline_ns
        return DONE

    def move(self, lease_id: int, deadline_ns: int) -> int:
        if lease_id not in self.leases:
            return UNKNOWN
        self.leases[lease_id] = deadline_ns
        return DONE

    def extend(self, lease_id: int, deadline_ns: int) -> int:
        if deadline_ns <= self.leases.get(lease_id, NS_MIN) and lease_id in self.leases:
            return UNCHANGED
        return self.move(lease_id, deadline_ns)

    def drop(self, lease_id: int) -> int:
        return UNKNOWN if self.leases.pop(lease_id, None) is None else DONE

    def sorted(self) -> list[int]:
        return sorted(self.leases, key=self.leases.__getitem__)  # stable: ties in push order

    def pop_due(self, now_ns: int, limit: int) -> list[int]:
        due = [lease_id for lease_id in self.sorted() if self.leases[lease_id] <= now_ns][:limit]
        for lease_id in due:
            del self.leases[lease_id]
        return due


class HeapMachine(RuleBasedStateMachine):
    """Random histories; the push order starts close to where it must be numbered anew."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = DeadlineHeap(CAPACITY, first_order=2**32 - 60)
        self.model = NaiveHeap(CAPACITY)

    @rule(lease_id=some_id, ns=some_ns)
    def push_one(self, lease_id: int, ns: int) -> None:
        assert self.heap.push_one(lease_id, ns) == self.model.push(lease_id, ns)

    @rule(lease_id=some_id, ns=some_ns)
    def move_one(self, lease_id: int, ns: int) -> None:
        assert self.heap.move_one(lease_id, ns) == self.model.move(lease_id, ns)

    @rule(lease_id=some_id, ns=some_ns)
    def extend_one(self, lease_id: int, ns: int) -> None:
        assert self.heap.extend_one(lease_id, ns) == self.model.extend(lease_id, ns)

    @rule(lease_id=some_id)
    def drop_one(self, lease_id: int) -> None:
        assert self.heap.drop_one(lease_id) == self.model.drop(lease_id)

    @rule(batch=some_batch, verb=st.sampled_from(["push", "move", "extend"]))
    def batch(self, batch: list[tuple[int, int]], verb: str) -> None:
        codes = getattr(self.heap, verb)(
            words([lease_id for lease_id, _ in batch]), instants([ns for _, ns in batch])
        )

        assert list(codes) == [getattr(self.model, verb)(*item) for item in batch]

    @rule(ids=st.lists(some_id, max_size=50))
    def drop(self, ids: list[int]) -> None:
        assert list(self.heap.drop(words(ids))) == [self.model.drop(one) for one in ids]

    @rule(now_ns=some_ns, limit=st.one_of(st.integers(0, 5), st.just(CAPACITY), st.just(2**64 - 1)))
    def pop_due(self, now_ns: int, limit: int) -> None:
        assert list(self.heap.pop_due(now_ns, limit)) == self.model.pop_due(now_ns, limit)

    @precondition(lambda self: len(self.model.leases) == CAPACITY)
    @rule()
    def full(self) -> None:
        assert self.heap.push_one(1000, 0) == FULL

    @rule(lease_id=some_id)
    def deadline_of(self, lease_id: int) -> None:
        assert self.heap.deadline_of(lease_id) == self.model.leases.get(lease_id)
        assert (lease_id in self.heap) == (lease_id in self.model.leases)

    @invariant()
    def agrees_on_the_earliest(self) -> None:
        first = next(iter(self.model.sorted()), None)

        assert len(self.heap) == len(self.model.leases)
        if first is None:
            assert self.heap.peek() is None
            assert self.heap.next_ns is None
        else:
            assert self.heap.peek() == (first, self.model.leases[first])
            assert self.heap.next_ns == self.model.leases[first]

    def teardown(self) -> None:
        assert list(self.heap.pop_due(NS_MAX, 2**63)) == self.model.pop_due(NS_MAX, CAPACITY)


HeapMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHeapAgainstAList = HeapMachine.TestCase


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 5000, 60_000])
def test_leases_leave_in_order_however_many_leave_at_once(count: int) -> None:
    rng = random.Random(count)
    deadlines_ns = [rng.randrange(count) for _ in range(count)]  # with ties
    expected = sorted(range(count), key=deadlines_ns.__getitem__)
    for limit in (count, max(count // 7, 1)):
        heap = DeadlineHeap(count)
        heap.push(words(range(count)), instants(deadlines_ns))
        popped: list[int] = []
        for now_ns in (count // 3, count // 2, count):
            while ids := heap.pop_due(now_ns, limit).tolist():
                popped += ids
                assert all(deadlines_ns[lease_id] <= now_ns for lease_id in ids)

        assert popped == expected
        assert len(heap) == 0


def test_a_large_heap_survives_a_long_mixed_history() -> None:
    rng = random.Random(7)
    heap, model = DeadlineHeap(200_000), NaiveHeap(200_000)
    fresh = iter(rng.sample(range(2**62), 100_000))
    for round_ in range(30):
        ids = [next(fresh) for _ in range(3000)]
        ends_ns = [round_ * 100 + rng.randrange(2000) for _ in ids]
        heap.push(words(ids), instants(ends_ns))
        model.leases.update(zip(ids, ends_ns, strict=True))
        chosen = rng.choices(list(model.leases), k=2000)
        moved_ns = [round_ * 100 + rng.randrange(3000) for _ in chosen]

        codes = heap.extend(words(chosen), instants(moved_ns))
        assert list(codes) == [model.extend(*item) for item in zip(chosen, moved_ns, strict=True)]

        gone = rng.sample(list(model.leases), 900)
        assert set(heap.drop(words(gone))) == {DONE}
        for lease_id in gone:
            model.drop(lease_id)
        limit = rng.choice([100, 2**63])
        assert heap.pop_due(round_ * 100, limit).tolist() == model.pop_due(round_ * 100, limit)

    assert heap.pop_due(NS_MAX, 2**63).tolist() == model.pop_due(NS_MAX, 2**63)


@pytest.mark.parametrize("leaving", ["dropped", "popped", "popped few at a time"])
def test_a_heap_that_empties_and_fills_again_stays_in_order(leaving: str) -> None:
    rng = random.Random(3)
    heap, model = DeadlineHeap(40_000), NaiveHeap(40_000)
    ids = iter(range(10**6))
    for size in (30_000, 25_000, 40_000):
        fresh = [next(ids) for _ in range(size - len(heap))]
        ends_ns = [rng.randrange(10**6) for _ in fresh]
        assert heap.push(words(fresh), instants(ends_ns)).count(DONE) == len(fresh)
        model.leases.update(zip(fresh, ends_ns, strict=True))
        if leaving == "dropped":
            gone = rng.sample(list(model.leases), size - 3000)
            heap.drop(words(gone))
        elif leaving == "popped":
            gone = heap.pop_due(900_000, 2**63).tolist()
        else:
            gone = [key for _ in range(200) for key in heap.pop_due(NS_MAX, 100)]
        for lease_id in gone:
            del model.leases[lease_id]
        assert [heap.deadline_of(key) for key in gone[::100]] == [None] * len(gone[::100])

    assert heap.pop_due(NS_MAX, 2**63).tolist() == model.sorted()


def test_leases_leave_from_above_places_that_stand_open() -> None:
    count = 1 + 8 + 64 + 200
    for parent in range(1, 9):  # pushed in order, a key's place is its number; eight children each
        heap = DeadlineHeap(2 * count)
        heap.push(words(range(count)), instants(range(0, 10 * count, 10)))
        children = range(8 * parent + 1, 8 * parent + 9)
        heap.drop(words(range(73, count)))
        heap.drop(words(children))
        heap.drop_one(parent)
        fresh = range(count, count + 250)
        heap.push(words(fresh), instants(range(5, 2505, 10)))

        kept = [(10 * key, key) for key in range(73) if key != parent and key not in children]
        expected = sorted(kept + [(10 * (key - count) + 5, key) for key in fresh])
        assert heap.pop_due(NS_MAX, 2**63).tolist() == [key for _, key in expected]


def test_searching_ends_in_a_table_that_has_seen_much() -> None:
    rng = random.Random(11)
    heap, held = DeadlineHeap(30), list(range(30))
    heap.push(words(held), instants(held))
    for fresh in range(30, 60_000):
        gone = held.pop(rng.randrange(len(held)))
        assert heap.drop_one(gone) == DONE
        assert heap.push_one(fresh, 0) == DONE
        held.append(fresh)
        assert gone not in heap

    assert sorted(heap.pop_due(NS_MAX, 30)) == sorted(held)


def test_equal_deadlines_leave_in_push_order_also_after_a_move() -> None:
    heap = DeadlineHeap(10)
    for lease_id in (5, 3, 9):
        heap.push_one(lease_id, 7)
    heap.move_one(5, 100)
    heap.move_one(5, 7)

    assert heap.pop_due(7, 10).tolist() == [5, 3, 9]


def test_push_order_outlives_its_32_bits() -> None:
    heap = DeadlineHeap(1000, first_order=2**32 - 3)
    for lease_id in range(10):
        assert heap.push_one(lease_id, 0) == DONE
        if lease_id >= 5:
            heap.drop_one(lease_id - 5)
    assert set(heap.push(words(range(100, 110)), instants([0] * 10))) == {DONE}

    assert heap.pop_due(0, 100).tolist() == [*range(5, 10), *range(100, 110)]


def test_numbering_anew_keeps_order_in_a_heap_with_gaps() -> None:
    heap = DeadlineHeap(100, first_order=2**32 - 1 - 20)
    heap.push(words(range(20)), instants([7] * 20))
    heap.drop(words(range(5, 12)))
    assert heap.push_one(50, 7) == DONE  # the 32 bits are used up

    assert heap.pop_due(NS_MAX, 100).tolist() == [*range(5), *range(12, 20), 50]


def test_a_full_heap_says_so_and_takes_again_when_one_leaves() -> None:
    heap = DeadlineHeap(2)

    assert list(heap.push(words([1, 2, 3, 1]), instants([10, 20, 30, 40]))) == [
        DONE, DONE, FULL, KNOWN,
    ]  # fmt: skip
    assert heap.deadline_of(1) == 10
    assert heap.drop_one(2) == DONE
    assert heap.push_one(3, 30) == DONE
    assert heap.push_one(4, 40) == FULL
    assert len(heap) == heap.capacity == 2


def test_the_edges_of_the_ranges_are_ordinary_values() -> None:
    heap = DeadlineHeap(10)
    heap.push(words([0, ID_MAX, 2**63, 1]), instants([NS_MAX, NS_MIN, 0, -1]))

    assert heap.pop_due(NS_MIN, 10).tolist() == [ID_MAX]
    assert heap.pop_due(NS_MAX, 10).tolist() == [1, 2**63, 0]


@pytest.mark.parametrize("lease_id", [-1, 2**64])
def test_ids_outside_64_bits_are_refused(lease_id: int) -> None:
    heap = DeadlineHeap(10)
    for call in (heap.__contains__, heap.deadline_of, heap.drop_one):
        with pytest.raises(OverflowError):
            call(lease_id)
    for call_with_ns in (heap.push_one, heap.move_one, heap.extend_one):
        with pytest.raises(OverflowError):
            call_with_ns(lease_id, 0)


@pytest.mark.parametrize("deadline_ns", [NS_MIN - 1, NS_MAX + 1])
def test_deadlines_outside_int64_are_refused(deadline_ns: int) -> None:
    heap = DeadlineHeap(10)
    heap.push_one(1, 0)
    for call in (heap.push_one, heap.move_one, heap.extend_one):
        with pytest.raises(OverflowError):
            call(1, deadline_ns)
    with pytest.raises(OverflowError):
        heap.pop_due(deadline_ns, 1)
    with pytest.raises(OverflowError):
        heap.pop_due(0, -1)

    assert heap.peek() == (1, 0)


@pytest.mark.parametrize("capacity", [0, -1, CAPACITY_MAX + 1, 2**70])
def test_a_capacity_out_of_range_is_refused(capacity: int) -> None:
    with pytest.raises(ValueError, match=r"capacity must be 1"):
        DeadlineHeap(capacity)


def test_anything_holding_64_bit_words_is_a_batch() -> None:
    heap = DeadlineHeap(100)
    ids = words([1, 2, 3])
    unaligned = memoryview(b"x" + instants([10, 20, 30]).tobytes())[1:]

    assert set(heap.push(ids.tobytes(), unaligned)) == {DONE}
    assert set(heap.move(memoryview(ids), bytearray(unaligned))) == {DONE}
    assert set(heap.extend(array("q", [1, 2]), array("l", [11, 21]))) == {DONE}
    assert set(heap.drop(heap.pop_due(30, 2))) == {UNKNOWN}  # what it gives it takes
    assert heap.push(b"", b"") == heap.drop(b"") == b""


@pytest.mark.parametrize(
    "wrong",
    [array("I", [1, 2]), array("d", [1.0]), b"1234567", memoryview(bytes(8)).cast("?")],
    ids=["32-bit", "floats", "odd bytes", "bools"],
)
def test_other_buffers_are_refused_by_name(wrong: "array[int]") -> None:
    heap = DeadlineHeap(100)
    with pytest.raises(ValueError, match="ids: expected native 64-bit"):
        heap.push(wrong, b"")
    with pytest.raises(ValueError, match="ids: expected native 64-bit"):
        heap.drop(wrong)
    with pytest.raises(ValueError, match="deadlines_ns: expected native 64-bit"):
        heap.move(b"", wrong)


def test_batches_that_do_not_match_and_things_that_are_no_buffers_are_refused() -> None:
    heap = DeadlineHeap(100)
    with pytest.raises(ValueError, match="2 ids but 1 deadlines_ns"):
        heap.push(words([1, 2]), instants([1]))
    with pytest.raises(TypeError):
        heap.push([1], instants([1]))  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        heap.drop(memoryview(words([1, 2, 3]))[::2])

    assert len(heap) == 0


def test_buffers_are_given_back() -> None:
    ids, ends_ns = words([1]), instants([1])
    heap = DeadlineHeap(10)
    heap.push(ids, ends_ns)
    heap.extend(ids, ends_ns)
    heap.drop(ids)
    with pytest.raises(ValueError, match="2 ids"):
        heap.push(words([1, 2]), ends_ns)
    ids.append(2)  # a borrowed array refuses
    ends_ns.append(2)

    assert len(ids) == len(ends_ns) == 2


def test_memory_follows_the_number_of_leases() -> None:
    heap = DeadlineHeap(CAPACITY_MAX)
    empty_bytes = heap.allocated_bytes
    for begin in range(0, 300_000, 1000):
        ids = range(begin, begin + 1000)
        heap.push(words(ids), instants(ids))
        if len(heap) >= 2000:
            assert heap.allocated_bytes <= 56 * len(heap)

    assert empty_bytes < 1024
    assert len(heap) == 300_000


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="it maps terabytes")
def test_a_heap_that_may_not_grow_says_so_and_goes_on() -> None:
    code = """
        import random, resource
        from netsonde._native.deadlines import DeadlineHeap
        heap, rng, pushed = DeadlineHeap(10**9), random.Random(1), 0
        status = open("/proc/self/statm").read().split()
        limit = int(status[0]) * resource.getpagesize() + 100 * 2**20
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        try:
            while True:
                pushed += heap.push(rng.randbytes(80_000), rng.randbytes(80_000)).count(0)
        except MemoryError:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        assert 100_000 < len(heap) == pushed, (len(heap), pushed)
        first = heap.peek()
        due = heap.pop_due(0, 10**9)
        assert due[0] == first[0] and len(due) + len(heap) == pushed
        assert heap.next_ns > 0 and heap.push(due, bytes(8 * len(due))).count(0) == len(due)
        print("went on")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.returncode) == ("went on\n", 0), done.stderr


def test_running_out_of_memory_is_an_error_and_loses_nothing() -> None:
    testcapi = pytest.importorskip("_testcapi")
    if sys.gettrace() is not None:
        pytest.skip("a tracer allocates too, and would fail in the heap's stead")
    heap = DeadlineHeap(100)
    heap.push(words(range(50)), instants(range(50)))
    failures = 0
    for start in range(20):
        ids = None
        testcapi.set_nomemory(start, start + 1)
        try:
            ids = heap.pop_due(9, 100)
        except MemoryError:
            failures += 1
        finally:
            testcapi.remove_mem_hooks()
        if ids is not None:
            heap.push(ids, instants(range(10)))

        assert len(heap) == 50
        assert heap.peek() == (0, 0)
    assert failures > 0
