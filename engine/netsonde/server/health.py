"""The two calls that tell a supervisor how the process is."""

from netsonde.errors import ErrorCode, RequestError
from netsonde.server.agent_calls import LIVEZ, READYZ
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok
from netsonde.server.core import ControlPlane


def health_routes(plane: ControlPlane) -> list[Route]:
    """Return these calls."""

    async def livez(_: ApiRequest) -> ApiResponse:
        return ok({"status": "ok"})

    async def readyz(_: ApiRequest) -> ApiResponse:
        if not plane.is_ready:
            raise RequestError(ErrorCode.UNAVAILABLE, "the control plane is shutting down")
        await plane.writer.read(lambda store: store.counters())
        return ok(plane.storage.health())

    return [
        Route("GET", "/livez", livez, about=LIVEZ, is_for_supervisors=True),
        Route("GET", "/readyz", readyz, about=READYZ, is_for_supervisors=True),
    ]
