"""Streams of NDJSON: claims that come as lines, reports that go as lines, and their answers.

Lines are read by the chunk: those that came together are decoded together, as one array, and one
by one only when that fails.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from netsonde.errors import CODES, ControlPlaneError, ErrorCode, RequestError
from netsonde.model import ErrorEnvelope, Lease, ReportResult
from netsonde.wire.claims import Claimed, as_claimed
from netsonde.wire.codec import DecodeError, decode_answer, decoder, encode
from netsonde.wire.envelopes import decode_error
from netsonde.wire.limits import LINE_MAX_BYTES, LINES_MAX
from netsonde.wire.reports import ReportItem, decode_report_items

T = TypeVar("T")

NDJSON = "application/x-ndjson"
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)


class _LeaseLine(msgspec.Struct, frozen=True, tag="lease", tag_field="t"):
    lease: Lease


class _RevokeLine(msgspec.Struct, frozen=True, tag="revoke", tag_field="t"):
    lease_ids: tuple[int, ...]


class _ConfigLine(msgspec.Struct, frozen=True, tag="config", tag_field="t"):
    revision: str | int


class _PingLine(msgspec.Struct, frozen=True, tag="ping", tag_field="t"):
    pass


class _EndLine(msgspec.Struct, frozen=True, tag="end", tag_field="t"):
    reason: str = ""
    through: int = 0
    error: ErrorEnvelope | None = None


class Acknowledgement(msgspec.Struct, frozen=True, tag="a", tag_field="t", gc=False):
    """What became of one line of a report."""

    seq: int
    status: str
    error: str | None = None


_ClaimLine = _LeaseLine | _RevokeLine | _ConfigLine | _PingLine | _EndLine
_ReportAnswer = Acknowledgement | _PingLine | _EndLine


class _Head(msgspec.Struct, frozen=True):
    t: str = ""
    seq: int | None = None
    lease: msgspec.Raw = msgspec.Raw()


class LineError(DecodeError):
    """A line is too long, or a stream has too many."""


class Lines:
    """Cuts chunks into complete lines; a tail waits for its newline, and without one is dropped."""

    def __init__(self, line_max_bytes: int = LINE_MAX_BYTES, lines_max: int = LINES_MAX) -> None:
        self._line_max_bytes = line_max_bytes
        self._lines_max = self._left = lines_max
        self._tail = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that chunk completes, empty ones left out.

        Raises:
            LineError: a line is too long or there are too many.
        """
        complete, newline, rest = chunk.rpartition(b"\n")
        if not newline:
            self._tail += rest
            lines = []
        else:
            lines = [line for line in (bytes(self._tail) + complete).split(b"\n") if line]
            self._tail = bytearray(rest)
        if len(self._tail) > self._line_max_bytes or any(
            len(line) > self._line_max_bytes for line in lines
        ):
            raise LineError(f"a line may have {self._line_max_bytes} bytes")
        self._left -= len(lines)
        if self._left < 0:
            raise LineError(f"a stream may have {self._lines_max} lines")
        return lines


@dataclass(frozen=True, slots=True)
class ClaimPart:
    """What some lines of a claim's stream say; `is_over`: the last of them was its end."""

    claimed: Claimed
    revoked: tuple[int, ...] = ()
    config_revision: str | None = None
    is_over: bool = False
    error: ControlPlaneError | None = None


@dataclass(frozen=True, slots=True)
class ReportAnswers:
    """What some lines of a report's answer say."""

    acknowledgements: tuple[Acknowledgement, ...]
    is_over: bool = False
    error: ControlPlaneError | None = None


# ── claims ──


def claim_lines(leases: Iterable[object]) -> bytes:
    """Encode leases as lines of a claim's stream."""
    return b"".join([encode({"t": "lease", "lease": lease}) + b"\n" for lease in leases])


def revoke_line(lease_ids: Sequence[int]) -> bytes:
    """Encode the line that takes leases back."""
    return encode({"t": "revoke", "lease_ids": lease_ids}) + b"\n"


def config_line(revision: int) -> bytes:
    """Encode the line that tells of a newer configuration."""
    return b'{"t":"config","revision":%d}\n' % revision


def ping_line() -> bytes:
    """Encode the line that says only that the stream lives."""
    return b'{"t":"ping"}\n'


def end_line(reason: str) -> bytes:
    """Encode the line that a claim's stream ends with."""
    return encode({"t": "end", "reason": reason}) + b"\n"


def error_line(envelope: bytes) -> bytes:
    """Encode the line that a stream ends with when something failed."""
    return b'{"t":"end","reason":"error","error":' + envelope + b"}\n"


