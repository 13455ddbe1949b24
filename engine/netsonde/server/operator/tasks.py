"""One-off tasks, in bulk."""

from collections.abc import Sequence
from typing import Any

from netsonde import wire
from netsonde.server import oneoff
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok, refuse
from netsonde.server.operator.calls import Calls, Committed, Operation
from netsonde.server.scopes import Scope
from netsonde.server.store import Store


class TaskCalls(Calls):
    """The calls about one-off tasks."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (
            Route(
                "POST",
                "/v1/tasks",
                self._write(self._add_tasks),
                wire.ADMIN_MAX_BYTES,
                scope=Scope.CHECKS_WRITE,
            ),
        )

    def _add_tasks(self, request: ApiRequest) -> Operation:
        raw = wire.decode(list[dict[str, Any]], request.body, max_bytes=wire.ADMIN_MAX_BYTES)
        if len(raw) > oneoff.TASKS_MAX:
            refuse("", f"at most {oneoff.TASKS_MAX} tasks are allowed, not {len(raw)}")
        now_ns = self._plane.time.now_ns()
        plan = oneoff.Plan(raw, self._plane.registry, self._plane.config.max_attempts, now_ns)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            tasks = plan.run(store)
            answer = ok({"tasks": tasks}, about=_named(tasks))
            return answer, self._made(plan.made(), store, now_ns)

        return operation


def _named(tasks: Sequence[dict[str, Any]]) -> str:
    """Name the tasks that were made; their ids follow one another."""
    ids = [one["task_id"] for one in tasks if "task_id" in one]
    return f"tasks/{ids[0]}-{ids[-1]}" if ids else "tasks"
