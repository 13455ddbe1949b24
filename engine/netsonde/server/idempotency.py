"""Idempotency-Key: the same request under the same key happens once and is answered alike."""

import hashlib
from collections.abc import Callable

from netsonde.clock import NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.api import ApiRequest, ApiResponse, refuse
from netsonde.server.store import Store
from netsonde.server.store.base import RememberedAnswer

KEY_MAX_CHARS = 255
KEPT_NS = 24 * 3600 * NS_PER_S
FORGET_MAX = 1_000  # answers at once, so that a day's do not go in one transaction after a rest

Committed = Callable[[], None]
Operation = Callable[[Store], tuple[ApiResponse, Committed]]


def key_of(request: ApiRequest) -> str:
    """Return a request's key, empty when it has none.

    Raises:
        RequestError: ERR_VALIDATION, it is empty or too long.
    """
    given = request.headers.get("idempotency-key")
    if given is None:
        return ""
    if not 0 < len(given) <= KEY_MAX_CHARS:
        refuse("Idempotency-Key", f"Idempotency-Key must have 1 to {KEY_MAX_CHARS} characters")
    return _own_key(request, given)


def remembered(request: ApiRequest, operation: Operation, now_ns: int) -> Operation:
    """Make a POST's operation remember its answer in its own transaction.

    Raises:
        RequestError: ERR_VALIDATION when the key is too long; inside the operation ERR_CONFLICT
            when the key was used for something else.
    """
    key = key_of(request)
    if request.method != "POST" or not key:
        return operation
    asked = b"\0".join((request.method.encode(), request.path.encode(), request.body))
    digest = hashlib.sha256(asked).digest()

    def once(store: Store) -> tuple[ApiResponse, Committed]:
        known = store.recall(key)
        if known is not None:
            if known.body_digest != digest:
                raise RequestError(
                    ErrorCode.CONFLICT, "this Idempotency-Key was used for another request"
                )
            return ApiResponse(known.status, known.body), _nothing
        response, committed = operation(store)
        body = response.body if response.kept is None else response.kept
        store.remember(key, RememberedAnswer(digest, response.status, body), now_ns)
        return response, committed

    return once


def _own_key(request: ApiRequest, key: str) -> str:
    """Keep the keys of one token apart from those of others, whose answers are not its."""
    principal = request.principal
    is_named = principal is not None and principal.token_id is not None
    return f"token {principal.token_id}: {key}" if principal and is_named else key


def _nothing() -> None:
    """Do nothing: what was to happen happened the first time."""
