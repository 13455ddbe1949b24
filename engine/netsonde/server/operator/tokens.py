"""Tokens: of operators, and those that agents enrol with. Each is shown once, when it is made."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Struct

from netsonde import wire
from netsonde.clock import NS_PER_MS, rfc3339
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.about import PAGE, About, counted, labelled, sized, within, words
from netsonde.server.access import TOKENS_MAX
from netsonde.server.answers.tokens import (
    EnrolmentTokenPage,
    MadeEnrolmentToken,
    MadeToken,
    TokenDeleted,
    TokenPage,
)
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok, refuse
from netsonde.server.operator.calls import Calls, Committed, Operation, item_id, nothing
from netsonde.server.queries import Query, decode_cursor, encode_cursor
from netsonde.server.registry import LABEL_MAX_CHARS, LABELS_MAX
from netsonde.server.scopes import RESERVED_NAMES, Scope
from netsonde.server.store import Store
from netsonde.server.store.access import EnrolmentTokenRow, OperatorTokenRow
from netsonde.server.tokens import ENROLMENT_PREFIX, OPERATOR_PREFIX, new_token, token_digest

NAME_MAX_CHARS = 100
EXPIRES_MIN_MS = 1_000
EXPIRES_MAX_MS = 3_660 * 86_400_000
ENROLMENT_TOKENS_MAX = 10_000
ENROLMENT_EXPIRES_MS = 86_400_000
ENROLMENT_EXPIRES_MAX_MS = 366 * 86_400_000
USES_MAX = 100_000  # as many agents as there may be


class NewToken(Struct, frozen=True, kw_only=True):
    """An operator's token as it is asked for."""

    name: Annotated[str, sized(1, NAME_MAX_CHARS)]
    scopes: Annotated[tuple[Annotated[str, words([*Scope])], ...], counted(1, len(Scope))]
    expires_in_ms: Annotated[int, within(EXPIRES_MIN_MS, EXPIRES_MAX_MS)] | None = None


class NewEnrolmentToken(Struct, frozen=True, kw_only=True):
    """An enrolment token as it is asked for."""

    name: Annotated[str, sized(1, NAME_MAX_CHARS)] | None = None
    uses: Annotated[int, within(1, USES_MAX)] = 1
    expires_in_ms: Annotated[int, within(EXPIRES_MIN_MS, ENROLMENT_EXPIRES_MAX_MS)] = (
        ENROLMENT_EXPIRES_MS
    )
    labels: Annotated[dict[str, str], labelled(LABELS_MAX, LABEL_MAX_CHARS)] = msgspec.field(
        default_factory=dict
    )


CREATE = About(
    "Make an operator's token.",
    MadeToken,
    takes=NewToken,
    status=201,
    text="It has only scopes that the token has which makes it.",
)
LIST = About("List operators' tokens.", TokenPage, query=PAGE)
DELETE = About("End an operator's token.", TokenDeleted)
ENROLMENT_CREATE = About(
    "Make a token that agents enrol with.",
    MadeEnrolmentToken,
    takes=NewEnrolmentToken,
    is_body_optional=True,
    status=201,
)
ENROLMENT_LIST = About("List enrolment tokens.", EnrolmentTokenPage, query=PAGE)
ENROLMENT_DELETE = About("End an enrolment token.", TokenDeleted)


