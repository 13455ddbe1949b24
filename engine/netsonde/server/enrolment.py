"""Enrolment: which agents may become known, and what labels they get by the token they present."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace

from netsonde import wire
from netsonde.clock import rfc3339
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import RegisterRequest
from netsonde.server.config import ServerConfig
from netsonde.server.store import Store
from netsonde.server.store.access import EnrolmentRow, EnrolmentTokenRow
from netsonde.server.tokens import token_digest


@dataclass(frozen=True, slots=True)
class Admission:
    """That an agent may register; `spent` is the token that this is a use of."""

    labels: bytes = b"{}"
    spent: EnrolmentTokenRow | None = None

    def note(self, store: Store, identity: str, now_ns: int) -> None:
        """Count the use of the token, in the transaction that makes the agent known."""
        if self.spent is None:
            return
        store.save_enrolment_token(replace(self.spent, uses=self.spent.uses + 1))
        store.save_enrolment(EnrolmentRow(identity, self.spent.token_id, self.labels, now_ns))

    def label(self, own: Mapping[str, str], limit: int) -> dict[str, str]:
        """Return an agent's own labels under those that its token gave it, so many at most."""
        given: dict[str, str] = wire.parse(self.labels)
        rest = {name: value for name, value in own.items() if name not in given}
        room = max(limit - len(given), 0)
        return dict(sorted({**dict(sorted(rest.items())[:room]), **given}.items()))


class Enrolment:
    """Decides who may register; changes nothing by itself."""

    def __init__(self, config: ServerConfig) -> None:
        self._is_open = config.is_enrolment_open
        self._file_token = config.enrolment_token

    def admit(
        self,
        store: Store,
        request: RegisterRequest,
        identity: str | None,
        *,
        is_known: bool,
        now_ns: int,
    ) -> Admission:
        """Let an agent register: it is known by its key, or presents a token, or all may.

        A hostname is no secret: who is known by it alone needs a token like a new one.

        Raises:
            RequestError: ERR_ENROLMENT_REQUIRED; says what is wrong with the token.
        """
        past = None if identity is None else store.enrolment(identity)
        labels = b"{}" if past is None else past.labels
        if is_known and request.agent_key:
            return Admission(labels)
        try:
            return self._by_token(store, request.enrolment_token, past, now_ns)
        except RequestError:
            if self._is_open:
                return Admission(labels)
            raise

    def _by_token(
        self, store: Store, token: str | None, past: EnrolmentRow | None, now_ns: int
    ) -> Admission:
        if not token:
            raise _refusal(
                "this control plane registers new agents that present an enrolment token"
            )
        if self._file_token is not None and _is_same(token, self._file_token):
            return Admission(b"{}" if past is None else past.labels)
        row = store.enrolment_token_of(token_digest(token))
        if row is None:
            raise _refusal("this enrolment token is not known here, or was revoked")
        if past is not None and past.token_id == row.token_id:
            return Admission(past.labels)  # the answer to its first use was lost
        if row.expires_ns <= now_ns:
            raise _refusal(f"this enrolment token expired at {rfc3339(row.expires_ns)}")
        if row.uses >= row.uses_max:
            raise _refusal("this enrolment token has been used as often as it may be")
        return Admission(row.labels, row)


def _is_same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _refusal(message: str) -> RequestError:
    return RequestError(ErrorCode.ENROLMENT_REQUIRED, message)
