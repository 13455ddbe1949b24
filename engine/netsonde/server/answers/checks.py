"""Checks and what became of their ticks."""

from msgspec import Struct

from netsonde.server.answers.values import Count, Cursor, Id, Instant
from netsonde.server.checks import CheckDefinition


class Check(CheckDefinition, frozen=True, kw_only=True, omit_defaults=True):
    """A check: its definition, what is default left out, and how far it is.

    `tasks` were made so far; `skipped` ticks were left out, because the one before had not ended;
    of `missed` ones there is no result although there is one of a later tick.
    """

    check_id: Id
    enabled: bool
    tasks: Count
    skipped: Count
    missed: Count
    next_at: Instant | None
    created_at: Instant


class CheckPage(Struct, frozen=True, kw_only=True):
    """Some checks, the oldest first."""

    checks: tuple[Check, ...]
    cursor: Cursor


class CheckCancelled(Struct, frozen=True, kw_only=True):
    """How much was called off of what was queued or running."""

    check_id: Id
    cancelled: Count


class CheckRun(Struct, frozen=True, kw_only=True):
    """How many tasks a tick made, and how many it left out because theirs had not ended."""

    check_id: Id
    tasks: Count
    skipped: Count
