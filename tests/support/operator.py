"""An operator API without a server, for the commands that talk to one."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

from netsonde import wire
from netsonde.control_plane.operator import Page
from netsonde.tls import ClientTls


class FakeUploader:
    """Makes a task of every line, save those that a test wants refused or to fail."""

    def __init__(self, key: str, refused: Mapping[int, Exception | wire.LineAnswer]) -> None:
        self.key = key
        self.lines: dict[int, Any] = {}
        self._refused = refused

    async def answers(
        self, first_line: int, lines: Sequence[bytes]
    ) -> AsyncIterator[wire.LineAnswer]:
        for number, line in enumerate(lines, first_line):
            told = self._refused.get(number, wire.LineAnswer(number, number + 1000))
            if isinstance(told, Exception):
                raise told
            self.lines[number] = wire.parse(line) if line.startswith(b"{") else line
            yield told


class FakeOperator:
    """Keeps checks, and answers results, agents and queues with what a test put there."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.token: str | None = None
        self.tls: ClientTls | None = None
        self.created: list[dict[str, Any]] = []
        self.changed: list[tuple[int, dict[str, Any]]] = []
        self.removed: list[int] = []
        self.pages: list[Page] = []
        self.queries: list[dict[str, Any]] = []
        self.followed: list[Any] = []
        self.orders: list[tuple[int, str]] = []
        self.dealt: list[tuple[str, Any]] = []
        self.agent_list: list[dict[str, Any]] = []
        self.published: list[dict[str, Any]] = []
        self.config_list: list[dict[str, Any]] = []
        self.status_answer: dict[str, Any] = {"counts": {}, "agents": []}
        self.uploads: list[FakeUploader] = []
        self.refused: Mapping[int, Exception | wire.LineAnswer] = {}
        self.metric_list: list[dict[str, Any]] = []
        self.queue_answer: dict[str, Any] = {"queues": [], "counters": {}}

    def client(self, url: str, *, token: str | None = None, tls: ClientTls | None = None) -> Self:
        """Take the place of the client's constructor."""
        self.url, self.token, self.tls = url, token, tls
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

    async def check(self, check_id: int) -> dict[str, Any]:
        return {"check_id": check_id, **self.created[check_id - 1]}

    async def change_check(self, check_id: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        self.changed.append((check_id, dict(changes)))
        return {**await self.check(check_id), **changes}

    async def run_check(self, check_id: int) -> dict[str, Any]:
        self.orders.append((check_id, "run"))
        return {"check_id": check_id, "tasks": 2, "skipped": 1}

    async def cancel_check(self, check_id: int) -> dict[str, Any]:
        self.orders.append((check_id, "cancel"))
        return {"check_id": check_id, "cancelled": 1}

    async def remove_check(self, check_id: int) -> dict[str, Any]:
        self.removed.append(check_id)
        return {"check_id": check_id, "cancelled": 0}

    async def publish_config(self, envelope: Mapping[str, Any]) -> dict[str, Any]:
        self.published.append(dict(envelope))
        return {"revision": 18, "scope": {"all": True}}

    async def configs(self) -> list[dict[str, Any]]:
        return self.config_list

    async def config(self, revision: int) -> dict[str, Any]:
        return next(one for one in self.config_list if one["revision"] == revision)

    async def config_status(self, revision: int) -> dict[str, Any]:
        return self.status_answer

    async def results(self, query: Mapping[str, Any], *, wait_ms: int = 0) -> Page:
        self.queries.append({**query, "wait_ms": wait_ms})
        return self.pages.pop(0)

    async def follow(self, query: Mapping[str, Any], **_: object) -> AsyncIterator[Any]:
        self.queries.append(dict(query))
        for item in self.followed:
            if isinstance(item, BaseException) and not isinstance(item, Exception):
                raise item
            yield item

    def uploader(self, key: str, **_: object) -> "FakeUploader":
        self.uploads.append(FakeUploader(key, self.refused))
        return self.uploads[-1]

    async def agents(self) -> list[dict[str, Any]]:
        return self.agent_list

    async def metrics(self, name: str | None, agent: str | None) -> list[dict[str, Any]]:
        self.queries.append({"name": name, "agent": agent})
        return self.metric_list

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
