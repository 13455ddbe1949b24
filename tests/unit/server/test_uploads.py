"""`POST /v1/tasks` as a stream of lines, through dispatch: contract sections 6, 8 and 9."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsonde import wire
from netsonde.clock import NS_PER_S
from netsonde.errors import ErrorCode, RequestError
from netsonde.server import idempotency
from netsonde.server.operator import tasks
from support.feeds import dispatch, task_line, upload
from support.stores import STORES, Caller, callers


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Caller]:
    yield from callers("memory", tmp_path)


async def queued(caller: Caller) -> int:
    """Return how many tasks there are."""
    _, answer, _ = await caller.operator("GET", "/v1/queues")
    return sum(queue["ready"] for queue in answer["queues"])


# ── what becomes of lines ──


async def test_each_line_is_answered_in_order(caller: Caller) -> None:
    agent = await caller.register()
    answers = await upload(caller, task_line(), task_line(priority=3) + task_line())
    assert [one["t"] for one in answers] == ["a", "a", "a", "end"]
    assert [one["line"] for one in answers[:3]] == [1, 2, 3]
    assert answers[3] == {"t": "end", "reason": "done", "through": 3}
    leases = await agent.claim(10)
    assert {one["task_id"] for one in answers[:3]} == {lease["task_id"] for lease in leases}


async def test_who_waits_for_work_gets_it_at_once(caller: Caller) -> None:
    agent = await caller.register()
    claim = agent.claim(2, wait_ms=10_000)
    answers = await upload(caller, task_line())
    assert [lease["task_id"] for lease in await claim] == [answers[0]["task_id"]]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (b"{}\n", ErrorCode.VALIDATION, "kind"),
        (b"[]\n", ErrorCode.VALIDATION, "object"),
        (b"7\n", ErrorCode.VALIDATION, "object"),
        (b"null\n", ErrorCode.VALIDATION, "object"),
        (b"<html>\n", ErrorCode.MALFORMED_JSON, "not JSON"),
        (b'{"kind":"tcp"\n', ErrorCode.MALFORMED_JSON, "not JSON"),
        (b'{"kind":"\xff"}\n', ErrorCode.MALFORMED_JSON, "not JSON"),
        (b"[" * 5000 + b"\n", ErrorCode.MALFORMED_JSON, "nested deeper"),
        (task_line(kind="quic"), ErrorCode.VALIDATION, "must be one of"),
        (task_line(colour="red"), ErrorCode.VALIDATION, "unknown field"),
        (task_line(spec={"host": "192.0.2.1", "port": 99999}), ErrorCode.VALIDATION, "1 to 65535"),
        (task_line(agent="nobody"), ErrorCode.VALIDATION, "0 agents"),
        (task_line(max_attempts=0), ErrorCode.VALIDATION, "1 to"),
        (task_line(spec={"host": "192.0.2.1", "port": 2**80}), ErrorCode.VALIDATION, "port"),
        (task_line(spec={"host": "192.0.2.1", "port": 80, "x": 2**80}), ErrorCode.VALIDATION, "x"),
        (
            task_line(kind="http", spec={"url": "http://x/", "headers": {"a": 2**80}}),
            ErrorCode.VALIDATION,
            "headers",
        ),
        (
            task_line(kind="ping", spec={"host": "x", "expect": {"loss_pct_max": 2**80}}),
            ErrorCode.VALIDATION,
            "loss_pct_max",
        ),
        (task_line(agent=2**80), ErrorCode.VALIDATION, "agent"),
        (task_line(priority=2**80), ErrorCode.VALIDATION, "priority"),
    ],
)
async def test_a_bad_line_costs_itself(
    caller: Caller, line: bytes, code: ErrorCode, said: str
) -> None:
    answers = await upload(caller, task_line() + line + task_line())
    first, bad, last, end = answers
    assert (bad["line"], bad["error"]) == (2, code)
    assert said in bad["message"]
    assert {"task_id"} <= set(first) & set(last)
    assert last["line"] == end["through"] == 3
    assert await queued(caller) == 2


async def test_a_number_beyond_64_bits_costs_its_item_in_an_array_too(caller: Caller) -> None:
    items = b"[%s,%s]" % (task_line(), task_line(priority=2**80))
    status, answer, _ = await caller.operator("POST", "/v1/tasks", items)
    assert status == 200
    assert [one.get("error") for one in answer["tasks"]] == [None, "ERR_VALIDATION"]


async def test_the_last_line_of_a_whole_body_needs_no_newline(caller: Caller) -> None:
    answers = await upload(caller, task_line()[:-5], task_line()[-5:-1])
    assert [one.get("through", one.get("line")) for one in answers] == [1, 1]
    assert await queued(caller) == 1


async def test_half_a_line_of_a_body_that_broke_off_is_no_task(caller: Caller) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield task_line() + task_line()[:-1]  # complete JSON, yet its end never came
        raise RequestError(ErrorCode.VALIDATION, "the body broke off")

    answer = await dispatch(
        caller, "POST", "/v1/tasks", chunks=chunks(), headers={"content-type": wire.NDJSON}
    )
    assert answer.chunks is not None
    told = [json.loads(line) async for chunk in answer.chunks for line in chunk.splitlines()]
    assert told[0]["line"] == 1
    assert (told[1]["t"], told[1]["error"]["error"]) == ("end", ErrorCode.VALIDATION)
    assert await queued(caller) == 1


async def test_blank_lines_are_not_counted(caller: Caller) -> None:
    answers = await upload(caller, b"\n\r\n  \n" + task_line()[:-1] + b"\r\n\n\n" + task_line())
    assert [one.get("line") for one in answers] == [1, 2, None]
    assert await queued(caller) == 2


async def test_an_empty_body_is_no_task(caller: Caller) -> None:
    assert await upload(caller) == [{"t": "end", "reason": "done", "through": 0}]


# ── limits ──


async def test_too_many_lines_end_the_stream_where_they_are(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LINES_MAX", 7)
    answers = await upload(caller, task_line() * 5, task_line() * 5, task_line() * 5)
    assert answers[-1] == {"t": "end", "reason": "lines", "through": 7}
    assert await queued(caller) == 7


async def test_many_lines_at_once_are_several_commits(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "GROUP_LINES", 4)
    commits = []
    write = caller.plane.writer.write

    async def counted(operation: Any, items: int = 1) -> Any:
        commits.append(items)
        return await write(operation, items)

    monkeypatch.setattr(caller.plane.writer, "write", counted)
    answers = await upload(caller, task_line() * 10, key="k")
    assert commits == [4, 4, 2]
    assert [one["line"] for one in answers[:-1]] == list(range(1, 11))


async def test_a_line_that_is_too_long_ends_the_stream(caller: Caller) -> None:
    long = b'{"kind":"' + b"x" * wire.LINE_MAX_BYTES + b'"}\n'
    answers = await upload(caller, task_line(), long, task_line())
    assert answers[0]["line"] == 1
    assert (answers[1]["t"], answers[1]["error"]["error"]) == ("end", ErrorCode.TOO_LARGE)
    assert await queued(caller) == 1


async def test_a_line_without_an_end_is_refused_before_it_fills_memory(caller: Caller) -> None:
    (end,) = await upload(caller, *[b"x" * 65_536] * 5)
    assert end["error"]["error"] == ErrorCode.TOO_LARGE


async def test_a_stream_ends_when_its_time_is_over(caller: Caller) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield task_line()
            await caller.clock.advance(10 * NS_PER_S)

    answer = await dispatch(
        caller, "POST", "/v1/tasks", chunks=chunks(), headers={"content-type": wire.NDJSON}
    )
    assert answer.chunks is not None
    told = [json.loads(line) async for chunk in answer.chunks for line in chunk.splitlines()]
    assert told[-1] == {"t": "end", "reason": "time", "through": 7}
    assert await queued(caller) == 7


async def test_a_shutdown_says_so_and_how_far_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for caller in callers("memory", tmp_path):

        async def refused(operation: Any, items: int = 1) -> Any:
            raise RequestError(ErrorCode.UNAVAILABLE, "the control plane is shutting down")

        monkeypatch.setattr(caller.plane.writer, "write", refused)
        (end,) = await upload(caller, task_line())
        assert end["error"]["error"] == ErrorCode.UNAVAILABLE
        assert end["error"]["retryable"]


# ── what is refused before it begins ──


@pytest.mark.parametrize(
    ("content_type", "status"),
    [("text/plain", "ERR_MEDIA_TYPE"), ("application/ndjson", "ERR_MEDIA_TYPE")],
)
async def test_other_content_types_are_refused(
    memory: Caller, content_type: str, status: str
) -> None:
    got, answer, _ = await memory.operator(
        "POST", "/v1/tasks", task_line(), content_type=content_type
    )
    assert (got, answer["error"]) == (415, status)


async def test_lines_are_taken_where_lines_are_taken(memory: Caller) -> None:
    takes = memory.operators.takes_lines
    assert takes("POST", "/v1/tasks", "application/x-ndjson; charset=utf-8")
    assert not takes("POST", "/v1/checks", wire.NDJSON)
    assert not takes("POST", "/v1/tasks", "application/json")
    status, answer, _ = await memory.operator(
        "POST", "/v1/checks", task_line(), content_type=wire.NDJSON
    )
    assert (status, answer["error"]) == (415, ErrorCode.MEDIA_TYPE)


async def test_a_compressed_stream_is_refused(memory: Caller) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        raise AssertionError("nothing of it is read")
        yield b""

    headers = {"content-type": wire.NDJSON, "content-encoding": "gzip"}
    answer = await dispatch(memory, "POST", "/v1/tasks", chunks=chunks(), headers=headers)
    assert answer.status == 415


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ([("first_line", "0")], "$.first_line"),
        ([("first_line", "100000001")], "$.first_line"),
        ([("first_line", "x")], "$.first_line"),
        ([("lines", "1")], "$.lines"),
        ([("first_line", "1"), ("first_line", "2")], "$.first_line"),
    ],
)
async def test_parameters_that_make_no_sense_are_refused(
    memory: Caller, query: list[tuple[str, str]], field: str
) -> None:
    (answer,) = await upload(memory, task_line(), query=query)
    assert answer["error"] == ErrorCode.VALIDATION
    assert answer["details"]["violations"][0]["path"] == field


async def test_a_key_that_is_too_long_is_refused(memory: Caller) -> None:
    (answer,) = await upload(memory, task_line(), key="k" * (idempotency.KEY_MAX_CHARS + 1))
    assert answer["error"] == ErrorCode.VALIDATION
    assert await queued(memory) == 0


async def test_an_array_takes_no_parameters(memory: Caller) -> None:
    status, answer, _ = await memory.operator("POST", "/v1/tasks?first_line=1", [])
    assert (status, answer["error"]) == (400, ErrorCode.VALIDATION)


# ── once under a key ──


async def test_a_repeated_upload_makes_nothing_twice(caller: Caller) -> None:
    first = await upload(caller, task_line() * 3, task_line() * 2, key="k1")
    again = await upload(caller, task_line() * 5, key="k1")
    assert again == first
    assert await queued(caller) == 5
    other = await upload(caller, task_line() * 5, key="k2")
    assert not {one["task_id"] for one in other[:-1]} & {one["task_id"] for one in first[:-1]}


async def test_without_a_key_each_upload_is_a_new_one(caller: Caller) -> None:
    await upload(caller, task_line())
    await upload(caller, task_line())
    assert await queued(caller) == 2


async def test_what_was_cut_off_is_gone_on_with(caller: Caller) -> None:
    whole = [task_line(priority=number) for number in range(10)]
    first = await upload(caller, *whole[:6], key="k")
    rest = await upload(caller, *whole[4:], key="k", query=[("first_line", "5")])
    assert [one["line"] for one in rest[:-1]] == [5, 6, 7, 8, 9, 10]
    assert rest[:2] == first[4:6]
    assert rest[-1]["through"] == 10
    assert await queued(caller) == 10


async def test_another_task_on_the_same_line_is_a_conflict(caller: Caller) -> None:
    await upload(caller, task_line() * 2, key="k")
    answers = await upload(caller, task_line() + task_line(priority=9) + task_line(), key="k")
    assert [one.get("error") for one in answers[:3]] == [None, ErrorCode.CONFLICT, None]
    assert await queued(caller) == 3


async def test_a_line_that_was_refused_is_looked_at_anew(caller: Caller) -> None:
    lines = task_line() + task_line(agent="probe-1")
    refused = await upload(caller, lines, key="k")
    assert refused[1]["error"] == ErrorCode.VALIDATION
    await caller.register()
    again = await upload(caller, lines, key="k")
    assert again[0] == refused[0]
    assert "task_id" in again[1]


async def test_a_key_is_forgotten_a_day_after_its_last_use(caller: Caller) -> None:
    await upload(caller, task_line(), key="k")
    await caller.clock.advance(idempotency.KEPT_NS // 2)
    await upload(caller, task_line(), key="k", query=[("first_line", "2")])
    await caller.clock.advance(idempotency.KEPT_NS // 2 + NS_PER_S)
    await caller.plane.housekeep()
    await upload(caller, task_line() * 2, key="k")
    assert await queued(caller) == 2
    await caller.clock.advance(idempotency.KEPT_NS + NS_PER_S)
    await caller.plane.housekeep()
    await upload(caller, task_line() * 2, key="k")
    assert await queued(caller) == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    good=st.lists(st.booleans(), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=5),
    size=st.integers(1, 200),
)
async def test_however_often_it_is_cut_each_good_line_is_one_task(
    memory: Caller, good: list[bool], cuts: list[int], size: int
) -> None:
    """Send prefixes in pieces of any size, then the whole, all under one key."""
    lines = [task_line(priority=at) if one else b'{"kind":7}\n' for at, one in enumerate(good)]
    for fresh in callers("memory", Path()):
        answers: list[dict[str, Any]] = []
        for cut in [*cuts, len(lines)]:
            body = b"".join(lines[:cut])
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            answers = await upload(fresh, *pieces, key="k")
        assert await queued(fresh) == sum(good)
        assert ["task_id" in one for one in answers[:-1]] == good
        ids = [one["task_id"] for one in answers if "task_id" in one]
        assert len(set(ids)) == len(ids)


# ── who may send, and the log ──


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_token_that_ends_ends_what_it_sends_and_reads(caller: Caller, how: str) -> None:
    scopes = {"name": "ci", "scopes": ["read", "checks:write"], "expires_in_ms": 5_000}
    _, token, _ = await caller.operator("POST", "/v1/tokens", scopes)
    headers = {"authorization": f"Bearer {token['token']}", "content-type": wire.NDJSON}
    seen: list[dict[str, Any]] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield task_line()
        if how == "revoked":
            await caller.operator("DELETE", f"/v1/tokens/{token['token_id']}")
        else:
            await caller.clock.advance(5 * NS_PER_S)
        yield task_line()

    follow = await dispatch(caller, "GET", "/v1/results/stream", headers=headers)
    assert follow.chunks is not None
    assert json.loads(await anext(follow.chunks))["t"] == "ping"
    answer = await dispatch(caller, "POST", "/v1/tasks", chunks=chunks(), headers=headers)
    assert answer.chunks is not None
    async for chunk in answer.chunks:
        seen += [json.loads(line) for line in chunk.splitlines()]
    code = "ERR_UNAUTHORIZED" if how == "revoked" else "ERR_TOKEN_EXPIRED"
    assert [(one["t"], one.get("reason")) for one in seen] == [("a", None), ("end", "error")]
    assert seen[-1]["error"]["error"] == code
    assert await queued(caller) == 1
    caller.plane.results_pulse.fire()
    await caller.clock.advance(10 * NS_PER_S)
    (said,) = [json.loads(line) async for line in follow.chunks]
    assert said["error"]["error"] == code
    calls = await _audited(caller, "POST /v1/tasks")
    assert [(one["status"], one["error"], one["token"]) for one in calls] == [
        (200, None, "ci"),
        (401, code, "ci"),
    ]


async def test_an_upload_that_is_refused_is_in_the_audit_log(memory: Caller) -> None:
    await upload(memory, task_line(), query=[("first_line", "0")])
    await upload(memory, task_line(), b"x" * (wire.LINE_MAX_BYTES + 1))
    calls = await _audited(memory, "POST /v1/tasks")
    assert [(one["status"], one["error"]) for one in calls] == [
        (400, "ERR_VALIDATION"),
        (200, None),
        (413, "ERR_TOO_LARGE"),
    ]


async def _audited(caller: Caller, call: str) -> list[dict[str, Any]]:
    _, answer, _ = await caller.operator("GET", "/v1/audit?order=asc")
    return [one for one in answer["calls"] if one["call"] == call]
