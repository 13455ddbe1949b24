"""What the operator API's calls share: operations that run once per key, and what follows them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from netsonde.errors import ErrorCode, RequestError
from netsonde.model import TaskKind
from netsonde.server.api import ApiRequest, ApiResponse, Handler, Route
from netsonde.server.audit import audited, note_refusal
from netsonde.server.core import Announcement, ControlPlane
from netsonde.server.idempotency import remembered
from netsonde.server.queries import Query
from netsonde.server.registry import ID_DIGITS_MAX
from netsonde.server.store import Store

Committed = Callable[[], None]
Operation = Callable[[Store], tuple[ApiResponse, Committed]]


class Calls(ABC):
    """The calls about one kind of thing."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    @abstractmethod
    def routes(self) -> Sequence[Route]:
        """Return the calls."""

    def _write(self, prepare: Callable[[ApiRequest], Operation]) -> Handler:
        """Turn what prepares an operation into a handler that runs it, once per key."""
        return Change(self._plane, prepare)

    def _made(
        self, made: Sequence[tuple[int, TaskKind, int]], store: Store, now_ns: int
    ) -> Committed:
        """Return what to do after the commit: learn new queues, wake who waits."""
        queues = store.label_queues()

        def committed() -> None:
            self._plane.keep_label_queues(queues)
            self._plane.announce(
                Announcement(queue, kind, now_ns, count) for queue, kind, count in made
            )
            self._plane.checks_pulse.fire()

        return committed


class Change:
    """A call that changes something: it runs once per key, and the audit log tells of it."""

    def __init__(self, plane: ControlPlane, prepare: Callable[[ApiRequest], Operation]) -> None:
        self._plane = plane
        self._prepare = prepare

    async def __call__(self, request: ApiRequest) -> ApiResponse:
        """Answer the call."""
        plane = self._plane
        try:
            Query(request.query).end()
            operation = audited(request, self._prepare(request), plane.time)
            operation = remembered(request, operation, plane.time.now_ns())
            response, committed = await plane.writer.write(operation)
        except RequestError as error:
            await note_refusal(request, error, plane.writer, plane.time)
            raise
        committed()
        return response


def both(first: Committed, second: Committed) -> Committed:
    """Do one after the other."""

    def committed() -> None:
        first()
        second()

    return committed


def nothing() -> None:
    """Do nothing after a commit that nobody waits for."""


def item_id(request: ApiRequest) -> int:
    """Return the id in the path.

    Raises:
        RequestError: ERR_NOT_FOUND, it is none.
    """
    text = request.variables["id"]
    if not text.isascii() or not text.isdecimal() or len(text) > ID_DIGITS_MAX:
        raise RequestError(ErrorCode.NOT_FOUND, f"{text[:50]!r} is not an id")
    return int(text)
