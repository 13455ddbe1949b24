"""Streams of the operator API: results that come as lines, tasks that go as lines.

Unlike an agent's streams these are read by anybody's programs, so that each line of results carries
where to go on after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from netsonde.errors import ControlPlaneError
from netsonde.model import ErrorEnvelope
from netsonde.wire.codec import DecodeError, decode_answer, encode, parse
from netsonde.wire.limits import ITEM_MAX_BYTES
from netsonde.wire.streams import failure_of

RESULT_LINE_MAX_BYTES = 4 * ITEM_MAX_BYTES  # a result, its spec and its cursor, escapes included


class _FeedLine(msgspec.Struct, frozen=True):
    t: str = ""
    cursor: str | None = None
    result: msgspec.Raw = msgspec.Raw()
    reason: str = ""
    error: ErrorEnvelope | None = None


@dataclass(frozen=True, slots=True)
class FeedResult:
    """One result, and the cursor that goes on after it."""

    result: dict[str, Any]
    cursor: str


@dataclass(frozen=True, slots=True)
class FeedCursor:
    """Everything before this cursor has been seen."""

    cursor: str


@dataclass(frozen=True, slots=True)
class FeedEnd:
    """A stream's last line."""

    reason: str
    cursor: str | None = None
    error: ControlPlaneError | None = None


FeedPart = FeedResult | FeedCursor | FeedEnd


def result_line(cursor: str, result: bytes) -> bytes:
    """Make the line of an encoded result; cursors need no escapes."""
    return b'{"t":"r","cursor":"%s","result":%s}\n' % (cursor.encode(), result)


def cursor_line(cursor: str) -> bytes:
    """Make the line that says that nothing came, and how far has been looked."""
    return b'{"t":"ping","cursor":"%s"}\n' % cursor.encode()


def feed_end_line(reason: str, cursor: str) -> bytes:
    """Make the line that a stream of results ends with."""
    return encode({"t": "end", "reason": reason, "cursor": cursor}) + b"\n"


def read_feed_line(line: bytes) -> FeedPart | None:
    """Decode a line of a stream of results; None for a kind that is not known.

    Raises:
        DecodeError: it is not JSON, or not what it says it is.
    """
    head = decode_answer(_FeedLine, line)
    match head.t:
        case "r":
            result = parse(bytes(head.result) or b"null")
            if not isinstance(result, dict) or head.cursor is None:
                raise DecodeError("a line of the stream has no result or no cursor")
            return FeedResult(result, head.cursor)
        case "ping":
            return None if head.cursor is None else FeedCursor(head.cursor)
        case "end":
            return FeedEnd(head.reason, head.cursor, failure_of(head.reason, head.error))
    return None


# ── tasks ──


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """What became of one line of tasks: a task, or why there is none."""

    line: int
    task_id: int | None = None
    error: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class UploadEnd:
    """The last line of an upload's answer: all up to `through` is answered."""

    reason: str
    through: int
    error: ControlPlaneError | None = None


class _UploadLine(msgspec.Struct, frozen=True):
    t: str = ""
    line: int | None = None
    task_id: int | None = None
    error: msgspec.Raw = msgspec.Raw()
    message: str = ""
    reason: str = ""
    through: int = 0


def task_answer_lines(first_line: int, answers: Sequence[Mapping[str, Any]]) -> bytes:
    """Encode what became of lines, in their order."""
    return b"".join(
        [
            encode({"t": "a", "line": number, **answer}) + b"\n"
            for number, answer in enumerate(answers, first_line)
        ]
    )


def upload_end_line(reason: str, through: int) -> bytes:
    """Encode the line that an upload's answer ends with."""
    return encode({"t": "end", "reason": reason, "through": through}) + b"\n"


def read_upload_line(line: bytes) -> LineAnswer | UploadEnd | None:
    """Decode a line of an upload's answer; None for a kind that is not known.

    Raises:
        DecodeError: it is not JSON, or not what it says it is.
    """
    head = decode_answer(_UploadLine, line)
    raw = bytes(head.error)
    if head.t == "a":
        error = decode_answer(str, raw) if raw else None
        if head.line is None or (head.task_id is None) == (error is None):
            raise DecodeError("a line of the answer says neither what it is about nor what became")
        return LineAnswer(head.line, head.task_id, error, head.message)
    if head.t == "end":
        envelope = decode_answer(ErrorEnvelope, raw) if raw else None
        return UploadEnd(head.reason, head.through, failure_of(head.reason, envelope))
    return None
