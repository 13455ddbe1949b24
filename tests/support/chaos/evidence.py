"""What was seen of a run: the records of its logs, and the rows of its database. No verdicts.

Instants are ns of CLOCK_BOOTTIME. The server's own follow the wall clock, which a machine may set
while a run lasts: none of them is looked at.
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from msgspec import Struct, field

from support.chaos.journal import read

R = TypeVar("R", bound=tuple[Any, ...])

EXCHANGES, EXECUTIONS, EVENTS = "exchanges.jsonl", "executions.jsonl", "events.jsonl"

# What an agent got to see of an answer: all of it, something else or a part, nothing.
Told = Literal["whole", "damaged", "nothing"]


class Grant(NamedTuple):
    """One lease in the answer to a claim."""

    lease_id: int
    task_id: int
    until_ms: int
    after_ms: int
    attempt: int
    max_attempts: int


class Metered(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An envelope of metrics: which of which process, some of its counters, what it was answered.

    `samples` are all it has, `stored` those that the server says it took, None: no answer.
    """

    agent_id: int
    run: str
    seq: int
    samples: int
    values: dict[str, float]
    stored: int | None = None
    is_superseded: bool = False


class ConfigSaid(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a heartbeat says of the agent's signed configuration."""

    applied: int | None = None
    status: str | None = None
    revision: int | None = None
    reason: str | None = None


class Exchange(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request and its answer at the proxy; written before the answer is passed on.

    `sent` is when the whole request had been passed on, `answered` when the server's answer had
    come, `ended` when it was over for the proxy; `status` is the server's, `told_status` what the
    agent was given. `asked` are the slots of a claim and `claim` its id, `items` the lease ids of a
    report, `metered` what an envelope of metrics says, `config` what a heartbeat does. A stream is
    one of these for each group of lines that passed together: of a claim, with the request's
    `begun`; of a report's answer, with when the first of its items had come.
    """

    agent: int
    verb: str
    begun: int
    ended: int
    sent: int | None = None
    answered: int | None = None
    status: int | None = None
    told: Told = "nothing"
    told_status: int | None = None
    fault: str | None = None
    is_copy: bool = False
    is_stream: bool = False
    asked: int = 0
    claim: str = ""
    grants: list[Grant] = []
    extended: list[tuple[int, int]] = []
    items: list[int] = []
    results: list[tuple[int, str]] = []
    metered: Metered | None = None
    config: ConfigSaid | None = None


class Execution(Struct, frozen=True, kw_only=True, array_like=True):
    """One measurement as the target saw it; whole: the answer was written before anybody left."""

    agent: int
    lease_id: int
    task: int
    begun: int
    ended: int
    is_whole: bool


class Session(Struct, frozen=True, kw_only=True, tag="session"):
    """A rig began to work on the run."""

    at: int
    boot_id: str
    commit: str


class Intended(Struct, frozen=True, kw_only=True, tag="intended"):
    """Tasks are about to be queued, under a key that makes a repetition harmless."""

    at: int
    first: int
    count: int
    key: str


class Submitted(Struct, frozen=True, kw_only=True, tag="submitted"):
    """Tasks the server said it queued: the first one's number, and their ids in order."""

    at: int
    first: int
    task_ids: list[int]


class Struck(Struct, frozen=True, kw_only=True, tag="fault"):
    """One fault that really happened; agent -1 is the server."""

    number: int
    fault: str
    agent: int
    begun: int
    ended: int


class Began(Struct, frozen=True, kw_only=True, tag="began"):
    """A fault of a process begins; where no `Struck` follows, it lasted to the session's end."""

    number: int
    fault: str
    agent: int
    at: int


class Lived(Struct, frozen=True, kw_only=True, tag="lived"):
    """One process, from its start to its end; `how` is what ended it."""

    who: str
    pid: int
    begun: int
    ended: int
    how: str
    status: int


class Sampled(Struct, frozen=True, kw_only=True, tag="sampled"):
    """A process's size at an instant."""

    at: int
    who: str
    rss_bytes: int
    fds: int


class Drained(Struct, frozen=True, kw_only=True, tag="drained"):
    """An operator drained an agent: when that was answered, and when it was about to be resumed."""

    agent: int
    begun: int
    ended: int


class Published(Struct, frozen=True, kw_only=True, tag="published"):
    """A configuration is about to be published or, where it could not be, put into an agent's way.

    `what` is good, or what is wrong with it.
    """

    at: int
    revision: int
    what: str


class Applied(Struct, frozen=True, kw_only=True, tag="applied"):
    """What the control plane shows that agents made of a revision: host name, status, in force."""

    at: int
    revision: int
    agents: list[tuple[str, str, int | None]]
    is_last: bool = False


class Counted(Struct, frozen=True, kw_only=True, tag="counted"):
    """What the control plane shows of metrics when the agents have ended.

    `samples` is how many it says it stored, `latest` by agent id what series said last.
    """

    at: int
    samples: int
    latest: dict[str, dict[str, float]]


class Page(Struct, frozen=True, kw_only=True, tag="page"):
    """Lease ids of one page of the result stream, and the cursor behind them."""

    at: int
    cursor: str
    lease_ids: list[int]


class Calm(Struct, frozen=True, kw_only=True, tag="calm"):
    """No faults: how many leases were held at the last one's end, and when none was any more."""

    faults_ended: int
    held: int
    recovered: int | None
    left: list[int]  # lease ids that were held still when the rig waited no longer


class Spooled(Struct, frozen=True, kw_only=True, tag="spooled"):
    """What an agent's spool held when everything was over."""

    agent: int
    lease_ids: list[int]


class Trapped(Struct, frozen=True, kw_only=True, tag="trapped"):
    """An agent was killed while the proxy held its report; is_after: the server had answered it."""

    at: int
    agent: int
    is_after: bool
    lease_ids: list[int]


Event = (
    Session
    | Began
    | Intended
    | Submitted
    | Struck
    | Lived
    | Sampled
    | Page
    | Calm
    | Spooled
    | Trapped
    | Drained
    | Published
    | Applied
    | Counted
)


class ResultRow(NamedTuple):
    """A stored result."""

    lease_id: int
    task_id: int
    agent_id: int
    outcome: str
    attempt: int
    is_final: int


class DeadRow(NamedTuple):
    """A task that was given up."""

    task_id: int
    lease_id: int
    attempt: int
    reason: str


class Evidence(Struct, kw_only=True):
    """Everything the checker may look at."""

    exchanges: list[Exchange] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    results: list[ResultRow] = field(default_factory=list)
    dead: list[DeadRow] = field(default_factory=list)
    live_tasks: list[int] = field(default_factory=list)


def load(directory: Path, database: Path) -> Evidence:
    """Read a run's logs and the database that its server left."""
    evidence = Evidence(
        exchanges=list(read(directory / EXCHANGES, Exchange)),
        executions=list(read(directory / EXECUTIONS, Execution)),
        events=list(read_events(directory)),
    )
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        evidence.results = _rows(
            connection,
            "SELECT lease_id, task_id, agent_id, outcome, attempt, is_final"
            " FROM result ORDER BY result_id",
            ResultRow,
        )
        evidence.dead = _rows(
            connection, "SELECT task_id, lease_id, attempt, reason FROM dead_letter", DeadRow
        )
        evidence.live_tasks = [row[0] for row in connection.execute("SELECT task_id FROM task")]
    return evidence


def read_events(directory: Path) -> Sequence[Event]:
    """Read a run's events."""
    return list(read(directory / EVENTS, Event))  # type: ignore[arg-type]


def _rows(connection: sqlite3.Connection, query: str, kind: type[R]) -> list[R]:
    return [kind(*row) for row in connection.execute(query)]
