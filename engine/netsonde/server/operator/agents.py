"""Agents: who measures."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from msgspec import Struct

from netsonde import wire
from netsonde.errors import ErrorCode, RequestError
from netsonde.server import documents
from netsonde.server.about import PAGE, About, labelled
from netsonde.server.answers.agents import Agent, AgentPage
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok, refuse
from netsonde.server.core import ControlPlane
from netsonde.server.fleet import is_revoked
from netsonde.server.operator.calls import Calls, Committed, Operation, item_id
from netsonde.server.queries import Query, decode_cursor, encode_cursor
from netsonde.server.registry import LABEL_MAX_CHARS, LABELS_MAX, update_agent
from netsonde.server.scopes import Scope
from netsonde.server.store import Store
from netsonde.server.store.agents import AgentRow
from netsonde.server.store.fleet import Command


class AgentPatch(Struct, frozen=True, kw_only=True):
    """What an operator may change of an agent."""

    labels: Annotated[dict[str, str], labelled(LABELS_MAX, LABEL_MAX_CHARS)] | None = None
    disabled: bool | None = None


LIST = About("List agents.", AgentPage, query=PAGE)
GET = About("Show an agent.", Agent)
PATCH = About("Label an agent, or disable it.", Agent, takes=AgentPatch)


class AgentCalls(Calls):
    """The calls about agents."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (
            Route("GET", "/v1/agents", self._list_agents, scope=Scope.READ, about=LIST),
            Route("GET", "/v1/agents/{id}", self._get_agent, scope=Scope.READ, about=GET),
            Route(
                "PATCH",
                "/v1/agents/{id}",
                self._write(self._patch_agent),
                scope=Scope.AGENTS_WRITE,
                about=PATCH,
            ),
        )

    async def _list_agents(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        limit, after = query.limit(), decode_cursor(query.take("cursor")) or 0
        query.end()
        rows = self._plane.registry.page(after, limit)
        cursor = encode_cursor(rows[-1].agent_id) if len(rows) == limit else None
        ids = [row.agent_id for row in rows]
        flights, commands = await self._plane.writer.look(
            lambda store: (documents.in_flight(store, ids), store.commands(ids))
        )
        agents = [self._agent(row, flights, commands) for row in rows]
        return ok({"agents": agents, "cursor": cursor})

    async def _get_agent(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()
        agent_id = item_id(request)
        row = self._plane.registry.get(agent_id)
        if row is None:
            raise RequestError(ErrorCode.NOT_FOUND, f"there is no agent {agent_id}")
        return ok(await self._plane.writer.look(lambda store: shown_agent(self._plane, store, row)))

    def _patch_agent(self, request: ApiRequest) -> Operation:
        agent_id = item_id(request)
        patch = wire.decode(AgentPatch, request.body, strict=True)
        wanted = patch.labels
        if wanted is not None and (
            len(wanted) > LABELS_MAX
            or any(
                not 0 < len(name) <= LABEL_MAX_CHARS or len(value) > LABEL_MAX_CHARS
                for name, value in wanted.items()
            )
        ):
            limits = f"at most {LABELS_MAX} labels, each at most {LABEL_MAX_CHARS} characters"
            refuse("labels", f"labels must be {limits}")

        def change(row: AgentRow) -> AgentRow:
            if patch.disabled is not None:
                row = replace(row, is_disabled=patch.disabled)
            if wanted is not None:
                ordered = wire.encode(dict(sorted(wanted.items())))
                row = replace(row, labels=ordered, has_operator_labels=True)
            return row

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            row = update_agent(store, agent_id, change)

            def committed() -> None:
                self._plane.registry.keep(row)
                if row.is_disabled:
                    self._plane.waiters.end(agent_id)  # what it holds open brings nothing more
                self._plane.waiters.wake_all()

            return ok(shown_agent(self._plane, store, row)), committed

        return operation

    def _agent(
        self, row: AgentRow, flights: dict[int, dict[str, int]], commands: Collection[Command]
    ) -> dict[str, Any]:
        since_ns = self._plane.fleet.drained.get(row.agent_id)
        return _document(self._plane, row, flights[row.agent_id], commands, since_ns)


def shown_agent(plane: ControlPlane, store: Store, row: AgentRow) -> dict[str, Any]:
    """Write an agent as a transaction has it."""
    agent_id = row.agent_id
    held = documents.in_flight(store, [agent_id])[agent_id]
    return _document(plane, row, held, store.commands([agent_id]), store.drained_since(agent_id))


def _document(
    plane: ControlPlane,
    row: AgentRow,
    held: Mapping[str, int],
    commands: Collection[Command],
    since_ns: int | None,
) -> dict[str, Any]:
    document = documents.agent(row, plane.registry.last_seen_ns(row), held)
    document["revoked"] = is_revoked(row, plane.time.now_ns())
    return document | dict(plane.fleet.shown(row.agent_id, commands, since_ns))
