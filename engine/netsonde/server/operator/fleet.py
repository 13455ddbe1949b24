"""What an operator orders of agents: drain, resume, revoke."""

from collections.abc import Callable, Sequence

from netsonde.server import fleet
from netsonde.server.about import About
from netsonde.server.answers.agents import Agent, RevokedAgent
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.operator.agents import shown_agent
from netsonde.server.operator.calls import Calls, Committed, Operation, item_id
from netsonde.server.scopes import Scope
from netsonde.server.store import Store
from netsonde.server.store.agents import AgentRow

Order = Callable[[Store, AgentRow, int], None]

DRAIN = About("Grant an agent nothing more.", Agent)
RESUME = About("Grant an agent work again.", Agent)
REVOKE = About("End an agent's tokens, disable it, and give back what it holds.", RevokedAgent)


class FleetCalls(Calls):
    """The calls that run a fleet."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        write = Scope.AGENTS_WRITE
        drain, resume = self._write(self._drain_agent), self._write(self._resume_agent)
        revoke = self._write(self._revoke_agent)
        return (
            Route("POST", "/v1/agents/{id}/drain", drain, scope=write, about=DRAIN),
            Route("POST", "/v1/agents/{id}/resume", resume, scope=write, about=RESUME),
            Route("POST", "/v1/agents/{id}/revoke", revoke, scope=write, about=REVOKE),
        )

    def _drain_agent(self, request: ApiRequest) -> Operation:
        return self._order(item_id(request), fleet.drain)

    def _resume_agent(self, request: ApiRequest) -> Operation:
        return self._order(item_id(request), fleet.resume)

    def _order(self, agent_id: int, order: Order) -> Operation:
        plane = self._plane

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            agent = fleet.known_agent(store, agent_id)
            order(store, agent, plane.time.now_ns())
            since_ns = store.drained_since(agent_id)

            def committed() -> None:
                plane.fleet.note_drained(agent_id, since_ns)
                if since_ns is not None:
                    plane.waiters.end(agent_id)  # what it holds open brings nothing more
                plane.waiters.wake_all()

            return ok(shown_agent(plane, store, agent)), committed

        return operation

    def _revoke_agent(self, request: ApiRequest) -> Operation:
        agent_id, plane = item_id(request), self._plane

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            agent, back = fleet.revoke(store, agent_id, plane.policy, plane.time.now_ns())

            def committed() -> None:
                plane.registry.keep(agent)
                plane.waiters.end(agent_id)
                plane.changed(back)

            answer = shown_agent(plane, store, agent) | {"returned_leases": len(back)}
            return ok(answer), committed

        return operation
