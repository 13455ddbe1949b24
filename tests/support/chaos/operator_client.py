"""The rig as an operator: queues tasks in bulk, follows the result stream, writes both down."""

import asyncio
import json
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
from msgspec import Struct
from msgspec.json import Decoder

from support.chaos.bodies import COUNTED, series_name
from support.chaos.evidence import Applied, Counted, Intended, Page, Submitted
from support.chaos.journal import Journal
from support.chaos.processes import now_ns

BULK = 500
PAGE_ROWS = 1000
RETRY_S = 0.2
CALL_TIMEOUT_S = 20.0
FEW_ATTEMPTS_EVERY = 97  # one task in so many may be given up early


class _Row(Struct):
    lease_id: int


class _Results(Struct):
    results: list[_Row]
    cursor: str | None = None


class _Queued(Struct):
    task_id: int


class _Answer(Struct):
    tasks: list[_Queued]


class Operator:
    """Speaks the operator API of a server that is stopped and killed meanwhile."""

    def __init__(self, url: str, target_port: int, database: Path, events: Journal) -> None:
        self.finished = 0  # results read from the stream
        self.cursor = ""
        self._url = url
        self._target_port = target_port
        self._database = database
        self._events = events
        self._session: aiohttp.ClientSession | None = None
        self._results = Decoder(_Results)
        self._answers = Decoder(_Answer)

    async def __aenter__(self) -> "Operator":
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def wait_ready(self) -> None:
        """Wait until the server answers."""
        await self._call("GET", "/readyz")

    async def wait_agents(self, count: int) -> None:
        """Wait until so many agents have registered."""
        known = 0
        while known < count:
            await asyncio.sleep(RETRY_S)
            known = len(await self._agents())

    async def drain(self, agent: int) -> None:
        """Let an agent be granted nothing; it must have registered."""
        await self._order(agent, "drain")

    async def resume(self, agent: int) -> None:
        """Let an agent be granted work again."""
        await self._order(agent, "resume")

    async def resume_all(self) -> None:
        """Resume what an earlier session left drained."""
        for one in (await self._agents()).values():
            if one["drained"]:
                await self._call("POST", f"/v1/agents/{one['agent_id']}/resume", key=_key())

    async def revoke(self, agent: int) -> None:
        """End an agent's tokens, and let it register anew."""
        agent_id = await self._order(agent, "revoke")
        await self._call("PATCH", f"/v1/agents/{agent_id}", '{"disabled":false}', _key())

    async def _order(self, agent: int, what: str) -> int:
        """Order something of the agent with a number; return the id that it has here."""
        agent_id: int = (await self._agents())[f"chaos-{agent}"]["agent_id"]
        await self._call("POST", f"/v1/agents/{agent_id}/{what}", key=_key())
        return agent_id

    async def _agents(self) -> dict[str, Any]:
        """Return the agents by their host names."""
        agents = json.loads(await self._call("GET", "/v1/agents?limit=1000"))["agents"]
        return {one["hostname"]: one for one in agents}

    async def publish(self, envelope: bytes) -> None:
        """Publish a signed configuration; the same one again changes nothing."""
        await self._call("POST", "/v1/configs", envelope.decode(), _key())

    async def read_applied(self, revision: int, *, is_last: bool = False) -> None:
        """Write down what is shown of a revision."""
        path = f"/v1/configs/{revision}/status?limit=1000"
        agents = json.loads(await self._call("GET", path))["agents"]
        shown = [(one["hostname"], one["status"], one.get("applied")) for one in agents]
        self._events.write(Applied(at=now_ns(), revision=revision, agents=shown, is_last=is_last))

    async def read_counted(self) -> None:
        """Write down what is shown of the agents' metrics."""
        latest: dict[str, dict[str, float]] = {}
        for name in COUNTED:
            path = f"/v1/metrics/latest?limit=1000&name={name}"
            for one in json.loads(await self._call("GET", path))["metrics"]:
                series = latest.setdefault(str(one["agent_id"]), {})
                series[series_name(one["name"], one["labels"])] = one["value"]
        counters = json.loads(await self._call("GET", "/v1/queues"))["counters"]
        samples = counters.get("metric_samples", 0)
        self._events.write(Counted(at=now_ns(), samples=samples, latest=latest))

    async def submit(
        self, first: int, count: int, agent: str | None = None, key: str | None = None
    ) -> list[int]:
        """Queue tasks of the numbers from first on; return their ids.

        A key is that of an earlier session's attempt, which may have succeeded.
        """
        if key is None:
            key = _key()
            self._events.write(Intended(at=now_ns(), first=first, count=count, key=key))
        body = json.dumps([self._task(number, agent) for number in range(first, first + count)])
        answer = self._answers.decode(await self._call("POST", "/v1/tasks", body, key))
        ids = [one.task_id for one in answer.tasks]
        self._events.write(Submitted(at=now_ns(), first=first, task_ids=ids))
        return ids

    async def read_page(self) -> int:
        """Read one page of the result stream; return how many results it had."""
        cursor = f"&cursor={self.cursor}" if self.cursor else ""
        path = f"/v1/results?limit={PAGE_ROWS}{cursor}"
        page = self._results.decode(await self._call("GET", path))
        if page.results:
            ids = [row.lease_id for row in page.results]
            self.cursor = page.cursor or self.cursor
            self._events.write(Page(at=now_ns(), cursor=self.cursor, lease_ids=ids))
            self.finished += len(ids)
        return len(page.results)

    def held(self) -> list[int]:
        """Return the ids of the leases that the database says are held at this moment."""
        return [row[0] for row in self._rows("SELECT lease_id FROM task WHERE state > 0")]

    def live(self) -> int:
        """Return how many tasks have not ended."""
        count: int = self._rows("SELECT count(*) FROM task")[0][0]
        return count

    def dead(self) -> int:
        """Return how many tasks were given up."""
        count: int = self._rows("SELECT count(*) FROM dead_letter")[0][0]
        return count

    def _rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()

    def _task(self, number: int, agent: str | None) -> dict[str, Any]:
        task: dict[str, Any] = {
            "kind": "http",
            "spec": {"url": f"http://127.0.0.1:{self._target_port}/t/{number}"},
            "max_attempts": 2 if number % FEW_ATTEMPTS_EVERY == 0 else 50,
        }
        return task if agent is None else {**task, "agent": agent}

    async def _call(self, method: str, path: str, body: str | None = None, key: str = "") -> bytes:
        """Call until it succeeds; a repeated POST has the same key, so it happens once."""
        assert self._session is not None
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        while True:
            try:
                async with self._session.request(
                    method, f"{self._url}{path}", data=body, headers=headers
                ) as response:
                    answer = await response.read()
                    if response.status in (200, 201):
                        return answer
                    if 400 <= response.status < 429:
                        raise AssertionError(f"{method} {path}: {response.status} {answer[:500]!r}")
            except (aiohttp.ClientError, TimeoutError):
                pass  # it is down, or stopped: that is what the run is about
            await asyncio.sleep(RETRY_S)


def _key() -> str:
    return str(uuid.uuid4())
