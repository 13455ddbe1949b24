"""Operators' tokens, enrolment and the audit log in memory."""

from dataclasses import replace

from msgspec import structs

from netsonde.server.store.access import (
    AuditQuery,
    AuditRow,
    EnrolmentRow,
    EnrolmentTokenRow,
    OperatorTokenRow,
)


class MemoryAccess:
    """Verbs over who may do what, and who did."""

    def __init__(self) -> None:
        self._token_id = 0
        self._operator_tokens: dict[int, OperatorTokenRow] = {}
        self._enrolment_tokens: dict[int, EnrolmentTokenRow] = {}
        self._enrolments: dict[str, EnrolmentRow] = {}
        self._audit: dict[int, AuditRow] = {}
        self._audit_id = 0

    def new_token_id(self) -> int:
        """Return an id no token of either kind has had."""
        self._token_id += 1
        return self._token_id

    # operators' tokens

    def save_operator_token(self, token: OperatorTokenRow) -> None:
        """Insert or replace an operator's token."""
        self._operator_tokens[token.token_id] = token

    def operator_tokens(self, after: int, limit: int) -> list[OperatorTokenRow]:
        """Return operators' tokens by id, those above `after`."""
        ids = [token_id for token_id in sorted(self._operator_tokens) if token_id > after]
        return [self._operator_tokens[token_id] for token_id in ids[:limit]]

    def operator_token_named(self, name: str) -> OperatorTokenRow | None:
        """Return the operator's token of that name."""
        return next((row for row in self._operator_tokens.values() if row.name == name), None)

    def operator_token_count(self) -> int:
        """Return how many operators' tokens there are."""
        return len(self._operator_tokens)

    def used_operator_token(self, token_id: int, used_ns: int) -> None:
        """Note when a token was last used."""
        row = self._operator_tokens.get(token_id)
        if row is not None:
            latest_ns = max(row.last_used_ns or 0, used_ns)
            self._operator_tokens[token_id] = replace(row, last_used_ns=latest_ns)

    def delete_operator_token(self, token_id: int) -> bool:
        """Remove an operator's token; return whether there was one."""
        return self._operator_tokens.pop(token_id, None) is not None

    # enrolment

    def save_enrolment_token(self, token: EnrolmentTokenRow) -> None:
        """Insert or replace an enrolment token."""
        self._enrolment_tokens[token.token_id] = token

    def enrolment_tokens(self, after: int, limit: int) -> list[EnrolmentTokenRow]:
        """Return enrolment tokens by id, those above `after`."""
        ids = [token_id for token_id in sorted(self._enrolment_tokens) if token_id > after]
        return [self._enrolment_tokens[token_id] for token_id in ids[:limit]]

    def enrolment_token_of(self, digest: bytes) -> EnrolmentTokenRow | None:
        """Return the enrolment token of a hash."""
        return next((row for row in self._enrolment_tokens.values() if row.digest == digest), None)

    def enrolment_token_count(self) -> int:
        """Return how many enrolment tokens there are."""
        return len(self._enrolment_tokens)

    def delete_enrolment_token(self, token_id: int) -> bool:
        """Remove an enrolment token; return whether there was one."""
        return self._enrolment_tokens.pop(token_id, None) is not None

    def save_enrolment(self, enrolment: EnrolmentRow) -> None:
        """Note how an agent enrolled, in place of how it did before."""
        self._enrolments[enrolment.identity] = enrolment

    def enrolment(self, identity: str) -> EnrolmentRow | None:
        """Return how an agent enrolled."""
        return self._enrolments.get(identity)

    def forget_tokens(self, before_ns: int) -> int:
        """Drop tokens of both kinds that expired before then; return how many."""
        operators = [
            token_id
            for token_id, row in self._operator_tokens.items()
            if row.expires_ns is not None and row.expires_ns < before_ns
        ]
        enrolments = [
            token_id
            for token_id, one in self._enrolment_tokens.items()
            if one.expires_ns < before_ns
        ]
        for token_id in operators:
            del self._operator_tokens[token_id]
        for token_id in enrolments:
            del self._enrolment_tokens[token_id]
        return len(operators) + len(enrolments)

    # the audit log

    def add_audit(self, call: AuditRow) -> None:
        """Append a call to the log."""
        self._audit_id += 1
        self._audit[self._audit_id] = structs.replace(call, audit_id=self._audit_id)

    def audit(self, query: AuditQuery) -> list[AuditRow]:
        """Return calls in the order asked for."""
        rows = [row for row in self._audit.values() if _is_wanted(row, query)]
        if query.descending:
            rows.reverse()
        return rows[: query.limit]

    def forget_audit(self, before_ns: int, keep: int, keep_refused: int, limit: int) -> int:
        """Drop calls of before then, and those that are more than so many; return how many."""
        old = [one for one, row in self._audit.items() if row.at_ns < before_ns]
        beyond = [one for one in self._audit if one <= self._audit_id - keep]
        refused = [one for one, row in self._audit.items() if row.error is not None]
        surplus = refused[: max(len(refused) - keep_refused, 0)]
        gone = {*old[:limit], *beyond[:limit], *surplus[-limit:]}
        for audit_id in gone:
            del self._audit[audit_id]
        return len(gone)


def _is_wanted(row: AuditRow, query: AuditQuery) -> bool:
    if query.position is not None:
        is_past = (
            row.audit_id < query.position if query.descending else row.audit_id > query.position
        )
        if not is_past:
            return False
    return (
        (query.token is None or row.token_name == query.token)
        and (query.from_ns is None or row.at_ns >= query.from_ns)
        and (query.to_ns is None or row.at_ns < query.to_ns)
    )
