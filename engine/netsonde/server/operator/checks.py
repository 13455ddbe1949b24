"""Checks: what is measured, by whom, how often."""

from collections.abc import Sequence
from dataclasses import replace

from netsonde import wire
from netsonde.errors import ErrorCode, RequestError
from netsonde.server import checks, documents
from netsonde.server.about import PAGE, About
from netsonde.server.answers.checks import Check, CheckCancelled, CheckPage, CheckRun
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.operator.calls import Calls, Committed, Operation, both, item_id, nothing
from netsonde.server.queries import Query, decode_cursor, encode_cursor
from netsonde.server.scopes import Scope
from netsonde.server.selection import Carrier, carriers_of
from netsonde.server.store import Store
from netsonde.server.store.checks import CheckRow

CREATE = About(
    "Make a check.",
    Check,
    takes=checks.CheckDefinition,
    status=201,
    refuses=(ErrorCode.TARGET_DENIED,),
)
LIST = About("List checks.", CheckPage, query=PAGE)
GET = About("Show a check.", Check)
PATCH = About(
    "Change a check.",
    Check,
    takes=checks.CheckPatch,
    refuses=(ErrorCode.TARGET_DENIED,),
    text="Only the fields given change; null stands for a field's default.",
)
DELETE = About("Delete a check; its results stay.", CheckCancelled)
CANCEL = About("Cancel what is queued or running of a check.", CheckCancelled)
RUN = About("Run a check now, beside its schedule.", CheckRun)


class CheckCalls(Calls):
    """The calls about checks."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        admin, read, write = wire.ADMIN_MAX_BYTES, Scope.READ, Scope.CHECKS_WRITE
        create, patch = self._write(self._create_check), self._write(self._patch_check)
        delete, cancel = self._write(self._delete_check), self._write(self._cancel_check)
        run = self._write(self._run_check)
        one = "/v1/checks/{id}"
        return (
            Route("POST", "/v1/checks", create, admin, scope=write, about=CREATE),
            Route("GET", "/v1/checks", self._list_checks, scope=read, about=LIST),
            Route("GET", one, self._get_check, scope=read, about=GET),
            Route("PATCH", one, patch, admin, scope=write, about=PATCH),
            Route("DELETE", one, delete, scope=write, about=DELETE),
            Route("POST", f"{one}/cancel", cancel, scope=write, about=CANCEL),
            Route("POST", f"{one}/run-now", run, scope=write, about=RUN),
        )

    def _create_check(self, request: ApiRequest) -> Operation:
        self._plane.storage.admit()
        definition = checks.read_definition(request.body)
        carriers = carriers_of(self._plane.registry)

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
        carriers: list[Carrier],
        now_ns: int,
        *,
        status: int,
    ) -> tuple[ApiResponse, Committed]:
        """Run the first tick of a new or changed check in the same transaction."""
        if not row.is_enabled:
            answer = ok(documents.check(row), status, about=f"checks/{row.check_id}")
            return answer, self._plane.checks_pulse.fire
        tick = checks.run_tick(
            store,
            row,
            carriers,
            now_ns,
            default_attempts=self._plane.config.max_attempts,
        )
        answer = ok(documents.check(tick.check), status, about=f"checks/{row.check_id}")
        return answer, self._made(tick.made, store, now_ns)

    async def _list_checks(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        limit, after = query.limit(), decode_cursor(query.take("cursor")) or 0
        query.end()
        rows = await self._plane.writer.look(lambda store: store.checks(after, limit))
        cursor = encode_cursor(rows[-1].check_id) if len(rows) == limit else None
        return ok({"checks": [documents.check(row) for row in rows], "cursor": cursor})

    async def _get_check(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()
        check_id = item_id(request)
        return ok(
            documents.check(await self._plane.writer.look(lambda store: _found(store, check_id)))
        )

    def _patch_check(self, request: ApiRequest) -> Operation:
        check_id = item_id(request)
        carriers = carriers_of(self._plane.registry)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            row = _found(store, check_id)
            definition = checks.patched(row.document, request.body)
            now_ns = self._plane.time.now_ns()
            changed = replace(row, document=wire.encode(definition), is_enabled=definition.enabled)
            if changed.document == row.document:
                return ok(documents.check(row)), nothing
            if checks.is_renamed_only(row.document, changed.document):
                store.save_check(changed)
                return ok(documents.check(changed)), nothing
            _, revoked = self._cancelled(store, check_id)
            changed = replace(changed, next_ns=now_ns)
            store.save_check(changed)
            answer, ticked = self._ticked(store, changed, carriers, now_ns, status=200)
            return answer, both(revoked, ticked)

        return operation

    def _delete_check(self, request: ApiRequest) -> Operation:
        check_id = item_id(request)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            _found(store, check_id)
            cancelled, revoked = self._cancelled(store, check_id)
            store.delete_check(check_id)
            return ok({"check_id": check_id, "cancelled": cancelled}), revoked

        return operation

    def _cancel_check(self, request: ApiRequest) -> Operation:
        check_id = item_id(request)
        carriers = carriers_of(self._plane.registry)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            row, now_ns = _found(store, check_id), self._plane.time.now_ns()
            cancelled, revoked = self._cancelled(store, check_id)
            attempts = self._plane.config.max_attempts
            made = checks.stand_again(store, row, carriers, now_ns, default_attempts=attempts)
            answer = ok({"check_id": check_id, "cancelled": cancelled})
            return answer, both(revoked, self._made(made, store, now_ns))

        return operation

    def _cancelled(self, store: Store, check_id: int) -> tuple[int, Committed]:
        """Cancel a check's tasks; return how many, and what tells the agents that run some."""
        cancelled = store.cancel_check(check_id, self._plane.time.now_ns())
        store.count("cancelled", cancelled)
        revoked = store.revoked_of_check(check_id)
        return cancelled, lambda: self._plane.waiters.revoke(revoked)

    def _run_check(self, request: ApiRequest) -> Operation:
        self._plane.storage.admit()
        check_id = item_id(request)
        carriers = carriers_of(self._plane.registry)

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


def _found(store: Store, check_id: int) -> CheckRow:
    row = store.check(check_id)
    if row is None:
        raise RequestError(ErrorCode.NOT_FOUND, f"there is no check {check_id}")
    return row
