"""Claims and extensions as every control plane answers them."""

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_MS
from netsonde.model import PingSpec, Repeat
from netsonde.wire import (
    DecodeError,
    decode_claim,
    decode_extend,
    encode,
    lease_deadline_ns,
    relative_ms,
)


def lease(lease_id: object = 1, **changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "lease_id": lease_id,
        "task_id": 2,
        "kind": "ping",
        "lease_until_ms": 45_000,
        "spec": {"kind": "ping", "host": "192.0.2.1"},
    }
    return base | changes


@pytest.mark.parametrize("body", [b"", b'{"leases":[]}'])
def test_an_empty_claim_has_no_leases(body: bytes) -> None:
    assert decode_claim(body).leases == ()


def test_good_leases_are_decoded_whole() -> None:
    claimed = decode_claim(encode({"leases": [lease(1), lease(2**64 - 1)], "claim_id": "c"}))

    assert [found.lease_id for found in claimed.leases] == [1, 2**64 - 1]
    assert claimed.leases[0].spec == PingSpec(host="192.0.2.1")
    assert (claimed.claim_id, claimed.rejected) == ("c", ())


AT = "2026-11-28T02:29:46Z"


def test_a_standing_lease_says_how_it_repeats() -> None:
    repeat = {"every_ms": 60_000, "jitter_ms": 500, "ticks": 9, "stale_after_ms": 7, "later": 1}
    sent = lease(1, repeat=repeat, scheduled_at=AT, offline_ms=86_400_000, next_tick=4)
    (found,) = decode_claim(encode({"leases": [sent]})).leases
    assert found.repeat == Repeat(every_ms=60_000, jitter_ms=500, ticks=9, stale_after_ms=7)
    assert (found.offline_ms, found.next_tick) == (86_400_000, 4)


@pytest.mark.parametrize(
    "bad",
    [
        lease(9, kind="sonar"),
        lease(9, spec={"kind": "sonar", "depth": 5}),
        lease(9, spec={"kind": "ping", "host": 5}),
        lease(9, spec={"kind": "ping", "host": "h", "count": 0}),
        lease(9, spec={"kind": "dns", "query": "example.net"}),  # kind and spec disagree
        lease(9, lease_until_ms="soon"),
        lease(9, lease_until_ms=0),
        lease(9, task_id=-1),
        lease(9, repeat={"every_ms": 0}, scheduled_at=AT),
        lease(9, repeat={"jitter_ms": 1}, scheduled_at=AT),
        lease(9, repeat={"every_ms": 1000, "jitter_ms": 1000}, scheduled_at=AT),
        lease(9, repeat={"every_ms": 1000, "ticks": 0}, scheduled_at=AT),
        lease(9, repeat={"every_ms": 1000}),
        lease(9, repeat={"every_ms": 1000}, scheduled_at="noon"),
        lease(9, repeat={"every_ms": 1000}, scheduled_at=AT, offline_ms=-1),
        lease(9, repeat={"every_ms": 1000}, scheduled_at=AT, next_tick=-1),
    ],
)
def test_one_bad_lease_costs_itself(bad: dict[str, object]) -> None:
    claimed = decode_claim(encode({"leases": [lease(1), bad, lease(3)]}))

    assert [found.lease_id for found in claimed.leases] == [1, 3]
    assert [rejected.lease_id for rejected in claimed.rejected] == [9]
    assert claimed.rejected[0].message


@pytest.mark.parametrize("bad", [7, "x", [], {}, {"lease_id": -1}, {"lease_id": "9"}])
def test_a_lease_without_an_id_cannot_be_handed_back(bad: object) -> None:
    claimed = decode_claim(encode({"leases": [bad, lease(3)]}))

    assert [found.lease_id for found in claimed.leases] == [3]
    assert claimed.rejected[0].lease_id is None


