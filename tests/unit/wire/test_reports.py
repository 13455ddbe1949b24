"""Report items, report bodies and the result object."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import RequestError
from netsonde.model import Failure, Measurement, Observation, Outcome, PingSpec, TaskKind
from netsonde.wire import (
    ITEM_MAX_BYTES,
    OBSERVATIONS_MAX,
    classify,
    decode_report,
    encode,
    encode_report,
    encode_report_item,
    encode_result,
    fragment,
    merge_result,
    parse,
    timed_item,
)


def measurement(*observations: Observation, outcome: Outcome = Outcome.OK) -> Measurement:
    return Measurement(
        outcome=outcome,
        started_at_ns=10**18,
        duration_ns=1_234_567,
        observations=observations,
        env={"version": "1"},
    )


def report(*completed: object, cancelled: tuple[object, ...] = ()) -> bytes:
    return encode({"agent_id": 4, "completed": completed, "cancelled": cancelled})


def test_an_item_survives_the_way() -> None:
    item = encode_report_item(5, measurement(Observation("ping_summary", {"sent": 1})))

    decoded = decode_report(encode_report(4, [item], [item]))

    assert decoded.agent_id == 4
    assert [(found.lease_id, found.cancelled) for found in decoded.items] == [(5, False), (5, True)]
    assert decoded.items[0].body == item
    assert decoded.items[0].outcome == "ok"
    assert decoded.items[0].duration_ms == 1.234567


@pytest.mark.parametrize(
    "bad",
    [
        {"lease_id": "x"},
        {"lease_id": 0},
        {"lease_id": 2**63, "observations": [{"name": 5, "value": 1}]},
        {"lease_id": 1, "observations": [{"name": "n"}]},
        {"lease_id": 1, "observations": [{"name": "n", "value": 0}] * (OBSERVATIONS_MAX + 1)},
        {"lease_id": 1, "observations": [{"name": "n", "value": "x" * ITEM_MAX_BYTES}]},
        {"lease_id": 1, "error": "no object"},
        7,
    ],
)
def test_a_bad_item_costs_itself(bad: object) -> None:
    decoded = decode_report(report({"lease_id": 2}, bad, {"lease_id": 3}))

    assert [item.problem is None for item in decoded.items] == [True, False, True]


def test_a_deep_item_costs_itself() -> None:
    value: object = 0
    for _ in range(40):
        value = [value]

    decoded = decode_report(
        report({"lease_id": 1, "observations": [{"name": "n", "value": value}]}, {"lease_id": 2})
    )

    assert [item.problem for item in decoded.items] == ["nested too deep", None]


@pytest.mark.parametrize(
    "field",
    [
        b'"outcome":"\xff"',
        b'"observations":[{"name":"n","value":"\xff"}]',
        b'"observations":[{"name":"n","value":{"deep":[1e999]}}]',
        b'"observations":[{"name":"n","value":' + b"1" * 5000 + b"}]",
        b'"env":{"version":"\xff"}',
        b'"error":{"reason":"r","failure_source":"f","more":"\xff"}',
        b'"started_at":"yesterday"',
        b'"started_at":"2026-11-24 10:11:12"',
        b'"duration_ms":-1',
        b'"scheduled_at":""',
        b'"tick":-1',
    ],
)
def test_what_would_spoil_a_page_of_results_costs_itself(field: bytes) -> None:
    bad = b'{"lease_id":7,' + field + b"}"

    decoded = decode_report(encode_report(4, [b'{"lease_id":1}'], [b'{"lease_id":2}']))
    assert [item.problem for item in decoded.items] == [None, None]
    decoded = decode_report(
        b'{"agent_id":4,"completed":[{"lease_id":1},' + bad + b'],"cancelled":[{"lease_id":2}]}'
    )

    assert [item.problem is None for item in decoded.items] == [True, False, True]


ITEM = st.one_of(
    st.integers(1, 5).map(lambda lease_id: b'{"lease_id":%d,"outcome":"ok"}' % lease_id),
    st.sampled_from(
        [
            b"7",
            b"{}",
            b'"x"',
            b'{"lease_id":0}',
            b'{"lease_id":1,"env":{"a":1e999}}',
            b"[" * 40 + b"]" * 40,
        ]
    ),
)


@given(completed=st.lists(ITEM, max_size=6), cancelled=st.lists(ITEM, max_size=3))
def test_items_are_read_together_as_each_is_alone(
    completed: list[bytes], cancelled: list[bytes]
) -> None:
    alone = [decode_report(encode_report(4, [item], [])).items[0] for item in completed]
    alone += [decode_report(encode_report(4, [], [item])).items[0] for item in cancelled]

    assert [*decode_report(encode_report(4, completed, cancelled)).items] == alone


def test_what_an_agent_did_not_time_the_server_times() -> None:
    body = b'{"lease_id":5,"observations":[{"name":"n","value":1}]}'
    (bare,) = decode_report(b'{"agent_id":4,"completed":[' + body + b"]}").items
    (whole,) = decode_report(encode_report(4, [encode_report_item(5, measurement())], [])).items

    assert timed_item(whole, 1, 2) is whole.body
    assert parse(timed_item(bare, 1_500_000_000, 1_502_500_000)) == {
        "lease_id": 5,
        "observations": [{"name": "n", "value": 1}],
        "started_at": "1970-01-01T00:00:01.500000000Z",
        "duration_ms": 2.5,
        "env": {"timed_by": "control_plane"},
    }


def test_what_an_agent_timed_in_part_keeps_that_part() -> None:
    body = b'{"lease_id":5,"started_at":"2026-11-24T10:11:12Z","env":{"version":"9"}}'
    (item,) = decode_report(b'{"agent_id":4,"completed":[' + body + b"]}").items

    timed = parse(timed_item(item, 10, 5))

    assert timed["started_at"] == "2026-11-24T10:11:12Z"
    assert timed["duration_ms"] == 0
    assert timed["env"] == {"version": "9", "timed_by": "control_plane"}


@pytest.mark.parametrize("env", [f'{{"n":{2**70},"of":[{{"n":{-(2**70)}}}]}}', "null"])
def test_what_the_server_times_keeps_numbers_of_any_size(env: str) -> None:
    body = f'{{"lease_id":5,"later":{2**70},"env":{env}}}'.encode()
    (item,) = decode_report(b'{"agent_id":4,"completed":[' + body + b"]}").items

    timed = parse(timed_item(item, 10, 5))

    assert timed["later"] == 2**70
    assert timed["env"] == (json.loads(env) or {}) | {"timed_by": "control_plane"}


@given(st.binary())
def test_garbage_is_refused_and_nothing_else(body: bytes) -> None:
    with contextlib.suppress(RequestError):
        decode_report(body)


def test_a_result_too_large_keeps_its_summary_and_says_so() -> None:
    details = [Observation("ping_attempt", {"attempt": n}) for n in range(OBSERVATIONS_MAX)]
    item = parse(
        encode_report_item(5, measurement(*details, Observation("ping_summary", {"sent": 9})))
    )

    assert [observation["name"] for observation in item["observations"]] == ["ping_summary"]
    assert item["env"]["observations_dropped"] == OBSERVATIONS_MAX


def test_the_result_object_has_one_order() -> None:
    failed = Measurement(
        outcome=Outcome.TARGET_ERROR,
        started_at_ns=10**18,
        duration_ns=0,
        observations=(),
        error=Failure(reason="timeout", failure_source="target", message="no reply"),
    )

    result = parse(encode_result(TaskKind.PING, PingSpec(host="h"), failed))

    assert list(result) == [
        "kind", "spec", "outcome", "started_at", "duration_ms", "observations", "error", "env",
    ]  # fmt: skip
    assert result["spec"] == {"kind": "ping", "host": "h"}
    assert result["error"]["reason"] == "timeout"


def test_the_server_adds_what_it_knows_and_repeats_nothing_unknown() -> None:
    item = encode({"lease_id": 5, "observations": [], "outcome": "ok", "novel": 1, "task_id": 99})

    result = parse(
        merge_result(item, {"task_id": 3, "spec": fragment(b'{"kind":"ping"}'), "kind": "ping"})
    )

    assert result == {
        "lease_id": 5,
        "task_id": 3,
        "kind": "ping",
        "spec": {"kind": "ping"},
        "outcome": "ok",
        "observations": [],
    }


@pytest.mark.parametrize(
    ("kind", "item", "outcome"),
    [
        ("ping", {"observations": [{"name": "ping_summary", "value": {"success": True}}]}, "ok"),
        (
            "ping",
            {"observations": [{"name": "ping_summary", "value": {"success": False}}]},
            "target_error",
        ),
        ("tcp", {"observations": [{"name": "tcp_resolution", "value": {}}]}, "target_error"),
        ("dns", {"observations": [{"name": "dns_error", "value": {}}]}, "target_error"),
        ("dns", {}, "ok"),  # NODATA from an original agent
        ("http", {}, "agent_error"),  # its HTTP prober is a stub
        ("trace", {"observations": [{"name": "trace", "value": {"status": "ok"}}]}, "ok"),
        (
            "trace",
            {"observations": [{"name": "trace", "value": {"status": "permission_denied"}}]},
            "target_error",
        ),
        ("http", {"outcome": "rejected"}, "rejected"),
    ],
)
def test_an_original_agents_outcome_is_read_off(
    kind: str, item: dict[str, object], outcome: str
) -> None:
    decoded = decode_report(report({"lease_id": 1} | item))

    assert classify(TaskKind(kind), decoded.items[0]) == outcome


def test_what_an_original_agent_cancelled_is_cancelled() -> None:
    decoded = decode_report(report(cancelled=({"lease_id": 1},)))

    assert classify(TaskKind.PING, decoded.items[0]) == "cancelled"
