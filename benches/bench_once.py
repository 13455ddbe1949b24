"""Every contestant of every bench runs once, small: `pytest benches --benchmark-disable`.

With pytest-benchmark enabled it also times them, for comparing our own versions; budgets are
`scripts/dev.py bench`'s.
"""

import itertools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.harness import BENCHES, OURS, MissingRivalError, Scale, UnableError, judge, load


@pytest.mark.parametrize("module", [*dict.fromkeys(itertools.chain(*BENCHES.values()))])
def test_every_contestant_runs(module: str, benchmark: BenchmarkFixture) -> None:
    try:
        bench = load(module, Scale.ONCE)
    except UnableError as error:
        pytest.skip(str(error))
    able = {
        contestant: thing
        for contestant, thing in bench.contestants.items()
        if not isinstance(thing, MissingRivalError)
    }
    with bench.resources:
        figures = {contestant: [run()] for contestant, run in able.items() if contestant != OURS}
        figures[OURS] = [benchmark(able[OURS])]
    rows = judge(bench, figures, Scale.ONCE.slack)

    assert len(rows) == len(bench.budgets)
    assert all(row.met for row in rows if row.rival is None or row.rival in able)
