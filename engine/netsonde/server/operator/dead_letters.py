"""Dead letters: looking at what was given up, trying it again, giving it up for good."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Struct, structs

from netsonde import wire
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import MINTED_ID_MAX, TaskKind
from netsonde.server import documents
from netsonde.server.about import AGENT, CHECK_ID, KIND, PAGE, About, instant, within
from netsonde.server.answers.dead_letters import DeadLetter as LetterAnswer
from netsonde.server.answers.dead_letters import (
    DeadLetterPage,
    ManyDeleted,
    ManyRequeued,
    OneDeleted,
    OneRequeued,
)
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok, refuse
from netsonde.server.core import Announcement
from netsonde.server.leasing import LeaseIds
from netsonde.server.operator.calls import Calls, Committed, Operation, item_id, nothing
from netsonde.server.queries import Query, agent_id_of, decode_cursor, encode_cursor, instant_of
from netsonde.server.scopes import Scope
from netsonde.server.store import Store
from netsonde.server.store.dead_letters import DeadQuery, Revival
from netsonde.server.store.tasks import DeadLetter

BULK_MAX = 10_000  # letters of one call: a transaction of this many delays a claim by 0.2 s
BULK_DEFAULT = 1_000


class DeadSelection(Struct, frozen=True, kw_only=True):
    """Which dead letters a bulk call is about; all of them only where it says so."""

    all: bool = False
    kind: TaskKind | None = None
    check_id: Annotated[int, within(1, MINTED_ID_MAX)] | None = None
    agent: int | str | None = None
    died_from: str | None = None
    died_to: str | None = None
    limit: Annotated[int, within(1, BULK_MAX)] = BULK_DEFAULT


LIST = About(
    "List dead letters.",
    DeadLetterPage,
    query=(
        KIND,
        CHECK_ID,
        AGENT,
        instant("from", "Died at this instant or later."),
        instant("to", "Died before this instant."),
        *PAGE,
    ),
)
GET = About("Show a dead letter.", LetterAnswer)
DELETE = About("Give a dead letter up for good.", OneDeleted)
REQUEUE = About("Make a dead letter a task again.", OneRequeued)
REQUEUE_MANY = About(
    "Make many dead letters tasks again, the youngest first.", ManyRequeued, takes=DeadSelection
)
DELETE_MANY = About(
    "Give many dead letters up for good, the youngest first.", ManyDeleted, takes=DeadSelection
)


@dataclass(frozen=True, slots=True)
class _Chosen:
    letters: list[DeadLetter]
    has_more: bool


class DeadLetterCalls(Calls):
    """The calls about dead letters."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        read, write = Scope.READ, Scope.CHECKS_WRITE
        delete_one, delete_many = self._write(self._delete_one), self._write(self._delete_many)
        requeue_one, requeue_many = self._write(self._requeue_one), self._write(self._requeue_many)
        path, one = "/v1/dead-letters", "/v1/dead-letters/{id}"
        return (
            Route("GET", path, self._list_dead_letters, scope=read, about=LIST),
            Route("GET", one, self._get_dead_letter, scope=read, about=GET),
            Route("DELETE", one, delete_one, scope=write, about=DELETE),
            Route("POST", f"{one}/requeue", requeue_one, scope=write, about=REQUEUE),
            Route("POST", f"{path}/requeue", requeue_many, scope=write, about=REQUEUE_MANY),
            Route("POST", f"{path}/delete", delete_many, scope=write, about=DELETE_MANY),
        )

    async def _list_dead_letters(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        kind = query.choice("kind", [kind.value for kind in TaskKind])
        wanted = DeadQuery(
            limit=query.limit(),
            before=decode_cursor(query.take("cursor")),
            kind=None if kind is None else TaskKind(kind),
            check_id=query.number("check_id", 1, MINTED_ID_MAX),
            agent_id=agent_id_of(query.take("agent"), self._plane.registry),
            from_ns=query.instant_ns("from"),
            to_ns=query.instant_ns("to"),
        )
        query.end()
        rows = await self._plane.writer.look(lambda store: store.find_dead(wanted))
        cursor = encode_cursor(rows[-1].task_id) if len(rows) == wanted.limit else None
        return ok({"dead_letters": [documents.dead_letter(row) for row in rows], "cursor": cursor})

    async def _get_dead_letter(self, request: ApiRequest) -> ApiResponse:
        Query(request.query).end()
        task_id = item_id(request)
        letter = await self._plane.writer.look(lambda store: _found(store, task_id))
        return ok(documents.dead_letter(letter))

    def _requeue_one(self, request: ApiRequest) -> Operation:
        task_id = item_id(request)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            committed = self._requeued(store, [_found(store, task_id)])
            return ok({"task_id": task_id, "requeued": 1}), committed

        return operation

    def _delete_one(self, request: ApiRequest) -> Operation:
        task_id = item_id(request)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            _deleted(store, [_found(store, task_id)])
            return ok({"task_id": task_id, "deleted": 1}), nothing

        return operation

    def _requeue_many(self, request: ApiRequest) -> Operation:
        wanted = self._selection(request)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            chosen = _chosen(store, wanted)
            committed = self._requeued(store, chosen.letters)
            return ok({"requeued": len(chosen.letters), "more": chosen.has_more}), committed

        return operation

    def _delete_many(self, request: ApiRequest) -> Operation:
        wanted = self._selection(request)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            chosen = _chosen(store, wanted)
            _deleted(store, chosen.letters)
            return ok({"deleted": len(chosen.letters), "more": chosen.has_more}), nothing

        return operation

    def _selection(self, request: ApiRequest) -> DeadQuery:
        asked = wire.decode(DeadSelection, request.body, strict=True)
        if not 1 <= asked.limit <= BULK_MAX:
            refuse("limit", f"limit must be 1 to {BULK_MAX}, not {asked.limit}")
        if asked.check_id is not None and not 0 < asked.check_id <= MINTED_ID_MAX:
            refuse("check_id", f"check_id must be 1 to {MINTED_ID_MAX}, not {asked.check_id}")
        filters = (asked.kind, asked.check_id, asked.agent, asked.died_from, asked.died_to)
        if asked.all is any(one is not None for one in filters):
            refuse("", "say which dead letters: a filter (kind, check_id, agent, died_from,"
                   ' died_to), or {"all": true} and none')  # fmt: skip
        if isinstance(asked.agent, int) and not 0 < asked.agent <= MINTED_ID_MAX:
            refuse("agent", f"an agent's id is 1 to {MINTED_ID_MAX}")
        agent = None if asked.agent is None else str(asked.agent)
        return DeadQuery(
            limit=asked.limit,
            kind=asked.kind,
            check_id=asked.check_id,
            agent_id=agent_id_of(agent, self._plane.registry),
            from_ns=instant_of("died_from", asked.died_from),
            to_ns=instant_of("died_to", asked.died_to),
        )

    def _requeued(self, store: Store, letters: Sequence[DeadLetter]) -> Committed:
        """Queue what was given up anew.

        Its last holder may yet report it, as of any task that was taken back, unless it has, or
        nobody remembers any more whether it has.
        """
        if not letters:
            return nothing
        now_ns = self._plane.time.now_ns()
        reported = store.result_owners([letter.lease_id for letter in letters])
        floor = store.key_floor()
        store.revive(
            [
                Revival(
                    letter.task_id,
                    now_ns,
                    letter.lease_id >= floor.lease_id and letter.lease_id not in reported,
                    min(LeaseIds.minted_ns(letter.lease_id), now_ns),
                )
                for letter in letters
            ]
        )
        store.count("requeued", len(letters))
        made: dict[tuple[int, TaskKind], int] = {}
        for letter in letters:
            made[letter.queue, letter.kind] = made.get((letter.queue, letter.kind), 0) + 1
        return lambda: self._plane.announce(
            Announcement(queue, kind, now_ns, count) for (queue, kind), count in made.items()
        )


def _deleted(store: Store, letters: Sequence[DeadLetter]) -> None:
    if letters:
        store.unbury([letter.task_id for letter in letters])
        store.count("discarded", len(letters))


def _chosen(store: Store, wanted: DeadQuery) -> _Chosen:
    """Find what a bulk call is about, and whether there is more of it than it may have."""
    found = store.find_dead(structs.replace(wanted, limit=wanted.limit + 1))
    return _Chosen(found[: wanted.limit], len(found) > wanted.limit)


def _found(store: Store, task_id: int) -> DeadLetter:
    wanted = DeadQuery(limit=1, task_id=min(task_id, MINTED_ID_MAX))
    letters = store.find_dead(wanted)
    if not letters:
        raise RequestError(
            ErrorCode.NOT_FOUND,
            f"task {task_id} is no dead letter; it may have been queued again, given up for good,"
            " or its result came after all",
        )
    return letters[0]
