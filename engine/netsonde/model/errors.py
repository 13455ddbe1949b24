"""The body of every answer that is not a success."""

from typing import Any

from msgspec import Struct


class ErrorEnvelope(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every answer that is not a success."""

    error: str
    message: str
    retryable: bool | None = None
    details: dict[str, Any] | None = None
    request_id: str | None = None
    retry_after_ms: int | None = None
