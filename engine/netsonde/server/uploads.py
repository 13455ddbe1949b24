"""One group of uploaded lines, which become tasks in one transaction, each once under its key."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from netsonde.errors import ErrorCode
from netsonde.server.oneoff import Plan
from netsonde.server.store import Store
from netsonde.server.store.uploads import UploadedLine

DIGEST_BYTES = 16
GROUP_LINES = 500  # of one commit
FORGET_LINES = 20_000  # of one round of housekeeping, so that it delays a claim by milliseconds
FIRST_LINE_MAX = 100_000_000  # lines of all streams under one key


@dataclass(frozen=True, slots=True)
class UploadGroup:
    """Some lines that follow each other, and what they would become.

    Without a key nothing is remembered. With one, a line that has become a task is answered as it
    was; one that was refused is looked at anew.
    """

    key: str
    first_line: int
    lines: Sequence[bytes]
    plan: Plan

    def run(self, store: Store, now_ns: int) -> list[dict[str, Any]]:
        """Queue what is new; return each line's answer, in the order of the lines."""
        if not self.key:
            return self.plan.run(store)
        numbers = range(self.first_line, self.first_line + len(self.lines))
        digests = [_digest(line) for line in self.lines]
        kept = store.uploaded(self.key, numbers)
        known = {
            number - self.first_line: _answer(line, digests[number - self.first_line])
            for number, line in kept.items()
        }
        answers = self.plan.run(store, known)
        new = {
            number: UploadedLine(digest, answer["task_id"])
            for number, digest, answer in zip(numbers, digests, answers, strict=True)
            if number not in kept and "task_id" in answer
        }
        if new:
            store.keep_uploaded(self.key, new, now_ns)
        return answers


def _answer(kept: UploadedLine, digest: bytes) -> dict[str, Any]:
    if kept.digest == digest:
        return {"task_id": kept.task_id}
    return {
        "error": ErrorCode.CONFLICT,
        "message": "under this Idempotency-Key this line was another task",
    }


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line.strip(), digest_size=DIGEST_BYTES).digest()
