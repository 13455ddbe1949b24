"""An operator API without a server, for the commands that talk to one."""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from netsonde.control_plane.operator import Page


class FakeOperator:
    """Keeps checks, and answers results, agents and queues with what a test put there."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.token: str | None = None
        self.created: list[dict[str, Any]] = []
        self.removed: list[int] = []
        self.pages: list[Page] = []
        self.queries: list[dict[str, Any]] = []
        self.followed: list[Any] = []
        self.orders: list[tuple[int, str]] = []
        self.dealt: list[tuple[str, Any]] = []
        self.agent_list: list[dict[str, Any]] = []
        self.queue_answer: dict[str, Any] = {"queues": [], "counters": {}}

    def client(self, url: str, *, token: str | None = None) -> Self:
        """Take the place of the client's constructor."""
        self.url, self.token = url, token
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close nothing."""

    async def create_check(self, check: Mapping[str, Any]) -> dict[str, Any]:
        self.created.append(dict(check))
        return {"check_id": len(self.created), **check}

    async def checks(self) -> list[dict[str, Any]]:
        return [{"check_id": at + 1, **check} for at, check in enumerate(self.created)]

    async def remove_check(self, check_id: int) -> dict[str, Any]:
        self.removed.append(check_id)
        return {"check_id": check_id, "cancelled": 0}

    async def results(self, query: Mapping[str, Any], *, wait_ms: int = 0) -> Page:
        self.queries.append({**query, "wait_ms": wait_ms})
        return self.pages.pop(0)

    async def follow(self, query: Mapping[str, Any], **_: object) -> AsyncIterator[Any]:
        self.queries.append(dict(query))
        for item in self.followed:
            if isinstance(item, BaseException) and not isinstance(item, Exception):
                raise item
            yield item

    async def agents(self) -> list[dict[str, Any]]:
        return self.agent_list

    async def queues(self) -> dict[str, Any]:
        return self.queue_answer

    async def agent(self, agent_id: int) -> dict[str, Any]:
        return next(agent for agent in self.agent_list if agent["agent_id"] == agent_id)

    async def order(self, agent_id: int, verb: str) -> dict[str, Any]:
        self.orders.append((agent_id, verb))
        returned = {"returned_leases": 3} if verb == "revoke" else {}
        return await self.agent(agent_id) | returned

    async def change_agent(self, agent_id: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        assert set(changes) == {"disabled"}
        self.orders.append((agent_id, "disable" if changes["disabled"] else "enable"))
        return await self.agent(agent_id)

    async def dead_letters(self, query: Mapping[str, Any]) -> Page:
        self.queries.append(dict(query))
        return self.pages.pop(0)

    async def requeue_dead_letter(self, task_id: int) -> dict[str, Any]:
        self.dealt.append(("requeue", task_id))
        return {"task_id": task_id, "requeued": 1}

    async def delete_dead_letter(self, task_id: int) -> dict[str, Any]:
        self.dealt.append(("delete", task_id))
        return {"task_id": task_id, "deleted": 1}

    async def requeue_dead_letters(self, selection: Mapping[str, Any]) -> dict[str, Any]:
        self.dealt.append(("requeue", dict(selection)))
        return {"requeued": 2, "more": True}

    async def delete_dead_letters(self, selection: Mapping[str, Any]) -> dict[str, Any]:
        self.dealt.append(("delete", dict(selection)))
        return {"deleted": 2, "more": True}
