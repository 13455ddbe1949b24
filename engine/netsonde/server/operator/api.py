"""The operator API as a whole: its calls, and who may make them. Strict about what it reads."""

import ipaddress
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
from netsonde.server.handlers import bearer, health_routes
from netsonde.server.operator.agents import AgentCalls
from netsonde.server.operator.audit import AuditCalls
from netsonde.server.operator.checks import CheckCalls
from netsonde.server.operator.configs import ConfigCalls
from netsonde.server.operator.dead_letters import DeadLetterCalls
from netsonde.server.operator.fleet import FleetCalls
from netsonde.server.operator.metrics import MetricCalls
from netsonde.server.operator.queues import QueueCalls
from netsonde.server.operator.results import ResultCalls
from netsonde.server.operator.tasks import TaskCalls
from netsonde.server.operator.tokens import EnrolmentTokenCalls, TokenCalls
from netsonde.server.queries import Query
from netsonde.server.scopes import LOOPBACK, Principal, Scope

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
)
OPEN_PATHS = ("/livez", "/readyz")  # for supervisors, who hold no token
READING = ("GET", "HEAD")
DOCUMENT = About("Show this document.", dict[str, Any])


class OperatorApi(Api):
    """The calls of contract section 9."""

    name = "operator"

    def __init__(self, plane: ControlPlane, token: str | None = None) -> None:
        self._plane = plane
        self._token = token
        self.routes = [
            *(route for resource in RESOURCES for route in resource(plane).routes()),
            Route("GET", "/openapi.json", self._document, scope=Scope.READ, about=DOCUMENT),
        ]
        self.all_routes = [*self.routes, *health_routes(plane)]
        super().__init__(self.all_routes)
        plane.requests[self.name] = self.requests

    def check_sender(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Refuse who is no operator before the body is read."""
        self._principal(ApiRequest(method=method, path=path, headers=headers))

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
        except RequestError as error:
            if request.method not in READING:
                await note_refusal(admitted, error, self._plane.writer, self._plane.time)
            raise
        return admitted

    async def _document(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()
        return ApiResponse(200, openapi.text(openapi.document(self.all_routes)).encode())

    def _principal(self, request: ApiRequest) -> Principal:
        token = bearer(request)
        if token:
            return self._plane.operators.identify(token, self._token)
        if self._token is not None or request.header("authorization"):
            raise RequestError(
                ErrorCode.UNAUTHORIZED, "an operator token is needed: Authorization: Bearer <token>"
            )
        if not _names_loopback(request.header("host")):
            # A web page can make a browser send here by pointing a name at 127.0.0.1.
            raise RequestError(
                ErrorCode.FORBIDDEN, "without a token this API is called by a loopback address"
            )
        return LOOPBACK


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


def _names_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.removeprefix("[").removesuffix("]").lower()
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
