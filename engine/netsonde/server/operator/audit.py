"""The audit log: who changed what."""

from collections.abc import Sequence
from typing import Any

from netsonde.clock import rfc3339
from netsonde.server.about import PAGE, About, Parameter, choice, instant
from netsonde.server.answers.audit import AuditPage
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.operator.calls import Calls
from netsonde.server.queries import Query, decode_cursor, encode_cursor
from netsonde.server.scopes import Scope
from netsonde.server.store.access import AuditQuery, AuditRow

LIST = About(
    "List what operators' calls changed, or were not allowed to.",
    AuditPage,
    query=(
        *PAGE,
        choice("order", ("asc", "desc"), "asc: the oldest first."),
        Parameter(name="token", schema={"type": "string"}, text="The name of a token."),
        instant("from", "At this instant or later."),
        instant("to", "Before this instant."),
    ),
)


class AuditCalls(Calls):
    """The calls about the audit log; there is none that changes it."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (Route("GET", "/v1/audit", self._list, scope=Scope.READ, about=LIST),)

    async def _list(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        wanted = AuditQuery(
            limit=query.limit(),
            position=decode_cursor(query.take("cursor")),
            descending=query.choice("order", ("asc", "desc")) != "asc",
            token=query.take("token"),
            from_ns=query.instant_ns("from"),
            to_ns=query.instant_ns("to"),
        )
        query.end()
        rows = await self._plane.writer.look(lambda store: store.audit(wanted))
        return ok({"calls": [_document(row) for row in rows], "cursor": _cursor(wanted, rows)})


def _cursor(wanted: AuditQuery, rows: Sequence[AuditRow]) -> str | None:
    """Return where to go on: forward there may always be more, backward there is an end."""
    if wanted.descending:
        return encode_cursor(rows[-1].audit_id) if len(rows) == wanted.limit else None
    return encode_cursor(rows[-1].audit_id if rows else wanted.position or 0)


def _document(row: AuditRow) -> dict[str, Any]:
    return {
        "audit_id": row.audit_id,
        "at": rfc3339(row.at_ns),
        "token_id": row.token_id,
        "token": row.token_name,
        "remote": row.remote,
        "call": row.call,
        "object": row.object,
        "status": row.status,
        "error": row.error,
        "request_id": row.request_id,
    }
