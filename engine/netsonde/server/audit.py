"""The audit log: every call of an operator that changed something, or was not allowed to."""

import logging

from netsonde.errors import RequestError, StorageError
from netsonde.server.api import ApiRequest, ApiResponse
from netsonde.server.idempotency import Committed, Operation
from netsonde.server.leasing import ServerTime
from netsonde.server.store import Store, StoreWriter
from netsonde.server.store.access import AuditRow

KEEP = 1_000_000  # calls, some 300 bytes each
KEEP_REFUSED = 10_000  # of them refused: who may do nothing cannot push out what others did
FORGET_MAX = 10_000  # at once, so that it delays a claim by milliseconds
OBJECT_MAX_CHARS = 200
UNKNOWN = "-"

_log = logging.getLogger("netsonde.server")


def audited(request: ApiRequest, operation: Operation, time: ServerTime) -> Operation:
    """Make an operation note itself in its own transaction."""

    def noted(store: Store) -> tuple[ApiResponse, Committed]:
        response, committed = operation(store)
        store.add_audit(entry(request, time.now_ns(), response.status, about=response.about))
        return response, committed

    return noted


async def note_refusal(
    request: ApiRequest, error: RequestError, writer: StoreWriter, time: ServerTime
) -> None:
    """Note that a call which would have changed something was refused.

    Trouble of the store is not the asker's: it is logged, and the refusal stays what it is.
    """
    if error.facts.status >= 500:
        return
    row = entry(request, time.now_ns(), error.facts.status, error=error.code.value)
    try:
        await writer.write(lambda store: store.add_audit(row))
    except (RequestError, StorageError) as trouble:
        _log.error(
            "a refused call is missing in the audit log: %s",
            trouble,
            extra={"action": "audit_failed", "request_id": request.request_id},
        )


def forget(store: Store, before_ns: int) -> None:
    """Drop what is too old or too much."""
    store.forget_audit(before_ns, KEEP, KEEP_REFUSED, FORGET_MAX)


def entry(
    request: ApiRequest, now_ns: int, status: int, *, about: str = "", error: str | None = None
) -> AuditRow:
    """Return what the log keeps of a call."""
    who = request.principal
    return AuditRow(
        at_ns=now_ns,
        token_id=None if who is None else who.token_id,
        token_name=UNKNOWN if who is None else who.name,
        remote=request.remote,
        call=request.call,
        object=(about or request.path.removeprefix("/v1/"))[:OBJECT_MAX_CHARS],
        status=status,
        error=error,
        request_id=request.request_id,
    )
