"""What may be answered otherwise than Schemathesis expects, each with its reason.

No exception covers a 5xx, or a status or a body that the document does not name. What a right
request needs beyond its schema is in hooks.py.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

POSITIVE, NEGATIVE = "positive_data_acceptance", "negative_data_rejection"
# What each check takes for an expected answer wherever nothing else is said.
EXPECTED = {
    POSITIVE: ("2xx", "3xx", "401", "403", "404", "409", "429"),
    NEGATIVE: ("400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "429"),
}
IN_WORDS = {POSITIVE: "a right request", NEGATIVE: "a wrong request"}


@dataclass(frozen=True, slots=True)
class Excepted:
    """Statuses that a check takes, beside the usual ones, from these operations."""

    operations: tuple[str, ...]
    check: str
    statuses: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        """Say it to people."""
        answered = " or ".join(self.statuses)
        return (
            f"{', '.join(self.operations)}:\n"
            f"    {IN_WORDS[self.check]} may be answered {answered}: {self.reason}"
        )


EXCEPTIONS = (
    Excepted(
        ("operator-get-v1-results",),
        POSITIVE,
        ("410",),
        "a cursor may be ahead of every result.",
    ),
    Excepted(
        ("operator-post-v1-checks", "operator-patch-v1-checks-id"),
        POSITIVE,
        ("400",),
        "a definition's fields bound each other (jitter_ms by every_ms, spec by kind, select says"
        " one thing), and a target is read as a person would type it.",
    ),
    Excepted(
        ("operator-post-v1-dead-letters-delete", "operator-post-v1-dead-letters-requeue"),
        POSITIVE,
        ("400",),
        "a selection names at least one filter, or all and none.",
    ),
    Excepted(
        ("operator-post-v1-tokens", "operator-post-v1-enrolment-tokens"),
        POSITIVE,
        ("400",),
        "a name is printable, begins and ends without a blank, and is not one that the audit log"
        " uses.",
    ),
    Excepted(
        ("operator-post-v1-configs",),
        POSITIVE,
        ("422",),
        "the payload is a document of its own in base64, and one that is none is refused so.",
    ),
    Excepted(
        ("operator-get-v1-metrics-query",),
        POSITIVE,
        ("400",),
        "from lies before to, and the step is not too short for the time between them.",
    ),
    Excepted(
        ("operator-post-v1-tasks", "agent-post-v1-agents-report"),
        NEGATIVE,
        ("200",),
        "a bad item costs itself: the answer has an entry for it, and is a success.",
    ),
    Excepted(
        ("agent-post-v1-agents-metrics",),
        POSITIVE,
        ("400",),
        "with instance_id, seq and start_time are needed; without it samples have other limits.",
    ),
    Excepted(
        ("agent-post-v1-agents-metrics",),
        NEGATIVE,
        ("202",),
        "a bad sample costs itself, and is told of in the answer.",
    ),
    Excepted(
        ("operator-post-v1-enrolment-tokens",),
        NEGATIVE,
        ("201",),
        "the body may be left out, which Schemathesis tries as a wrong one.",
    ),
)


def settings(exceptions: Iterable[Excepted] = EXCEPTIONS) -> str:
    """Write the exceptions as Schemathesis reads its settings."""
    return "\n".join(_lines(exceptions))


def _lines(exceptions: Iterable[Excepted]) -> Iterator[str]:
    yield "warnings = false"
    by_operation: dict[str, list[Excepted]] = {}
    for one in exceptions:
        for operation in one.operations:
            by_operation.setdefault(operation, []).append(one)
    for check, statuses in EXPECTED.items():
        yield f"[checks.{check}]"
        yield f"expected-statuses = {json.dumps(statuses)}"
    for operation, ones in by_operation.items():
        yield "[[operations]]"
        yield f"include-operation-id = {json.dumps([operation])}"
        for one in ones:
            yield f"[operations.checks.{one.check}]"
            yield f"expected-statuses = {json.dumps([*EXPECTED[one.check], *one.statuses])}"
    yield ""
