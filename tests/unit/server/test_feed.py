"""`GET /v1/results/stream` through dispatch: contract sections 6, 8 and 9."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.model import TaskKind
from netsonde.server import feed
from netsonde.server.feed import Feed, Found, Stopped
from netsonde.server.queries import RESULT_CURSOR, decode_cursor, encode_cursor
from netsonde.server.store import SqliteStore, Store
from netsonde.server.store.results import NewResult, ResultBounds, ResultQuery
from support.feeds import Reader, dispatch
from support.stores import STORES, Caller, RegisteredAgent, callers, new_task, result_item

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "result.schema.json").read_text())


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


async def measured(agent: RegisteredAgent, count: int = 1, **fields: Any) -> list[int]:
    """Let an agent measure some tasks; return its leases, in the order of the commits."""
    await agent.caller.tasks(count, **fields)
    ids = [lease["lease_id"] for lease in await agent.claim(count)]
    assert await agent.report(*ids) == ["accepted"] * count
    return ids


async def come(caller: Caller) -> None:
    """Let readers look: a reader's looks are a while apart."""
    await caller.clock.advance(feed.READERS_MAX * feed.LOOK_NS)
    await caller.clock.settle()


# ── what comes ──


async def test_what_is_there_comes_and_then_what_is_committed(caller: Caller) -> None:
    agent = await caller.register()
    first = await measured(agent, 3)
    reader = Reader(caller)
    await come(caller)
    assert reader.lease_ids == first
    second = await measured(agent, 2)
    await come(caller)
    assert reader.lease_ids == first + second
    assert not reader.task.done()
    await reader.hang_up()


