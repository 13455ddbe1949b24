"""The calls of the agent API: how each request is written, and how its answer is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from netsonde import wire
from netsonde.backoff import Verb
from netsonde.control_plane.exchange import Answer, Call
from netsonde.control_plane.grants import ClaimGrant, Extension, read_claim, read_extend
from netsonde.control_plane.reporting import Batch, read_report
from netsonde.control_plane.server_clock import ServerClock
from netsonde.control_plane.streaming import ClaimStream, ReportStream
from netsonde.model import (
    ID_MAX,
    ClaimRequest,
    ExtendRequest,
    HeartbeatRequest,
    HeartbeatResponse,
    MetricsEnvelope,
    MetricsResponse,
    RegisterRequest,
    RegisterResponse,
    ReleaseRequest,
    ReleaseResponse,
    ReportResponse,
)

CALL_TIMEOUT_S = 10.0
REPORT_TIMEOUT_S = 30.0  # 4 MiB over a slow uplink
STREAM_TIMEOUT_S = wire.STREAM_MAX_MS / 1000 + 10
# A claim's stream says something every 10 s; a report's answer may wait for what is still to come.
STREAM_IDLE_S = 25.0
CLAIM_SLACK_S = 10.0  # after the hold: the server's own work and the way back
NOT_MODIFIED = 304
ABSENT_STATUSES = frozenset({404, 405})
# What a control plane says that takes this, but not as a stream.
STREAMLESS_STATUSES = ABSENT_STATUSES | {406, 411, 415, 501}
# Reported in batches, the item at fault is found.
UNREPORTED_STATUSES = STREAMLESS_STATUSES | Batch.SPLIT_STATUSES


@dataclass(frozen=True, slots=True)
class ConfigAnswer:
    """A configuration as it came, None: the one that is known; and what to name it by."""

    body: bytes | None
    etag: str | None


def register_call(
    request: RegisterRequest, prefix: str, server_clock: ServerClock
) -> Call[RegisterResponse]:
    """Introduce an agent, under one of the API's prefixes."""
    return Call(
        verb=Verb.REGISTER,
        make=lambda _: wire.encode(request),
        read=lambda answer: _read_register(answer, server_clock),
        timeout_s=CALL_TIMEOUT_S,
        prefix=prefix,
        tolerated=ABSENT_STATUSES,
    )


def heartbeat_call(
    request: HeartbeatRequest, timeout_ms: int, server_clock: ServerClock
) -> Call[HeartbeatResponse]:
    """Say that the agent lives; timeout_ms bounds deadlines of servers that send instants."""

    def make(agent_id: int) -> bytes:
        return wire.encode(msgspec.structs.replace(request, agent_id=agent_id))

    return Call(
        verb=Verb.HEARTBEAT,
        make=make,
        read=lambda answer: _read_heartbeat(answer, timeout_ms, server_clock),
        timeout_s=CALL_TIMEOUT_S,
    )


def claim_call(
    free: Mapping[str, int],
    claim_id: str,
    max_leases: int | None,
    hold_ms: tuple[int, int],
    term_ms: Callable[[], int],
    server_clock: ServerClock,
) -> Call[ClaimGrant]:
    """Ask for work in one answer; hold_ms is what is asked for, and how long it may really take."""
    return Call(
        verb=Verb.CLAIM,
        make=_claim_body(free, claim_id, max_leases, hold_ms[0]),
        read=lambda answer: _read_claim(answer, term_ms(), server_clock),
        timeout_s=hold_ms[1] / 1000 + CLAIM_SLACK_S,
        is_held=True,
    )


def claim_stream_call(
    free: Mapping[str, int], claim_id: str, hold_ms: int, claim: ClaimStream
) -> Call[None]:
    """Ask for work as it comes; the capacities are the credits of the stream."""
    return Call(
        verb=Verb.CLAIM,
        make=_claim_body(free, claim_id, None, hold_ms),
        follow=claim.follow,
        timeout_s=hold_ms / 1000 + CLAIM_SLACK_S,
        idle_timeout_s=STREAM_IDLE_S,
        is_held=True,
        tolerated=STREAMLESS_STATUSES,
    )


def extend_call(ids: tuple[int, ...], extend_by_ms: int, term_ms: int) -> Call[Extension]:
    """Ask for more time on leases."""
    return Call(
        verb=Verb.EXTEND,
        make=lambda agent_id: wire.encode(
            ExtendRequest(agent_id=agent_id, lease_ids=ids, extend_by_ms=extend_by_ms)
        ),
        read=lambda answer: read_extend(answer, ids, term_ms),
        timeout_s=CALL_TIMEOUT_S,
    )


def lease_id_parts(lease_ids: Sequence[int]) -> list[tuple[int, ...]]:
    """Return lease ids in parts that one call takes."""
    most = wire.LEASE_IDS_PER_EXTEND_MAX
    return [tuple(lease_ids[start : start + most]) for start in range(0, len(lease_ids), most)]


