"""How much of unfinished bodies is held, and who gives way."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_S, ManualClock
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.unread import UnreadBodies


class Sender:
    """A connection that remembers its end."""

    def __init__(self) -> None:
        self.is_dropped = False

    def drop(self) -> None:
        self.is_dropped = True


def begun(
    bodies: UnreadBodies, stack: ExitStack, *, is_proven: bool = False
) -> tuple[Sender, Callable[[int], None]]:
    sender = Sender()
    return sender, stack.enter_context(bodies.reading(sender, is_proven=is_proven))


def alone(bodies: UnreadBodies, size: int) -> None:
    with bodies.reading(Sender(), is_proven=False) as grow:
        grow(size)


def test_what_is_whole_is_counted_no_more() -> None:
    bodies = UnreadBodies(ManualClock(), 10)
    for _ in range(5):
        with bodies.reading(Sender(), is_proven=False) as grow:
            grow(8)
            assert bodies.total == 8
    assert bodies.total == 0


def test_the_largest_of_strangers_gives_way() -> None:
    bodies = UnreadBodies(ManualClock(), 20)
    with ExitStack() as stack:
        known, grow_known = begun(bodies, stack, is_proven=True)
        small, grow_small = begun(bodies, stack)
        large, grow_large = begun(bodies, stack)
        grow_known(10)
        grow_small(2)
        grow_large(8)
        grow_small(1)
        assert [one.is_dropped for one in (known, small, large)] == [False, False, True]
        assert bodies.total == 13
        grow_large(5)
        assert bodies.total == 13, "what it still sends is not kept"
    assert bodies.total == 0


def test_strangers_have_a_limit_of_their_own() -> None:
    bodies = UnreadBodies(ManualClock(), 100, 10)
    with ExitStack() as stack:
        known, grow_known = begun(bodies, stack, is_proven=True)
        first, grow_first = begun(bodies, stack)
        second, grow_second = begun(bodies, stack)
        grow_known(80)
        grow_first(6)
        grow_second(4)
        grow_second(1)
        assert [one.is_dropped for one in (known, first, second)] == [False, True, False]
        grow_known(10)
        assert bodies.total == 95
        grow_known(6)
        assert second.is_dropped
        assert not known.is_dropped


def test_who_is_the_largest_itself_is_told() -> None:
    bodies = UnreadBodies(ManualClock(), 20)
    with ExitStack() as stack:
        known, grow_known = begun(bodies, stack, is_proven=True)
        grow_known(15)
        with pytest.raises(RequestError) as caught:
            alone(bodies, 6)
        assert caught.value.code is ErrorCode.UNAVAILABLE
        assert caught.value.retry_after_ms
        assert not known.is_dropped
        assert bodies.total == 15


async def test_it_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    bodies = UnreadBodies(clock, 1)
    for passed_s, lines in ((0, 1), (59, 1), (1, 2)):
        await clock.advance(passed_s * NS_PER_S)
        with pytest.raises(RequestError):
            alone(bodies, 2)
        assert len(caplog.records) == lines


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30), st.booleans()), max_size=60))
def test_it_never_holds_more_than_it_may(parts: list[tuple[int, int, bool]]) -> None:
    bodies = UnreadBodies(ManualClock(), 50)
    with ExitStack() as stack:
        senders = [begun(bodies, stack, is_proven=number > 2) for number in range(5)]
        sent = [0] * 5
        for number, size, _ in parts:
            refused = False
            try:
                senders[number][1](size)
            except RequestError:
                refused = True
            sent[number] += size
            assert 0 <= bodies.total <= 50
            assert not (refused and sum(sent) <= 50), "there was room"
    assert bodies.total == 0
