"""Streams of lines: cut, decoded together, and one by one where that fails."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde import wire
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import ReportResult, ReportStatus


def lease(lease_id: object = 1, **changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "lease_id": lease_id,
        "task_id": 2,
        "kind": "ping",
        "lease_until_ms": 45_000,
        "spec": {"kind": "ping", "host": "192.0.2.1"},
    }
    return base | changes


def split(data: bytes) -> list[bytes]:
    return wire.Lines().feed(data)


# ── lines ──


@given(st.lists(st.binary(max_size=20)), st.data())
def test_lines_come_whole_however_they_are_cut(texts: list[bytes], data: st.DataObject) -> None:
    lines = [text.replace(b"\n", b"") for text in texts]
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    received, got = wire.Lines(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += received.feed(stream[start:end])
    assert got == [line for line in lines if line]


def test_a_tail_without_its_newline_is_not_a_line() -> None:
    assert split(b"one\ntw") == [b"one"]


@pytest.mark.parametrize("chunks", [[b"123456"], [b"123", b"456"], [b"123456\n"], [b"1\n123456"]])
def test_a_line_has_a_longest_length(chunks: list[bytes]) -> None:
    received = wire.Lines(line_max_bytes=5)
    *early, last = chunks
    for chunk in early:
        received.feed(chunk)
    with pytest.raises(wire.LineError, match="5 bytes"):
        received.feed(last)


def test_a_stream_has_a_most_lines() -> None:
    received = wire.Lines(lines_max=3)
    received.feed(b"1\n2\n3\n")
    with pytest.raises(wire.LineError, match="3 lines"):
        received.feed(b"4\n")


# ── claims ──


def test_a_claims_lines_come_back_as_they_were_sent() -> None:
    sent = wire.claim_lines([lease(1), lease(2, granted_after_ms=7)])
    part = wire.read_claim_lines(split(sent + wire.ping_line() + wire.end_line("credits")))
    assert [one.lease_id for one in part.claimed.leases] == [1, 2]
    assert part.claimed.leases[1].granted_after_ms == 7
    assert part.is_over
    assert part.error is None
    assert part.revoked == ()


def test_revocations_and_revisions_are_read() -> None:
    lines = split(wire.revoke_line([3, 4]) + b'{"t":"config","revision":18}\n')
    part = wire.read_claim_lines(lines)
    assert part.revoked == (3, 4)
    assert part.config_revision == "18"
    assert not part.is_over


def test_an_end_with_an_error_carries_it() -> None:
    envelope = wire.error_body(RequestError(ErrorCode.STORAGE_FULL, "the disk is full"), "r1")
    part = wire.read_claim_lines(split(wire.error_line(envelope)))
    assert part.is_over
    assert part.error is not None
    assert (part.error.code, part.error.status, part.error.retryable) == (
        "ERR_STORAGE_FULL",
        507,
        True,
    )


def test_an_error_of_later_versions_says_itself_whether_it_is_retried() -> None:
    envelope = b'{"error":"ERR_NEW","message":"?","retryable":false}'
    part = wire.read_claim_lines(split(wire.error_line(envelope)))
    assert part.error is not None
    assert not part.error.retryable


@pytest.mark.parametrize(
    "bad",
    [
        lease(1, kind="smtp", spec={"kind": "smtp"}),
        lease(1, lease_until_ms="soon"),
        lease(1, spec={"kind": "dns", "query": "a.example"}),
        lease(-1),
    ],
)
def test_one_bad_lease_costs_itself(bad: dict[str, object]) -> None:
    lines = split(wire.claim_lines([lease(7), bad, lease(8)]) + wire.revoke_line([5]))
    part = wire.read_claim_lines(lines)
    assert [one.lease_id for one in part.claimed.leases] == [7, 8]
    assert len(part.claimed.rejected) == 1
    assert part.revoked == (5,)


def test_lines_of_later_versions_are_passed_over() -> None:
    lines = split(b'{"t":"advice","text":"slow down"}\n' + wire.claim_lines([lease(1)]))
    assert [one.lease_id for one in wire.read_claim_lines(lines).claimed.leases] == [1]


@pytest.mark.parametrize("line", [b"<html>", b"[1]", b'{"t":"revoke"}', b'{"t":1}', b"null"])
def test_a_line_that_makes_no_sense_is_an_error(line: bytes) -> None:
    with pytest.raises(wire.DecodeError):
        wire.read_claim_lines([line])


def test_two_values_on_a_line_are_not_two_lines() -> None:
    whole = wire.claim_lines([lease(1)]).strip()
    with pytest.raises(wire.DecodeError):
        wire.read_claim_lines([whole + b"," + whole])


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_no_claim_line_breaks_the_reader(lines: list[bytes]) -> None:
    try:
        wire.read_claim_lines(lines)
    except wire.DecodeError as error:
        assert str(error)  # noqa: PT017 (either is fine)


# ── reports ──


def item(lease_id: int, **changes: Any) -> bytes:
    return wire.encode({"lease_id": lease_id, "outcome": "ok", "observations": []} | changes)


def test_a_reports_lines_come_back_as_they_were_sent() -> None:
    sent = [item(11), item(12, tick=3)]
    lines = split(b"".join(wire.report_line(seq, body) for seq, body in enumerate(sent, 5)))
    read = wire.read_report_lines(lines)
    assert [seq for seq, _ in read] == [5, 6]
    assert [one.body for _, one in read] == sent
    assert [one.tick for _, one in read] == [None, 3]
    assert all(one.problem is None for _, one in read)


def test_an_item_with_its_number_elsewhere_is_taken_too() -> None:
    [(seq, one)] = wire.read_report_lines([b'{"lease_id":4,"outcome":"ok","seq":9,"t":"r"}'])
    assert (seq, one.lease_id, one.outcome) == (9, 4, "ok")


def test_a_bad_item_costs_itself() -> None:
    lines = [wire.report_line(1, item(11)), wire.report_line(2, item(12, started_at="noon"))]
    first, second = wire.read_report_lines([line.strip() for line in lines])
    assert first[1].problem is None
    assert second[1].problem
    assert second[1].lease_id == 12


def test_lines_of_other_kinds_are_passed_over() -> None:
    assert wire.read_report_lines([b'{"t":"note","seq":1}']) == []


@pytest.mark.parametrize(
    "line", [b"<html>", b"[]", b'{"t":"r","lease_id":1}', b'{"t":"r","seq":"1"}']
)
def test_a_line_without_a_number_is_refused(line: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        wire.read_report_lines([line])
    assert caught.value.code is ErrorCode.MALFORMED_JSON


def test_acknowledgements_come_back_as_they_were_sent() -> None:
    results = [
        ReportResult(lease_id=1, status=ReportStatus.ACCEPTED),
        ReportResult(lease_id=2, status=ReportStatus.INVALID, error='ERR_VALIDATION: "x"'),
    ]
    sent = wire.acknowledgement_lines([5, 6], results) + wire.through_line(6)
    answers = wire.read_report_answers(split(sent))
    assert [(one.seq, one.status) for one in answers.acknowledgements] == [
        (5, "accepted"),
        (6, "invalid"),
    ]
    assert answers.acknowledgements[1].error == 'ERR_VALIDATION: "x"'
    assert answers.is_over
    assert answers.error is None


def test_acknowledgements_before_an_error_count() -> None:
    results = [ReportResult(lease_id=1, status=ReportStatus.ACCEPTED)]
    envelope = wire.error_body(RequestError(ErrorCode.BACKEND, "failed"), "r1")
    sent = wire.acknowledgement_lines([5], results) + wire.error_line(envelope)
    answers = wire.read_report_answers(split(b'{"t":"hint"}\n' + sent))
    assert [one.seq for one in answers.acknowledgements] == [5]
    assert answers.error is not None
    assert answers.error.retryable


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_no_answer_breaks_the_reader(lines: list[bytes]) -> None:
    try:
        wire.read_report_answers(lines)
    except wire.DecodeError as error:
        assert str(error)  # noqa: PT017 (either is fine)
