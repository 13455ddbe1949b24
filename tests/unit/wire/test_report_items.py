"""Report items: what native code writes for a batch is what JSON's own encoder writes for each."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde._native.reports import leading_ids, write_items
from netsonde.clock import NS_PER_MS, NS_PER_S, rfc3339
from netsonde.model import ID_MAX, Failure, Measurement, Observation, Outcome
from netsonde.wire import (
    ITEM_MAX_BYTES,
    OBSERVATIONS_MAX,
    Result,
    ResultColumns,
    encode,
    encode_columns,
    encode_observations,
    encode_report,
    encode_report_item,
    encode_report_items,
    item_lease_id,
    item_lease_ids,
    parse,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
YEAR_1970, YEAR_2200 = 0, 7_258_118_400 * NS_PER_S
# Instants of one second and of one day apart meet every carry.
some_instant = st.one_of(
    st.integers(YEAR_1970, YEAR_2200),
    INT64,
    st.builds(
        lambda days, ns: days * 86_400 * NS_PER_S + ns,
        st.integers(0, 84_005),
        st.sampled_from([-1, 0, 1, 59 * NS_PER_S, 3599 * NS_PER_S + 999_999_999]),
    ),
)
some_duration = st.one_of(
    st.integers(0, 60 * NS_PER_S), st.integers(0, 2000).map(lambda ms: ms * NS_PER_MS), INT64
)
some_value = st.dictionaries(
    st.text(max_size=6),
    st.one_of(st.floats(), st.integers(-(2**53), 2**53), st.text(max_size=9), st.none()),
    max_size=4,
)
some_observation = st.builds(
    Observation, st.text(max_size=9), some_value, st.sampled_from([None, "ms"])
)
some_error = st.builds(
    Failure, reason=st.text(max_size=9), failure_source=st.just("target"), message=st.text()
)
some_measurement = st.builds(
    Measurement,
    outcome=st.sampled_from(Outcome),
    started_at_ns=some_instant,
    duration_ns=some_duration,
    observations=st.lists(some_observation, max_size=3).map(tuple),
    error=st.one_of(st.none(), some_error),
    env=some_value,
)
some_result = st.builds(
    Result,
    st.integers(0, ID_MAX),
    some_measurement,
    st.sampled_from([None, "2026-01-02T03:04:05Z"]),
    st.one_of(st.none(), st.integers(0, 2**40)),
)


def measurement(*observations: Observation, **changes: Any) -> Measurement:
    fields: dict[str, Any] = {
        "outcome": Outcome.OK,
        "started_at_ns": 1_767_323_045_123_456_789,
        "duration_ns": 12_250_000,
        "observations": observations,
        "env": {"version": "1"},
    }
    return Measurement(**(fields | changes))


def plainly(result: Result) -> bytes:
    """Encode a result as a dict, its duration as a float."""
    lease_id, seen, scheduled_at, tick = result
    item: dict[str, Any] = {"lease_id": lease_id}
    if tick is not None:
        item["tick"] = tick
    if scheduled_at is not None:
        item["scheduled_at"] = scheduled_at
    item |= {
        "outcome": seen.outcome,
        "started_at": rfc3339(seen.started_at_ns),
        "duration_ms": seen.duration_ns / NS_PER_MS,
        "observations": seen.observations,
        "env": seen.env,
    }
    if seen.error is not None:
        item["error"] = seen.error
    return encode(item)


def has_exact_float(result: Result) -> bool:
    """Whether a double holds the duration, and its encoder writes no exponent."""
    return 10 <= abs(result.measurement.duration_ns) < 10**15


@given(results=st.lists(some_result, max_size=8))
def test_a_batch_is_what_its_results_are_one_by_one(results: list[Result]) -> None:
    items = encode_report_items(results)

    assert items == [
        encode_report_item(one.lease_id, one.measurement, scheduled_at=one[2], tick=one[3])
        for one in results
    ]
    for result, item in zip(results, items, strict=True):
        if has_exact_float(result):
            assert item == plainly(result)


@given(results=st.lists(some_result, max_size=8), env=some_value)
def test_columns_are_what_their_results_are_one_by_one(
    results: list[Result], env: dict[str, Any]
) -> None:
    measurements = [one.measurement for one in results]
    columns = ResultColumns(
        outcomes=[one.outcome for one in measurements],
        started_at_ns=[one.started_at_ns for one in measurements],
        durations_ns=[one.duration_ns for one in measurements],
        observations=[encode_observations(one.observations) for one in measurements],
        env=env,
        errors=[one.error for one in measurements],
    )
    runs = [one.scheduled_at for one in results]

    items = encode_columns([one.lease_id for one in results], columns, runs)

    assert items == [
        encode_report_item(
            one.lease_id,
            msgspec.structs.replace(one.measurement, env=env),
            scheduled_at=one.scheduled_at,
        )
        for one in results
    ]


def test_a_row_too_large_loses_its_details() -> None:
    large = measurement(
        Observation("ping_packets", "x" * ITEM_MAX_BYTES), Observation("a_summary", 1)
    )
    columns = ResultColumns(
        outcomes=[Outcome.OK] * 2,
        started_at_ns=[large.started_at_ns] * 2,
        durations_ns=[large.duration_ns] * 2,
        observations=[encode_observations(large.observations), b"[]"],
        env=large.env,
    )

    items = encode_columns([1, 2], columns)

    assert items == [encode_report_item(1, large), encode_report_item(2, measurement())]


@given(duration_ns=INT64)
def test_durations_are_exact_whatever_their_size(duration_ns: int) -> None:
    (item,) = encode_report_items([Result(1, measurement(duration_ns=duration_ns))])

    text = json.loads(item, parse_float=str)["duration_ms"]
    whole, _, decimals = text.lstrip("-").partition(".")
    assert 1 <= len(decimals) <= 6
    assert int(whole) * NS_PER_MS + int(decimals.ljust(6, "0")) == abs(duration_ns)
    assert text.startswith("-") == (duration_ns < 0)


def test_the_edges_of_calendars_and_numbers() -> None:
    (item,) = encode_report_items([Result(ID_MAX, measurement(started_at_ns=951_782_400 * NS_PER_S,
                                                              duration_ns=0))])  # fmt: skip

    assert item == (
        b'{"lease_id":18446744073709551615,"outcome":"ok",'
        b'"started_at":"2000-02-29T00:00:00.000000000Z","duration_ms":0.0,"observations":[],'
        b'"env":{"version":"1"}}'
    )
    assert encode_report_items([]) == []


def test_results_of_one_env_share_its_bytes() -> None:
    env = {"version": "2"}
    results = [Result(key, measurement(env=env if key % 2 else {"key": key})) for key in range(6)]

    envs = [parse(item)["env"] for item in encode_report_items(results)]

    assert envs == [env if key % 2 else {"key": key} for key in range(6)]


@pytest.mark.parametrize(
    "large",
    [
        measurement(Observation("ping_packets", "x" * ITEM_MAX_BYTES), Observation("a_summary", 1)),
        measurement(*[Observation("a_summary", 1)] * (OBSERVATIONS_MAX + 1)),
    ],
)
def test_one_too_large_costs_its_own_details_only(large: Measurement) -> None:
    small = measurement(Observation("tcp_connected", {"rtt_ms": 1.5}))
    results = [Result(1, small), Result(2, large), Result(3, small)]

    items = encode_report_items(results)

    assert items == [encode_report_item(one.lease_id, one.measurement) for one in results]
    assert "observations_dropped" in parse(items[1])["env"]
    assert parse(items[2])["observations"][0]["name"] == "tcp_connected"


def test_what_json_has_no_form_for_is_an_error() -> None:
    results = [Result(1, measurement(Observation("odd", object())))]

    with pytest.raises(TypeError):
        encode_report_items(results)


def test_a_report_holds_its_items_as_they_are() -> None:
    items = encode_report_items([Result(key, measurement()) for key in (1, 2, 3)])

    report = encode_report(7, items[:2], items[2:])

    assert report == encode(
        {
            "agent_id": 7,
            "completed": [parse(item) for item in items[:2]],
            "cancelled": [parse(item) for item in items[2:]],
        }
    )


@pytest.mark.parametrize("column", range(1, 6))
def test_columns_of_another_length_are_refused(column: int) -> None:
    columns: list[list[Any]] = [[1, 2], [3, 4], [5, 6], ["ok"] * 2, [b"[]"] * 2, [b"{}"] * 2]
    columns[column] = columns[column][:1]

    with pytest.raises(ValueError, match="2 lease_ids, but a column of 1"):
        write_items(*columns)
    with pytest.raises(ValueError, match="a column of 3"):
        write_items([1], [2], [3], ["ok"], [b"[]"], [b"{}"], after=[b""] * 3)


@pytest.mark.parametrize(
    ("lease_id", "started_at_ns", "duration_ns"),
    [(-1, 0, 0), (2**64, 0, 0), (1, 2**63, 0), (1, 0, -(2**63) - 1)],
)
def test_numbers_that_do_not_fit_are_refused(
    lease_id: int, started_at_ns: int, duration_ns: int
) -> None:
    with pytest.raises(OverflowError):
        write_items([lease_id], [started_at_ns], [duration_ns], ["ok"], [b"[]"], [b"{}"])


@pytest.mark.parametrize("text", ["ok", None, 1, bytearray(b"ok")])
def test_texts_are_bytes_and_outcomes_words(text: Any) -> None:
    with pytest.raises(TypeError):
        write_items([1], [2], [3], [b"ok"], [b"[]"], [b"{}"])  # type: ignore[type-var]
    with pytest.raises(TypeError):
        write_items([1], [2], [3], ["ok"], [text], [b"{}"])
    with pytest.raises(TypeError):
        write_items([1], [2], [3], ["ok"], [b"[]"], [b"{}"], before=[text])


some_item = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=30).map(lambda rest: b'{"lease_id":' + rest),
    st.integers(0, 2**70).map(lambda key: b'{"lease_id":%d,"outcome":"ok"}' % key),
    st.builds(lambda key, tail: b'{"lease_id":%d%b' % (key, tail), st.integers(0, ID_MAX),
              st.sampled_from([b"", b"}", b",", b".5,", b" ,", b"e1,"])),
)  # fmt: skip


@given(items=st.lists(some_item, max_size=6))
def test_the_leases_of_items_are_what_a_decoder_reads(items: list[bytes]) -> None:
    expected = [item_lease_id(item) for item in items]

    for lease_id, decoded, item in zip(item_lease_ids(items), expected, items, strict=True):
        # One whose end is broken has an id all the same, if it begins with it.
        assert lease_id == decoded or (
            decoded == 0 and item.startswith(b'{"lease_id":%d,' % lease_id)
        )


@given(results=st.lists(some_result, max_size=6))
def test_our_items_are_read_without_decoding(results: list[Result]) -> None:
    ids = [one.lease_id if one.lease_id < 10**19 else 0 for one in results]

    assert leading_ids(encode_report_items(results)) == ids
    assert item_lease_ids(encode_report_items(results)) == [one.lease_id for one in results]


@pytest.mark.parametrize("item", ["text", None, 5])
def test_an_item_is_bytes(item: Any) -> None:
    with pytest.raises(TypeError):
        leading_ids([item])
