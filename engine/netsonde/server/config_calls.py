"""An agent's `GET config`: the envelope that is for it, unless it has it already."""

import hashlib
from functools import lru_cache
from typing import Any

from netsonde import wire
from netsonde.dsse import Envelope
from netsonde.errors import ErrorCode, RequestError
from netsonde.remote_config import inspect
from netsonde.server.api import ApiRequest, ApiResponse
from netsonde.server.configs import Configs
from netsonde.server.store.agents import AgentRow

ETAGS_MAX_CHARS = 8_000  # of If-None-Match; a longer one is no agent's
DIGEST_CHARS = 32
DOCUMENTS_KEPT = 16  # a fleet asks for the same one; the largest has a megabyte


async def answer_config(configs: Configs, agent: AgentRow, request: ApiRequest) -> ApiResponse:
    """Answer with an agent's configuration, or that it has not changed.

    Raises:
        RequestError: ERR_NOT_FOUND, none is for this agent.
    """
    row = await configs.config_for(agent)
    if row is None:
        raise RequestError(ErrorCode.NOT_FOUND, "no configuration is published for this agent")
    body, tag = _document(row.envelope)
    headers = {"ETag": f'"{tag}"'}
    if is_match(request.header("if-none-match"), tag):
        return ApiResponse(304, headers=headers)
    return ApiResponse(200, body, headers)


def is_match(header: str, tag: str) -> bool:
    """Whether If-None-Match names a tag: a list, `*`, weak, or without its quotes as originals do.

    Comparison is weak (RFC 9110 13.1.2).
    """
    named = [one.strip() for one in header[:ETAGS_MAX_CHARS].split(",")]
    return any(one == "*" or one.removeprefix("W/").strip('"') == tag for one in named)


@lru_cache(maxsize=DOCUMENTS_KEPT)
def _document(sealed: bytes) -> tuple[bytes, str]:
    """Write an envelope, and beside it the original's five fields: a copy that nobody verified.

    Return the body, and its tag.
    """
    envelope = wire.decode_answer(Envelope, sealed)
    payload = inspect(envelope)
    document: dict[str, Any] = {
        "revision": str(payload.revision),
        "issued_at": payload.issued_at.isoformat(),
        "expires_at": payload.expires_at.isoformat(),
        "config": payload.config,
        "signature": envelope.signatures[0].sig,
        "payload_type": envelope.payload_type,
        "payload": envelope.payload,
        "signatures": envelope.signatures,
    }
    body = wire.encode(document)
    return body, hashlib.sha256(body).hexdigest()[:DIGEST_CHARS]
