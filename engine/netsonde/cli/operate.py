"""How the operator commands reach the operator API."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from netsonde.cli.loop import run
from netsonde.cli.options import read_token
from netsonde.cli.tls import operator_tls
from netsonde.control_plane.operator import OperatorClient
from netsonde.errors import NetsondeError, TransportError

T = TypeVar("T")

HINT = "is `netsonde up` or `netsonde server run` running there? --server URL names another"


def operate(
    server_url: str, token_file: Path | None, work: Callable[[OperatorClient], Awaitable[T]]
) -> T:
    """Run work with a client of the operator API at server_url.

    Raises:
        ConfigError: a token or certificate file cannot be used.
        NetsondeError: the API cannot be reached; says what to look at.
    """

    async def main() -> T:
        async with OperatorClient(server_url, token=token, tls=tls) as client:
            try:
                return await work(client)
            except TransportError as error:
                raise NetsondeError(f"{error}; {HINT}") from error

    token = read_token(token_file)
    tls = operator_tls(server_url)
    return run(main())
