"""The operator API as a whole: its calls, and who may make them. Strict about what it reads."""

import ipaddress
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from msgspec import Struct

from netsonde import wire
from netsonde.clock import NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.server import openapi
from netsonde.server.about import About
from netsonde.server.api import (
    Api,
    ApiRequest,
    ApiResponse,
    Route,
    require_identity,
    require_json,
)
from netsonde.server.audit import note_refusal
from netsonde.server.core import ControlPlane
from netsonde.server.health import health_routes
from netsonde.server.operator.agents import AgentCalls
from netsonde.server.operator.audit import AuditCalls
from netsonde.server.operator.checks import CheckCalls
from netsonde.server.operator.configs import ConfigCalls
from netsonde.server.operator.dead_letters import DeadLetterCalls
from netsonde.server.operator.fleet import FleetCalls
from netsonde.server.operator.metrics import MetricCalls
from netsonde.server.operator.queues import QueueCalls
from netsonde.server.operator.results import ResultCalls
from netsonde.server.operator.storage import StorageCalls
from netsonde.server.operator.tasks import TaskCalls
from netsonde.server.operator.tokens import EnrolmentTokenCalls, TokenCalls
from netsonde.server.queries import Query
from netsonde.server.scopes import LOOPBACK, Principal, Scope
from netsonde.server.senders import bearer

RESOURCES = (
    CheckCalls,
    TaskCalls,
    ResultCalls,
    AgentCalls,
    FleetCalls,
    QueueCalls,
    DeadLetterCalls,
    ConfigCalls,
    MetricCalls,
    TokenCalls,
    EnrolmentTokenCalls,
    AuditCalls,
    StorageCalls,
)
OPEN_PATHS = ("/livez", "/readyz")  # for supervisors, who hold no token
READING = ("GET", "HEAD")
DOCUMENT = About("Show this document.", dict[str, Any])
STRANGERS_GAP_NS = 60 * NS_PER_S

_log = logging.getLogger("netsonde.server")


class OperatorApi(Api):
    """The calls of contract section 9."""

    name = "operator"

    def __init__(self, plane: ControlPlane, token: str | None = None) -> None:
        self._plane = plane
        self._token = token
        self._strangers = _Strangers()
        self._written = b""
        self.routes = [
            *(route for resource in RESOURCES for route in resource(plane).routes()),
            Route("GET", "/openapi.json", self._document, scope=Scope.READ, about=DOCUMENT),
        ]
        self.all_routes = [*self.routes, *health_routes(plane)]
        super().__init__(self.all_routes)
        plane.requests[self.name] = self.requests

    def check_sender(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """Refuse who is no operator before the body is read."""
        self._principal(ApiRequest(method=method, path=path, headers=headers))
        return True

    async def admit(self, request: ApiRequest, route: Route) -> ApiRequest:
        """Let operators in, by token or by being on this host, to what they may do."""
        if route.path in OPEN_PATHS:
            return request
        admitted = replace(request, principal=self._principal(request))
        try:
            _check_scope(admitted.principal, route)
            if request.chunks is not None:
                require_identity(request)
            elif request.method in ("POST", "PATCH"):
                require_json(request)
            if route.about is not None and route.about.takes is None:
                _require_nothing(request)
        except RequestError as error:
            if request.method not in READING:
                await note_refusal(admitted, error, self._plane.writer, self._plane.time)
            raise
        return admitted

    async def _document(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()
        if not self._written:  # once: it takes long, and everybody waits for it
            self._written = openapi.text(openapi.document(self.all_routes)).encode()
        return ApiResponse(200, self._written)

    def _principal(self, request: ApiRequest) -> Principal:
        token = bearer(request)
        if token:
            try:
                return self._plane.operators.identify(token, self._token)
            except RequestError as error:
                self._strangers.met(error, self._plane.time.now_ns())
                raise
        if self._token is not None or request.header("authorization"):
            raise RequestError(
                ErrorCode.UNAUTHORIZED, "an operator token is needed: Authorization: Bearer <token>"
            )
        if not _names_loopback(request.header("host")):
            # A web page can make a browser send here by pointing a name at 127.0.0.1.
            raise RequestError(
                ErrorCode.FORBIDDEN, "without a token this API is called by a loopback address"
            )
        if _is_foreign_page(request):
            # Without a token, and without a body's type, a browser asks nobody before it sends.
            raise RequestError(
                ErrorCode.FORBIDDEN, "without a token this API is not for pages of other origins"
            )
        return LOOPBACK


class _Nothing(Struct, frozen=True):
    """The body of a call that takes none."""


def _require_nothing(request: ApiRequest) -> None:
    """Refuse a body that would be passed over: who sends it means something by it.

    Raises:
        RequestError: ERR_VALIDATION, ERR_MALFORMED_JSON.
    """
    if request.body and request.method not in READING:
        wire.decode(_Nothing, request.body, strict=True)


class _Strangers:
    """Says that wrong tokens are presented, once a minute at most: each may be a guess."""

    def __init__(self) -> None:
        self._count = 0
        self._said_ns: int | None = None

    def met(self, error: RequestError, now_ns: int) -> None:
        self._count += 1
        if self._said_ns is not None and now_ns - self._said_ns < STRANGERS_GAP_NS:
            return
        _log.warning(
            "%d calls of operators were refused since this was last said; the latest: %s",
            self._count,
            error,
            extra={"action": "operator_unauthorized", "calls": self._count},
        )
        self._count, self._said_ns = 0, now_ns


def _check_scope(principal: Principal | None, route: Route) -> None:
    """Refuse a call that its token does not allow; what names no scope is for the server's own."""
    if principal is None or (route.scope is None and principal.token_id is not None):
        raise RequestError(ErrorCode.FORBIDDEN, "this call is for the server's own token only")
    if route.scope is not None and route.scope not in principal.scopes:
        raise RequestError(
            ErrorCode.FORBIDDEN,
            f"this call needs the scope {route.scope}, which the token {principal.name} does not"
            " have",
        )


def _is_foreign_page(request: ApiRequest) -> bool:
    """Whether a browser sends this for a page that did not come from here (Fetch, 3.2 and 3.6)."""
    origin = request.header("origin")
    if origin and origin.partition("://")[2] != request.header("host"):
        return True
    return request.header("sec-fetch-site") in ("cross-site", "same-site")


def _names_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.removeprefix("[").removesuffix("]").lower()
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
