"""Operators' tokens, and those that agents enrol with."""

from typing import Annotated

from msgspec import Struct

from netsonde.server.about import words
from netsonde.server.answers.values import Count, Cursor, Id, Instant
from netsonde.server.scopes import Scope


class Token(Struct, frozen=True, kw_only=True):
    """An operator's token, without itself."""

    token_id: Id
    name: str
    scopes: tuple[Annotated[str, words([*Scope])], ...]
    created_at: Instant
    expires_at: Instant | None
    last_used_at: Instant | None


class TokenPage(Struct, frozen=True, kw_only=True):
    """Some operators' tokens."""

    tokens: tuple[Token, ...]
    cursor: Cursor


class MadeToken(Token, frozen=True, kw_only=True):
    """A token, shown this once: null where an Idempotency-Key was answered again."""

    token: str | None


class EnrolmentToken(Struct, frozen=True, kw_only=True):
    """A token that agents enrol with, without itself."""

    token_id: Id
    name: str | None
    uses: Count
    used: Count
    labels: dict[str, str]
    created_at: Instant
    expires_at: Instant


class EnrolmentTokenPage(Struct, frozen=True, kw_only=True):
    """Some enrolment tokens."""

    enrolment_tokens: tuple[EnrolmentToken, ...]
    cursor: Cursor


class MadeEnrolmentToken(EnrolmentToken, frozen=True, kw_only=True):
    """An enrolment token, shown this once: null where an Idempotency-Key was answered again."""

    token: str | None


class TokenDeleted(Struct, frozen=True, kw_only=True):
    """A token that is no more."""

    token_id: Id