@pytest.mark.parametrize("host", [b'"\xff"', b"1e999", b"1" * 5000])
def test_a_lease_nobody_can_read_costs_itself(host: bytes) -> None:
    bad = encode(lease(9, spec={"kind": "ping", "host": 0})).replace(b'"host":0', b'"host":' + host)

    claimed = decode_claim(b'{"leases":[' + bad + b"," + encode(lease(3)) + b"]}")

    assert [found.lease_id for found in claimed.leases] == [3]
    assert [(found.lease_id, found.task_id) for found in claimed.rejected] == [(9, 2)]


def test_a_lease_without_a_readable_id_cannot_be_handed_back() -> None:
    bad = encode(lease(9)).replace(b'"lease_id":9', b'"lease_id":1e999')

    claimed = decode_claim(b'{"leases":[' + bad + b"]}")

    assert [found.lease_id for found in claimed.rejected] == [None]


def test_an_id_above_u64_is_rejected_not_rounded() -> None:
    body = encode({"leases": [lease(1)]}).replace(
        b'"lease_id":1', b'"lease_id":18446744073709551616'
    )

    claimed = decode_claim(body)

    assert claimed.leases == ()
    assert len(claimed.rejected) == 1


def test_the_originals_nulls_mean_absent() -> None:
    spec = {"kind": "ping", "host": "h", "count": None, "timeout_ms": None}

    claimed = decode_claim(encode({"leases": [lease(1, spec=spec)]}))

    assert claimed.leases[0].spec == PingSpec(host="h")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"leases":5}', b'{"leases":[{}'])
def test_what_is_no_claim_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_claim(body)


@given(st.binary())
def test_garbage_is_a_decode_error_and_nothing_else(body: bytes) -> None:
    for decoder in (decode_claim, decode_extend):
        with contextlib.suppress(DecodeError):
            decoder(body)


OUTCOME = b'{"lease_id":5,"new_deadline_ms":900}'


@pytest.mark.parametrize(
    "body",
    [
        b" [" + OUTCOME + b"]",
        b'{"outcomes":[' + OUTCOME + b"]}",
        b'{"outcomes":[' + OUTCOME + b'],"revoked":[7],"results":[]}',
    ],
)
def test_every_shape_of_extend_is_understood(body: bytes) -> None:
    extended = decode_extend(body)

    assert [(item.lease_id, item.new_deadline_ms) for item in extended.outcomes] == [(5, 900)]
    assert extended.revoked == ((7,) if b"revoked" in body else ())


@pytest.mark.parametrize(
    ("value", "date_epoch_ms", "expected"),
    [
        (45_000, None, 45_000),
        (1_700_000_045_000, 1_700_000_000_000, 44_000),  # a second for the cut Date header
        (1_700_000_000_000, 1_700_000_000_000, 1),
        (1_800_000_000_000, 1_700_000_000_000, 60_000),
        (1_700_000_045_000, None, 60_000),
    ],
)
def test_epoch_deadlines_become_durations(
    value: int, date_epoch_ms: int | None, expected: int
) -> None:
    assert relative_ms(value, date_epoch_ms=date_epoch_ms, term_ms=60_000) == expected


@given(value=st.integers(), date_epoch_ms=st.none() | st.integers(), term_ms=st.integers(1))
@example(value=-(10**30), date_epoch_ms=None, term_ms=60_000)
@example(value=10**30, date_epoch_ms=0, term_ms=10**30)
def test_whatever_a_server_sends_the_deadline_fits_the_clock(
    value: int, date_epoch_ms: int | None, term_ms: int
) -> None:
    remaining_ms = relative_ms(value, date_epoch_ms=date_epoch_ms, term_ms=term_ms)

    assert abs(lease_deadline_ns(2**60, remaining_ms, 55_000)) < 2**63


@given(
    transit_ms=st.integers(0, 60_000),
    held_ms=st.integers(0, 55_000),
    term_ms=st.integers(1, 3_600_000),
)
def test_the_agents_deadline_is_never_after_the_servers(
    transit_ms: int, held_ms: int, term_ms: int
) -> None:
    server_deadline_ms = transit_ms + held_ms + term_ms  # on the agent's clock, sent at 0

    deadline_ns = lease_deadline_ns(0, term_ms, held_ms)

    assert deadline_ns <= server_deadline_ms * NS_PER_MS - 250 * NS_PER_MS
