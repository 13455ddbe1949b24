"""Operators' tokens, enrolment and the audit log in SQLite."""

from collections.abc import Sequence
from typing import Any

from netsonde.model import MINTED_ID_MAX
from netsonde.server.store.access import (
    AuditQuery,
    AuditRow,
    EnrolmentRow,
    EnrolmentTokenRow,
    OperatorTokenRow,
)
from netsonde.server.store.sqlite_feed import SKEW_NS
from netsonde.server.store.sqlite_tasks import Database

END_NS = 2**63 - 1  # after every instant that a column holds


class SqliteAccess:
    """Verbs over who may do what, and who did."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def new_token_id(self) -> int:
        """Return an id no token of either kind has had."""
        return self._db.next_id("next_token")

    # operators' tokens

    def save_operator_token(self, token: OperatorTokenRow) -> None:
        """Insert or replace an operator's token."""
        self._db.run(
            "save_operator_token",
            token.token_id,
            token.name,
            token.digest,
            " ".join(token.scopes),
            token.created_ns,
            token.expires_ns,
            token.last_used_ns,
        )

    def operator_tokens(self, after: int, limit: int) -> list[OperatorTokenRow]:
        """Return operators' tokens by id, those above `after`."""
        rows = self._db.run("operator_tokens", after, limit).fetchall()
        return [_operator_token(row) for row in rows]

    def operator_token_named(self, name: str) -> OperatorTokenRow | None:
        """Return the operator's token of that name."""
        row = self._db.run("operator_token_named", name).fetchone()
        return None if row is None else _operator_token(row)

    def operator_token_count(self) -> int:
        """Return how many operators' tokens there are."""
        count: int = self._db.run("operator_token_count").fetchone()[0]
        return count

    def used_operator_token(self, token_id: int, used_ns: int) -> None:
        """Note when a token was last used."""
        self._db.run("used_operator_token", used_ns, token_id)

    def delete_operator_token(self, token_id: int) -> bool:
        """Remove an operator's token; return whether there was one."""
        return self._db.run("delete_operator_token", token_id).rowcount > 0

    # enrolment

    def save_enrolment_token(self, token: EnrolmentTokenRow) -> None:
        """Insert or replace an enrolment token."""
        self._db.run(
            "save_enrolment_token",
            token.token_id,
            token.name,
            token.digest,
            token.uses_max,
            token.uses,
            token.labels,
            token.created_ns,
            token.expires_ns,
        )

    def enrolment_tokens(self, after: int, limit: int) -> list[EnrolmentTokenRow]:
        """Return enrolment tokens by id, those above `after`."""
        rows = self._db.run("enrolment_tokens", after, limit).fetchall()
        return [_enrolment_token(row) for row in rows]

    def enrolment_token_of(self, digest: bytes) -> EnrolmentTokenRow | None:
        """Return the enrolment token of a hash."""
        row = self._db.run("enrolment_token_of", digest).fetchone()
        return None if row is None else _enrolment_token(row)

    def enrolment_token_count(self) -> int:
        """Return how many enrolment tokens there are."""
        count: int = self._db.run("enrolment_token_count").fetchone()[0]
        return count

    def delete_enrolment_token(self, token_id: int) -> bool:
        """Remove an enrolment token; return whether there was one."""
        return self._db.run("delete_enrolment_token", token_id).rowcount > 0

    def save_enrolment(self, enrolment: EnrolmentRow) -> None:
        """Note how an agent enrolled, in place of how it did before."""
        self._db.run(
            "save_enrolment",
            enrolment.identity,
            enrolment.token_id,
            enrolment.labels,
            enrolment.enrolled_ns,
        )

    def enrolment(self, identity: str) -> EnrolmentRow | None:
        """Return how an agent enrolled."""
        row = self._db.run("enrolment", identity).fetchone()
        return None if row is None else EnrolmentRow(*row)

    def forget_tokens(self, before_ns: int) -> int:
        """Drop tokens of both kinds that expired before then; return how many."""
        operators = self._db.run("forget_operator_tokens", before_ns).rowcount
        return operators + self._db.run("forget_enrolment_tokens", before_ns).rowcount

    # the audit log

    def add_audit(self, call: AuditRow) -> None:
        """Append a call to the log."""
        self._db.run(
            "add_audit",
            call.at_ns,
            call.token_id,
            call.token_name,
            call.remote,
            call.call,
            call.object,
            call.status,
            call.error,
            call.request_id,
        )

    def audit(self, query: AuditQuery) -> list[AuditRow]:
        """Return calls in the order asked for."""
        low, high = self._span_of_calls(query)
        by_token = query.token is not None
        # Only our own words are put together; every value is a parameter.
        statement = (
            "SELECT audit_id, at_ns, token_id, token_name, remote, call, object, status, error,"  # noqa: S608
            f" request_id FROM audit {'INDEXED BY audit_token' if by_token else 'NOT INDEXED'}"
            f" WHERE {'token_name = ? AND' if by_token else ''} audit_id BETWEEN ? AND ?"
            " AND at_ns >= ? AND at_ns < ?"
            f" ORDER BY audit_id {'DESC' if query.descending else 'ASC'} LIMIT ?"
        )
        from_ns = 0 if query.from_ns is None else query.from_ns
        to_ns = END_NS if query.to_ns is None else query.to_ns
        token = [query.token] if by_token else []
        rows = self._db.select(statement, [*token, low, high, from_ns, to_ns, query.limit])
        return [_call(row) for row in rows.fetchall()]

    def _span_of_calls(self, query: AuditQuery) -> tuple[int, int]:
        """Return the first and the last id that a query can be about, as of results."""
        low, high = 1, MINTED_ID_MAX
        if query.position is not None and query.descending:
            high = query.position - 1
        elif query.position is not None:
            low = query.position + 1
        if query.from_ns is not None:
            before = self._db.run("call_before", query.from_ns - SKEW_NS).fetchone()
            low = low if before is None else max(low, before[0])
        if query.to_ns is not None:
            after = self._db.run("call_at", query.to_ns + SKEW_NS).fetchone()
            high = high if after is None else min(high, after[0])
        return low, high

    def forget_audit(self, before_ns: int, keep: int, keep_refused: int, limit: int) -> int:
        """Drop calls of before then, and those that are more than so many; return how many."""
        old = self._db.run("forget_audit_before", before_ns, limit).rowcount
        beyond = self._db.run("forget_audit_beyond", keep, limit).rowcount
        return old + beyond + self._db.run("forget_audit_refusals", limit, keep_refused).rowcount


def _operator_token(row: Sequence[Any]) -> OperatorTokenRow:
    return OperatorTokenRow(
        token_id=row[0],
        name=row[1],
        digest=row[2],
        scopes=tuple(row[3].split()),
        created_ns=row[4],
        expires_ns=row[5],
        last_used_ns=row[6],
    )


def _enrolment_token(row: Sequence[Any]) -> EnrolmentTokenRow:
    return EnrolmentTokenRow(
        token_id=row[0],
        name=row[1],
        digest=row[2],
        uses_max=row[3],
        uses=row[4],
        labels=row[5],
        created_ns=row[6],
        expires_ns=row[7],
    )


def _call(row: Sequence[Any]) -> AuditRow:
    return AuditRow(
        audit_id=row[0],
        at_ns=row[1],
        token_id=row[2],
        token_name=row[3],
        remote=row[4],
        call=row[5],
        object=row[6],
        status=row[7],
        error=row[8],
        request_id=row[9],
    )