class TokenCalls(Calls):
    """The calls about operators' tokens."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        create, delete = self._write(self._create), self._write(self._delete)
        return (
            Route("POST", "/v1/tokens", create, scope=Scope.TOKENS_WRITE, about=CREATE),
            Route("GET", "/v1/tokens", self._list, scope=Scope.READ, about=LIST),
            Route("DELETE", "/v1/tokens/{id}", delete, scope=Scope.TOKENS_WRITE, about=DELETE),
        )

    async def _list(self, request: ApiRequest) -> ApiResponse:
        limit, after = _page(request)
        rows = await self._plane.writer.look(lambda store: store.operator_tokens(after, limit))
        cursor = encode_cursor(rows[-1].token_id) if len(rows) == limit else None
        return ok({"tokens": [self._document(row) for row in rows], "cursor": cursor})

    def _create(self, request: ApiRequest) -> Operation:
        wanted = wire.decode(NewToken, request.body, strict=True)
        _check_name(wanted.name)
        _check_scopes(wanted.scopes, request)
        if wanted.expires_in_ms is not None:
            _check_expiry(wanted.expires_in_ms, EXPIRES_MAX_MS)
        token = new_token(OPERATOR_PREFIX)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            if store.operator_token_named(wanted.name) is not None:
                raise RequestError(ErrorCode.CONFLICT, f"there is a token {wanted.name} already")
            if store.operator_token_count() >= TOKENS_MAX:
                raise RequestError(
                    ErrorCode.CONFLICT, f"there are {TOKENS_MAX} tokens, which is the limit"
                )
            now_ns = self._plane.time.now_ns()
            expires_ms = wanted.expires_in_ms
            row = OperatorTokenRow(
                token_id=store.new_token_id(),
                name=wanted.name,
                digest=token_digest(token),
                scopes=tuple(scope for scope in Scope if scope in wanted.scopes),
                created_ns=now_ns,
                expires_ns=None if expires_ms is None else now_ns + expires_ms * NS_PER_MS,
            )
            store.save_operator_token(row)
            answer = _shown_once(self._document(row), token, f"tokens/{row.token_id} {row.name}")
            return answer, lambda: self._plane.operators.keep(row)

        return operation

    def _delete(self, request: ApiRequest) -> Operation:
        token_id = item_id(request)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            if not store.delete_operator_token(token_id):
                raise RequestError(ErrorCode.NOT_FOUND, f"there is no operator token {token_id}")
            return ok({"token_id": token_id}), lambda: self._plane.operators.drop([token_id])

        return operation

    def _document(self, row: OperatorTokenRow) -> dict[str, Any]:
        used_ns = self._plane.operators.last_used_ns(row)
        return {
            "token_id": row.token_id,
            "name": row.name,
            "scopes": row.scopes,
            "created_at": rfc3339(row.created_ns),
            "expires_at": None if row.expires_ns is None else rfc3339(row.expires_ns),
            "last_used_at": None if used_ns is None else rfc3339(used_ns),
        }


class EnrolmentTokenCalls(Calls):
    """The calls about the tokens that agents enrol with."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        create, delete = self._write(self._create), self._write(self._delete)
        path = "/v1/enrolment-tokens"
        return (
            Route("POST", path, create, scope=Scope.ENROL_WRITE, about=ENROLMENT_CREATE),
            Route("GET", path, self._list, scope=Scope.READ, about=ENROLMENT_LIST),
            Route(
                "DELETE",
                f"{path}/{{id}}",
                delete,
                scope=Scope.ENROL_WRITE,
                about=ENROLMENT_DELETE,
            ),
        )

    async def _list(self, request: ApiRequest) -> ApiResponse:
        limit, after = _page(request)
        rows = await self._plane.writer.look(lambda store: store.enrolment_tokens(after, limit))
        cursor = encode_cursor(rows[-1].token_id) if len(rows) == limit else None
        return ok({"enrolment_tokens": [_enrolment(row) for row in rows], "cursor": cursor})

    def _create(self, request: ApiRequest) -> Operation:
        wanted = wire.decode(NewEnrolmentToken, request.body or b"{}", strict=True)
        if wanted.name is not None:
            _check_name(wanted.name)
        if not 1 <= wanted.uses <= USES_MAX:
            refuse("uses", f"uses must be a whole number from 1 to {USES_MAX}, not {wanted.uses}")
        _check_expiry(wanted.expires_in_ms, ENROLMENT_EXPIRES_MAX_MS)
        _check_labels(wanted.labels)
        token = new_token(ENROLMENT_PREFIX)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            if store.enrolment_token_count() >= ENROLMENT_TOKENS_MAX:
                limit = f"{ENROLMENT_TOKENS_MAX} enrolment tokens, which is the limit"
                raise RequestError(ErrorCode.CONFLICT, f"there are {limit}")
            now_ns = self._plane.time.now_ns()
            row = EnrolmentTokenRow(
                token_id=store.new_token_id(),
                name=wanted.name,
                digest=token_digest(token),
                uses_max=wanted.uses,
                labels=wire.encode(dict(sorted(wanted.labels.items()))),
                created_ns=now_ns,
                expires_ns=now_ns + wanted.expires_in_ms * NS_PER_MS,
            )
            store.save_enrolment_token(row)
            about = f"enrolment-tokens/{row.token_id} {row.name or ''}".rstrip()
            return _shown_once(_enrolment(row), token, about), nothing

        return operation

    def _delete(self, request: ApiRequest) -> Operation:
        token_id = item_id(request)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            if not store.delete_enrolment_token(token_id):
                raise RequestError(ErrorCode.NOT_FOUND, f"there is no enrolment token {token_id}")
            return ok({"token_id": token_id}), nothing

        return operation


