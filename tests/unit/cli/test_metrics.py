"""`netsonde metrics`, without a server."""

import pytest
from click.testing import CliRunner

from netsonde import wire
from netsonde.cli import operate
from netsonde.cli.exits import Exit
from netsonde.cli.root import main
from support.operator import FakeOperator

COUNTER = {
    "agent_id": 4,
    "name": "netsonde_agent_results_total",
    "type": "counter",
    "unit": None,
    "labels": {"outcome": "ok\x1b"},
    "at": "2026-11-28T10:11:12Z",
    "value": 1234567.0,
}
HISTOGRAM = {
    "agent_id": 4,
    "name": "netsonde_agent_loop_lag_seconds",
    "type": "histogram",
    "unit": "seconds",
    "labels": {},
    "at": "2026-11-28T10:11:12Z",
    "count": 4,
    "sum": 0.5,
    "bounds": [0.1],
    "counts": [3, 1],
}


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> FakeOperator:
    api = FakeOperator()
    api.metric_list = [COUNTER, HISTOGRAM]
    monkeypatch.setattr(operate, "OperatorClient", api.client)
    return api


def test_metrics_as_a_table(operator: FakeOperator) -> None:
    done = CliRunner().invoke(main, ["metrics"])
    _, counter, histogram = done.stdout.splitlines()
    at = "2026-11-28T10:11:12Z"
    assert counter.split() == [
        "4", "netsonde_agent_results_total", "outcome=ok\\x1b", "1234567", "-", at,
    ]  # fmt: skip
    assert histogram.split() == [
        "4", "netsonde_agent_loop_lag_seconds", "-", "4,", "mean", "0.125", "seconds", at,
    ]  # fmt: skip
    assert done.exit_code == Exit.OK


def test_metrics_as_json(operator: FakeOperator) -> None:
    done = CliRunner().invoke(main, ["metrics", "--json"])
    lines = [wire.parse(line.encode()) for line in done.stdout.splitlines()]
    assert lines == [COUNTER, HISTOGRAM]


def test_one_name_of_one_agent_is_asked_for(operator: FakeOperator) -> None:
    CliRunner().invoke(main, ["metrics", "x_total", "--agent", "ams1"])
    assert operator.queries == [{"name": "x_total", "agent": "ams1"}]


def test_a_histogram_without_values_is_shown(operator: FakeOperator) -> None:
    operator.metric_list = [HISTOGRAM | {"count": 0, "sum": 0.0}, {"agent_id": 5}]
    done = CliRunner().invoke(main, ["metrics"])
    assert done.exit_code == Exit.OK
    assert done.stdout.splitlines()[1].split()[3] == "0"
