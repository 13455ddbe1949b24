"""Who sends a request: its credentials, and whether its agent knows the contract."""

from netsonde.errors import ErrorCode, RequestError
from netsonde.model import ID_MAX, RegisterRequest
from netsonde.server.api import ApiRequest
from netsonde.server.registry import identity_of
from netsonde.server.store.agents import AgentRow

ID_DIGITS_MAX = len(str(ID_MAX))  # Python refuses to read a number of thousands
ORIGINAL_AGENT = "codecrafters-agent/"


def credentials(request: ApiRequest) -> tuple[int, str]:
    """Return the agent's id and token.

    Raises:
        RequestError: one of them is missing, or the id is none.
    """
    text = request.header("x-agent-id").strip()
    token = request.header("x-agent-token").strip() or bearer(request)
    if not text or not token:
        raise RequestError(
            ErrorCode.UNAUTHORIZED, "X-Agent-Id and X-Agent-Token (or Bearer) are needed"
        )
    digits = text.lstrip("0")
    is_number = text.isascii() and text.isdecimal() and 0 < len(digits) <= ID_DIGITS_MAX
    if not is_number or int(digits) > ID_MAX:
        raise RequestError(ErrorCode.VALIDATION, "X-Agent-Id must be a positive integer")
    return int(digits), token


def bearer(request: ApiRequest) -> str:
    """Return the bearer token of a request, empty when it has none."""
    scheme, _, token = request.header("authorization").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def check_same(agent: AgentRow, agent_id: int) -> None:
    """Check that a body is about the agent that sent it.

    Raises:
        RequestError: it is about another.
    """
    if agent.agent_id != agent_id:
        raise RequestError(ErrorCode.FORBIDDEN, "agent_id is not the agent of X-Agent-Id")


def register_key(body: RegisterRequest, request: ApiRequest) -> str:
    """Return whose registrations are counted together: one agent's, else one address's."""
    return identity_of(body) or f"remote:{request.remote}"


def is_legacy(request: ApiRequest) -> bool:
    """Whether the sender does not name this protocol: what is newer than the original's is off."""
    return not request.header("netsonde-protocol")


def is_original(request: ApiRequest) -> bool:
    """Whether the sender is an original agent, which takes nothing but its own answers."""
    return request.header("user-agent").startswith(ORIGINAL_AGENT)
