"""One-off tasks, in bulk: at once, or as a stream of lines."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.errors import RequestError
from netsonde.server import oneoff
from netsonde.server.about import About, counted, number
from netsonde.server.answers.tasks import TaskAnswers, TaskLine, UploadEndLine
from netsonde.server.api import ApiRequest, ApiResponse, Route, fed, lines, ok, refuse
from netsonde.server.audit import entry, note_refusal
from netsonde.server.core import ControlPlane
from netsonde.server.idempotency import key_of
from netsonde.server.operator.calls import Calls, Change, Committed, Operation
from netsonde.server.queries import Query
from netsonde.server.scopes import Scope
from netsonde.server.store import Store
from netsonde.server.uploads import FIRST_LINE_MAX, GROUP_LINES, UploadGroup

_NO_LIMIT = 1 << 62  # of lines cut: those beyond wire.LINES_MAX are left where they are

ADD = About(
    "Add one-off tasks.",
    TaskAnswers,
    takes=Annotated[tuple[oneoff.TaskIn, ...], counted(0, oneoff.TASKS_MAX)],
    takes_line=oneoff.TaskIn,
    answer_line=TaskLine | UploadEndLine,
    query=(
        number(
            "first_line",
            1,
            FIRST_LINE_MAX,
            "Of a stream: the number of its first line, 1 unless told, which with the"
            " Idempotency-Key says which line is which.",
        ),
    ),
    text="A bad item costs itself: the answer has an entry, or a line, for each.",
)


@dataclass(frozen=True, slots=True)
class _Upload:
    """One stream of lines: who sends it, from which number on, and until when."""

    request: ApiRequest
    key: str
    first_line: int
    until_ns: int


class _Addition(Change):
    """Adds tasks: all at once, or line by line; then each group of them is a change."""

    def __init__(
        self,
        plane: ControlPlane,
        at_once: Callable[[ApiRequest], Operation],
        by_lines: Callable[[ApiRequest, AsyncIterator[bytes]], ApiResponse],
    ) -> None:
        super().__init__(plane, at_once)
        self._by_lines = by_lines

    async def __call__(self, request: ApiRequest) -> ApiResponse:
        """Answer the call."""
        if request.chunks is None:
            return await super().__call__(request)
        try:
            return self._by_lines(request, request.chunks)
        except RequestError as error:
            await note_refusal(request, error, self._plane.writer, self._plane.time)
            raise


class TaskCalls(Calls):
    """The calls about one-off tasks."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (
            Route(
                "POST",
                "/v1/tasks",
                _Addition(self._plane, self._add_tasks, self._add_lines),
                wire.ADMIN_MAX_BYTES,
                takes_lines=True,
                scope=Scope.CHECKS_WRITE,
                about=ADD,
            ),
        )

    def _add_lines(self, request: ApiRequest, chunks: AsyncIterator[bytes]) -> ApiResponse:
        query = Query(request.query)
        first_line = query.number("first_line", 1, FIRST_LINE_MAX) or 1
        query.end()
        until_ns = request.received_ns + wire.STREAM_MAX_MS * NS_PER_MS
        upload = _Upload(request, key_of(request), first_line, until_ns)
        return lines(self._audited(self._answer_lines(chunks, upload), request))

    def _add_tasks(self, request: ApiRequest) -> Operation:
        self._plane.storage.admit()
        wire.decode(list[dict[str, Any]], request.body, max_bytes=wire.ADMIN_MAX_BYTES)
        items = wire.array_items(request.body, max_bytes=wire.ADMIN_MAX_BYTES)
        if len(items) > oneoff.TASKS_MAX:
            refuse("", f"at most {oneoff.TASKS_MAX} tasks are allowed, not {len(items)}")
        plan, now_ns = self._plan(items)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            tasks = plan.run(store)
            answer = ok({"tasks": tasks}, about=_named(tasks))
            return answer, self._made(plan.made(), store, now_ns)

        return operation

    async def _audited(
        self, answers: AsyncGenerator[bytes], request: ApiRequest
    ) -> AsyncGenerator[bytes]:
        """Note a refusal that ends a stream; the groups before it have noted themselves."""
        async with aclosing(answers):
            try:
                async for chunk in answers:
                    yield chunk
            except RequestError as error:
                await note_refusal(request, error, self._plane.writer, self._plane.time)
                raise

    async def _answer_lines(
        self, chunks: AsyncIterator[bytes], upload: _Upload
    ) -> AsyncGenerator[bytes]:
        """Commit what came together, answer for it, and look what has come meanwhile."""
        through, end = upload.first_line - 1, upload.first_line + wire.LINES_MAX
        reason = "done"
        async for all_lines in _parts(chunks):
            part = all_lines[: end - through - 1]
            for start in range(0, len(part), GROUP_LINES):
                group = part[start : start + GROUP_LINES]
                answers = await self._commit(group, through + 1, upload)
                yield wire.task_answer_lines(through + 1, answers)
                through += len(group)
            if through + 1 >= end:
                reason = "lines"
                break
            if self._plane.time.now_ns() >= upload.until_ns:
                reason = "time"
                break
        yield wire.upload_end_line(reason, through)

    async def _commit(
        self, items: Sequence[bytes], first_line: int, upload: _Upload
    ) -> list[dict[str, Any]]:
        self._plane.operators.check(upload.request.principal)
        self._plane.storage.admit()
        plan, now_ns = self._plan(items)
        group = UploadGroup(upload.key, first_line, items, plan)

        def operation(store: Store) -> tuple[list[dict[str, Any]], Committed]:
            tasks = group.run(store, now_ns)
            store.add_audit(entry(upload.request, now_ns, 200, about=_named(tasks)))
            return tasks, self._made(plan.made(), store, now_ns)

        answers, committed = await self._plane.writer.write(operation, len(items))
        committed()
        return answers

    def _plan(self, items: Sequence[bytes]) -> tuple[oneoff.Plan, int]:
        now_ns = self._plane.time.now_ns()
        attempts = self._plane.config.max_attempts
        return oneoff.Plan(items, self._plane.registry, attempts, now_ns), now_ns


def _named(tasks: Sequence[dict[str, Any]]) -> str:
    """Name the tasks that were made; their ids follow one another."""
    ids = [one["task_id"] for one in tasks if "task_id" in one]
    return f"tasks/{ids[0]}-{ids[-1]}" if ids else "tasks"


async def _parts(chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[bytes]]:
    """Cut a body into lines, blank ones left out; a complete body's last one needs no newline.

    Raises:
        RequestError: ERR_TOO_LARGE, a line is.
    """
    received = wire.Lines(lines_max=_NO_LIMIT)
    async for chunk in chunks:
        if part := _not_blank(fed(received, chunk)):
            yield part
    if part := _not_blank(fed(received, b"\n")):
        yield part


def _not_blank(part: Sequence[bytes]) -> list[bytes]:
    return [line for line in part if not line.isspace()]
