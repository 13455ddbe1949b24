"""What both APIs share: requests, responses, routes, and an envelope for every failure.

Nothing here knows of sockets: `app` turns HTTP into `ApiRequest` and back, simulations call
`dispatch` directly.
"""

import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from netsonde import wire
from netsonde.errors import ErrorCode, RequestError, StorageError
from netsonde.server.about import About
from netsonde.server.accepting import require_acceptable
from netsonde.server.scopes import Principal, Scope

PROTOCOL = "1"
JSON = "application/json"
_log = logging.getLogger("netsonde.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One request. Header names are lower case; `received_ns` is the server's clock.

    A body that is a stream comes as `chunks`, and `body` is empty. `call` is the route that was
    found, such as `GET /v1/checks/{id}`; `principal` is set where callers are told apart by scopes.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    chunks: AsyncIterator[bytes] | None = None
    received_ns: int = 0
    remote: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    call: str = ""
    principal: Principal | None = None

    def header(self, name: str) -> str:
        """Return a header's value, empty when it is absent."""
        return self.headers.get(name, "")


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """One answer. One that is a stream comes as `chunks`, and whoever sends it closes them.

    `about` names what was made or changed, for the audit log. `kept` is what may be remembered of a
    body that holds a secret.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: AsyncGenerator[bytes] | None = None
    about: str = ""
    kept: bytes | None = None


Handler = Callable[[ApiRequest], Awaitable[ApiResponse]]


@dataclass(frozen=True, slots=True)
class Route:
    """One call: a method, a path whose `{name}` parts are variables, and its body's limit.

    One that `takes_lines` takes its body as a stream of NDJSON as well. `scope` is what an operator
    needs for it. `about` is what the API's document says of it. One that is for supervisors is
    answered whatever they say they read.
    """

    method: str
    path: str
    handler: Handler
    max_bytes: int = wire.BODY_MAX_BYTES
    takes_lines: bool = False
    scope: Scope | None = None
    about: About | None = None
    is_for_supervisors: bool = False


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._fixed: dict[str, dict[str, Route]] = {}
        self._open: list[tuple[tuple[str, ...], Route]] = []
        for route in routes:
            if "{" in route.path:
                self._open.append((tuple(route.path.split("/")), route))
            else:
                self._fixed.setdefault(route.path, {})[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return the route and the path's variables.

        Raises:
            RequestError: ERR_NOT_FOUND, or MethodError with the methods that are allowed.
        """
        variables: dict[str, dict[str, str]] = {}
        routes = dict(self._fixed.get(path, {}))
        if not routes:
            for parts, route in self._open:
                bound = _bind(parts, path.split("/"))
                if bound is not None:
                    routes[route.method] = route
                    variables[route.method] = bound
        if method in routes:
            return routes[method], variables.get(method, {})
        if routes:
            raise MethodError(method, path, sorted(routes))
        raise RequestError(ErrorCode.NOT_FOUND, f"there is nothing at {path[:200]}")


class MethodError(RequestError):
    """The path exists, the method does not."""

    def __init__(self, method: str, path: str, allowed: Sequence[str]) -> None:
        names = ", ".join(allowed)
        super().__init__(
            ErrorCode.METHOD_NOT_ALLOWED, f"{path[:200]} takes {names}, not {method[:20]}"
        )
        self.allow = names


def _bind(parts: Sequence[str], given: Sequence[str]) -> dict[str, str] | None:
    if len(parts) != len(given):
        return None
    bound: dict[str, str] = {}
    for part, value in zip(parts, given, strict=True):
        if part.startswith("{"):
            if not value:
                return None
            bound[part[1:-1]] = value
        elif part != value:
            return None
    return bound


class Api:
    """One listener's calls: routes them, and answers whatever goes wrong with the envelope."""

    name = "api"

    def __init__(self, routes: Sequence[Route]) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()  # by call and class of status
        self._router = Router(routes)

    def body_limit(self, method: str, path: str) -> int:
        """Return how many bytes a request's body may have; the router's own refusals need none."""
        try:
            return self._router.find(method, path)[0].max_bytes
        except RequestError:
            return wire.BODY_MAX_BYTES

    def takes_lines(self, method: str, path: str, media_type: str) -> bool:
        """Whether a request's body is a stream that its handler reads as it comes."""
        if media_type.partition(";")[0].strip().lower() != wire.NDJSON:
            return False
        try:
            return self._router.find(method, path)[0].takes_lines
        except RequestError:
            return False

    def check_sender(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """Refuse who may not call at all before the body is read, which may be large.

        Return whether it is known who the sender is.
        """
        return False

    async def dispatch(self, request: ApiRequest) -> ApiResponse:
        """Answer a request; never raises but for cancellation."""
        request_id = new_request_id()
        call = "none"
        try:
            route, variables = self._router.find(request.method, request.path)
            found = replace(
                request,
                variables=variables,
                request_id=request_id,
                call=f"{route.method} {route.path}",
            )
            call = self.call_name(route)
            admitted = await self.admit(found, route)
            if not route.is_for_supervisors:
                require_acceptable(request.header("accept"), route.about)
            answer = await route.handler(admitted)
        except Exception as error:
            refusal = _refusal(error, request, request_id)
            self.requests[call, f"{refusal.facts.status // 100}xx"] += 1
            return problem(refusal, request_id)
        self.requests[call, f"{answer.status // 100}xx"] += 1
        return ApiResponse(
            answer.status,
            answer.body,
            {**standard_headers(request_id), **answer.headers},
            answer.chunks and _guarded(answer.chunks, request, request_id),
        )

    async def admit(self, request: ApiRequest, route: Route) -> ApiRequest:
        """Refuse what may not be answered at all; return the request, with who makes it."""
        return request

    def call_name(self, route: Route) -> str:
        """Return what a route is called where requests are counted."""
        return route.path


async def _guarded(
    chunks: AsyncGenerator[bytes], request: ApiRequest, request_id: str
) -> AsyncGenerator[bytes]:
    """Pass a stream on; whatever goes wrong in it becomes its last line."""
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield chunk
        except ConnectionError:
            return  # who asked has gone
        except Exception as error:
            refusal = _refusal(error, request, request_id)
            yield wire.error_line(wire.error_body(refusal, request_id))


def _refusal(error: Exception, request: ApiRequest, request_id: str) -> RequestError:
    """Return what a failure is answered with; what is not the asker's fault is logged."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, StorageError):
        _log.error(
            "storage: %s",
            error,
            extra={"action": "storage_failed", "request_id": request_id, "path": request.path},
        )
    else:
        _log.error(
            "internal error",
            exc_info=error,
            extra={"action": "internal_error", "request_id": request_id, "path": request.path},
        )
    return _internal()


def new_request_id() -> str:
    """Return an id that ties an answer to the log."""
    return secrets.token_hex(16)


def standard_headers(request_id: str) -> dict[str, str]:
    """Return what every answer carries."""
    return {
        "Content-Type": JSON,
        "Netsonde-Protocol": PROTOCOL,
        "X-Request-Id": request_id,
        "Cache-Control": "no-store",
        "Server": "netsonde",
    }


def problem(error: RequestError, request_id: str | None = None) -> ApiResponse:
    """Make the answer of a request that failed."""
    request_id = request_id or new_request_id()
    headers = standard_headers(request_id)
    if error.facts.status in (429, 503, 507):
        hint_ms = error.retry_after_ms = max(error.retry_after_ms or 0, 1_000)
        headers["Retry-After"] = str(-(-hint_ms // 1_000))
    if isinstance(error, MethodError):
        headers["Allow"] = error.allow
    if error.facts.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return ApiResponse(error.facts.status, wire.error_body(error, request_id), headers)


def ok(value: Any, status: int = 200, *, about: str = "") -> ApiResponse:
    """Answer with a value; `about` names what was made or changed, where the path does not."""
    return ApiResponse(status, wire.encode(value), about=about)


def lines(chunks: AsyncGenerator[bytes]) -> ApiResponse:
    """Answer with a stream of NDJSON, which proxies that can be told are told not to keep."""
    headers = {"Content-Type": wire.NDJSON, "X-Accel-Buffering": "no"}
    return ApiResponse(200, headers=headers, chunks=chunks)


def fed(received: wire.Lines, chunk: bytes) -> list[bytes]:
    """Return the lines of a body that a chunk completes.

    Raises:
        RequestError: ERR_TOO_LARGE, a line is, or there are too many.
    """
    try:
        return received.feed(chunk)
    except wire.LineError as error:
        raise RequestError(ErrorCode.TOO_LARGE, str(error)) from error


def require_json(request: ApiRequest) -> None:
    """Refuse a body that is declared to be something other than plain JSON.

    Raises:
        RequestError: ERR_MEDIA_TYPE.
    """
    media_type = request.header("content-type").partition(";")[0].strip().lower()
    if media_type not in ("", JSON):
        raise RequestError(ErrorCode.MEDIA_TYPE, f"the body must be {JSON}, not {media_type[:100]}")
    require_identity(request)


def require_identity(request: ApiRequest) -> None:
    """Refuse a body that is compressed.

    Raises:
        RequestError: ERR_MEDIA_TYPE.
    """
    coding = request.header("content-encoding").strip().lower()
    if coding not in ("", "identity"):
        raise RequestError(
            ErrorCode.MEDIA_TYPE, f"the body must be sent without encoding, not {coding[:100]}"
        )


def refuse(field_name: str, message: str) -> NoReturn:
    """Raise ERR_VALIDATION for one field."""
    raise RequestError(ErrorCode.VALIDATION, message, violations=((f"$.{field_name}", message),))


def _internal() -> RequestError:
    return RequestError(
        ErrorCode.BACKEND, "the control plane failed; its log has the cause under this request_id"
    )
