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

Item = tuple[bytes, bool]


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded items of one request, each with whether its lease was cancelled."""

    # What is wrong with the body, and not with us: too large, malformed, not valid.
    SPLIT_STATUSES: ClassVar[frozenset[int]] = frozenset({400, 413, 422})

    items: Sequence[Item]

    def encode(self, agent_id: int) -> bytes:
        """Assemble the request's body."""
        return wire.encode_report(
            agent_id,
            [body for body, cancelled in self.items if not cancelled],
            [body for body, cancelled in self.items if cancelled],
        )

    def halves(self) -> tuple["Batch", "Batch"]:
        """Cut in two; needs two items."""
        middle = len(self.items) // 2
        return Batch(self.items[:middle]), Batch(self.items[middle:])

    def results(self, status: ReportStatus, error: str | None = None) -> list[ReportResult]:
        """Give every item the same status."""
        return [
            ReportResult(lease_id=lease_id, status=status, error=error)
            for lease_id in self.lease_ids()
        ]

    def lease_ids(self) -> list[int]:
        """Return the lease that each item reports on, 0 where it does not say."""
        return wire.item_lease_ids([body for body, _ in self.items])


def in_batches(items: Sequence[Item]) -> list[Batch]:
    """Cut items into batches that keep the contract's limits, in order."""
    sizes = sum([len(body) for body, _ in items]) + len(items) + BODY_SLACK_BYTES
    if items and len(items) <= wire.REPORT_ITEMS_MAX and sizes <= wire.REPORT_MAX_BYTES:
        return [Batch(items)]
    batches: list[Batch] = []
    part: list[Item] = []
    size = BODY_SLACK_BYTES
    for item in items:
        item_bytes = len(item[0]) + 1
        is_full = len(part) == wire.REPORT_ITEMS_MAX or size + item_bytes > wire.REPORT_MAX_BYTES
        if part and is_full:
            batches.append(Batch(part))
            part, size = [], BODY_SLACK_BYTES
        part.append(item)
        size += item_bytes
    if part:
        batches.append(Batch(part))
    return batches


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
