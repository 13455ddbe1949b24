"""Streams of the operator API through dispatch: results that are followed, lines that go up."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qsl

from netsonde import wire
from netsonde.control_plane import (
    MemoryControlPlaneTransport,
    TransportRequest,
    TransportResponse,
    TransportStream,
)
from netsonde.control_plane.transport import Headers
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


def operator_transport(caller: Caller) -> MemoryControlPlaneTransport:
    """Make a way to the operator API, on which faults can be injected."""

    async def served(
        request: TransportRequest, lines: AsyncIterator[bytes] | None
    ) -> TransportStream:
        path, _, query = request.path.partition("?")
        headers = {name.lower(): value for name, value in request.headers.items()}
        is_lines = headers.get("content-type") == wire.NDJSON and request.method == "POST"
        answer = await caller.operators.dispatch(
            ApiRequest(
                method=request.method,
                path=path,
                query=parse_qsl(query),
                headers={"host": "localhost"} | headers,
                body=b"" if is_lines else request.body,
                chunks=lines or _piece(request.body) if is_lines else None,
                received_ns=caller.plane.time.now_ns(),
            )
        )
        return TransportStream(
            answer.status, Headers(answer.headers), answer.chunks or _piece(answer.body)
        )

    async def handled(request: TransportRequest) -> TransportResponse:
        return await (await served(request, None)).response(1 << 30)

    return MemoryControlPlaneTransport(handled, caller.clock, streamer=served)


async def _piece(body: bytes) -> AsyncGenerator[bytes]:
    yield body


def task_line(**changes: Any) -> bytes:
    """Write the line of one task."""
    item = {"kind": "tcp", "spec": {"host": "192.0.2.1", "port": 80}} | changes
    return json.dumps(item).encode() + b"\n"
