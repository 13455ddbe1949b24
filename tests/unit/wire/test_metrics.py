"""Metrics as they come: what is wrong with one sample costs that sample."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import ErrorCode, RequestError
from netsonde.metrics import MetricType
from netsonde.wire.metrics import (
    METRIC_BOUNDS_MAX,
    METRIC_SAMPLES_MAX,
    MetricsBatch,
    OriginalMetrics,
    OriginalSample,
    decode_metrics,
    names_its_instance,
    original_metrics,
    series_identity,
)

GOOD = {"name": "results_total", "value": 3}
HISTOGRAM = {"name": "lag", "bounds": [0.1, 1], "counts": [1, 2, 3], "sum": 9.5, "count": 6}


def envelope(**fields: Any) -> dict[str, Any]:
    return {
        "agent_id": 7,
        "timestamp": "2026-11-28T00:00:00Z",
        "instance_id": "i",
        "seq": 1,
        "start_time": "2026-11-28T00:00:00Z",
    } | fields


def read(**fields: Any) -> MetricsBatch:
    return decode_metrics(json.dumps(envelope(**fields)).encode())


def test_samples_of_every_type_are_read() -> None:
    gauge = {"name": "rows", "value": 2.5, "unit": "rows", "labels": {"b": "2", "a": "1"}}
    batch = read(counters=[GOOD], gauges=[gauge], histograms=[HISTOGRAM | {"unit": "s"}])
    assert batch.rejected == []
    counter, rows, lag = (series_identity(value.key) for value in batch.values)
    assert (counter.type, counter.name, counter.unit) == (MetricType.COUNTER, "results_total", None)
    assert (rows.type, rows.labels, rows.unit) == (MetricType.GAUGE, {"a": "1", "b": "2"}, "rows")
    assert (lag.type, lag.bounds, lag.width) == (MetricType.HISTOGRAM, [0.1, 1], 5)
    assert [list(value.values) for value in batch.values] == [[3], [2.5], [6, 9.5, 1, 2, 3]]


def test_the_order_of_labels_makes_no_other_series() -> None:
    one, two = (
        read(gauges=[{"name": "x", "value": 1, "labels": labels}]).values[0].key
        for labels in ({"a": "1", "b": "2"}, {"b": "2", "a": "1"})
    )
    assert one == two


@pytest.mark.parametrize(
    ("field", "item", "error"),
    [
        ("counters", {"name": "x", "value": -1}, "ERR_VALIDATION"),
        ("counters", {"name": "x"}, "ERR_VALIDATION"),
        ("counters", {"name": "x", "value": "3"}, "ERR_VALIDATION"),
        ("counters", {"name": "", "value": 1}, "ERR_VALIDATION"),
        ("counters", {"name": "a\nb", "value": 1}, "ERR_VALIDATION"),
        ("counters", 5, "ERR_VALIDATION"),
        ("counters", None, "ERR_VALIDATION"),
        ("counters", GOOD, "ERR_VALIDATION"),
        ("gauges", {"name": "n" * 129, "value": 1}, "ERR_LIMIT"),
        ("gauges", {"name": "x", "value": 1, "unit": "u" * 33}, "ERR_LIMIT"),
        ("gauges", {"name": "x", "value": 1, "labels": {"a": "v" * 129}}, "ERR_LIMIT"),
        ("gauges", {"name": "x", "value": 1, "labels": {"a": 1}}, "ERR_VALIDATION"),
        ("gauges", {"name": "x", "value": 1, "labels": {"": "1"}}, "ERR_VALIDATION"),
        (
            "gauges",
            {"name": "x", "value": 1, "labels": {f"l{n}": "" for n in range(9)}},
            "ERR_LIMIT",
        ),
        ("histograms", HISTOGRAM | {"bounds": []}, "ERR_VALIDATION"),
        ("histograms", HISTOGRAM | {"bounds": [1, 0.1]}, "ERR_VALIDATION"),
        ("histograms", HISTOGRAM | {"counts": [1, 2]}, "ERR_VALIDATION"),
        ("histograms", HISTOGRAM | {"counts": [1, -2, 7]}, "ERR_VALIDATION"),
        ("histograms", HISTOGRAM | {"count": 5}, "ERR_VALIDATION"),
        ("histograms", HISTOGRAM | {"bounds": [*range(METRIC_BOUNDS_MAX + 1)]}, "ERR_LIMIT"),
    ],
)
def test_a_bad_sample_costs_itself(field: str, item: Any, error: str) -> None:
    items = {"counters": [GOOD]}
    items[field] = [*items.get(field, []), item]
    batch = read(**items)
    (rejected,) = batch.rejected
    assert (rejected.path, rejected.error) == (f"$.{field}[{len(items[field]) - 1}]", error)
    assert rejected.message
    assert [series_identity(value.key).name for value in batch.values] == ["results_total"]


def test_samples_beyond_the_limit_are_told_one_by_one() -> None:
    gauges = [{"name": f"g{number}", "value": 1} for number in range(METRIC_SAMPLES_MAX + 2)]
    batch = read(gauges=gauges)
    assert len(batch.values) == METRIC_SAMPLES_MAX
    assert [one.error for one in batch.rejected] == [ErrorCode.LIMIT] * 2


@pytest.mark.parametrize(
    "fields",
    [
        {"instance_id": ""},
        {"instance_id": "x" * 129},
        {"seq": -1},
        {"seq": 2**53},
        {"seq": "1"},
        {"start_time": "\n"},
        {"counters": {}},
        {"agent_id": "7"},
    ],
)
def test_a_bad_envelope_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refusal:
        read(**fields)
    assert refusal.value.code == ErrorCode.VALIDATION
    assert refusal.value.violations


def test_only_our_agents_name_their_instance() -> None:
    assert names_its_instance(json.dumps(envelope()).encode())
    assert not names_its_instance(b'{"agent_id":7,"timestamp":"t"}')
    with pytest.raises(RequestError, match="not JSON"):
        names_its_instance(b"{")


def test_an_original_agents_samples_become_series_where_they_can() -> None:
    samples = (
        OriginalSample(name="claims", value=3.0),
        OriginalSample(name="bad\x00", value=1.0),
    )
    batch = original_metrics(OriginalMetrics(agent_id=7, timestamp="t", counters=samples))
    assert [series_identity(value.key).name for value in batch.values] == ["claims"]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
LIKELY = st.dictionaries(
    st.sampled_from(["name", "value", "unit", "labels", "bounds", "counts", "sum", "count"]), JSON
)


@given(st.lists(JSON | LIKELY, max_size=5), st.lists(JSON | LIKELY, max_size=5))
def test_whatever_comes_every_sample_is_taken_or_told_of(
    gauges: list[Any], histograms: list[Any]
) -> None:
    batch = read(gauges=gauges, histograms=histograms)
    assert len(batch.values) + len(batch.rejected) == len(gauges) + len(histograms)
    for value in batch.values:
        assert series_identity(value.key).width == len(value.values)
