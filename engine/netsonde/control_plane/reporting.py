"""Reports in batches: cut to size, and split when a batch is refused for one item's sake."""

from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from netsonde import wire
from netsonde.control_plane.exchange import PROTOCOL_HEADER, Answer
from netsonde.errors import ControlPlaneError, TransportError
from netsonde.model import ReportResponse, ReportResult, ReportStatus

BODY_SLACK_BYTES = 1024  # the field names, the agent's id and the commas' first
# Finding one bad item among 500 takes 19 requests; a batch with more to find goes on next time.
REQUESTS_MAX = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded items of one request; the first `completed` of them are of completed leases."""

    # What is wrong with the body, and not with us: too large, malformed, not valid.
    SPLIT_STATUSES: ClassVar[frozenset[int]] = frozenset({400, 413, 422})

    items: Sequence[bytes]
    completed: int

    def encode(self, agent_id: int) -> bytes:
        """Assemble the request's body."""
        return wire.encode_report(
            agent_id, self.items[: self.completed], self.items[self.completed :]
        )

    def part(self, begin: int, end: int) -> "Batch":
        """Return the items from begin up to end."""
        completed = min(max(self.completed - begin, 0), end - begin)
        return Batch(self.items[begin:end], completed)

    def halves(self) -> tuple["Batch", "Batch"]:
        """Cut in two; needs two items."""
        middle = len(self.items) // 2
        return self.part(0, middle), self.part(middle, len(self.items))

    def within_limits(self) -> list["Batch"]:
        """Cut into batches that keep the contract's limits, in order."""
        whole = sum(map(len, self.items)) + len(self.items) + BODY_SLACK_BYTES
        if 0 < len(self.items) <= wire.REPORT_ITEMS_MAX and whole <= wire.REPORT_MAX_BYTES:
            return [self]
        batches: list[Batch] = []
        begin, size = 0, BODY_SLACK_BYTES
        for at, item in enumerate(self.items):
            item_bytes = len(item) + 1
            is_full = at - begin == wire.REPORT_ITEMS_MAX
            if at > begin and (is_full or size + item_bytes > wire.REPORT_MAX_BYTES):
                batches.append(self.part(begin, at))
                begin, size = at, BODY_SLACK_BYTES
            size += item_bytes
        if self.items:
            batches.append(self.part(begin, len(self.items)))
        return batches

    def results(self, status: ReportStatus, error: str | None = None) -> list[ReportResult]:
        """Give every item the same status."""
        return [
            ReportResult(lease_id=lease_id, status=status, error=error)
            for lease_id in self.lease_ids()
        ]

    def lease_ids(self) -> list[int]:
        """Return the lease that each item reports on, 0 where it does not say."""
        return wire.item_lease_ids([*self.items])


def read_report(answer: Answer, batch: Batch) -> ReportResponse:
    """Read a report's answer as one result per item, in the batch's order.

    An item that our server's answer leaves out is `retry`: nothing says that it was taken.

    Raises:
        DecodeError: the answer is not a report's; one without a body is a proxy's, no original's.
    """
    response = wire.decode_answer(ReportResponse, answer.response.body)
    if PROTOCOL_HEADER not in answer.response.headers and not response.results:
        taken = tuple(batch.results(ReportStatus.ACCEPTED))
        return ReportResponse(acknowledged=response.acknowledged, results=taken)
    if [result.lease_id for result in response.results] == batch.lease_ids():
        return response
    answered: defaultdict[int, deque[ReportResult]] = defaultdict(deque)
    for result in response.results:
        answered[result.lease_id].append(result)
    ordered = [
        answered[unanswered.lease_id].popleft() if answered[unanswered.lease_id] else unanswered
        for unanswered in batch.results(ReportStatus.RETRY)
    ]
    return ReportResponse(acknowledged=response.acknowledged, results=tuple(ordered))


async def report_all(
    batches: Iterable[Batch],
    send: Callable[[Batch], Awaitable[ReportResponse]],
    counters: Counter[str],
) -> ReportResponse:
    """Send batches in order, splitting those that are refused as a whole.

    An item that is refused alone is `invalid` when the control plane itself says so. A proxy's page
    says nothing about the item, which stays: it would be every item of every agent behind it.

    Raises:
        ControlPlaneError: nothing at all could be handed in.
        TransportError: nothing at all could be handed in.
    """
    waiting = deque(batches)
    acknowledged, requests = 0, 0
    results: list[ReportResult] = []
    while waiting and requests < REQUESTS_MAX:
        batch = waiting.popleft()
        requests += 1
        try:
            response = await send(batch)
        except ControlPlaneError as error:
            if error.status not in Batch.SPLIT_STATUSES:
                if not results:
                    raise
                waiting.appendleft(batch)
                break
            if len(batch.items) > 1:
                counters["report_splits"] += 1
                waiting.extendleft(reversed(batch.halves()))
            else:
                status = ReportStatus.INVALID if error.is_verdict else ReportStatus.RETRY
                counters[f"report_{status}"] += 1
                results += batch.results(status, str(error))
        except TransportError:
            if not results:
                raise
            waiting.appendleft(batch)
            break
        else:
            acknowledged += response.acknowledged
            results += response.results
    for batch in waiting:
        results += batch.results(ReportStatus.RETRY)
    return ReportResponse(acknowledged=acknowledged, results=tuple(results))
