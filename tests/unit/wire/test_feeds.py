"""Lines of results and of uploads' answers."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde import wire

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["t", "cursor", "result", "reason", "error", "line", "task_id", "message", "through"]
)
KINDS = st.sampled_from(["r", "a", "ping", "end", "cursor"])


def test_a_result_and_its_cursor() -> None:
    line = wire.result_line("abc-_1", b'{"kind":"tcp"}')
    assert line == b'{"t":"r","cursor":"abc-_1","result":{"kind":"tcp"}}\n'
    assert wire.read_feed_line(line) == wire.FeedResult({"kind": "tcp"}, "abc-_1")


def test_cursors_and_ends() -> None:
    assert wire.read_feed_line(wire.cursor_line("c")) == wire.FeedCursor("c")
    assert wire.read_feed_line(wire.ping_line()) is None
    assert wire.read_feed_line(wire.feed_end_line("wait", "c")) == wire.FeedEnd("wait", "c")
    end = wire.read_feed_line(wire.error_line(b'{"error":"ERR_CURSOR_EXPIRED","message":"gone"}'))
    assert isinstance(end, wire.FeedEnd)
    assert end.error is not None
    assert (end.error.code, end.error.status, end.error.retryable) == (
        "ERR_CURSOR_EXPIRED", 410, False,
    )  # fmt: skip


def test_lines_of_a_later_version_are_passed_over() -> None:
    assert wire.read_feed_line(b'{"t":"news","cursor":7}'.replace(b"7", b'"x"')) is None
    assert wire.read_upload_line(b'{"t":"ping"}') is None
    known = b'{"t":"r","cursor":"c","result":{},"more":1}'
    assert wire.read_feed_line(known) == wire.FeedResult({}, "c")


def test_answers_of_an_upload() -> None:
    answers: list[dict[str, Any]] = [
        {"task_id": 9},
        {"error": "ERR_VALIDATION", "message": "kind", "violations": []},
    ]
    first, second = wire.task_answer_lines(5, answers).splitlines()
    assert wire.read_upload_line(first) == wire.LineAnswer(5, 9)
    assert wire.read_upload_line(second) == wire.LineAnswer(6, None, "ERR_VALIDATION", "kind")
    end = wire.read_upload_line(wire.upload_end_line("done", 6))
    assert end == wire.UploadEnd("done", 6)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"7",
        b"[]",
        b'{"t":7}',
        b'{"t":"r"}',
        b'{"t":"r","cursor":"c"}',
        b'{"t":"r","result":{}}',
        b'{"t":"r","cursor":"c","result":null}',
        b'{"t":"r","cursor":"c","result":[]}',
        b'{"t":"r","cursor":7,"result":{}}',
        b'{"t":"end","error":7}',
        b'{"t":"end","error":{}',
        b'{"t":"ping","cursor":{}}',
        b'\xff{"t":"ping"}',
    ],
)
def test_what_is_no_line_of_results(line: bytes) -> None:
    with pytest.raises(wire.DecodeError):
        wire.read_feed_line(line)


@given(st.dictionaries(FIELDS, JSON, max_size=6), KINDS)
def test_any_object_is_read_or_refused(fields: dict[str, Any], kind: str) -> None:
    line = json.dumps(fields | {"t": kind}).encode()
    for read in (wire.read_feed_line, wire.read_upload_line):
        with contextlib.suppress(wire.DecodeError):
            read(line)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(line: bytes) -> None:
    for read in (wire.read_feed_line, wire.read_upload_line):
        with contextlib.suppress(wire.DecodeError):
            read(line)
