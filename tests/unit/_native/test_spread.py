"""Instants between now and deadlines, as the native code spreads them."""

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde._native.deadlines import spread
from netsonde.leases import FRACTION_MAX, FRACTION_MIN
from netsonde.model import ID_MAX
from support.leases import ask_ns

NS_MIN, NS_MAX = -(2**63), 2**63 - 1
some_ns = st.one_of(st.integers(NS_MIN, NS_MAX), st.integers(-5, 5))
some_leases = st.lists(st.tuples(st.integers(0, ID_MAX), some_ns), max_size=40)


def spread_out(
    leases: Sequence[tuple[int, int]], now_ns: int, seed: int, least: float, most: float
) -> list[int]:
    ids, deadlines_ns = array("Q", [key for key, _ in leases]), array("q", [ns for _, ns in leases])
    return array("q", spread(ids, deadlines_ns, now_ns, seed, least, most)).tolist()


@given(leases=some_leases, now_ns=some_ns, seed=st.integers(0, 2**64 - 1))
def test_any_instant_is_what_numbers_of_any_size_give(
    leases: list[tuple[int, int]], now_ns: int, seed: int
) -> None:
    assert spread_out(leases, now_ns, seed, FRACTION_MIN, FRACTION_MAX) == [
        ask_ns(lease_id, deadline_ns, now_ns, seed) for lease_id, deadline_ns in leases
    ]


@given(leases=some_leases, now_ns=some_ns, seed=st.integers(0, 2**64 - 1))
def test_no_instant_is_outside(leases: list[tuple[int, int]], now_ns: int, seed: int) -> None:
    instants_ns = spread_out(leases, now_ns, seed, 0.0, 1.0)
    for (_, deadline_ns), instant_ns in zip(leases, instants_ns, strict=True):
        assert min(now_ns, deadline_ns) <= instant_ns <= max(now_ns, deadline_ns)


def test_leases_spread_evenly_whatever_their_ids() -> None:
    count, tenths = 10_000, 10
    for step in (1, 2**20, 2**50):
        instants = spread_out([(key * step, tenths) for key in range(count)], 0, 7, 0.0, 1.0)
        for tenth in range(tenths):
            assert 0.9 * count / tenths < instants.count(tenth) < 1.1 * count / tenths


def test_another_seed_spreads_them_otherwise() -> None:
    leases = [(key, NS_MAX) for key in range(100)]

    seeds = (2**63 + 5, 2**63 + 5, 3**40)
    first, again, other = (spread_out(leases, 0, seed, 0.35, 0.45) for seed in seeds)

    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize(
    ("least", "most"), [(-0.1, 0.5), (0.6, 0.5), (0.5, 1.1), (float("nan"), 0.5)]
)
def test_parts_that_are_none_are_refused(least: float, most: float) -> None:
    with pytest.raises(ValueError, match="least"):
        spread_out([(1, 10)], 0, 1, least, most)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 ids but 1 deadlines_ns"):
        spread(array("Q", [1, 2]), array("q", [5]), 0, 1, 0.1, 0.2)
