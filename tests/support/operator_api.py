"""The real operator API behind the commands' client, without sockets."""

from urllib.parse import parse_qsl

from netsonde.control_plane.memory import MemoryControlPlaneTransport
from netsonde.control_plane.operator import OperatorClient
from netsonde.control_plane.transport import TransportRequest, TransportResponse
from netsonde.server.api import ApiRequest
from netsonde.tls import ClientTls
from support.stores import Caller


class LocalOperatorApi:
    """Makes clients whose requests a control plane in this process answers."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.token: str | None = None

    def client(
        self, url: str, *, token: str | None = None, tls: ClientTls | None = None
    ) -> OperatorClient:
        """Take the place of the client's constructor."""
        assert tls in (None, ClientTls())
        self.token = token
        return OperatorClient(url, token=token, transport=MemoryControlPlaneTransport(self._answer))

    async def _answer(self, request: TransportRequest) -> TransportResponse:
        path, _, query = request.path.partition("?")
        answer = await self.caller.operators.dispatch(
            ApiRequest(
                method=request.method,
                path=path,
                query=parse_qsl(query),
                headers={"host": "localhost"}
                | {name.lower(): value for name, value in request.headers.items()},
                body=request.body,
                received_ns=self.caller.plane.time.now_ns(),
                remote="127.0.0.1",
            )
        )
        return TransportResponse(answer.status, answer.headers, answer.body)
