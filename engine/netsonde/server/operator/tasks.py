"""One-off tasks, in bulk."""

from collections.abc import Sequence
from typing import Any

from netsonde import wire
from netsonde.server import oneoff
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok, refuse
from netsonde.server.operator.calls import Calls, Committed, Operation
from netsonde.server.store import Store


class TaskCalls(Calls):
    """The calls about one-off tasks."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (Route("POST", "/v1/tasks", self._write(self._add_tasks), wire.ADMIN_MAX_BYTES),)

    def _add_tasks(self, request: ApiRequest) -> Operation:
        self._plane.storage.admit()
        raw = wire.decode(list[dict[str, Any]], request.body, max_bytes=wire.ADMIN_MAX_BYTES)
        if len(raw) > oneoff.TASKS_MAX:
            refuse("", f"at most {oneoff.TASKS_MAX} tasks are allowed, not {len(raw)}")
        now_ns = self._plane.time.now_ns()
        plan = oneoff.Plan(raw, self._plane.registry, self._plane.config.max_attempts, now_ns)

        def operation(store: Store) -> tuple[ApiResponse, Committed]:
            return ok({"tasks": plan.run(store)}), self._made(plan.made(), store, now_ns)

        return operation
