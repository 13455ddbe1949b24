"""Metrics from an agent's envelope to an operator's answer, on each store."""

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import NS_PER_S, rfc3339
from netsonde.exposition import CONTENT_TYPE
from netsonde.server import metrics
from netsonde.server.api import ApiRequest
from netsonde.server.background import roll_forever
from netsonde.server.cells import encode_samples, sampled
from netsonde.server.intake import NUMBERS_PER_AGENT_MAX
from netsonde.server.rollups import LEVELS
from netsonde.server.store.metrics import Level, MetricBlock
from support.operator_api import LocalOperatorApi
from support.stores import STORES, Caller, RegisteredAgent, callers


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path, quota_scale=1000)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path, quota_scale=1000)


async def send(
    agent: RegisteredAgent, seq: int, *, instance: str = "i", start: str = "s", **samples: Any
) -> dict[str, Any]:
    body = {"timestamp": "t", "instance_id": instance, "seq": seq, "start_time": start} | samples
    status, answer, _ = await agent.call("/metrics", body)
    assert status == 202, answer
    sent: dict[str, Any] = answer
    return sent


def counted(value: float, name: str = "n") -> list[dict[str, Any]]:
    return [{"name": name, "value": value}]


def joined(query: Mapping[str, str]) -> str:
    return "&".join(f"{name}={value}" for name, value in query.items())


async def latest(caller: Caller, **query: str) -> list[dict[str, Any]]:
    status, answer, _ = await caller.operator("GET", f"/v1/metrics/latest?{joined(query)}")
    assert status == 200, answer
    lines: list[dict[str, Any]] = answer["metrics"]
    return lines


async def points(caller: Caller, agg: str, name: str = "n", **query: str) -> list[list[float]]:
    path = f"/v1/metrics/query?{joined({'name': name, 'agg': agg} | query)}"
    status, answer, _ = await caller.operator("GET", path)
    assert status == 200, answer
    found: list[list[float]] = [
        [at - caller.plane.time.now_ns() // 1_000_000, value]
        for series in answer["series"]
        for at, value in series["points"]
    ]
    return found


def values(found: list[list[float]]) -> list[float]:
    return [value for _, value in found]


async def test_an_envelope_sent_again_changes_nothing_and_is_answered_the_same(
    caller: Caller,
) -> None:
    agent = await caller.register()
    bad = {"name": "", "value": 1}
    first = await send(agent, 1, counters=counted(5), gauges=[bad])
    assert first == {
        "accepted": True,
        "id": "1/i/1",
        "stored": 1,
        "rejected": [
            {
                "path": "$.gauges[0]",
                "error": "ERR_VALIDATION",
                "message": "name, unit and labels must be printable, names not empty",
            }
        ],
        "rejected_total": 1,
    }
    await caller.clock.advance(NS_PER_S)
    await send(agent, 2, counters=counted(6))
    assert await send(agent, 1, counters=counted(5), gauges=[bad]) == first
    assert [line["value"] for line in await latest(caller)] == [6]
    assert len(await points(caller, "last", step="1s")) == 2


async def test_an_envelope_that_was_overtaken_is_let_go(caller: Caller) -> None:
    agent = await caller.register()
    await send(agent, 5, counters=counted(9))
    late = await send(agent, 4, counters=counted(3))
    assert (late["superseded"], late["stored"]) == (True, 0)
    await send(agent, 1, instance="later", counters=counted(1))
    assert (await send(agent, 6, counters=counted(10)))["superseded"], "of a run that is over"
    assert [line["value"] for line in await latest(caller)] == [1]


async def test_a_rate_is_what_a_counter_grew_by_each_second(caller: Caller) -> None:
    agent = await caller.register()
    for seq, value in enumerate((100, 130, 130, 190)):
        await send(agent, seq, counters=counted(value))
        await caller.clock.advance(30 * NS_PER_S)
    assert values(await points(caller, "rate", step="30s")) == [1.0, 0.0, 2.0]


@pytest.mark.parametrize("how", ["falls", "instance", "start"])
async def test_a_reset_is_no_fall_and_no_leap(caller: Caller, how: str) -> None:
    agent = await caller.register()
    run: dict[str, Any] = {}
    for seq, value in enumerate((1_000_000, 1_000_010, 500_000, 500_020)):
        if seq == 2:
            run = {"instance": {"instance": "j"}, "start": {"start": "later"}}.get(how, {})
        await send(agent, seq, **run, counters=counted(value))
        await caller.clock.advance(10 * NS_PER_S)
    assert values(await points(caller, "rate", step="10s")) == [1.0, 2.0]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from("ab")), max_size=20))
