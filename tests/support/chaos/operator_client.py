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

from support.chaos.evidence import Intended, Page, Submitted
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
            known = len(json.loads(await self._call("GET", "/v1/agents"))["agents"])

    async def submit(
        self, first: int, count: int, agent: str | None = None, key: str | None = None
    ) -> list[int]:
        """Queue tasks of the numbers from first on; return their ids.

        A key is that of an earlier session's attempt, which may have succeeded.
        """
        if key is None:
            key = str(uuid.uuid4())
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
                    if response.status == 200:
                        return answer
                    if 400 <= response.status < 429:
                        raise AssertionError(f"{method} {path}: {response.status} {answer[:500]!r}")
            except (aiohttp.ClientError, TimeoutError):
                pass  # it is down, or stopped: that is what the run is about
            await asyncio.sleep(RETRY_S)
