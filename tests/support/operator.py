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
        self.agent_list: list[dict[str, Any]] = []
        self.metric_list: list[dict[str, Any]] = []
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

    async def metrics(self, name: str | None, agent: str | None) -> list[dict[str, Any]]:
        self.queries.append({"name": name, "agent": agent})
        return self.metric_list

    async def queues(self) -> dict[str, Any]:
        return self.queue_answer