def test_no_rate_is_negative_or_above_what_came(steps: list[tuple[int, str]]) -> None:
    (made,) = itertools.islice(callers("memory", Path(), quota_scale=1000), 1)

    async def play() -> list[float]:
        agent = await made.register()
        for seq, (value, instance) in enumerate(steps):
            await send(agent, seq, instance=instance, counters=counted(value))
            await made.clock.advance(NS_PER_S)
        return values(await points(made, "rate", step="1s"))

    turns = [*dict.fromkeys(instance for _, instance in steps)]
    taken = [
        step
        for place, step in enumerate(steps)
        if not {name for _, name in steps[:place]}.intersection(turns[turns.index(step[1]) + 1 :])
    ]
    grew = [
        after - before
        for (before, one), (after, other) in itertools.pairwise(taken)
        if one == other and after >= before
    ]
    for rate in asyncio.run(play()):
        assert 0 <= rate <= max(grew)


async def test_gauges_are_averaged_and_have_a_greatest(caller: Caller) -> None:
    agent = await caller.register()
    for seq, value in enumerate((1, 5, 3)):
        await send(agent, seq, gauges=counted(value))
        await caller.clock.advance(NS_PER_S)
    for agg, expected in (("last", 3), ("avg", 3), ("max", 5)):
        assert values(await points(caller, agg, step="1h")) == [expected]


async def test_a_histogram_has_a_rate_and_a_mean(caller: Caller) -> None:
    agent = await caller.register()
    lag = {"name": "n", "bounds": [0.1, 1], "unit": "s", "labels": {"kind": "dns"}}
    for seq, (counts, total) in enumerate((((0, 0, 0), 0.0), ((4, 5, 1), 5.0))):
        made = lag | {"counts": counts, "sum": total, "count": sum(counts)}
        await send(agent, seq, histograms=[made])
        await caller.clock.advance(10 * NS_PER_S)
    assert values(await points(caller, "rate", step="1m"))[-1] == 1.0
    assert values(await points(caller, "avg", step="1m"))[-1] == 0.5
    (line,) = await latest(caller)
    assert (line["type"], line["unit"], line["labels"]) == ("histogram", "s", {"kind": "dns"})
    assert (line["counts"], line["sum"], line["count"]) == ([4, 5, 1], 5.0, 10)
    path = "/v1/metrics/query?name=n&agg=max"
    status, answer, _ = await caller.operator("GET", path)
    assert (status, answer["details"]["violations"][0]["path"]) == (400, "$.agg")


