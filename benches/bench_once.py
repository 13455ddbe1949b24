"""Every contestant of every bench runs once, small: `pytest benches --benchmark-disable`.

With pytest-benchmark enabled it also times them, for comparing our own versions; budgets are
`scripts/dev.py bench`'s.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.harness import BENCHES, OURS, MissingRivalError, Scale, judge, load


@pytest.mark.parametrize("name", BENCHES)
def test_every_contestant_runs(name: str, benchmark: BenchmarkFixture) -> None:
    bench = load(name, Scale.ONCE)
    able = {
        contestant: thing
        for contestant, thing in bench.contestants.items()
        if not isinstance(thing, MissingRivalError)
    }
    figures = {contestant: [run()] for contestant, run in able.items() if contestant != OURS}
    figures[OURS] = [benchmark(able[OURS])]
    rows = judge(bench, figures, Scale.ONCE.slack)

    assert len(rows) == len(bench.budgets)
    assert all(row.met for row in rows if row.rival is None or row.rival in able)
