"""The operator API: checks, one-off tasks, results, agents, queues. Strict about what it reads."""

import hmac
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from msgspec import Struct

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import TaskKind
from netsonde.server import checks, documents, oneoff
from netsonde.server.api import (
    Api,
    ApiRequest,
    ApiResponse,
    Handler,
    Route,
    ok,
    refuse,
    require_json,
)
from netsonde.server.core import Announcement, ControlPlane
from netsonde.server.handlers import bearer, health_routes
from netsonde.server.idempotency import remembered
from netsonde.server.queries import Query, decode_cursor, encode_cursor, results_query
from netsonde.server.registry import LABEL_MAX_CHARS, LABELS_MAX, update_agent
from netsonde.server.store import Store
from netsonde.server.store.base import AgentRow, CheckRow

ID_DIGITS_MAX = 16  # 2^53 has 16

Committed = Callable[[], None]
Operation = Callable[[Store], tuple[ApiResponse, Committed]]


class AgentPatch(Struct, frozen=True, kw_only=True):
    """What an operator may change of an agent."""

    labels: dict[str, str] | None = None
    disabled: bool | None = None


class OperatorApi(Api):
    """The calls of contract section 9."""

    name = "operator"

    def __init__(self, plane: ControlPlane, token: str | None = None) -> None:
        self._plane = plane
        self._token = token
        admin = wire.ADMIN_MAX_BYTES
        super().__init__(
            [
                Route("POST", "/v1/checks", self._write(self._create_check), admin),
                Route("GET", "/v1/checks", self._list_checks),
                Route("GET", "/v1/checks/{id}", self._get_check),
                Route("PATCH", "/v1/checks/{id}", self._write(self._patch_check), admin),
                Route("DELETE", "/v1/checks/{id}", self._write(self._delete_check)),
                Route("POST", "/v1/checks/{id}/cancel", self._write(self._cancel_check)),
                Route("POST", "/v1/checks/{id}/run-now", self._write(self._run_check)),
                Route("POST", "/v1/tasks", self._write(self._add_tasks), admin),
                Route("GET", "/v1/results", self._list_results),
                Route("GET", "/v1/agents", self._list_agents),
                Route("GET", "/v1/agents/{id}", self._get_agent),
                Route("PATCH", "/v1/agents/{id}", self._write(self._patch_agent)),
                Route("GET", "/v1/queues", self._list_queues),
                Route("GET", "/v1/dead-letters", self._list_dead_letters),
                *health_routes(plane),
            ]
        )

    async def admit(self, request: ApiRequest, route: Route) -> None:
        """Let operators in: by token, or by being on this host."""
        if route.path in ("/livez", "/readyz"):
            return
        if self._token is not None:
            if not hmac.compare_digest(bearer(request).encode(), self._token.encode()):
                raise RequestError(ErrorCode.UNAUTHORIZED, "the operators' bearer token is needed")
        elif not _names_loopback(request.header("host")):
            # A web page can make a browser send here by pointing a name at 127.0.0.1.
            raise RequestError(
                ErrorCode.FORBIDDEN, "without a token this API is called by a loopback address"
            )
        if request.method in ("POST", "PATCH"):
            require_json(request)

    def _write(self, prepare: Callable[[ApiRequest], Operation]) -> Handler:
        """Turn what prepares an operation into a handler that runs it, once per key."""

        async def handler(request: ApiRequest) -> ApiResponse:
            Query(request.query).end()
            operation = remembered(request, prepare(request), self._plane.time.now_ns())
            response, committed = await self._plane.writer.write(operation)
            committed()
            return response

        return handler

    # ── checks ──

    def _create_check(self, request: ApiRequest) -> Operation:
        definition = checks.read_definition(request.body)
        carriers = self._carriers()

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            if store.check_count() >= checks.CHECKS_MAX:
                raise RequestError(
                    ErrorCode.CONFLICT, f"there are {checks.CHECKS_MAX} checks, which is the limit"
                )
            now_ns = self._plane.time.now_ns()
            row = CheckRow(
                check_id=store.new_check_id(),
                document=wire.encode(definition),
                is_enabled=definition.enabled,
                next_ns=now_ns,
                created_ns=now_ns,
            )
            store.save_check(row)
            return self._ticked(store, row, carriers, now_ns, status=201)

        return operation

    def _ticked(
        self,
        store: Store,
        row: CheckRow,
        carriers: list[checks.Carrier],
        now_ns: int,
        *,
        status: int,
    ) -> tuple[ApiResponse, Committed]:
        """Run the first tick of a new or changed check in the same transaction."""
        if not row.is_enabled:
            return ok(documents.check(row), status), self._plane.checks_pulse.fire
        tick = checks.run_tick(
            store,
            row,
            carriers,
            now_ns,
            default_attempts=self._plane.config.max_attempts,
        )
        return ok(documents.check(tick.check), status), self._made(tick.made, store, now_ns)

    def _made(
        self, made: Sequence[tuple[int, TaskKind, int]], store: Store, now_ns: int
    ) -> Committed:
        """Return what to do after the commit: learn new queues, wake who waits."""
        queues = store.label_queues()

        def committed() -> None:
            self._plane.keep_label_queues(queues)
            self._plane.announce(
                Announcement(queue, kind, now_ns, count) for queue, kind, count in made
            )
            self._plane.checks_pulse.fire()

        return committed

    async def _list_checks(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        limit, after = query.limit(), decode_cursor(query.take("cursor")) or 0
        query.end()
        rows = await self._plane.writer.read(lambda store: store.checks(after, limit))
        cursor = encode_cursor(rows[-1].check_id) if len(rows) == limit else None
        return ok({"checks": [documents.check(row) for row in rows], "cursor": cursor})

    async def _get_check(self, request: ApiRequest) -> ApiResponse:
        check_id = _id(request)
        return ok(
            documents.check(await self._plane.writer.read(lambda store: _found(store, check_id)))
        )

    def _patch_check(self, request: ApiRequest) -> Operation:
        check_id = _id(request)
        carriers = self._carriers()

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            row = _found(store, check_id)
            definition = checks.patched(row.document, request.body)
            now_ns = self._plane.time.now_ns()
            changed = replace(row, document=wire.encode(definition), is_enabled=definition.enabled)
            if changed.document == row.document:
                return ok(documents.check(row)), _nothing
            if checks.is_renamed_only(row.document, changed.document):
                store.save_check(changed)
                return ok(documents.check(changed)), _nothing
            _, revoked = self._cancelled(store, check_id)
            changed = replace(changed, next_ns=now_ns)
            store.save_check(changed)
            answer, ticked = self._ticked(store, changed, carriers, now_ns, status=200)
            return answer, _both(revoked, ticked)

        return operation

    def _delete_check(self, request: ApiRequest) -> Operation:
        check_id = _id(request)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            _found(store, check_id)
            cancelled, revoked = self._cancelled(store, check_id)
            store.delete_check(check_id)
            return ok({"check_id": check_id, "cancelled": cancelled}), revoked

        return operation

    def _cancel_check(self, request: ApiRequest) -> Operation:
        check_id = _id(request)
        carriers = self._carriers()

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            row, now_ns = _found(store, check_id), self._plane.time.now_ns()
            cancelled, revoked = self._cancelled(store, check_id)
            attempts = self._plane.config.max_attempts
            made = checks.stand_again(store, row, carriers, now_ns, default_attempts=attempts)
            answer = ok({"check_id": check_id, "cancelled": cancelled})
            return answer, _both(revoked, self._made(made, store, now_ns))

        return operation

    def _cancelled(self, store: Store, check_id: int) -> tuple[int, Committed]:
        """Cancel a check's tasks; return how many, and what tells the agents that run some."""
        cancelled = store.cancel_check(check_id, self._plane.time.now_ns())
        store.count("cancelled", cancelled)
        revoked = store.revoked_of_check(check_id)
        return cancelled, lambda: self._plane.waiters.revoke(revoked)

    def _run_check(self, request: ApiRequest) -> Operation:
        check_id = _id(request)
        carriers = self._carriers()

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            now_ns = self._plane.time.now_ns()
            tick = checks.run_tick(
                store,
                _found(store, check_id),
                carriers,
                now_ns,
                default_attempts=self._plane.config.max_attempts,
                is_extra=True,
            )
            answer = {"check_id": check_id, "tasks": tick.tasks, "skipped": tick.skipped}
            return ok(answer), self._made(tick.made, store, now_ns)

        return operation

    def _carriers(self) -> list[checks.Carrier]:
        return carriers_of(self._plane)

    # ── one-off tasks ──

    def _add_tasks(self, request: ApiRequest) -> Operation:
        raw = wire.decode(list[dict[str, Any]], request.body, max_bytes=wire.ADMIN_MAX_BYTES)
        if len(raw) > oneoff.TASKS_MAX:
            refuse("", f"at most {oneoff.TASKS_MAX} tasks are allowed, not {len(raw)}")
        now_ns = self._plane.time.now_ns()
        plan = oneoff.Plan(raw, self._plane.registry, self._plane.config.max_attempts, now_ns)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            return ok({"tasks": plan.run(store)}), self._made(plan.made(), store, now_ns)

        return operation

    # ── results ──

    async def _list_results(self, request: ApiRequest) -> ApiResponse:
        wanted, wait_ms = results_query(request.query, self._plane.registry)
        deadline_ns = request.received_ns + wait_ms * NS_PER_MS
        while True:
            pulse = self._plane.results_pulse.next()
            rows = await self._plane.writer.read(lambda store: store.results(wanted))
            remaining_ns = deadline_ns - self._plane.time.now_ns()
            if rows or remaining_ns <= 0 or self._plane.results_pulse.is_closed:
                break
            await self._plane.clock.wait(pulse, remaining_ns)
        position = rows[-1].result_id if rows else wanted.position or 0
        return ok(
            {
                "results": [wire.fragment(documents.result(row)) for row in rows],
                "cursor": encode_cursor(position),
            }
        )

    # ── agents ──

    async def _list_agents(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        limit, after = query.limit(), decode_cursor(query.take("cursor")) or 0
        query.end()
        rows = [one for one in self._plane.registry.all() if one.agent_id > after][:limit]
        cursor = encode_cursor(rows[-1].agent_id) if len(rows) == limit else None
        ids = [row.agent_id for row in rows]
        flights = await self._plane.writer.read(lambda store: documents.in_flight(store, ids))
        agents = [self._agent(row, flights) for row in rows]
        return ok({"agents": agents, "cursor": cursor})

    async def _get_agent(self, request: ApiRequest) -> ApiResponse:
        agent_id = _id(request)
        row = self._plane.registry.get(agent_id)
        if row is None:
            raise RequestError(ErrorCode.NOT_FOUND, f"there is no agent {agent_id}")
        flights = await self._plane.writer.read(
            lambda store: documents.in_flight(store, [agent_id])
        )
        return ok(self._agent(row, flights))

    def _patch_agent(self, request: ApiRequest) -> Operation:
        agent_id = _id(request)
        patch = wire.decode(AgentPatch, request.body, strict=True)
        labels = patch.labels
        if labels is not None and (
            len(labels) > LABELS_MAX
            or any(
                not 0 < len(name) <= LABEL_MAX_CHARS or len(value) > LABEL_MAX_CHARS
                for name, value in labels.items()
            )
        ):
            limits = f"at most {LABELS_MAX} labels, each at most {LABEL_MAX_CHARS} characters"
            refuse("labels", f"labels must be {limits}")

        def change(row: AgentRow) -> AgentRow:
            if patch.disabled is not None:
                row = replace(row, is_disabled=patch.disabled)
            if labels is not None:
                ordered = wire.encode(dict(sorted(labels.items())))
                row = replace(row, labels=ordered, has_operator_labels=True)
            return row

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            row = update_agent(store, agent_id, change)

            def committed() -> None:
                self._plane.registry.keep(row)
                if row.is_disabled:
                    self._plane.waiters.end(agent_id)  # what it holds open brings nothing more
                self._plane.waiters.wake_all()

            return ok(self._agent(row, documents.in_flight(store, [agent_id]))), committed

        return operation

    def _agent(self, row: AgentRow, flights: dict[int, dict[str, int]]) -> dict[str, Any]:
        last_seen_ns = self._plane.registry.last_seen_ns(row)
        return documents.agent(row, last_seen_ns, flights[row.agent_id])

    # ── queues and dead letters ──

    async def _list_queues(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()
        now_ns = self._plane.time.now_ns()
        depths, labels, counters = await self._plane.writer.read(
            lambda store: (store.depths(now_ns), store.label_queues(), store.counters())
        )
        queues = [documents.queue(depth, labels, now_ns) for depth in depths]
        return ok({"queues": queues, "counters": counters})

    async def _list_dead_letters(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        limit, before = query.limit(), decode_cursor(query.take("cursor"))
        query.end()
        rows = await self._plane.writer.read(lambda store: store.dead_letters(before, limit))
        cursor = encode_cursor(rows[-1].task_id) if len(rows) == limit else None
        return ok({"dead_letters": [documents.dead_letter(row) for row in rows], "cursor": cursor})


def carriers_of(plane: ControlPlane) -> list[checks.Carrier]:
    """Return the agents that checks may be given to."""
    return [
        checks.Carrier(
            row.agent_id, row.hostname, plane.registry.labels(row.agent_id), row.is_legacy
        )
        for row in plane.registry.all()
        if not row.is_disabled
    ]


def _both(first: Committed, second: Committed) -> Committed:
    def committed() -> None:
        first()
        second()

    return committed


def _nothing() -> None:
    """Do nothing after a commit that nobody waits for."""


def _found(store: Store, check_id: int) -> CheckRow:
    row = store.check(check_id)
    if row is None:
        raise RequestError(ErrorCode.NOT_FOUND, f"there is no check {check_id}")
    return row


def _id(request: ApiRequest) -> int:
    text = request.variables["id"]
    if not text.isascii() or not text.isdecimal() or len(text) > ID_DIGITS_MAX:
        raise RequestError(ErrorCode.NOT_FOUND, f"{text[:50]!r} is not an id")
    return int(text)


def _names_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.removeprefix("[").removesuffix("]").lower()
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