async def test_series_beyond_the_limit_are_told_and_the_others_taken(caller: Caller) -> None:
    agent = await caller.register()
    gauges = [{"name": f"g{number}", "value": 1} for number in range(NUMBERS_PER_AGENT_MAX // 2)]
    for part in ("a", "b"):
        gauges = [gauge | {"labels": {"part": part}} for gauge in gauges]
        assert (await send(agent, ord(part), gauges=gauges))["stored"] == len(gauges)
    answer = await send(agent, 200, gauges=[gauges[0], {"name": "one-more", "value": 1}])
    assert answer["stored"] == 1
    assert [(one["path"], one["error"]) for one in answer["rejected"]] == [
        ("$.gauges[1]", "ERR_LIMIT")
    ]


async def test_an_original_agents_metrics_are_kept_too(caller: Caller) -> None:
    agent = await caller.register()
    for second in range(2):
        counters = [counted(second * 7.0)[0] | {"labels": "of nobody"}]
        body = {"timestamp": f"2026-11-23T00:00:0{second}Z", "counters": counters}
        body["histograms"] = "unknown to it"
        for _ in range(2):
            status, answer, _ = await agent.call("/metrics", body)
            assert (status, answer["accepted"]) == (202, True)
        await caller.clock.advance(NS_PER_S)
    assert values(await points(caller, "rate", step="1s")) == [7.0]
    assert [line["value"] for line in await latest(caller)] == [7]


async def test_the_latest_are_listed_in_pages(caller: Caller) -> None:
    for number in range(2):
        agent = await caller.register(hostname=f"probe-{number}", agent_key=f"k{number}" * 16)
        gauges = [{"name": name, "value": number} for name in "ab"]
        await send(agent, 1, gauges=gauges)
    status, page, _ = await caller.operator("GET", "/v1/metrics/latest?limit=3")
    assert (status, len(page["metrics"])) == (200, 3)
    status, rest, _ = await caller.operator("GET", f"/v1/metrics/latest?cursor={page['cursor']}")
    assert [(line["agent_id"], line["name"]) for line in rest["metrics"]] == [(2, "b")]
    assert rest["cursor"] is None
    assert [line["agent_id"] for line in await latest(caller, agent="probe-1", name="a")] == [2]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("query", "name"),
        ("query?name=", "name"),
        ("query?name=n&agg=sum", "agg"),
        ("query?name=n&step=0", "step"),
        ("query?name=n&step=5x", "step"),
        ("query?name=n&step=1s&from=2023-01-01T00:00:00Z", "step"),
        ("query?name=n&from=yesterday", "from"),
        ("query?name=n&from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "from"),
        ("query?name=n&agent=nobody", "agent"),
        ("query?name=n&what=1", "what"),
        ("latest?limit=0", "limit"),
        ("latest?cursor=x", "cursor"),
        ("latest?step=1s", "step"),
    ],
)
async def test_a_bad_question_is_told_where(memory: Caller, path: str, field: str) -> None:
    status, answer, _ = await memory.operator("GET", f"/v1/metrics/{path}")
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert answer["details"]["violations"][0]["path"] == f"$.{field}"


async def test_too_many_points_are_refused(memory: Caller) -> None:
    agent = await memory.register()
    gauges = [{"name": "n", "value": 1, "labels": {"l": str(number)}} for number in range(100)]
    await send(agent, 1, gauges=gauges)
    status, answer, _ = await memory.operator("GET", "/v1/metrics/query?name=n&step=2s")
    assert (status, answer["error"]) == (400, "ERR_VALIDATION")
    assert "longer step" in answer["message"]


async def test_what_is_old_is_summed_up_then_dropped(caller: Caller) -> None:
    agent = await caller.register()
    start_ns = caller.plane.time.now_ns()
    for seq in range(180):
        gauges = [{"name": "g", "value": seq % 60}]
        await send(agent, seq, counters=counted(seq * 60.0), gauges=gauges)
        await caller.clock.advance(60 * NS_PER_S)
        await caller.plane.roll_up()
    store = caller.plane.writer._store  # type: ignore[attr-defined]
    now_ns = caller.plane.time.now_ns()
    oldest = store.first_metric_block_ns(Level.RAW, 0)
    assert oldest >= now_ns - LEVELS[Level.RAW].kept_ns
    assert store.first_metric_block_ns(Level.HOUR, 0) <= start_ns
    span = {"from": rfc3339(start_ns), "step": "10m"}
    rates = values(await points(caller, "rate", **span))
    assert len(rates) in (18, 19)
    assert rates == pytest.approx([1.0] * len(rates))
    assert max(values(await points(caller, "max", "g", **span))) == 59
    assert values(await points(caller, "last", **span))[-1] == 179 * 60
    hours = {"from": rfc3339(now_ns - 48 * 3600 * NS_PER_S), "step": "1h"}
    assert sum(values(await points(caller, "avg", "g", **hours))) > 0
    assert values(await points(caller, "rate", **hours)) == pytest.approx([1.0] * 4, abs=0.01) or (
        values(await points(caller, "rate", **hours)) == pytest.approx([1.0] * 3, abs=0.01)
    )


async def test_a_large_fleet_is_summed_up_as_fast_as_it_sends(caller: Caller) -> None:
    store = caller.plane.writer._store  # type: ignore[attr-defined]
    body = encode_samples({1: sampled(1.0)})
    async with asyncio.TaskGroup() as group:
        rolling = group.create_task(roll_forever(caller.plane))
        for _ in range(3):
            for agent_id in range(1, 2_501):
                block = MetricBlock(agent_id, caller.plane.time.now_ns(), body)
                store.add_metric_block(Level.RAW, block)
            for _ in range(12):
                await caller.clock.advance(5 * NS_PER_S)
        rolling.cancel()
    behind_ns = caller.plane.time.now_ns() - store.roll_progress(Level.MINUTE).window_ns
    assert behind_ns <= 120 * NS_PER_S


async def test_series_that_are_not_sent_any_more_are_forgotten(caller: Caller) -> None:
    agent = await caller.register()
    await send(agent, 1, gauges=counted(1))
    await caller.clock.advance(LEVELS[Level.HOUR].kept_ns + 2 * 3600 * NS_PER_S)
    await send(agent, 2, gauges=counted(1, "other"))
    for _ in range(5):
        await caller.clock.advance(3600 * NS_PER_S)
        await caller.plane.roll_up()
    store = caller.plane.writer._store  # type: ignore[attr-defined]
    assert [one.key.split('"')[3] for one in store.metric_series(None, None, 0, 9)] == ["other"]
    assert store.first_metric_block_ns(Level.RAW, 0) is None or (
        store.first_metric_block_ns(Level.RAW, 0)
        > caller.plane.time.now_ns() - LEVELS[Level.RAW].kept_ns - 1
    )


async def test_many_series_of_runs_that_are_over_do_not_hold_up_who_reads(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("netsonde.server.measures.LOOKED_MAX", 4)
    store = caller.plane.writer._store  # type: ignore[attr-defined]
    over = {f'["counter","old",null,{{"n":"{place}"}},[]]': ("old", 1) for place in range(6)}
    store.add_metric_series(99, over, 1)
    await send(await caller.register(), 1, counters=counted(1))
    status, page, _ = await caller.operator("GET", "/v1/metrics/latest?limit=2")
    assert (status, page["metrics"]) == (200, [])
    _, rest, _ = await caller.operator("GET", f"/v1/metrics/latest?cursor={page['cursor']}")
    assert len(rest["metrics"]) == 1
    assert len(await LocalOperatorApi(caller).client("http://localhost").metrics(None, None)) == 1


async def test_the_control_plane_counts_itself(caller: Caller) -> None:
    agent = await caller.register()
    await caller.register(agent_key="o" * 32)
    await caller.tasks(3)
    await agent.claim(1)
    await send(agent, 1, counters=counted(1), gauges=[5])
    await agent.call("/nowhere", {})
    await caller.clock.advance(46 * NS_PER_S)
    await agent.call("/heartbeat", {})
    readings = {
        (reading.family.name, *reading.labels): reading.value
        for reading in await metrics.read(caller.plane)
    }
    assert {name for name, *_ in readings} == {family.name for family in metrics.FAMILIES}
    assert readings["netsonde_server_tasks", "tcp", "ready"] == 2
    assert readings["netsonde_server_tasks", "tcp", "leased"] == 1
    assert readings["netsonde_server_oldest_ready_seconds", "tcp"] == 46
    assert readings["netsonde_server_agents", "heard"] == 1
    assert readings["netsonde_server_agents", "silent"] == 1
    assert readings["netsonde_server_metric_samples_total", "stored"] == 1
    assert readings["netsonde_server_metric_samples_total", "rejected"] == 1
    requests = {
        labels: value for (name, *labels_), value in readings.items()
        for labels in [tuple(labels_)] if name == "netsonde_server_requests_total"
    }  # fmt: skip
    assert requests["agent", "register", "2xx"] == 2
    assert requests["agent", "none", "4xx"] == 1
    assert requests["operator", "/v1/tasks", "2xx"] == 1


async def test_the_page_is_for_operators_only(memory: Caller) -> None:
    answer = await memory.operators.dispatch(
        ApiRequest(method="GET", path="/metrics", headers={"host": "evil.example"})
    )
    assert answer.status == 403
    answer = await memory.operators.dispatch(
        ApiRequest(method="GET", path="/metrics", headers={"host": "127.0.0.1"})
    )
    assert (answer.status, answer.headers["Content-Type"]) == (200, CONTENT_TYPE)
    assert b"netsonde_server_build_info" in answer.body


async def test_a_page_is_not_empty_before_the_end(caller: Caller) -> None:
    agent = await caller.register()
    await send(agent, 1, gauges=[{"name": name, "value": 1} for name in "abc"])
    await send(agent, 1, instance="later", gauges=counted(2, "d"))
    status, page, _ = await caller.operator("GET", "/v1/metrics/latest?limit=1")
    assert (status, [line["name"] for line in page["metrics"]]) == (200, ["d"])
