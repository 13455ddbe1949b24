"""The operator API as a whole: its calls, and who may make them. Strict about what it reads."""

import hmac
import ipaddress

from netsonde.errors import ErrorCode, RequestError
from netsonde.server.api import Api, ApiRequest, Route, require_json
from netsonde.server.core import ControlPlane
from netsonde.server.handlers import bearer, health_routes
from netsonde.server.operator.agents import AgentCalls
from netsonde.server.operator.checks import CheckCalls
from netsonde.server.operator.queues import QueueCalls
from netsonde.server.operator.results import ResultCalls
from netsonde.server.operator.storage import StorageCalls
from netsonde.server.operator.tasks import TaskCalls

RESOURCES = (CheckCalls, TaskCalls, ResultCalls, AgentCalls, QueueCalls, StorageCalls)


class OperatorApi(Api):
    """The calls of contract section 9."""

    name = "operator"

    def __init__(self, plane: ControlPlane, token: str | None = None) -> None:
        self._token = token
        routes = [route for resource in RESOURCES for route in resource(plane).routes()]
        super().__init__([*routes, *health_routes(plane)])

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


def _names_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.removeprefix("[").removesuffix("]").lower()
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
