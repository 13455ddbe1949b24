"""The agent API: what a request means, for our agents and for the original ones."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from netsonde import wire
from netsonde.clock import NS_PER_MS
from netsonde.errors import RequestError
from netsonde.model import (
    ID_MAX,
    ClaimRequest,
    ExtendOutcome,
    ExtendRequest,
    ExtendResponse,
    ExtendResult,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    RegisterResponse,
    ReleaseRequest,
    ReleaseResponse,
    ReportResponse,
    ReportStatus,
)
from netsonde.server.agent_calls import AGENT_CALLS, PREFIXES
from netsonde.server.api import (
    Api,
    ApiRequest,
    ApiResponse,
    Handler,
    Route,
    fed,
    lines,
    ok,
    refuse,
    require_identity,
    require_json,
)
from netsonde.server.claim_answers import ClaimAnswers
from netsonde.server.claims import Claims
from netsonde.server.config_calls import answer_config
from netsonde.server.core import ControlPlane
from netsonde.server.fleet import HEARTBEATS_MISSED
from netsonde.server.health import health_routes
from netsonde.server.intake import Intake
from netsonde.server.leasing import ExtendStatus, Extension
from netsonde.server.quotas import Quotas
from netsonde.server.senders import check_same, credentials, is_legacy, is_original, register_key
from netsonde.server.store.agents import AgentRow
from netsonde.wire.metrics import (
    METRIC_NAME_MAX_CHARS,
    OriginalMetrics,
    decode_metrics,
    names_its_instance,
    original_metrics,
)

EXTEND_FRACTION = 0.4
_PROVEN_CALLS = frozenset({"report", "metrics"})  # whose bodies may have 4 MiB
ORIGINAL_SAMPLES_MAX = 500
AGENT_ID_DIGITS_MAX = 20  # 2^64 has 20
_TAKEN = frozenset({ReportStatus.ACCEPTED, ReportStatus.LATE_ACCEPTED, ReportStatus.DUPLICATE})


class AgentApi(Api):
    """The calls of contract section 1, under all their prefixes."""

    name = "agent"

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._claims = Claims(plane)
        self._claim_answers = ClaimAnswers(plane)
        self._intake = Intake(plane)
        self._quotas = Quotas(plane.config.quota_scale)
        handlers: dict[str, Handler] = {
            "register": self._register,
            "heartbeat": self._heartbeat,
            "claim": self._claim,
            "extend": self._extend,
            "release": self._release,
            "report": self._report,
            "metrics": self._metrics,
            "config": self._config,
        }
        routes = [
            Route(
                call.method,
                f"{prefix}/{name}",
                handlers[name],
                call.max_bytes,
                takes_lines=call.about.takes_line is not None,
                about=call.about,
            )
            for prefix in PREFIXES
            for name, call in AGENT_CALLS.items()
        ]
        super().__init__([*routes, *health_routes(plane)])
        plane.requests[self.name] = self.requests

    def call_name(self, route: Route) -> str:
        """Return the call, whatever its prefix."""
        return route.path.rpartition("/")[2]

    def check_sender(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """Refuse who is no agent before the body is read; a register's is small, and proves it."""
        if path.rpartition("/")[2] not in _PROVEN_CALLS:
            return False
        self._plane.registry.check(
            *credentials(ApiRequest(method=method, path=path, headers=headers))
        )
        return True

    async def admit(self, request: ApiRequest, route: Route) -> ApiRequest:
        """Refuse what is neither plain JSON nor a stream where one is taken."""
        if request.chunks is not None:
            require_identity(request)
        elif route.method == "POST":
            require_json(request)
        return request

    # ── the calls ──

    async def _register(self, request: ApiRequest) -> ApiResponse:
        body = wire.decode(RegisterRequest, request.body)
        self._quotas.spend("register", register_key(body, request), request.received_ns)
        agent, token, changes = await self._plane.registry.register(
            body, is_legacy=body.agent_key is None or is_legacy(request)
        )
        self._plane.fleet.began(agent)
        if body.agent_key is not None:
            self._plane.waiters.end(agent.agent_id)  # what an earlier instance still waits for
        if changes:
            self._plane.waiters.wake_all()
        config = self._plane.config
        return ok(
            RegisterResponse(
                agent_id=agent.agent_id,
                lease_duration_ms=max(config.terms_ms.values()),
                heartbeat_timeout_ms=config.heartbeat_interval_ms * HEARTBEATS_MISSED,
                auth_token=token,
                server_time_ms=self._plane.time.now_ns() // NS_PER_MS,
                heartbeat_interval_ms=config.heartbeat_interval_ms,
                claim_wait_ms=config.claim_wait_ms,
                extend_fraction=EXTEND_FRACTION,
                config_revision=self._config_revision(agent),
                limits={
                    "leases_per_claim": wire.LEASES_PER_CLAIM_MAX,
                    "lease_ids_per_extend": wire.LEASE_IDS_PER_EXTEND_MAX,
                    "report_items": wire.REPORT_ITEMS_MAX,
                    "report_bytes": wire.REPORT_MAX_BYTES,
                    "item_bytes": wire.ITEM_MAX_BYTES,
                },
            )
        )

    async def _heartbeat(self, request: ApiRequest) -> ApiResponse:
        agent = await self._authenticated(request, "heartbeat")
        body = wire.decode(HeartbeatRequest, request.body)
        check_same(agent, body.agent_id)
        ids = body.active_leases.get("ids", ())
        if not isinstance(ids, list | tuple) or not all(
            type(one) is int and 0 <= one <= ID_MAX for one in ids
        ):
            refuse("active_leases.ids", "active_leases.ids must be a list of lease ids")
        await self._plane.configs.heard(agent, body.config)
        commands = await self._plane.fleet.heard(agent, body)
        revoked, unknown = await self._plane.lost_leases(agent, ids)
        config = self._plane.config
        return ok(
            HeartbeatResponse(
                agent_id=agent.agent_id,
                next_deadline_ms=config.heartbeat_interval_ms * HEARTBEATS_MISSED,
                heartbeat_interval_ms=config.heartbeat_interval_ms,
                server_time_ms=self._plane.time.now_ns() // NS_PER_MS,
                config_revision=self._config_revision(agent),
                revoked_leases=revoked,
                unknown_leases=unknown,
                commands=commands,
            )
        )

    async def _claim(self, request: ApiRequest) -> ApiResponse:
        agent = await self._authenticated(request, "claim")
        body = wire.decode(ClaimRequest, request.body)
        check_same(agent, body.agent_id)
        if wire.NDJSON in request.header("accept").lower() and not is_legacy(request):
            events = self._claims.stream(agent, body, request.received_ns)
            return lines(self._claim_answers.lines(events, request.received_ns))
        claimed = await self._claims.claim(
            agent, body, request.received_ns, is_legacy=is_legacy(request)
        )
        answer = self._claim_answers.body(body, claimed, request.received_ns)
        if (revision := self._config_revision(agent)) is not None:
            answer["config_revision"] = revision
        return ok(answer)

    async def _extend(self, request: ApiRequest) -> ApiResponse:
        agent = await self._authenticated(request, "extend")
        body = wire.decode(ExtendRequest, request.body)
        check_same(agent, body.agent_id)
        if body.extend_by_ms < 0:
            refuse("extend_by_ms", "extend_by_ms must be 0 or more")
        answers = await self._plane.extend(agent, body)
        outcomes = tuple(
            ExtendOutcome(
                lease_id=lease_id, new_deadline_ms=_remaining_ms(extension, request.received_ns)
            )
            for lease_id, extension in answers
            if extension.until_ns is not None
        )
        if is_original(request):
            return ok(list(outcomes))
        return ok(
            ExtendResponse(
                outcomes=outcomes,
                revoked=tuple(
                    lease_id
                    for lease_id, extension in answers
                    if extension.until_ns is None and extension.status is not ExtendStatus.CAPPED
                ),
                results=tuple(
                    ExtendResult(lease_id=lease_id, status=extension.status)
                    for lease_id, extension in answers
                ),
            )
        )

    async def _release(self, request: ApiRequest) -> ApiResponse:
        agent = await self._authenticated(request, "release")
        body = wire.decode(ReleaseRequest, request.body)
        check_same(agent, body.agent_id)
        return ok(ReleaseResponse(released=await self._plane.release(agent, body)))

    async def _report(self, request: ApiRequest) -> ApiResponse:
        agent = await self._authenticated(request, "report")
        if request.chunks is not None:
            until_ns = request.received_ns + wire.STREAM_MAX_MS * NS_PER_MS
            return lines(self._report_lines(agent, request, request.chunks, until_ns))
        try:
            body = wire.decode_report(request.body)
            check_same(agent, body.agent_id)
        except RequestError:
            if is_original(request):  # an original agent would send the same bytes for ever
                return ok(ReportResponse(acknowledged=0))
            raise
        answers = await self._plane.report(agent, body.items)
        taken = sum(answer.status in _TAKEN for answer in answers)
        results = () if is_original(request) else tuple(answers)
        return ok(ReportResponse(acknowledged=taken, results=results))

    async def _report_lines(
        self,
        agent: AgentRow,
        request: ApiRequest,
        chunks: AsyncIterator[bytes],
        until_ns: int,
    ) -> AsyncGenerator[bytes]:
        """Commit what came together, answer for it, and look what has come meanwhile."""
        received = wire.Lines()
        through = 0
        async for chunk in chunks:
            items = wire.read_report_lines(fed(received, chunk))
            for start in range(0, len(items), wire.REPORT_ITEMS_MAX):
                part = items[start : start + wire.REPORT_ITEMS_MAX]
                self._plane.registry.check(*credentials(request))
                answers = await self._plane.report(agent, [item for _, item in part])
                yield wire.acknowledgement_lines([seq for seq, _ in part], answers)
                through = part[-1][0]
            if self._plane.time.now_ns() >= until_ns:
                break
        yield wire.through_line(through)

    async def _metrics(self, request: ApiRequest) -> ApiResponse:
        agent = await self._authenticated(request, "metrics")
        if not names_its_instance(request.body):
            return await self._original_metrics(agent, request)
        batch = decode_metrics(request.body)
        check_same(agent, batch.agent_id)
        return ApiResponse(202, await self._intake.take(batch))

    async def _original_metrics(self, agent: AgentRow, request: ApiRequest) -> ApiResponse:
        body = wire.decode(OriginalMetrics, request.body, max_bytes=wire.REPORT_MAX_BYTES)
        check_same(agent, body.agent_id)
        samples = [*body.counters, *body.gauges]
        if len(samples) > ORIGINAL_SAMPLES_MAX:
            refuse("counters", f"at most {ORIGINAL_SAMPLES_MAX} samples are allowed")
        if any(not 0 < len(sample.name) <= METRIC_NAME_MAX_CHARS for sample in samples):
            refuse("counters", f"a name must have 1 to {METRIC_NAME_MAX_CHARS} characters")
        await self._intake.take_original(original_metrics(body), body.timestamp)
        return ok({"accepted": True, "id": f"{agent.agent_id}/{body.timestamp}"}, 202)

    async def _config(self, request: ApiRequest) -> ApiResponse:
        agent = await self._authenticated(request, "config")
        return await answer_config(self._plane.configs, agent, request)

    def _config_revision(self, agent: AgentRow) -> str | None:
        revision = self._plane.configs.revision_for(agent)
        return None if revision is None else str(revision)

    # ── who asks ──

    async def _authenticated(self, request: ApiRequest, call: str) -> AgentRow:
        agent_id, token = credentials(request)
        agent = await self._plane.registry.authenticate(agent_id, token)
        self._quotas.spend(call, str(agent_id), request.received_ns)
        return agent


def _remaining_ms(extension: Extension, received_ns: int) -> int:
    return max((extension.until_ns or 0) - received_ns, 0) // NS_PER_MS
