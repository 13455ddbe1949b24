"""The operator API's client: checks, results, agents and queues, over any transport."""

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlencode

from netsonde import __version__, wire
from netsonde.backoff import BackoffPolicy
from netsonde.clock import NS_PER_MS, Clock
from netsonde.control_plane.http import HttpControlPlaneTransport
from netsonde.control_plane.transport import ControlPlaneTransport, TransportRequest
from netsonde.errors import ControlPlaneError, ErrorCode, TransportError

ANSWER_TIMEOUT_S = 15.0  # for a person who waits; a long poll adds what it asked for
ANSWER_MAX_BYTES = 256 << 20  # a page of 1000 results of the largest size a report may carry
POLL_WAIT_MS = 20_000  # how long `follow` lets the server hold an empty answer
PAGE_LIMIT = 1000  # the server's largest page
PAGES_MAX = 10_000  # a listing that is longer never ends
RETRY_BASE_MS = 250
RETRY_CAP_MS = 5_000  # a person who follows results sees the server's return within seconds

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Some items of a listing, and where to go on."""

    items: tuple[JsonObject, ...]
    cursor: str | None


class OperatorClient:
    """Speaks the operator API; one method per call.

    `base_url` is where the control plane's operator listener is. `token` is needed only where
    that listener is not on loopback. Nothing is retried, save by `follow`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        transport: ControlPlaneTransport | None = None,
    ) -> None:
        self._transport = transport or HttpControlPlaneTransport(base_url)
        self._headers = {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": f"netsonde/{__version__}",
        }
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    async def __aenter__(self) -> "OperatorClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def create_check(self, check: Mapping[str, Any]) -> JsonObject:
        """Create a check and return it as the server keeps it; repeating the call is safe."""
        return await self._call("POST", "/v1/checks", body=check)

    async def checks(self) -> list[JsonObject]:
        """Return every check."""
        return await self._all("/v1/checks", "checks")

    async def remove_check(self, check_id: int) -> JsonObject:
        """Remove a check; its results stay."""
        return await self._call("DELETE", f"/v1/checks/{check_id}")

    async def agents(self) -> list[JsonObject]:
        """Return every agent."""
        return await self._all("/v1/agents", "agents")

    async def queues(self) -> JsonObject:
        """Return the queues and the counters."""
        return await self._call("GET", "/v1/queues")

    async def results(self, query: Mapping[str, Any], *, wait_ms: int = 0) -> Page:
        """Return one page of results; with wait_ms an empty one is held until a result comes.

        query has the API's own names: check_id, agent, task_id, kind, outcome, from, to, limit,
        order, cursor. None leaves a filter out.
        """
        asked = {name: value for name, value in query.items() if value is not None}
        if wait_ms:
            asked["wait_ms"] = wait_ms
        answer = await self._call("GET", _with_query("/v1/results", asked), wait_ms=wait_ms)
        return _page(answer, "results")

    async def follow(
        self, query: Mapping[str, Any], *, clock: Clock, rng: Random
    ) -> AsyncGenerator[JsonObject | ControlPlaneError | TransportError, None]:
        """Yield results as they are committed, for ever, beginning after query's cursor.

        While the server cannot be reached the error is yielded once and the same page is asked
        for again with growing delays, so no result is missed or repeated. Where results after the
        cursor have gone the error is yielded, and then those from the oldest that is kept.

        Raises:
            ControlPlaneError: the server refuses the query.
        """
        backoff = BackoffPolicy(RETRY_BASE_MS, RETRY_CAP_MS)
        cursor, failures = query.get("cursor"), 0
        while True:
            try:
                page = await self.results({**query, "cursor": cursor}, wait_ms=POLL_WAIT_MS)
            except (ControlPlaneError, TransportError) as error:
                if cursor is not None and _is_expired(error):
                    yield error
                    cursor = None  # the oldest that is kept
                    continue
                if isinstance(error, ControlPlaneError) and not error.retryable:
                    raise
                if failures == 0:
                    yield error
                await clock.sleep(backoff.delay_ms(failures, rng, _hint_ms(error)) * NS_PER_MS)
                failures += 1
                continue
            failures, cursor = 0, page.cursor or cursor
            for item in page.items:
                yield item

    async def close(self) -> None:
        """Close the transport. Idempotent."""
        await self._transport.close()

    async def _all(self, path: str, name: str) -> list[JsonObject]:
        items: list[JsonObject] = []
        query: dict[str, Any] = {"limit": PAGE_LIMIT}
        for _ in range(PAGES_MAX):
            page = _page(await self._call("GET", _with_query(path, query)), name)
            items += page.items
            if not page.cursor or not page.items:
                break
            query["cursor"] = page.cursor
        return items

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        wait_ms: int = 0,
    ) -> JsonObject:
        headers = dict(self._headers)
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid.uuid4())
        response = await self._transport.call(
            TransportRequest(
                method=method,
                path=path,
                headers=headers,
                body=b"" if body is None else wire.encode(body),
                timeout_s=ANSWER_TIMEOUT_S + wait_ms / 1000,
                is_held=wait_ms > 0,
                answer_max_bytes=ANSWER_MAX_BYTES,
            )
        )
        if not 200 <= response.status < 300:
            raise wire.decode_error(
                response.status, response.body, response.headers.get("Retry-After")
            )
        return wire.decode_answer(dict[str, Any], response.body)


def _with_query(path: str, query: Mapping[str, Any]) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _page(answer: JsonObject, name: str) -> Page:
    items = answer.get(name)
    if not isinstance(items, Sequence) or not all(isinstance(item, dict) for item in items):
        raise wire.DecodeError(f"the control plane's answer has no list of {name}")
    cursor = answer.get("cursor")
    return Page(tuple(items), cursor if isinstance(cursor, str) else None)


def _is_expired(error: ControlPlaneError | TransportError) -> bool:
    return isinstance(error, ControlPlaneError) and error.code == ErrorCode.CURSOR_EXPIRED


def _hint_ms(error: ControlPlaneError | TransportError) -> int | None:
    return error.retry_after_ms if isinstance(error, ControlPlaneError) else None