def _enrolment(row: EnrolmentTokenRow) -> dict[str, Any]:
    return {
        "token_id": row.token_id,
        "name": row.name,
        "uses": row.uses_max,
        "used": row.uses,
        "labels": wire.fragment(row.labels),
        "created_at": rfc3339(row.created_ns),
        "expires_at": rfc3339(row.expires_ns),
    }


def _shown_once(document: Mapping[str, Any], token: str, about: str) -> ApiResponse:
    """Answer with a token; what an Idempotency-Key remembers has none."""
    kept = wire.encode({**document, "token": None})
    return replace(ok({**document, "token": token}, 201, about=about), kept=kept)


def _page(request: ApiRequest) -> tuple[int, int]:
    query = Query(request.query)
    limit, after = query.limit(), decode_cursor(query.take("cursor")) or 0
    query.end()
    return limit, after


def _check_name(name: str) -> None:
    if not 0 < len(name) <= NAME_MAX_CHARS or not name.isprintable() or name != name.strip():
        refuse("name", f"name must have 1 to {NAME_MAX_CHARS} printable characters")
    if name in RESERVED_NAMES:
        refuse("name", f"{name} is what the audit log calls who has no named token")


def _check_scopes(scopes: Sequence[str], request: ApiRequest) -> None:
    """Refuse scopes that do not exist, and those that who asks does not have."""
    known = frozenset(Scope)
    unknown = [scope for scope in scopes if scope not in known]
    if unknown or not scopes:
        allowed = ", ".join(Scope)
        given = f", not {unknown[0][:50]!r}" if unknown else ""
        refuse("scopes", f"scopes must be some of {allowed}{given}")
    held = frozenset[Scope]() if request.principal is None else request.principal.scopes
    beyond = [scope for scope in scopes if scope not in held]
    if beyond:
        raise RequestError(
            ErrorCode.FORBIDDEN,
            f"a token gives only scopes that it has: this one has no {', '.join(beyond)}",
        )


def _check_expiry(expires_in_ms: int, most_ms: int) -> None:
    if not EXPIRES_MIN_MS <= expires_in_ms <= most_ms:
        allowed = f"{EXPIRES_MIN_MS} to {most_ms}"
        refuse("expires_in_ms", f"expires_in_ms must be {allowed}, not {expires_in_ms}")


def _check_labels(labels: Mapping[str, str]) -> None:
    fits = all(
        0 < len(name) <= LABEL_MAX_CHARS and len(value) <= LABEL_MAX_CHARS
        for name, value in labels.items()
    )
    if len(labels) > LABELS_MAX or not fits:
        limits = f"at most {LABELS_MAX} labels, each at most {LABEL_MAX_CHARS} characters"
        refuse("labels", f"labels must be {limits}")
