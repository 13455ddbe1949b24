"""What operators did."""

from msgspec import Struct

from netsonde.server.answers.values import Cursor, Id, Instant


class AuditedCall(Struct, frozen=True, kw_only=True):
    """A call that changed something, or was not allowed to."""

    audit_id: Id
    at: Instant
    token_id: Id | None
    token: str
    remote: str
    call: str
    object: str | None
    status: int
    error: str | None
    request_id: str


class AuditPage(Struct, frozen=True, kw_only=True):
    """Some audited calls, the youngest first unless told."""

    calls: tuple[AuditedCall, ...]
    cursor: Cursor
