"""The C of simulator and flood: it compiles quietly everywhere, and the wheel keeps time."""

import ctypes
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.netsim.program import FLAGS, HERE, compile_program

TICK_NS = 1 << 13
NONE = 0xFFFFFFFF
NEVER_NS = (1 << 63) - 1
WHEEL_BYTES = 1 << 17  # more than struct wheel has
START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


@pytest.mark.parametrize("sources", [HERE, HERE.parent / "flood"], ids=lambda path: path.name)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_compiles_without_a_warning(compiler: str, sources: Path, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    files = sorted(sources.glob("*.c"))
    done = subprocess.run(
        [compiler, *FLAGS, "-Werror", "-o", tmp_path / "program", *files, "-lm"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class Event(ctypes.Structure):
    """wheel.h: struct event."""

    _fields_ = (
        ("due_ns", ctypes.c_int64),
        ("next", ctypes.c_uint32),
        ("request", ctypes.c_uint32),
        ("drawn", ctypes.c_uint32),
        ("kind", ctypes.c_uint8),
        ("variant", ctypes.c_uint8),
        ("reserved", ctypes.c_uint16),
    )


class Wheel:
    """A wheel whose events are numbered by their requests."""

    def __init__(self, limit: int) -> None:
        library = compile_program("wheel", [HERE / "wheel.c"], "-shared", "-fPIC")
        self._c = ctypes.CDLL(str(library))
        self._c.wheel_add.restype = ctypes.c_bool
        self._c.wheel_take.restype = ctypes.c_uint32
        self._c.wheel_next_ns.restype = ctypes.c_int64
        self._wheel = ctypes.create_string_buffer(WHEEL_BYTES)
        self._c.wheel_open(self._wheel, ctypes.c_uint32(limit), ctypes.c_int64(START_NS))
        self._events = ctypes.cast(self._wheel, ctypes.POINTER(ctypes.POINTER(Event)))

    def add(self, due_ns: int, number: int) -> bool:
        added: bool = self._c.wheel_add(
            self._wheel, ctypes.byref(Event(due_ns=due_ns, request=number))
        )
        return added

    def advance(self, now_ns: int) -> list[int]:
        """Move on; returns the numbers of what was due, in order."""
        self._c.wheel_advance(self._wheel, ctypes.c_int64(now_ns))
        return list(self._take_all())

    def drain(self) -> list[int]:
        self._c.wheel_drain(self._wheel)
        return list(self._take_all())

    def _take_all(self) -> Iterator[int]:
        while (index := self._c.wheel_take(self._wheel)) != NONE:
            yield self._events[0][index].request
            self._c.wheel_release(self._wheel, ctypes.c_uint32(index))

    @property
    def next_ns(self) -> int:
        found: int = self._c.wheel_next_ns(self._wheel)
        return found

    def close(self) -> None:
        self._c.wheel_close(self._wheel)


@pytest.fixture
def wheel() -> Iterator[Wheel]:
    made = Wheel(limit=20_000)
    yield made
    made.close()


@pytest.mark.parametrize("longest_ns", [20_000, 20_000_000, 60 * SECOND_NS])
@pytest.mark.parametrize("stride_ns", [3_000, 9_000_000, 20 * SECOND_NS])
def test_events_fire_when_they_are_due(wheel: Wheel, longest_ns: int, stride_ns: int) -> None:
    chance = random.Random(f"{longest_ns} {stride_ns}")
    filed: dict[int, int] = {}
    now_ns, numbers = START_NS, iter(range(10_000))
    for _ in range(300):
        for number, _ in zip(numbers, range(chance.randrange(6)), strict=False):
            filed[number] = now_ns + chance.randrange(longest_ns)
            assert wheel.add(filed[number], number)
        now_ns += chance.randrange(stride_ns)
        for number in wheel.advance(now_ns):
            assert filed.pop(number) <= now_ns
        assert all(due_ns // TICK_NS >= now_ns // TICK_NS for due_ns in filed.values())
    assert sorted(wheel.drain()) == sorted(filed)
    assert wheel.next_ns == NEVER_NS


def test_it_says_when_to_look_again(wheel: Wheel) -> None:
    chance = random.Random(1)
    due = sorted(START_NS + chance.randrange(60 * SECOND_NS) for _ in range(500))
    for number, due_ns in enumerate(due):
        assert wheel.add(due_ns, number)
    fired: list[int] = []
    looks = 0
    while (next_ns := wheel.next_ns) != NEVER_NS:
        assert next_ns <= due[len(fired)] + TICK_NS  # never too late for the next one
        fired += wheel.advance(next_ns)
        looks += 1
    assert fired == list(range(500))
    assert looks <= 2 * 500  # a block to unpack, then the event


def test_equal_delays_keep_their_order(wheel: Wheel) -> None:
    delay_ns, step_ns = 30_000_000, 100
    fired: list[int] = []
    for number in range(10_000):
        now_ns = START_NS + number * step_ns
        assert wheel.add(now_ns + delay_ns, number)
        fired += wheel.advance(now_ns)
    fired += wheel.advance(START_NS + SECOND_NS)
    assert fired == list(range(10_000))


def test_the_past_is_due_at_once(wheel: Wheel) -> None:
    assert wheel.add(START_NS - SECOND_NS, 1)
    assert wheel.next_ns == 0
    assert wheel.advance(START_NS) == [1]


def test_a_full_wheel_takes_no_more() -> None:
    wheel = Wheel(limit=2)
    assert [wheel.add(START_NS + SECOND_NS, number) for number in range(3)] == [True, True, False]
    assert wheel.advance(START_NS + 2 * SECOND_NS) == [0, 1]
    assert wheel.add(START_NS + 3 * SECOND_NS, 3)
    wheel.close()


def test_programs_are_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("support.netsim.program.BUILD", tmp_path)
    first = compile_program("wheel", [HERE / "wheel.c"], "-shared", "-fPIC")
    made_ns = first.stat().st_mtime_ns
    assert compile_program("wheel", [HERE / "wheel.c"], "-shared", "-fPIC") == first
    assert compile_program("wheel", [HERE / "wheel.c"], "-shared", "-fPIC", "-O0") != first
    assert len(list(tmp_path.iterdir())) == 2
    assert first.stat().st_mtime_ns == made_ns
