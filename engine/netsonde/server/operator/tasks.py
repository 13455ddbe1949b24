"""One-off tasks, in bulk: at once, or as a stream of lines."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.server import oneoff
from netsonde.server.api import ApiRequest, ApiResponse, Route, fed, lines, ok, refuse
from netsonde.server.core import ControlPlane
from netsonde.server.idempotency import key_of
from netsonde.server.operator.calls import Calls, Committed, Operation
from netsonde.server.queries import Query
from netsonde.server.store import Store
from netsonde.server.uploads import FIRST_LINE_MAX, GROUP_LINES, UploadGroup

_NO_LIMIT = 1 << 62  # of lines cut: those beyond wire.LINES_MAX are left where they are


@dataclass(frozen=True, slots=True)
class _Upload:
    """One stream of lines: under which key, from which number on, and until when."""

    key: str
    first_line: int
    until_ns: int


class TaskCalls(Calls):
    """The calls about one-off tasks."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(plane)
        self._add_at_once = self._write(self._add_tasks)

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        limit = wire.ADMIN_MAX_BYTES
        return (Route("POST", "/v1/tasks", self._add, limit, takes_lines=True),)

    async def _add(self, request: ApiRequest) -> ApiResponse:
        if request.chunks is None:
            return await self._add_at_once(request)
        query = Query(request.query)
        first_line = query.number("first_line", 1, FIRST_LINE_MAX) or 1
        query.end()
        until_ns = request.received_ns + wire.STREAM_MAX_MS * NS_PER_MS
        upload = _Upload(key_of(request), first_line, until_ns)
        return lines(self._answer_lines(request.chunks, upload))

    def _add_tasks(self, request: ApiRequest) -> Operation:
        wire.decode(list[dict[str, Any]], request.body, max_bytes=wire.ADMIN_MAX_BYTES)
        items = wire.array_items(request.body, max_bytes=wire.ADMIN_MAX_BYTES)
        if len(items) > oneoff.TASKS_MAX:
            refuse("", f"at most {oneoff.TASKS_MAX} tasks are allowed, not {len(items)}")
        plan, now_ns = self._plan(items)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            return ok({"tasks": plan.run(store)}), self._made(plan.made(), store, now_ns)

        return operation

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
                answers = await self._commit(group, through + 1, upload.key)
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
        self, group: Sequence[bytes], first_line: int, key: str
    ) -> list[dict[str, Any]]:
        plan, now_ns = self._plan(group)
        upload = UploadGroup(key, first_line, group, plan)

        def operation(store: Store) -> tuple[list[dict[str, Any]], Committed]:
            return upload.run(store, now_ns), self._made(plan.made(), store, now_ns)

        answers, committed = await self._plane.writer.write(operation, len(group))
        committed()
        return answers

    def _plan(self, items: Sequence[bytes]) -> tuple[oneoff.Plan, int]:
        now_ns = self._plane.time.now_ns()
        attempts = self._plane.config.max_attempts
        return oneoff.Plan(items, self._plane.registry, attempts, now_ns), now_ns


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
