"""The error envelope, written by servers and read leniently by clients."""

import re
from typing import Any

import msgspec

from netsonde.errors import (
    CODES,
    RETRYABLE_STATUSES,
    ControlPlaneError,
    ErrorCode,
    RequestError,
    code_for_status,
)
from netsonde.model import ErrorEnvelope
from netsonde.wire.codec import decoder, encode

MESSAGE_MAX_CHARS = 300  # of a foreign error page, enough to recognise it
# Codes whose envelope always says what is wrong where.
_NAMING = frozenset({ErrorCode.VALIDATION, ErrorCode.TARGET_DENIED, ErrorCode.CONFIG_INVALID})


def error_body(error: RequestError, request_id: str) -> bytes:
    """Encode the envelope of an error."""
    details: dict[str, Any] | None = None
    violations = error.violations
    if not violations and error.code in _NAMING:
        violations = (("$", str(error)),)  # of the request as a whole
    if violations:
        details = {"violations": [{"path": path, "message": text} for path, text in violations]}
    return encode(
        ErrorEnvelope(
            error=error.code,
            message=str(error),
            retryable=error.facts.retryable,
            details=details,
            request_id=request_id,
            retry_after_ms=error.retry_after_ms,
        )
    )


def decode_error(status: int, body: bytes, retry_after: str | None = None) -> ControlPlaneError:
    """Read what a control plane answered instead of a success.

    The original servers send plain text, proxies send HTML: the code is then made from the status.
    An unknown code is retried if it says so, else if its status class is.
    """
    is_ours = True
    try:
        envelope = decoder(ErrorEnvelope).decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        is_ours = False
        text = " ".join(body[: 4 * MESSAGE_MAX_CHARS].decode("utf-8", "replace").split())
        envelope = ErrorEnvelope(
            error=code_for_status(status), message=text[:MESSAGE_MAX_CHARS] or "no message"
        )
    refusal = ControlPlaneError(
        f"{envelope.error} ({status}): {envelope.message}",
        code=envelope.error,
        status=status,
        retryable=_is_retryable(envelope, status),
        retry_after_ms=_hint_ms(envelope.retry_after_ms, retry_after),
        details=envelope.details,
    )
    refusal.request_id = envelope.request_id
    refusal.is_verdict = is_ours and envelope.error.startswith("ERR_")
    return refusal


def _is_retryable(envelope: ErrorEnvelope, status: int) -> bool:
    if envelope.error in ErrorCode.__members__.values():
        facts = CODES.get(ErrorCode(envelope.error))
        if facts is not None:
            return facts.retryable
    if envelope.retryable is not None:
        return envelope.retryable
    return status in RETRYABLE_STATUSES


def _hint_ms(in_body: int | None, in_header: str | None) -> int | None:
    """Take the larger hint; 0 is the original's rounding, not a hint."""
    # Ten digits are 300 years; int() refuses far longer ones with an exception.
    is_number = in_header is not None and re.fullmatch(r"\s*[0-9]{1,10}\s*", in_header)
    seconds = int(in_header) if in_header and is_number else 0
    return max(in_body or 0, seconds * 1000) or None
