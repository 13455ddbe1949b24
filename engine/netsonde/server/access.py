"""Operators' tokens: who holds one, and when it was last used.

The store is the truth; every token is also kept here, hashed, so that a call needs no query.
"""

import hmac
from collections.abc import Iterable
from dataclasses import replace

from netsonde.clock import NS_PER_S, rfc3339
from netsonde.errors import ErrorCode, RequestError
from netsonde.server.leasing import ServerTime
from netsonde.server.scopes import TOKEN_FILE, Principal, Scope
from netsonde.server.store import Store, StoreWriter
from netsonde.server.store.access import OperatorTokenRow
from netsonde.server.tokens import token_digest

TOKENS_MAX = 200  # each of them is compared with what a call presents
EXPIRED_KEPT_NS = 30 * 86_400 * NS_PER_S  # a token is listed for so long after it expired
FLUSH_USED_NS = 10 * NS_PER_S  # a call is not worth a commit


class OperatorTokens:
    """Knows operators by their tokens. `file_token` is the one of the server's own file."""

    def __init__(self, time: ServerTime, writer: StoreWriter) -> None:
        self._time = time
        self._writer = writer
        self._rows: dict[int, OperatorTokenRow] = {}
        self._used: dict[int, int] = {}
        self._flushed_ns = time.now_ns()

    def load(self, store: Store) -> None:
        """Read every token."""
        self._rows = {row.token_id: row for row in store.operator_tokens(0, TOKENS_MAX)}

    def keep(self, row: OperatorTokenRow) -> None:
        """Take over a token that was committed."""
        self._rows[row.token_id] = row

    def drop(self, token_ids: Iterable[int]) -> None:
        """Forget tokens whose removal was committed."""
        for token_id in token_ids:
            self._rows.pop(token_id, None)
            self._used.pop(token_id, None)

    def drop_expired(self, before_ns: int) -> None:
        """Forget tokens that expired before then, as the store has."""
        rows = self._rows.values()
        self.drop([one.token_id for one in rows if one.expires_ns and one.expires_ns < before_ns])

    def last_used_ns(self, row: OperatorTokenRow) -> int | None:
        """Return when a token was last used; None: never."""
        return max(row.last_used_ns or 0, self._used.get(row.token_id, 0)) or None

    def identify(self, token: str, file_token: str | None) -> Principal:
        """Return whose token this is.

        Raises:
            RequestError: ERR_UNAUTHORIZED, ERR_TOKEN_EXPIRED.
        """
        digest = token_digest(token)
        # All of them are compared, so that time does not tell how near a guess was.
        is_file = file_token is not None and hmac.compare_digest(digest, token_digest(file_token))
        found = [row for row in self._rows.values() if hmac.compare_digest(row.digest, digest)]
        if is_file:
            return TOKEN_FILE
        if not found:
            raise RequestError(
                ErrorCode.UNAUTHORIZED, "this operator token is not known here, or was revoked"
            )
        row, now_ns = found[0], self._time.now_ns()
        _require_alive(row, now_ns)
        self._used[row.token_id] = now_ns
        known = frozenset(Scope)
        scopes = frozenset(Scope(name) for name in row.scopes if name in known)
        return Principal(row.name, scopes, row.token_id)

    def check(self, principal: Principal | None) -> None:
        """Look whether who began a call that lasts may still make it.

        Raises:
            RequestError: ERR_UNAUTHORIZED, ERR_TOKEN_EXPIRED.
        """
        if principal is None or principal.token_id is None:
            return  # admitted by what lasts as long as this process
        row = self._rows.get(principal.token_id)
        if row is None:
            raise RequestError(
                ErrorCode.UNAUTHORIZED, f"the operator token {principal.name} was revoked"
            )
        _require_alive(row, self._time.now_ns())

    async def flush_used(self, *, at_once: bool = False) -> None:
        """Write down when tokens were last used, now and then."""
        now_ns = self._time.now_ns()
        if not self._used or (not at_once and now_ns - self._flushed_ns < FLUSH_USED_NS):
            return
        self._flushed_ns = now_ns
        used = dict(self._used)

        def operation(store: Store) -> None:
            for token_id, used_ns in used.items():
                store.used_operator_token(token_id, used_ns)

        await self._writer.write(operation)
        for token_id, used_ns in used.items():
            if self._used.get(token_id) == used_ns:  # not used meanwhile
                del self._used[token_id]
            row = self._rows.get(token_id)
            if row is not None:
                self._rows[token_id] = replace(row, last_used_ns=used_ns)


def _require_alive(row: OperatorTokenRow, now_ns: int) -> None:
    if row.expires_ns is not None and row.expires_ns <= now_ns:
        raise RequestError(
            ErrorCode.TOKEN_EXPIRED,
            f"the operator token {row.name} expired at {rfc3339(row.expires_ns)}",
        )