async def test_every_line_is_a_result_of_the_schema_with_its_cursor(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(5)
    observed = {"observations": [{"name": "anything_new", "value": {"x": 1}}]}
    items = [
        result_item(lease["lease_id"]) | observed | {"env": {"version": "0.1.0"}}
        for lease in await agent.claim(5)
    ]
    await agent.call("/report", {"completed": items, "cancelled": []})
    reader = Reader(caller, wait_ms="0")
    await come(caller)
    *results, end = reader.lines
    validator = Draft202012Validator(SCHEMA)
    for line in results:
        assert set(line) == {"t", "cursor", "result"}
        assert [error.message for error in validator.iter_errors(line["result"])] == []
    _, listed, _ = await caller.operator("GET", "/v1/results")
    assert [line["result"] for line in results] == listed["results"]
    assert [decode_cursor(line["cursor"], RESULT_CURSOR) for line in results] == [1, 2, 3, 4, 5]
    assert end == {"t": "end", "reason": "wait", "cursor": results[-1]["cursor"]}


async def test_a_cursor_goes_on_after_its_line(caller: Caller) -> None:
    agent = await caller.register()
    ids = await measured(agent, 6)
    whole = Reader(caller, wait_ms="0")
    await come(caller)
    for at, line in enumerate(whole.lines[:-1], 1):
        rest = Reader(caller, wait_ms="0", cursor=line["cursor"])
        await come(caller)
        assert rest.lease_ids == ids[at:]


async def test_the_cursors_of_pages_and_streams_are_the_same(caller: Caller) -> None:
    agent = await caller.register()
    ids = await measured(agent, 4)
    _, page, _ = await caller.operator("GET", "/v1/results?limit=2")
    reader = Reader(caller, wait_ms="0", cursor=page["cursor"])
    await come(caller)
    assert reader.lease_ids == ids[2:]
    _, rest, _ = await caller.operator("GET", f"/v1/results?cursor={reader.lines[0]['cursor']}")
    assert [one["lease_id"] for one in rest["results"]] == ids[3:]


async def test_filters_are_those_of_pages(caller: Caller) -> None:
    agent = await caller.register()
    (tcp,) = await measured(agent)
    await caller.tasks(1, kind="ping", spec={"host": "192.0.2.1"})
    (lease,) = await agent.claim(capacities={"ping": 1})
    await agent.report(lease["lease_id"], outcome="target_error")
    task = str((await caller.operator("GET", "/v1/results?kind=tcp"))[1]["results"][0]["task_id"])
    for query, wanted in (
        ({"kind": "tcp"}, [tcp]),
        ({"outcome": "target_error"}, [lease["lease_id"]]),
        ({"task_id": task}, [tcp]),
        ({"agent": "probe-1"}, [tcp, lease["lease_id"]]),
        ({"check_id": "7"}, []),
        ({"to": "1970-01-01T00:00:00Z"}, []),
        ({"from_": "1970-01-01T00:00:00Z"}, [tcp, lease["lease_id"]]),
    ):
        reader = Reader(caller, wait_ms="0", **query)
        await come(caller)
        assert reader.lease_ids == wanted, query
        assert decode_cursor(reader.lines[-1]["cursor"], RESULT_CURSOR) == 2, (
            "what was not wanted is behind it"
        )


async def test_attempts_that_were_tried_again_come_only_with_final_any(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1)
    (lease,) = await agent.claim()
    await agent.report(lease["lease_id"], outcome="agent_error")
    for query, count in (({}, 0), ({"final": "any"}, 1)):
        reader = Reader(caller, wait_ms="0", **query)
        await come(caller)
        assert len(reader.lease_ids) == count


# ── silence, and the end ──


async def test_a_quiet_stream_pings_with_a_cursor_and_ends(caller: Caller) -> None:
    reader = Reader(caller, wait_ms="25000")
    await caller.clock.settle()
    for _ in range(26):
        await caller.clock.advance(NS_PER_S)
    start = encode_cursor(0, RESULT_CURSOR)
    ping = {"t": "ping", "cursor": start}
    assert reader.lines == [ping] * 3 + [{"t": "end", "reason": "wait", "cursor": start}]
    assert reader.task.done()


async def test_results_that_are_not_wanted_move_the_cursor_of_pings(caller: Caller) -> None:
    agent = await caller.register()
    reader = Reader(caller, kind="dns")
    await come(caller)
    await measured(agent, 3)
    for _ in range(11):
        await caller.clock.advance(NS_PER_S)
    assert [decode_cursor(line["cursor"], RESULT_CURSOR) for line in reader.lines] == [0, 3]
    await reader.hang_up()


async def test_a_stream_lasts_as_long_as_any_may(caller: Caller) -> None:
    reader = Reader(caller)
    await caller.clock.settle()
    for _ in range(54):
        await caller.clock.advance(NS_PER_S)
    assert not reader.task.done()
    await caller.clock.advance(NS_PER_S)
    assert reader.lines[-1]["reason"] == "wait"
    assert reader.task.done()


async def test_what_there_is_comes_without_waiting_for_more(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE_ROWS", 2)
    agent = await caller.register()
    ids = await measured(agent, 9)
    reader = Reader(caller, wait_ms="0")
    await come(caller)
    assert reader.lease_ids == ids
    assert reader.lines[-1]["reason"] == "wait"


async def test_a_stream_that_never_catches_up_ends_in_time(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE_ROWS", 1)
    monkeypatch.setattr(feed, "LOOK_NS", 20 * NS_PER_S)
    agent = await caller.register()
    ids = await measured(agent, 9)
    reader = Reader(caller)
    for _ in range(60):
        await caller.clock.advance(NS_PER_S)
    assert reader.lines[-1]["reason"] == "time"
    assert reader.lease_ids == ids[:4]
    assert reader.lines[-1]["cursor"] == reader.lines[-2]["cursor"]


async def test_a_shutdown_ends_it_at_once_after_what_is_there(caller: Caller) -> None:
    agent = await caller.register()
    reader = Reader(caller)
    await come(caller)
    ids = await measured(agent, 2)
    caller.plane.close()
    await come(caller)
    assert reader.lease_ids == ids
    assert reader.lines[-1]["reason"] == "shutdown"
    assert reader.task.done()


# ── refusals ──


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"colour": "red"}, "$.colour"),
        ({"limit": "5"}, "$.limit"),
        ({"order": "desc"}, "$.order"),
        ({"wait_ms": "55001"}, "$.wait_ms"),
        ({"wait_ms": "-1"}, "$.wait_ms"),
        ({"kind": "quic"}, "$.kind"),
        ({"agent": "nobody"}, "$.agent"),
        ({"from_": "yesterday"}, "$.from"),
        ({"check_id": "0"}, "$.check_id"),
        ({"outcome": ""}, "$.outcome"),
        ({"cursor": ""}, "$.cursor"),
        ({"cursor": "MQ"}, "$.cursor"),
        ({"cursor": "YzI6MQ"}, "$.cursor"),
        ({"cursor": "\u00fc"}, "$.cursor"),
        ({"cursor": encode_cursor(1)}, "$.cursor"),
        ({"cursor": encode_cursor(10**15 * 9_999, RESULT_CURSOR)}, "$.cursor"),
        ({"cursor": "cjE6" + "OTk5" * 1_900}, "$.cursor"),
        ({"cursor": "cjE6" * 1_900}, "$.cursor"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_it_begins(
    memory: Caller, query: dict[str, str], field: str
) -> None:
    reader = Reader(memory, **query)
    await come(memory)
    assert reader.refusal is not None
    assert reader.refusal["error"] == ErrorCode.VALIDATION
    assert reader.refusal["details"]["violations"][0]["path"] == field


@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")))
def test_a_text_is_a_cursor_of_ours_or_refused(text: str) -> None:
    try:
        position = decode_cursor(text, RESULT_CURSOR)
    except RequestError as error:
        position, code = None, error.code
    else:
        assert position is not None
        code = ErrorCode.VALIDATION
    assert code == ErrorCode.VALIDATION
    assert position is None or 0 <= position < 2**53


@pytest.mark.parametrize("path", ["/v1/results", "/v1/results/stream"])
async def test_a_cursor_of_another_database_is_expired(caller: Caller, path: str) -> None:
    agent = await caller.register()
    await measured(agent, 2)
    for position, status in ((2, 200), (3, 410), (2**53 - 1, 410)):
        query = [("cursor", encode_cursor(position, RESULT_CURSOR)), ("wait_ms", "0")]
        answer = await dispatch(caller, "GET", path, query=query)
        assert answer.status == status, position
        if status == 410:
            assert json.loads(answer.body)["error"] == ErrorCode.CURSOR_EXPIRED
            assert b"begin again without a cursor" in answer.body


@pytest.mark.parametrize("path", ["/v1/results", "/v1/results/stream"])
async def test_a_cursor_before_what_is_kept_is_expired(tmp_path: Path, path: str) -> None:
    for caller in callers("sqlite", tmp_path):
        agent = await caller.register()
        ids = await measured(agent, 6)
        await caller.plane.writer.write(lambda store: delete(store, 3))
        for position, status in ((0, 410), (2, 410), (3, 200), (6, 200)):
            query = [("cursor", encode_cursor(position, RESULT_CURSOR)), ("wait_ms", "0")]
            assert (await dispatch(caller, "GET", path, query=query)).status == status, position
        reader = Reader(caller, wait_ms="0")
        await come(caller)
        assert reader.lease_ids == ids[3:], "without a cursor it begins with what is kept"
        await caller.plane.writer.write(lambda store: delete(store, 6))
        for position, status in ((5, 410), (6, 200)):
            query = [("cursor", encode_cursor(position, RESULT_CURSOR)), ("wait_ms", "0")]
            assert (await dispatch(caller, "GET", path, query=query)).status == status, position


async def test_an_empty_page_has_a_cursor_to_go_on_from(tmp_path: Path) -> None:
    for caller in callers("sqlite", tmp_path):
        agent = await caller.register()
        await measured(agent, 4)
        await caller.plane.writer.write(lambda store: delete(store, 4))
        for order in ("", "?order=desc", "?kind=dns"):
            _, page, _ = await caller.operator("GET", f"/v1/results{order}")
            assert page["results"] == []
            assert decode_cursor(page["cursor"], RESULT_CURSOR) == 4
        (later,) = await measured(agent)
        _, page, _ = await caller.operator("GET", f"/v1/results?cursor={page['cursor']}")
        assert [one["lease_id"] for one in page["results"]] == [later]


async def test_results_deleted_before_they_were_read_end_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE_ROWS", 2)
    for caller in callers("sqlite", tmp_path):
        agent = await caller.register()
        ids = await measured(agent, 8)
        answer = await dispatch(caller, "GET", "/v1/results/stream")
        assert answer.chunks is not None
        first = json.loads((await anext(answer.chunks)).splitlines()[0])
        await caller.plane.writer.write(lambda store: delete(store, 5))

        async def rest(chunks: AsyncIterator[bytes]) -> list[Any]:
            return [json.loads(line) async for chunk in chunks for line in chunk.splitlines()]

        task = asyncio.get_running_loop().create_task(rest(answer.chunks))
        await come(caller)
        (end,) = task.result()
        assert first["result"]["lease_id"] == ids[0]
        assert (end["t"], end["error"]["error"]) == ("end", ErrorCode.CURSOR_EXPIRED)


def delete(store: Store, through: int) -> None:
    """Delete results as retention would."""
    assert isinstance(store, SqliteStore)
    store.select("DELETE FROM result WHERE result_id <= ?", [through])


# ── limits ──


async def test_one_reader_too_many_is_told_to_come_again(
    memory: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "READERS_MAX", 2)
    readers = [Reader(memory) for _ in range(3)]
    await memory.clock.settle()
    told = [reader.refusal for reader in readers if reader.refusal is not None]
    assert [one["error"] for one in told] == [ErrorCode.RATE_LIMITED]
    assert told[0]["retry_after_ms"] == feed.RETRY_AFTER_MS
    await asyncio.gather(*(reader.hang_up() for reader in readers))
    again = Reader(memory, wait_ms="0")
    await come(memory)
    assert again.lines[-1]["t"] == "end", "who left made room"


async def test_a_reader_that_does_not_read_holds_one_page(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE_ROWS", 3)
    agent = await caller.register()
    ids = await measured(agent, 20)
    stream = Feed(caller.plane).stream(ResultQuery(limit=1), 60 * NS_PER_S, 60 * NS_PER_S)
    async with aclosing(stream):
        first = await anext(stream)
        assert isinstance(first, Found)
        assert [row.lease_id for row in first.results] == ids[:3]
        more = await measured(agent, 5)  # nobody waits for who does not read
        assert len(more) == 5


async def test_large_results_make_small_pages(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PAGE_BYTES", 1)
    agent = await caller.register()
    ids = await measured(agent, 4)
    reader = Reader(caller)
    for _ in range(5):
        await come(caller)
    assert reader.lease_ids == ids
    await reader.hang_up()


async def test_a_filter_that_fits_nothing_is_looked_for_in_parts(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "SCAN_IDS", 2)
    agent = await caller.register()
    await measured(agent, 7)
    await caller.tasks(1, kind="ping", spec={"host": "192.0.2.1"})
    (lease,) = await agent.claim(capacities={"ping": 1})
    await agent.report(lease["lease_id"])
    reader = Reader(caller, kind="ping")
    for _ in range(6):
        await come(caller)
    assert reader.lease_ids == [lease["lease_id"]]
    await reader.hang_up()


async def test_ids_that_jumped_are_not_counted_one_by_one(tmp_path: Path) -> None:
    for caller in callers("sqlite", tmp_path):
        agent = await caller.register()
        ids = await measured(agent, 2)
        reader = Reader(caller)
        await come(caller)
        await caller.plane.writer.write(jump)
        for _ in range(3):
            await come(caller)
        ids += await measured(agent, 2)
        for _ in range(3):
            await come(caller)
        assert reader.lease_ids == ids
        late = Reader(caller)
        for _ in range(4):
            await come(caller)
        assert late.lease_ids == ids
        await asyncio.gather(reader.hang_up(), late.hang_up())


def jump(store: Store) -> None:
    """Give the next result an id that a restored database gives."""
    assert isinstance(store, SqliteStore)
    store.select("UPDATE sqlite_sequence SET seq = seq + (1 << 32) WHERE name = 'result'", ())


async def test_many_readers_look_seldom(memory: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await memory.register()
    readers = [Reader(memory) for _ in range(50)]
    await memory.clock.settle()
    looks = 0
    results = memory.plane.writer.read

    async def counted(operation: Any) -> Any:
        nonlocal looks
        looks += 1
        return await results(operation)

    monkeypatch.setattr(memory.plane.writer, "read", counted)
    ids = []
    for _ in range(20):
        ids += await measured(agent)
        await memory.clock.advance(NS_PER_MS)
    assert looks <= 50 * 2
    await come(memory)
    assert all(reader.lease_ids == ids for reader in readers)
    await asyncio.gather(*(reader.hang_up() for reader in readers))


# ── nothing is skipped, whatever happens ──


class Grown:
    """A store whose results grow between any two of a look's reads, as another thread lets them."""

    def __init__(self, store: Store, growth: Iterator[int]) -> None:
        self._store = store
        self.growth = growth
        self.count = 0

    def grow(self) -> None:
        for _ in range(next(self.growth, 0)):
            self.count += 1
            self._store.add_results([stored_result(self.count)])

    def result_bounds(self) -> ResultBounds:
        self.grow()
        bounds = self._store.result_bounds()
        self.grow()
        return bounds

    def results(self, query: ResultQuery) -> list[Any]:
        self.grow()
        rows = self._store.results(query)
        self.grow()
        return rows

    def next_result(self, position: int) -> int | None:
        self.grow()
        following = self._store.next_result(position)
        self.grow()
        return following


def stored_result(number: int) -> NewResult:
    return NewResult(
        lease_id=number,
        task_id=number,
        agent_id=1,
        kind=(TaskKind.TCP, TaskKind.DNS)[number % 2],
        outcome="ok",
        attempt=1,
        received_ns=number,
        is_final=True,
        spec_id=1,
        body=b'{"observations":[]}' + b" " * (number * 7 % 40),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    growth=st.lists(st.integers(0, 5), max_size=60),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=30),
    rows=st.integers(1, 4),
    size=st.integers(1, 120),
    scan=st.integers(1, 6),
    kind=st.none() | st.just(TaskKind.TCP),
)
async def test_the_union_over_all_cuts_is_what_was_accepted(
    memory: Caller,
    growth: list[int],
    cuts: list[int],
    rows: int,
    size: int,
    scan: int,
    kind: TaskKind | None,
) -> None:
    """Cut streams after any number of results, while results are committed at any point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "PAGE_ROWS", rows)
        patch.setattr(feed, "PAGE_BYTES", size)
        patch.setattr(feed, "SCAN_IDS", scan)
        for fresh in callers("memory", Path()):
            real = await fresh.plane.writer.read(lambda store: store)
            real.add_tasks([new_task()])  # whose spec they have
            grown = Grown(real, iter(growth))

            async def read(operation: Any, grown: Grown = grown) -> Any:
                return operation(grown)

            patch.setattr(fresh.plane.writer, "look", read)
            seen: list[int] = []
            position: int | None = None
            for cut in cuts:
                position = await follow(fresh, kind, position, cut, seen)
            while (position or 0) < grown.count or next(grown.growth, None) is not None:
                position = await follow(fresh, kind, position, None, seen)
            wanted = [
                number
                for number in range(1, grown.count + 1)
                if kind is None or stored_result(number).kind is kind
            ]
            assert seen == wanted


async def follow(
    caller: Caller, kind: TaskKind | None, position: int | None, cut: int | None, seen: list[int]
) -> int | None:
    """Read until so many results have come, or to the end; return where to go on."""
    query = ResultQuery(limit=1, position=position, kind=kind)
    until_ns = caller.plane.time.now_ns() + 5 * NS_PER_MS
    stream = Feed(caller.plane).stream(query, until_ns, until_ns)
    async with aclosing(stream):
        task = asyncio.get_running_loop().create_task(_take(stream, cut, seen))
        while not task.done():
            await caller.clock.settle(3)
            await caller.clock.advance(NS_PER_MS)
        reached = task.result()
        return position if reached is None else reached


async def _take(
    stream: AsyncIterator[Found | Stopped], cut: int | None, seen: list[int]
) -> int | None:
    position, came = None, 0
    async for event in stream:
        if isinstance(event, Stopped):
            return event.position
        for row in event.results:
            seen.append(row.lease_id)
            position, came = row.result_id, came + 1
            if came == cut:
                return position
        position = event.position
    return position
