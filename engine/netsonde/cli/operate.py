"""How the operator commands reach the operator API."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from netsonde.cli.loop import run
from netsonde.cli.options import OPERATOR_TOKEN_VARIABLE, operator_token
from netsonde.cli.tls import operator_tls
from netsonde.control_plane.operator import OperatorClient
from netsonde.errors import ControlPlaneError, NetsondeError, TransportError

T = TypeVar("T")

HINT = "is `netsonde up` or `netsonde server run` running there? --server URL names another"
TOKEN_HINT = (
    "name the file of an operator token with --token-file or NETSONDE_OPERATOR_TOKEN_FILE,"
    f" or put the token into {OPERATOR_TOKEN_VARIABLE}"
)
UNAUTHORIZED = 401


def operate(
    server_url: str, token_file: Path | None, work: Callable[[OperatorClient], Awaitable[T]]
) -> T:
    """Run work with a client of the operator API at server_url.

    Raises:
        ConfigError: a token or certificate file cannot be used.
        NetsondeError: the API cannot be reached, or wants a token; says what to look at.
    """

    async def main() -> T:
        async with OperatorClient(server_url, token=token, tls=tls) as client:
            try:
                return await work(client)
            except TransportError as error:
                raise NetsondeError(f"{error}; {HINT}") from error
            except ControlPlaneError as error:
                if error.status == UNAUTHORIZED:
                    raise NetsondeError(f"{error}; {TOKEN_HINT}") from error
                raise

    token = operator_token(token_file)
    tls = operator_tls(server_url)
    return run(main())
