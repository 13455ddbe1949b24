"""Prometheus' text format: what is read is what another reader of the format finds."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from netsonde.exposition import exposition
from netsonde.metrics import Durations, Family, MetricType, Reading

COUNTED = Family("x_results_total", MetricType.COUNTER, "Results.", ("outcome",))
ROWS = Family("x_rows", MetricType.GAUGE, "Rows.")
TOOK = Family("x_seconds", MetricType.HISTOGRAM, "Time.", ("kind",), "seconds")


def samples(*readings: Reading) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    page = exposition(lambda: readings).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_values_are_shown_with_their_labels() -> None:
    shown = samples(
        Reading(COUNTED, 3, ("ok",)), Reading(ROWS, 2.5), Reading(COUNTED, 1, ('a"\\\n',))
    )
    assert shown == {
        ("x_results_total", (("outcome", "ok"),)): 3,
        ("x_results_total", (("outcome", 'a"\\\n'),)): 1,
        ("x_rows", ()): 2.5,
    }


def test_a_histograms_buckets_are_summed_up() -> None:
    took = Durations((0.1, 1.0))
    for duration_ns in (5 * 10**7, 5 * 10**8, 5 * 10**8, 2 * 10**9):
        took.observe(duration_ns)
    shown = samples(Reading(TOOK, took, ("dns",)))
    kind = ("kind", "dns")
    assert shown == {
        ("x_seconds_bucket", (kind, ("le", "0.1"))): 1,
        ("x_seconds_bucket", (kind, ("le", "1.0"))): 3,
        ("x_seconds_bucket", (kind, ("le", "+Inf"))): 4,
        ("x_seconds_count", (kind,)): 4,
        ("x_seconds_sum", (kind,)): pytest.approx(3.05),
    }


def test_a_page_has_nothing_but_what_was_read() -> None:
    assert exposition(list) == b""
    page = exposition(lambda: [Reading(COUNTED, 3, ("ok",))])
    assert page == (
        b"# HELP x_results_total Results.\n# TYPE x_results_total counter\n"
        b'x_results_total{outcome="ok"} 3.0\n'
    )