def release_call(
    ids: tuple[int, ...], claim_ids: tuple[str, ...], keep: tuple[int, ...] = ()
) -> Call[int]:
    """Give leases back unworked, and all of some claims but those to keep."""
    return Call(
        verb=Verb.RELEASE,
        make=lambda agent_id: wire.encode(
            ReleaseRequest(
                agent_id=agent_id, lease_ids=ids, claim_ids=claim_ids, keep_lease_ids=keep
            )
        ),
        read=lambda answer: wire.decode_answer(ReleaseResponse, answer.response.body).released,
        timeout_s=CALL_TIMEOUT_S,
        tolerated=ABSENT_STATUSES,
    )


def report_call(batch: Batch) -> Call[ReportResponse]:
    """Hand in a batch of results."""
    return Call(
        verb=Verb.REPORT,
        make=batch.encode,
        read=lambda answer: read_report(answer, batch),
        timeout_s=REPORT_TIMEOUT_S,
        tolerated=batch.SPLIT_STATUSES,
    )


def config_call(etag: str | None) -> Call[ConfigAnswer]:
    """Ask for the signed configuration, unless it is still the one with this ETag."""
    return Call(
        verb=Verb.CONFIG,
        method="GET",
        headers={} if etag is None else {"If-None-Match": etag},
        make=lambda _: b"",
        read=_read_config,
        timeout_s=CALL_TIMEOUT_S,
        tolerated=ABSENT_STATUSES,
        understood=frozenset({NOT_MODIFIED}),
    )


def report_stream_call(report: ReportStream) -> Call[None]:
    """Hand in results as they come."""
    return Call(
        verb=Verb.REPORT,
        make=lambda _: b"",
        lines=report.lines,
        follow=report.follow,
        timeout_s=STREAM_TIMEOUT_S,
        idle_timeout_s=STREAM_IDLE_S,
        tolerated=UNREPORTED_STATUSES,
    )


def metrics_call(envelope: MetricsEnvelope) -> Call[MetricsResponse]:
    """Tell what the agent counts of itself."""
    return Call(
        verb=Verb.METRICS,
        make=lambda agent_id: wire.encode(msgspec.structs.replace(envelope, agent_id=agent_id)),
        read=lambda answer: wire.decode_answer(MetricsResponse, answer.response.body),
        timeout_s=CALL_TIMEOUT_S,
        tolerated=ABSENT_STATUSES,
    )


def _claim_body(
    free: Mapping[str, int], claim_id: str, max_leases: int | None, wait_ms: int
) -> Callable[[int], bytes]:
    def make(agent_id: int) -> bytes:
        return wire.encode(
            ClaimRequest(
                agent_id=agent_id,
                capacities=dict(free),
                claim_id=claim_id,
                max_leases=max_leases,
                wait_ms=wait_ms,
            )
        )

    return make


def _read_config(answer: Answer) -> ConfigAnswer:
    response = answer.response
    is_new = response.status != NOT_MODIFIED
    return ConfigAnswer(response.body if is_new else None, response.headers.get("ETag"))


def _read_claim(answer: Answer, term_ms: int, server_clock: ServerClock) -> ClaimGrant:
    grant = read_claim(answer, term_ms)
    told = grant.response
    server_clock.hear(told.server_time_ms, answer.sent_ns, answer.received_ns, told.held_ms or 0)
    return grant


def _read_heartbeat(
    answer: Answer, timeout_ms: int, server_clock: ServerClock
) -> HeartbeatResponse:
    if not answer.response.body:
        return HeartbeatResponse()
    response = wire.decode_answer(HeartbeatResponse, answer.response.body)
    if response.agent_id == 0:
        raise wire.DecodeError("the heartbeat was answered for agent 0")
    server_clock.hear(response.server_time_ms, answer.sent_ns, answer.received_ns)
    next_ms = wire.relative_ms(
        response.next_deadline_ms, date_epoch_ms=answer.date_epoch_ms, term_ms=timeout_ms
    )
    return msgspec.structs.replace(response, next_deadline_ms=next_ms)


def _read_register(answer: Answer, server_clock: ServerClock) -> RegisterResponse:
    body = answer.response.body
    try:
        registration = wire.decode_answer(RegisterResponse, body)
    except wire.DecodeError:
        if body.lstrip().startswith(b"{"):  # most of it could be a token: nothing is quoted
            raise wire.DecodeError("the fields are not those of a registration") from None
        raise
    if not 0 < registration.agent_id <= ID_MAX:
        raise wire.DecodeError(f"agent_id must be 1 to 2^64-1, not {registration.agent_id}")
    if not registration.auth_token.isascii() or not registration.auth_token.isprintable():
        raise wire.DecodeError("auth_token does not fit into a header")
    try:
        wire.encode(registration)  # as it will be stored
    except TypeError as error:
        raise wire.DecodeError("a number in it has more than 64 bits") from error
    server_clock.hear(registration.server_time_ms, answer.sent_ns, answer.received_ns)
    return registration