def read_claim_lines(lines: Sequence[bytes]) -> ClaimPart:
    """Decode lines of a claim's stream; one bad lease costs itself, unknown lines are passed over.

    Raises:
        DecodeError: a line is not JSON, or not what it says it is.
    """
    known: list[_ClaimLine] = []
    loose: list[msgspec.Raw] = []
    for line in _together(tuple[_ClaimLine, ...], lines):
        if isinstance(line, bytes):
            _sort_claim_line(line, known, loose)
        else:
            known.append(line)
    leases: list[Lease] = []
    revoked: list[int] = []
    end: _EndLine | None = None
    revision: str | None = None
    for one in known:
        match one:
            case _LeaseLine():
                leases.append(one.lease)
            case _RevokeLine():
                revoked += one.lease_ids
            case _ConfigLine():
                revision = str(one.revision)
            case _EndLine():
                end = one
    return ClaimPart(
        as_claimed(leases, loose), tuple(revoked), revision, end is not None, _failure(end)
    )


def _sort_claim_line(line: bytes, known: list[_ClaimLine], loose: list[msgspec.Raw]) -> None:
    """Read one line by itself: a lease that does not decode is looked at loosely."""
    head = decode_answer(_Head, line)
    if head.t == "lease" and bytes(head.lease):
        loose.append(head.lease)
    elif head.t in ("revoke", "config", "ping", "end"):
        known.append(decode_answer(_ClaimLine, line))  # type: ignore[arg-type]


# ── reports ──


def report_line(seq: int, item: bytes) -> bytes:
    """Make the line of an encoded report item."""
    return b'{"t":"r","seq":%d,' % seq + item[1:] + b"\n"


def read_report_lines(lines: Sequence[bytes]) -> list[tuple[int, ReportItem]]:
    """Decode lines of a report's stream: each item's number, and the item.

    A bad item costs itself; lines of other kinds are passed over.

    Raises:
        RequestError: ERR_MALFORMED_JSON, a line is not an object with a number.
    """
    seqs: list[int] = []
    raws: list[bytes] = []
    for line in lines:
        try:
            head = decoder(_Head).decode(line)
        except _UNREADABLE as error:
            raise RequestError(
                ErrorCode.MALFORMED_JSON, f"a line of the stream cannot be read: {error}"
            ) from error
        if head.t != "r":
            continue
        if head.seq is None:
            raise RequestError(ErrorCode.MALFORMED_JSON, "a line of the stream has no seq")
        start = b'{"t":"r","seq":%d,' % head.seq
        seqs.append(head.seq)
        raws.append(b"{" + line[len(start) :] if line.startswith(start) else line)
    return [*zip(seqs, decode_report_items(raws, cancelled=False), strict=True)]


def acknowledgement_lines(seqs: Sequence[int], results: Sequence[ReportResult]) -> bytes:
    """Encode what became of items, in their order."""
    return b"".join(
        [
            encode(Acknowledgement(seq, result.status, result.error)) + b"\n"
            if result.error is not None
            else b'{"t":"a","seq":%d,"status":"%s"}\n' % (seq, result.status.encode())
            for seq, result in zip(seqs, results, strict=True)
        ]
    )


def through_line(through: int) -> bytes:
    """Encode the line that a report's answer ends with: all up to this number is answered."""
    return b'{"t":"end","through":%d}\n' % through


def read_report_answers(lines: Sequence[bytes]) -> ReportAnswers:
    """Decode lines of a report's answer; unknown lines are passed over.

    Raises:
        DecodeError: a line is not JSON, or not what it says it is.
    """
    acknowledgements, end = [], None
    for line in _together(tuple[_ReportAnswer, ...], lines):
        known = line
        if isinstance(line, bytes):
            if decode_answer(_Head, line).t not in ("a", "ping", "end"):
                continue
            known = decode_answer(_ReportAnswer, line)  # type: ignore[arg-type]
        if isinstance(known, Acknowledgement):
            acknowledgements.append(known)
        elif isinstance(known, _EndLine):
            end = known
    return ReportAnswers(tuple(acknowledgements), end is not None, _failure(end))


def _together(type_: type[tuple[T, ...]], lines: Sequence[bytes]) -> Sequence[T | bytes]:
    """Decode lines at once; as they are when that cannot be done, for a look one by one."""
    if not lines:
        return ()
    try:
        decoded = decode_answer(type_, b"[" + b",".join(lines) + b"]")
    except DecodeError:
        return lines
    return decoded if len(decoded) == len(lines) else lines


def _failure(end: _EndLine | None) -> ControlPlaneError | None:
    return None if end is None else failure_of(end.reason, end.error)


def failure_of(reason: str, error: ErrorEnvelope | None) -> ControlPlaneError | None:
    """Return the failure that a stream's last line tells of; None where it tells of none."""
    if error is None and reason != "error":
        return None
    envelope = error or ErrorEnvelope(error=ErrorCode.BACKEND, message="it does not say why")
    code = envelope.error
    status = next((facts.status for known, facts in CODES.items() if known == code), 500)
    return decode_error(status, encode(envelope))
