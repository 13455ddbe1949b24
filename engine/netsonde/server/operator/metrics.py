"""Metrics: what agents measure of themselves, and what this control plane does of itself."""

from collections.abc import Sequence
from dataclasses import replace

from netsonde.clock import NS_PER_S
from netsonde.exposition import CONTENT_TYPE, exposition
from netsonde.server import measures, metrics
from netsonde.server.about import AGENT, PAGE, About, Parameter, choice, instant, words_of
from netsonde.server.answers.metrics import LatestPage, MetricAnswer
from netsonde.server.api import ApiRequest, ApiResponse, Route, ok, refuse
from netsonde.server.operator.calls import Calls
from netsonde.server.queries import Query, agent_id_of, decode_cursor, encode_cursor
from netsonde.server.scopes import Scope
from netsonde.wire.metrics import METRIC_NAME_MAX_CHARS

SPAN_DEFAULT_NS = 3600 * NS_PER_S
STEP_DEFAULT_NS = 60 * NS_PER_S
STEP_MAX_NS = 90 * 86_400 * NS_PER_S

NAME = words_of("name", 1, METRIC_NAME_MAX_CHARS, "A metric's name.")
LATEST = About("Show what agents' metrics said last.", LatestPage, query=(NAME, AGENT, *PAGE))
QUERY = About(
    "Show an agents' metric over time.",
    MetricAnswer,
    query=(
        replace(NAME, is_required=True),
        AGENT,
        instant("from", "The first instant; an hour before the last unless told."),
        instant("to", "The instant after the last; now unless told."),
        Parameter(
            name="step",
            schema={"type": "string", "pattern": "^[0-9]{1,7}[smhd]?$", "examples": ["5m"]},
            text="A point's duration, such as 30s, 5m or 1h; 1m unless told.",
        ),
        choice("agg", [*measures.Aggregate], "What becomes of a step's samples."),
    ),
    text=f"At most {measures.STEPS_MAX} steps, {measures.SERIES_MAX} series and"
    f" {measures.POINTS_MAX} points are answered.",
)
OWN = About(
    "Show what the control plane counts of itself, for Prometheus.", str, media_type=CONTENT_TYPE
)


class MetricCalls(Calls):
    """The calls about metrics."""

    def routes(self) -> Sequence[Route]:
        """Return the calls."""
        return (
            Route("GET", "/v1/metrics/latest", self._latest, scope=Scope.READ, about=LATEST),
            Route("GET", "/v1/metrics/query", self._query, scope=Scope.READ, about=QUERY),
            Route("GET", "/metrics", self._page, scope=Scope.READ, about=OWN),
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
        lines, last = await self._plane.writer.look(
            lambda store: measures.latest(store, name, agent_id, after, limit)
        )
        return ok({"metrics": lines, "cursor": None if last is None else encode_cursor(last)})

    async def _query(self, request: ApiRequest) -> ApiResponse:
        question = self._question(Query(request.query))
        now_ns = self._plane.time.now_ns()
        return ok(
            await self._plane.writer.look(lambda store: measures.ask(store, question, now_ns))
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
