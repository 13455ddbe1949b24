"""Signed configurations: published as finished envelopes, and what agents made of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from netsonde import dsse, wire
from netsonde.clock import rfc3339
from netsonde.dsse import Envelope
from netsonde.errors import ErrorCode, RequestError
from netsonde.remote_config import inspect
from netsonde.server.about import PAGE, About
from netsonde.server.answers.configs import Config, ConfigPage, ConfigStates, ConfigSummary
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.configs import STATES
from netsonde.server.operator.calls import Calls, Committed, Operation, item_id
from netsonde.server.queries import Query, decode_cursor, encode_cursor
from netsonde.server.scopes import Scope
from netsonde.server.store import Store
from netsonde.server.store.configs import ConfigRow

PAGE_MAX = 20  # configurations, each of which may have a megabyte

PUBLISH = About(
    "Publish a configuration that is signed.",
    ConfigSummary,
    takes=Envelope,
    status=201,
    also={200: ConfigSummary},
    refuses=(ErrorCode.CONFIG_INVALID,),
    text="The envelope is what `netsonde config sign` makes. 200: it was published before.",
)
LIST = About("List configurations.", ConfigPage, query=PAGE)
GET = About("Show a configuration.", Config)
STATUS = About("Show what agents made of a configuration.", ConfigStates, query=PAGE)


class ConfigCalls(Calls):
    """The calls about signed configurations."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        publish = self._write(self._publish)
        return (
            Route("POST", "/v1/configs", publish, scope=Scope.CONFIGS_WRITE, about=PUBLISH),
            Route("GET", "/v1/configs", self._list_configs, scope=Scope.READ, about=LIST),
            Route("GET", "/v1/configs/{id}", self._get_config, scope=Scope.READ, about=GET),
            Route(
                "GET", "/v1/configs/{id}/status", self._get_status, scope=Scope.READ, about=STATUS
            ),
        )

    def _publish(self, request: ApiRequest) -> Operation:
        try:
            envelope = wire.decode(Envelope, request.body, strict=True)
        except RequestError as error:
            if error.code is not ErrorCode.VALIDATION:
                raise
            raise RequestError(
                ErrorCode.CONFIG_INVALID,
                f"a configuration is published as the envelope that `netsonde config sign` makes:"
                f" {error}",
                violations=error.violations,
            ) from error
        publish = self._plane.configs.publication(envelope)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            row, is_new, committed = publish(store)
            return ok(_summary(row), 201 if is_new else 200), committed

        return operation

    async def _list_configs(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        limit, before = min(query.limit(), PAGE_MAX), decode_cursor(query.take("cursor"))
        query.end()

        def look(store: Store) -> tuple[list[Mapping[str, Any]], int | None]:
            rows = store.configs(before, limit)
            return [_summary(row) for row in rows], rows[-1].revision if rows else None

        # Where it is read: of a megabyte, a summary takes too long for the loop.
        summaries, last = await self._plane.writer.look(look)
        cursor = encode_cursor(last) if last is not None and len(summaries) == limit else None
        return ok({"configs": summaries, "cursor": cursor})

    async def _get_config(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()
        revision = item_id(request)
        row = await self._plane.writer.look(lambda store: store.config(revision))
        if row is None:
            raise RequestError(ErrorCode.NOT_FOUND, f"there is no configuration {revision}")
        envelope = wire.decode_answer(Envelope, row.envelope)
        config = inspect(envelope).config
        return ok({**_summary(row), "config": config, "envelope": wire.fragment(row.envelope)})

    async def _get_status(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        limit, after = query.limit(), decode_cursor(query.take("cursor")) or 0
        query.end()
        revision = item_id(request)
        states = await self._plane.configs.status(revision)
        counts = Counter(state["status"] for state in states)
        page = [state for state in states if state["agent_id"] > after][:limit]
        cursor = encode_cursor(page[-1]["agent_id"]) if len(page) == limit else None
        return ok(
            {
                "revision": revision,
                "counts": {name: counts[name] for name in STATES},
                "agents": page,
                "cursor": cursor,
            }
        )


def _summary(row: ConfigRow) -> Mapping[str, Any]:
    envelope = wire.decode_answer(Envelope, row.envelope)
    payload = inspect(envelope)
    return {
        "revision": row.revision,
        "digest": dsse.payload_digest(dsse.payload_bytes(envelope)),
        "scope": payload.scope,
        "issued_at": payload.issued_at.isoformat(),
        "expires_at": payload.expires_at.isoformat(),
        "keyids": [one.keyid for one in envelope.signatures],
        "published_at": rfc3339(row.published_ns),
    }
