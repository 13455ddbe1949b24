"""What the silence of flows means, case by case."""

from itertools import pairwise
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.probe.trace.graph import Node
from netsonde.probe.trace.silence import ASKS_MAX, SAMPLE, VAIN_ASKS, Meaning, Silence, at_most

TTL = 3
A, B, STAR = Node(TTL, b"\1"), Node(TTL, b"\2"), Node(TTL, None)


def meaning(
    silences: list[int],
    *,
    hops: list[Node] | None = None,
    seen: int = 20,
    recovered: int = 0,
    depth: int = 0,
    is_alone: bool = False,
) -> Meaning:
    """Return what is thought of flows 0, 1 and so on, that were asked so often in vain."""
    return Silence(
        ttl=TTL,
        silences=dict(enumerate(silences)),
        hops=[A, B] if hops is None else hops,
        seen=seen,
        recovered=recovered,
        depth=depth,
        is_alone=is_alone,
        enough=9,
    ).meaning()


def test_where_nobody_answers_nobody_is_asked_again() -> None:
    got = meaning([1, 1, 1], hops=[], seen=0, is_alone=True)
    assert got == Meaning(dict.fromkeys(range(3), STAR), [])


def test_silent_flows_are_asked_again_before_anything_is_thought_of_them() -> None:
    got = meaning([1, 1, 2])
    assert got == Meaning(dict.fromkeys(range(3)), [0, 1, 2])


def test_as_many_as_a_hop_would_get_pass_a_silent_one() -> None:
    got = meaning([VAIN_ASKS] * 8)
    assert got == Meaning(dict.fromkeys(range(8), STAR), [])


def test_fewer_count_for_nothing() -> None:
    got = meaning([VAIN_ASKS], seen=60)
    assert got == Meaning({0: None}, [], lost=1)


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_a_flow_is_asked_more_often_than_it_ever_helped(depth: int) -> None:
    again = [meaning([count] * 8, depth=depth).again for count in range(1, ASKS_MAX + 1)]
    assert [bool(each) for each in again] == [
        count < depth + VAIN_ASKS for count in range(1, ASKS_MAX + 1)
    ]


def test_flows_that_might_still_answer_at_the_last_are_unsure() -> None:
    got = meaning([ASKS_MAX] * 8, depth=ASKS_MAX - 1, recovered=20)
    assert got == Meaning(dict.fromkeys(range(8)), [], lost=8, is_unsure=True)
    few = meaning([ASKS_MAX], depth=ASKS_MAX - 1, recovered=20, seen=60)
    assert few == Meaning({0: None}, [], lost=1)


def test_a_rate_limit_of_the_only_hop_is_presumed_to_be_one() -> None:
    got = meaning([1] * 30, hops=[A], recovered=4, depth=1)
    assert got == Meaning(dict.fromkeys(range(30), A), [], is_presumed=True)


@pytest.mark.parametrize(
    "known",
    [
        {"seen": 8},  # another hop may be unseen yet
        {"hops": [A, B]},
        {"recovered": 0},
    ],
)
def test_it_is_not_presumed_without_all_of_the_reasons(known: dict[str, int | list[Node]]) -> None:
    reasons = {"hops": [A], "seen": 9, "recovered": 4, "depth": 1} | known
    got = meaning([1] * 30, **reasons)  # type: ignore[arg-type]
    assert not got.is_presumed
    assert set(got.places.values()) == {None}


def test_one_flow_that_asking_does_not_help_ends_the_presumption() -> None:
    got = meaning([1] * 30 + [VAIN_ASKS + 1], hops=[A], recovered=40, depth=1)
    assert not got.is_presumed
    assert got.again == [*range(30)]


def test_of_many_flows_behind_one_hop_a_few_are_asked_first() -> None:
    assert meaning([1] * 30, hops=[A]).again == [*range(SAMPLE)]


def test_silence_of_all_flows_of_a_node_is_proven_by_a_few() -> None:
    """Others are answered at this TTL, so it may be a rate limit."""
    asked = meaning([1] * 30, hops=[], seen=0)
    assert (asked.again, set(asked.places.values())) == ([*range(SAMPLE)], {None})
    proven = meaning([VAIN_ASKS] * SAMPLE + [1] * 20, hops=[], seen=0)
    assert proven == Meaning(dict.fromkeys(range(30), STAR), [])
    unsure = meaning([ASKS_MAX] * 4, hops=[], seen=0, depth=ASKS_MAX)
    assert unsure == Meaning(dict.fromkeys(range(4)), [], is_unsure=True)


@given(st.integers(1, 60), st.floats(0.02, 0.5))
def test_the_tail_is_the_binomials(trials: int, probability: float) -> None:
    tails = [at_most(count, trials, probability) for count in range(trials + 1)]
    assert all(before <= after for before, after in pairwise(tails))
    for count, tail in enumerate(tails):
        if count < trials * probability:
            exact = sum(
                comb(trials, each) * probability**each * (1 - probability) ** (trials - each)
                for each in range(count + 1)
            )
            assert tail == pytest.approx(exact)
