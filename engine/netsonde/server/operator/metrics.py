"""Metrics: what agents measure of themselves, and what this control plane does of itself."""

from collections.abc import Sequence

from netsonde.clock import NS_PER_S
from netsonde.exposition import CONTENT_TYPE, exposition
from netsonde.server import measures, metrics
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok, refuse
from netsonde.server.operator.calls import Calls
from netsonde.server.queries import Query, agent_id_of, decode_cursor, encode_cursor
from netsonde.server.scopes import Scope
from netsonde.wire.metrics import METRIC_NAME_MAX_CHARS

SPAN_DEFAULT_NS = 3600 * NS_PER_S
STEP_DEFAULT_NS = 60 * NS_PER_S
STEP_MAX_NS = 90 * 86_400 * NS_PER_S


class MetricCalls(Calls):
    """The calls about metrics."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (
            Route("GET", "/v1/metrics/latest", self._latest, scope=Scope.READ),
            Route("GET", "/v1/metrics/query", self._query, scope=Scope.READ),
            Route("GET", "/metrics", self._page, scope=Scope.READ),
        )

    async def _page(self, request: ApiRequest) -> ApiResponse:
        """Answer what this control plane counts of itself, for Prometheus."""
        Query(request.query).end()
        readings = await metrics.read(self._plane)
        page = exposition(lambda: readings)
        return ApiResponse(200, page, {"Content-Type": CONTENT_TYPE})

    async def _latest(self, request: ApiRequest) -> ApiResponse:
        query = Query(request.query)
        limit, after = query.limit(), decode_cursor(query.take("cursor")) or 0
        name = _name(query)
        agent_id = agent_id_of(query.take("agent"), self._plane.registry)
        query.end()
        lines, last = await self._plane.writer.read(
            lambda store: measures.latest(store, name, agent_id, after, limit)
        )
        return ok({"metrics": lines, "cursor": None if last is None else encode_cursor(last)})

    async def _query(self, request: ApiRequest) -> ApiResponse:
        question = self._question(Query(request.query))
        now_ns = self._plane.time.now_ns()
        return ok(
            await self._plane.writer.read(lambda store: measures.ask(store, question, now_ns))
        )

    def _question(self, query: Query) -> measures.Question:
        name = _name(query)
        if name is None:
            refuse("name", "name is needed: GET /v1/metrics/latest shows which there are")
        now_ns = self._plane.time.now_ns()
        to_ns = query.instant_ns("to")
        to_ns = now_ns + 1 if to_ns is None else to_ns
        step_ns = _step_ns(query)
        from_ns = query.instant_ns("from")
        if from_ns is None:
            from_ns = max(to_ns - min(SPAN_DEFAULT_NS, (measures.STEPS_MAX - 1) * step_ns), 0)
        aggregate = query.choice("agg", [*measures.Aggregate]) or measures.Aggregate.LAST
        agent_id = agent_id_of(query.take("agent"), self._plane.registry)
        query.end()
        from_ns -= from_ns % step_ns
        if from_ns >= to_ns:
            refuse("from", "from must be before to")
        if to_ns - from_ns > measures.STEPS_MAX * step_ns:
            refuse("step", f"at most {measures.STEPS_MAX} steps are answered: take a longer step")
        return measures.Question(
            name=name,
            aggregate=measures.Aggregate(aggregate),
            from_ns=from_ns,
            to_ns=to_ns,
            step_ns=step_ns,
            agent_id=agent_id,
        )


def _name(query: Query) -> str | None:
    name = query.take("name")
    if name is not None and not 0 < len(name) <= METRIC_NAME_MAX_CHARS:
        refuse("name", f"name must have 1 to {METRIC_NAME_MAX_CHARS} characters")
    return name


def _step_ns(query: Query) -> int:
    text = query.take("step")
    if text is None:
        return STEP_DEFAULT_NS
    step_ns = measures.step_ns(text)
    if step_ns is None or not 0 < step_ns <= STEP_MAX_NS:
        refuse("step", f"step must be a duration such as 30s, 5m or 1h, not {text[:50]!r}")
    return step_ns
