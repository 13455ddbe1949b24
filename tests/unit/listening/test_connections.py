"""Who gives way when a listener is full."""

import resource

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from netsonde.listening.connections import Connections
from netsonde.listening.door import Visitor, connection_limit


class Guest:
    """A connection that remembers its end."""

    def __init__(self) -> None:
        self.is_dropped = False

    def drop(self) -> None:
        self.is_dropped = True


def full(limit: int) -> tuple[Connections, list[Guest]]:
    connections = Connections(limit)
    guests = [Guest() for _ in range(limit)]
    assert all(connections.enter(guest) for guest in guests)
    return connections, guests


def test_there_is_room_up_to_the_limit() -> None:
    connections, guests = full(3)
    assert len(connections) == 3
    assert not any(guest.is_dropped for guest in guests)


def test_the_newest_displaces_who_has_sent_nothing_for_the_longest() -> None:
    connections, (first, second, third) = full(3)
    connections.work(first)
    assert connections.enter(Guest())
    assert [guest.is_dropped for guest in (first, second, third)] == [False, True, False]
    assert len(connections) == 3


def test_who_rests_gives_way_after_all_who_sent_nothing() -> None:
    connections, (first, second, third) = full(3)
    for guest in (second, first):
        connections.work(guest)
        connections.rest(guest)
    connections.work(third)
    late = Guest()
    assert connections.enter(late)
    assert second.is_dropped
    assert connections.enter(Guest())
    assert late.is_dropped, "it has sent nothing"
    assert not first.is_dropped


def test_who_is_at_work_stays() -> None:
    connections, guests = full(2)
    for guest in guests:
        connections.work(guest)
    newcomer = Guest()
    assert not connections.enter(newcomer)
    assert not newcomer.is_dropped
    connections.leave(guests[0])
    assert connections.enter(newcomer)


def test_the_end_may_be_told_twice_and_comes_before_the_rest() -> None:
    connections, (guest,) = full(1)
    connections.work(guest)
    connections.leave(guest)
    connections.leave(guest)
    connections.rest(guest)
    assert len(connections) == 0
    assert connections.enter(Guest())
    assert not guest.is_dropped


@given(limit=st.integers(1, 5), comers=st.integers(0, 30))
def test_newcomers_always_find_room_among_idlers(limit: int, comers: int) -> None:
    connections = Connections(limit)
    guests = [Guest() for _ in range(comers)]
    assert all(connections.enter(guest) for guest in guests)
    assert len(connections) == min(limit, comers)
    assert [guest.is_dropped for guest in guests] == [
        number < comers - limit for number in range(comers)
    ]


class Comings(RuleBasedStateMachine):
    """Any order of events: the count is exact, and only idlers are dropped."""

    LIMIT = 4

    def __init__(self) -> None:
        super().__init__()
        self.connections = Connections(self.LIMIT)
        self.open: list[Guest] = []
        self.working: set[Guest] = set()

    @rule()
    def come(self) -> None:
        guest = Guest()
        is_in = self.connections.enter(guest)
        assert is_in == (len(self.working) < self.LIMIT)
        if is_in:
            self.open.append(guest)
        dropped = [each for each in self.open if each.is_dropped]
        assert not self.working.intersection(dropped)
        self.open = [each for each in self.open if not each.is_dropped]

    @rule(which=st.integers(0, 3), is_work=st.booleans())
    def turn(self, which: int, is_work: bool) -> None:
        if which < len(self.open):
            guest = self.open[which]
            if is_work:
                self.connections.work(guest)
                self.working.add(guest)
            elif guest in self.working:
                self.connections.rest(guest)
                self.working.discard(guest)

    @rule(which=st.integers(0, 3))
    def go(self, which: int) -> None:
        if which < len(self.open):
            guest = self.open.pop(which)
            self.connections.leave(guest)
            self.working.discard(guest)

    @invariant()
    def count_is_exact(self) -> None:
        assert len(self.connections) == len(self.open) <= self.LIMIT


TestComings = Comings.TestCase


def test_a_visitor_without_handshake_or_transport_can_be_dropped() -> None:
    connections = Connections(1)
    visitor = Visitor(connections)
    assert connections.enter(visitor)
    assert connections.enter(Guest())
    assert len(connections) == 1


@pytest.mark.parametrize(
    ("soft", "wanted", "limit"),
    [(1024, 10_000, 480), (1024, 100, 100), (100, 10_000, 18), (10, 10_000, 16), (-1, 9999, 9999)],
)
def test_two_listeners_share_the_open_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, wanted: int, limit: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, -1))
    assert connection_limit(wanted) == limit
