"""Operators' tokens, enrolment and the audit log as a store keeps them."""

from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTokenRow:
    """A token of an operator, hashed. `name` is unique; `expires_ns` None: never."""

    token_id: int
    name: str
    digest: bytes
    scopes: tuple[str, ...]
    created_ns: int
    expires_ns: int | None = None
    last_used_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentTokenRow:
    """A token that new agents enrol with, hashed. `labels` are theirs once they did."""

    token_id: int
    name: str | None
    digest: bytes
    uses_max: int
    uses: int = 0
    labels: bytes = b"{}"
    created_ns: int
    expires_ns: int


@dataclass(frozen=True, slots=True)
class EnrolmentRow:
    """Which token an agent enrolled with last, and the labels it got by that."""

    identity: str
    token_id: int
    labels: bytes
    enrolled_ns: int


class AuditRow(Struct, frozen=True, kw_only=True):
    """A call of an operator. `error` None: it changed something; `audit_id` 0: not yet kept."""

    audit_id: int = 0
    at_ns: int
    token_id: int | None
    token_name: str
    remote: str
    call: str
    object: str
    status: int
    error: str | None
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """Which calls are wanted; `position` is the id that the page before ended with."""

    limit: int
    position: int | None = None
    descending: bool = True
    token: str | None = None
    from_ns: int | None = None
    to_ns: int | None = None


class AccessStore(Protocol):
    """Verbs over who may do what, and who did."""

    def new_token_id(self) -> int:
        """Return an id no token of either kind has had."""
        ...

    def save_operator_token(self, token: OperatorTokenRow) -> None:
        """Insert or replace an operator's token."""
        ...

    def operator_tokens(self, after: int, limit: int) -> list[OperatorTokenRow]:
        """Return operators' tokens by id, those above `after`."""
        ...

    def operator_token_named(self, name: str) -> OperatorTokenRow | None:
        """Return the operator's token of that name."""
        ...

    def operator_token_count(self) -> int:
        """Return how many operators' tokens there are."""
        ...

    def used_operator_token(self, token_id: int, used_ns: int) -> None:
        """Note when a token was last used."""
        ...

    def delete_operator_token(self, token_id: int) -> bool:
        """Remove an operator's token; return whether there was one."""
        ...

    def save_enrolment_token(self, token: EnrolmentTokenRow) -> None:
        """Insert or replace an enrolment token."""
        ...

    def enrolment_tokens(self, after: int, limit: int) -> list[EnrolmentTokenRow]:
        """Return enrolment tokens by id, those above `after`."""
        ...

    def enrolment_token_of(self, digest: bytes) -> EnrolmentTokenRow | None:
        """Return the enrolment token of a hash."""
        ...

    def enrolment_token_count(self) -> int:
        """Return how many enrolment tokens there are."""
        ...

    def delete_enrolment_token(self, token_id: int) -> bool:
        """Remove an enrolment token; return whether there was one."""
        ...

    def save_enrolment(self, enrolment: EnrolmentRow) -> None:
        """Note how an agent enrolled, in place of how it did before."""
        ...

    def enrolment(self, identity: str) -> EnrolmentRow | None:
        """Return how an agent enrolled."""
        ...

    def forget_tokens(self, before_ns: int) -> int:
        """Drop tokens of both kinds that expired before then; return how many."""
        ...

    def add_audit(self, call: AuditRow) -> None:
        """Append a call to the log."""
        ...

    def audit(self, query: AuditQuery) -> list[AuditRow]:
        """Return calls in the order asked for."""
        ...

    def forget_audit(self, before_ns: int, keep: int, keep_refused: int, limit: int) -> int:
        """Drop calls of before then, and those that are more than so many; return how many.

        The newest stay. Of each reason at most `limit` are dropped at once.
        """
        ...
