"""Streams of the operator API through dispatch: results that are followed, lines that go up."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from netsonde import wire
from netsonde.server.api import ApiRequest, ApiResponse
from support.stores import Caller


async def dispatch(
    caller: Caller,
    method: str,
    path: str,
    *,
    chunks: AsyncIterator[bytes] | None = None,
    query: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> ApiResponse:
    """Make a call whose answer may be a stream."""
    return await caller.operators.dispatch(
        ApiRequest(
            method=method,
            path=path,
            query=list(query),
            headers={"host": "localhost"} | dict(headers or {}),
            chunks=chunks,
            received_ns=caller.plane.time.now_ns(),
        )
    )


class Reader:
    """Follows results in a task of its own; `lines` is what came."""

    def __init__(self, caller: Caller, **query: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self.refusal: Mapping[str, Any] | None = None
        self._caller = caller
        self._query = {name.removesuffix("_"): value for name, value in query.items()}
        self.task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        answer = await dispatch(
            self._caller, "GET", "/v1/results/stream", query=self._query.items()
        )
        if answer.chunks is None:
            self.refusal = json.loads(answer.body)
            return
        assert answer.headers["Content-Type"] == wire.NDJSON
        async with aclosing(answer.chunks) as chunks:
            async for chunk in chunks:
                assert chunk.endswith(b"\n")
                self.lines += [json.loads(line) for line in chunk.splitlines()]

    @property
    def lease_ids(self) -> list[int]:
        """The leases of the results that came."""
        return [line["result"]["lease_id"] for line in self.lines if line["t"] == "r"]

    async def hang_up(self) -> None:
        """Leave."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def upload(
    caller: Caller,
    *pieces: bytes,
    key: str = "",
    query: Iterable[tuple[str, str]] = (),
    content_type: str = wire.NDJSON,
) -> list[dict[str, Any]]:
    """Send pieces as a body of lines; return the answer's lines, or the envelope by itself."""

    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    headers = {"content-type": content_type} | ({"idempotency-key": key} if key else {})
    answer = await dispatch(
        caller, "POST", "/v1/tasks", chunks=chunks(), query=query, headers=headers
    )
    if answer.chunks is None:
        return [json.loads(answer.body)]
    body = b"".join([chunk async for chunk in answer.chunks])
    return [json.loads(line) for line in body.splitlines()]


def task_line(**changes: Any) -> bytes:
    """Write the line of one task."""
    item = {"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}} | changes
    return json.dumps(item).encode() + b"\n"
