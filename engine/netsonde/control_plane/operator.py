"""The operator API's client: checks, results, agents, queues, tokens, over any transport."""

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from netsonde import __version__, wire
from netsonde.clock import Clock
from netsonde.control_plane.following import Followed, Follower
from netsonde.control_plane.http import HttpControlPlaneTransport
from netsonde.control_plane.transport import ControlPlaneTransport, TransportRequest
from netsonde.control_plane.uploading import Uploader
from netsonde.tls import ClientTls

ANSWER_TIMEOUT_S = 15.0  # for a person who waits; a long poll adds what it asked for
ANSWER_MAX_BYTES = 256 << 20  # a page of 1000 results of the largest size a report may carry
PAGE_LIMIT = 1000  # the server's largest page
PAGES_MAX = 10_000  # a listing that is longer never ends

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """Some items of a listing, and where to go on."""

    items: tuple[JsonObject, ...]
    cursor: str | None
    is_more: bool = False  # there is more to look at by now, however short the page is


class OperatorClient:
    """Speaks the operator API; one method per call.

    `base_url` is where the control plane's operator listener is. `token` is needed only where
    that listener is not on loopback, `tls` where it speaks HTTPS with a certificate of its own
    authority or asks for one. Nothing is retried, save by `follow` and `uploader`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        tls: ClientTls | None = None,
        transport: ControlPlaneTransport | None = None,
    ) -> None:
        self._transport = transport or HttpControlPlaneTransport(base_url, tls=tls)
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

    async def check(self, check_id: int) -> JsonObject:
        """Return one check."""
        return await self._call("GET", f"/v1/checks/{check_id}")

    async def change_check(self, check_id: int, changes: Mapping[str, Any]) -> JsonObject:
        """Change fields of a check, None being a field's default; return the check."""
        return await self._call("PATCH", f"/v1/checks/{check_id}", body=changes)

    async def run_check(self, check_id: int) -> JsonObject:
        """Run a check once now; return how many tasks that made."""
        return await self._call("POST", f"/v1/checks/{check_id}/run-now")

    async def cancel_check(self, check_id: int) -> JsonObject:
        """Cancel what runs or waits of a check; return how many runs."""
        return await self._call("POST", f"/v1/checks/{check_id}/cancel")

    async def remove_check(self, check_id: int) -> JsonObject:
        """Remove a check; its results stay."""
        return await self._call("DELETE", f"/v1/checks/{check_id}")

    async def agents(self) -> list[JsonObject]:
        """Return every agent."""
        return await self._all("/v1/agents", "agents")

    async def agent(self, agent_id: int) -> JsonObject:
        """Return one agent."""
        return await self._call("GET", f"/v1/agents/{agent_id}")

    async def order(self, agent_id: int, verb: str) -> JsonObject:
        """Order something of an agent, `drain`, `resume` or `revoke`; return the agent."""
        return await self._call("POST", f"/v1/agents/{agent_id}/{verb}")

    async def change_agent(self, agent_id: int, changes: Mapping[str, Any]) -> JsonObject:
        """Change an agent's `labels`, or whether it is `disabled`; return the agent."""
        return await self._call("PATCH", f"/v1/agents/{agent_id}", body=changes)

    async def dead_letters(self, query: Mapping[str, Any]) -> Page:
        """Return one page of dead letters, the youngest first; None leaves a filter out."""
        asked = {name: value for name, value in query.items() if value is not None}
        return _page(
            await self._call("GET", _with_query("/v1/dead-letters", asked)), "dead_letters"
        )

    async def requeue_dead_letter(self, task_id: int) -> JsonObject:
        """Queue a dead letter's task again, with fresh attempts."""
        return await self._call("POST", f"/v1/dead-letters/{task_id}/requeue")

    async def delete_dead_letter(self, task_id: int) -> JsonObject:
        """Give a dead letter up for good."""
        return await self._call("DELETE", f"/v1/dead-letters/{task_id}")

    async def requeue_dead_letters(self, selection: Mapping[str, Any]) -> JsonObject:
        """Queue the tasks of many again; return how many, and whether there are more."""
        return await self._call("POST", "/v1/dead-letters/requeue", body=selection)

    async def delete_dead_letters(self, selection: Mapping[str, Any]) -> JsonObject:
        """Give many up for good; return how many, and whether there are more."""
        return await self._call("POST", "/v1/dead-letters/delete", body=selection)

    async def queues(self) -> JsonObject:
        """Return the queues and the counters."""
        return await self._call("GET", "/v1/queues")

    async def publish_config(self, envelope: Mapping[str, Any]) -> JsonObject:
        """Publish a signed configuration; repeating the call is safe."""
        return await self._call("POST", "/v1/configs", body=envelope)

    async def configs(self) -> list[JsonObject]:
        """Return every published configuration, the newest first."""
        return await self._all("/v1/configs", "configs")

    async def config(self, revision: int) -> JsonObject:
        """Return one configuration with its values and its envelope."""
        return await self._call("GET", f"/v1/configs/{revision}")

    async def config_status(self, revision: int) -> JsonObject:
        """Return what every agent made of a configuration: `counts`, `agents`."""
        path = f"/v1/configs/{revision}/status"
        answer = await self._call("GET", _with_query(path, {"limit": 1}))
        return {"counts": answer.get("counts"), "agents": await self._all(path, "agents")}

    async def create_token(self, token: Mapping[str, Any]) -> JsonObject:
        """Make an operator's token; the answer shows it, once."""
        return await self._call("POST", "/v1/tokens", body=token)

    async def tokens(self) -> list[JsonObject]:
        """Return every operator's token."""
        return await self._all("/v1/tokens", "tokens")

    async def revoke_token(self, token_id: int) -> JsonObject:
        """End an operator's token."""
        return await self._call("DELETE", f"/v1/tokens/{token_id}")

    async def create_enrolment_token(self, token: Mapping[str, Any]) -> JsonObject:
        """Make a token that agents enrol with; the answer shows it, once."""
        return await self._call("POST", "/v1/enrolment-tokens", body=token)

    async def enrolment_tokens(self) -> list[JsonObject]:
        """Return every enrolment token."""
        return await self._all("/v1/enrolment-tokens", "enrolment_tokens")

    async def revoke_enrolment_token(self, token_id: int) -> JsonObject:
        """End an enrolment token; who enrolled with it stays."""
        return await self._call("DELETE", f"/v1/enrolment-tokens/{token_id}")

    async def audit(self, query: Mapping[str, Any]) -> Page:
        """Return one page of the audit log; query has the API's own names, None leaves one out."""
        asked = {name: value for name, value in query.items() if value is not None}
        return _page(await self._call("GET", _with_query("/v1/audit", asked)), "calls")

    async def metrics(self, name: str | None, agent: str | None) -> list[JsonObject]:
        """Return what series said last: of one name, of one agent (id or hostname), or all."""
        asked = {"name": name, "agent": agent}
        query = {key: value for key, value in asked.items() if value is not None}
        return await self._all("/v1/metrics/latest", "metrics", query)

    async def results(self, query: Mapping[str, Any], *, wait_ms: int = 0) -> Page:
        """Return one page of results; with wait_ms an empty one is held until a result comes.

        Where a filter fits so little that the server answers before it has looked at everything,
        it is asked to go on. query has the API's own names: check_id, agent, task_id, kind,
        outcome, from, to, limit, order, cursor. None leaves a filter out.
        """
        asked = {name: value for name, value in query.items() if value is not None}
        if wait_ms:
            asked["wait_ms"] = wait_ms
        items: list[JsonObject] = []
        page = Page((), None)
        limit = asked.get("limit", 1)
        for _ in range(PAGES_MAX):
            answer = await self._call("GET", _with_query("/v1/results", asked), wait_ms=wait_ms)
            page = _page(answer, "results")
            items += page.items
            if len(items) >= limit or not page.is_more:
                break
            asked["cursor"] = page.cursor
            if "limit" in asked:
                asked["limit"] = limit - len(items)
        return replace(page, items=tuple(items))

    def follow(
        self, query: Mapping[str, Any], *, clock: Clock, rng: Random
    ) -> AsyncGenerator[Followed, None]:
        """Yield results as they are committed, for ever, beginning after query's cursor.

        query has the names of `results`, without limit and order. While the server cannot be
        reached that is told once, and again when results go on: none is missed or repeated. Where
        results after the cursor have gone, those from the oldest that is kept follow, and it is
        told that they begin anew.

        Raises:
            ControlPlaneError: the server refuses the query.
        """
        return Follower(self._transport, self._headers, query, clock, rng).items()

    def uploader(self, key: str, *, clock: Clock, rng: Random) -> Uploader:
        """Return what uploads lines of tasks under key; a retry makes no task twice."""
        return Uploader(self._transport, self._headers, key, clock, rng)

    async def close(self) -> None:
        """Close the transport. Idempotent."""
        await self._transport.close()

    async def _all(
        self, path: str, name: str, filters: Mapping[str, str] = MappingProxyType({})
    ) -> list[JsonObject]:
        items: list[JsonObject] = []
        query: dict[str, Any] = {"limit": PAGE_LIMIT, **filters}
        for _ in range(PAGES_MAX):
            page = _page(await self._call("GET", _with_query(path, query)), name)
            items += page.items
            if page.cursor in (None, query.get("cursor")):
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
    is_more = answer.get("more") is True
    return Page(tuple(items), cursor if isinstance(cursor, str) else None, is_more)
