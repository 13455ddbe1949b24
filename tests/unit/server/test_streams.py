"""Claims and reports as streams, through dispatch: contract sections 4 and 6."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from netsonde import wire
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.errors import StorageError
from netsonde.server.api import ApiRequest, ApiResponse
from support.configs import document, envelope
from support.stores import STORES, Caller, RegisteredAgent, callers, result_item


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


async def ask(
    agent: RegisteredAgent,
    call: str,
    body: Any,
    chunks: AsyncIterator[bytes] | None = None,
    content_encoding: str = "",
) -> ApiResponse:
    """Make a call whose answer is a stream."""
    credentials = {name.replace("_", "-"): value for name, value in agent.credentials().items()}
    kind = wire.NDJSON if chunks is not None else "application/json"
    return await agent.caller.agents.dispatch(
        ApiRequest(
            method="POST",
            path=f"/v1/agents/{call}",
            headers=agent.caller.headers
            | credentials
            | {"accept": wire.NDJSON, "content-type": kind, "content-encoding": content_encoding},
            body=b"" if body is None else json.dumps({"agent_id": agent.agent_id} | body).encode(),
            chunks=chunks,
            received_ns=agent.caller.plane.time.now_ns(),
        )
    )


class Stream:
    """Reads a claim's stream in a task of its own."""

    def __init__(self, agent: RegisteredAgent, **body: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self._agent = agent
        self._body = {"capacities": {"tcp": 10}, "wait_ms": 20_000} | body
        self.task = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        answer = await ask(self._agent, "claim", self._body)
        assert answer.status == 200, answer.body
        assert answer.headers["Content-Type"] == wire.NDJSON
        assert answer.headers["Netsonde-Protocol"] == "1"
        assert answer.chunks is not None
        async with aclosing(answer.chunks) as chunks:
            async for chunk in chunks:
                self.lines += [json.loads(line) for line in chunk.splitlines()]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["t"] == kind]

    @property
    def lease_ids(self) -> list[int]:
        return [line["lease"]["lease_id"] for line in self.of("lease")]


async def hang_up(caller: Caller, stream: Stream) -> None:
    stream.task.cancel()
    await asyncio.gather(stream.task, return_exceptions=True)
    await caller.clock.settle()


# ── claims ──


async def test_leases_come_as_work_does(caller: Caller) -> None:
    agent = await caller.register()
    stream = Stream(agent)
    await caller.clock.settle()
    assert stream.lines == []
    await caller.clock.advance(3 * NS_PER_S)
    await caller.tasks(2)
    await caller.clock.settle()
    assert len(stream.lease_ids) == 2
    assert [line["lease"]["granted_after_ms"] for line in stream.of("lease")] == [3_000] * 2
    await caller.clock.advance(4 * NS_PER_S)
    await caller.tasks(1)
    await caller.clock.settle()
    assert stream.of("lease")[2]["lease"]["granted_after_ms"] == 7_000
    assert stream.of("lease")[2]["lease"]["lease_until_ms"] == 20_000
    assert not stream.task.done()
    await hang_up(caller, stream)


async def test_the_capacities_are_the_credits(caller: Caller) -> None:
    agent = await caller.register()
    stream = Stream(agent, capacities={"tcp": 3, "dns": 0})
    await caller.clock.settle()
    await caller.tasks(2)
    await caller.clock.settle()
    await caller.tasks(2)
    await caller.clock.settle()
    assert len(stream.lease_ids) == 3
    assert stream.lines[-1] == {"t": "end", "reason": "credits"}
    assert stream.task.done()


async def test_more_than_one_transaction_may_take(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1_500)
    stream = Stream(agent, capacities={"tcp": 1_400})
    await caller.clock.settle(100)
    assert len(set(stream.lease_ids)) == 1_400
    assert stream.lines[-1]["reason"] == "credits"


async def test_a_stream_has_a_most_leases(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LINES_MAX", 7)
    agent = await caller.register()
    await caller.tasks(20)
    stream = Stream(agent, capacities={"tcp": 100})
    await caller.clock.settle()
    assert len(stream.lease_ids) == 7
    assert stream.lines[-1]["reason"] == "credits"


async def test_a_quiet_stream_pings_and_ends(caller: Caller) -> None:
    agent = await caller.register()
    stream = Stream(agent, wait_ms=25_000)
    await caller.clock.settle()
    for _ in range(25):
        await caller.clock.advance(NS_PER_S)
    assert [line["t"] for line in stream.lines] == ["ping", "ping", "end"]
    assert stream.lines[-1]["reason"] == "wait"
    assert stream.task.done()


async def test_wakes_that_bring_nothing_do_not_silence_a_stream(caller: Caller) -> None:
    agent = await caller.register()
    stream = Stream(agent, wait_ms=25_000)
    await caller.clock.settle()
    for second in range(25):
        if second % 3 == 0:
            caller.plane.waiters.wake_all()
        await caller.clock.advance(NS_PER_S)
    assert [line["t"] for line in stream.lines] == ["ping", "ping", "end"]


async def test_an_agent_that_is_disabled_is_granted_nothing_more(caller: Caller) -> None:
    agent = await caller.register()
    stream = Stream(agent)
    await caller.clock.settle()
    await caller.operator("PATCH", f"/v1/agents/{agent.agent_id}", {"disabled": True})
    await caller.tasks(1)
    await caller.clock.settle()
    assert [line["t"] for line in stream.lines] == ["end"]


async def test_a_repeated_claim_id_brings_what_is_still_held(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(3)
    first = Stream(agent, claim_id="c1")
    await caller.clock.settle()
    held = first.lease_ids
    await hang_up(caller, first)
    assert await agent.report(held[0]) == ["accepted"]
    await caller.clock.advance(2 * NS_PER_S)
    again = Stream(agent, claim_id="c1", capacities={"tcp": 4})
    await caller.clock.settle()
    assert again.lease_ids == held[1:]
    assert [line["lease"]["lease_until_ms"] for line in again.of("lease")] == [18_000] * 2
    await caller.tasks(5)
    await caller.clock.settle()
    assert len(again.lease_ids) == 4, "what is held counts against the credits"
    assert again.lines[-1]["reason"] == "credits"


async def test_a_repeated_claim_ends_the_stream_it_repeats(caller: Caller) -> None:
    agent = await caller.register()
    first = Stream(agent, claim_id="c1")
    await caller.clock.settle()
    second = Stream(agent, claim_id="c1")
    await caller.clock.settle()
    assert first.task.done()
    await caller.tasks(1)
    await caller.clock.settle()
    assert first.lease_ids == []
    assert len(second.lease_ids) == 1
    await hang_up(caller, second)


async def test_revoked_leases_are_told_at_once(caller: Caller) -> None:
    agent = await caller.register()
    other = await caller.register(hostname="b", agent_key="k2" * 16)
    status, check, _ = await caller.operator(
        "POST",
        "/v1/checks",
        {"kind": "tcp", "targets": ["192.0.2.1"], "spec": {"port": 80}, "select": {"any": True}},
    )
    assert status in (200, 201), check
    stream, others = Stream(agent), Stream(other)
    await caller.clock.settle()
    [lease_id] = stream.lease_ids
    await caller.operator("POST", f"/v1/checks/{check['check_id']}/cancel", {})
    await caller.clock.settle()
    assert stream.of("revoke") == [{"t": "revoke", "lease_ids": [lease_id]}]
    assert others.of("revoke") == []
    await hang_up(caller, stream)
    await hang_up(caller, others)


async def test_who_hangs_up_is_granted_nothing_more(caller: Caller) -> None:
    agent = await caller.register()
    other = await caller.register(hostname="b", agent_key="k2" * 16)
    stream = Stream(agent)
    await caller.clock.settle()
    await hang_up(caller, stream)
    await caller.tasks(1)
    assert len(await other.claim()) == 1


async def test_a_shutdown_ends_streams(caller: Caller) -> None:
    agent = await caller.register()
    stream = Stream(agent)
    await caller.clock.settle()
    caller.plane.close()
    await caller.clock.settle()
    assert stream.lines == [{"t": "end", "reason": "shutdown"}]


async def test_a_claim_that_is_wrong_is_refused_before_the_stream(caller: Caller) -> None:
    agent = await caller.register()
    answer = await ask(agent, "claim", {"capacities": {"tcp": -1}})
    assert answer.chunks is None
    assert (answer.status, json.loads(answer.body)["error"]) == (400, "ERR_VALIDATION")


async def test_a_failing_store_is_the_streams_last_line(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await caller.register()
    await agent.call("/heartbeat", {})  # its token is known to work
    await caller.tasks(1)

    async def full(*_: object) -> object:
        raise StorageError("the disk is full")

    monkeypatch.setattr(caller.plane.writer, "write", full)
    stream = Stream(agent)
    await caller.clock.settle()
    [end] = stream.lines
    assert (end["t"], end["reason"], end["error"]["error"]) == ("end", "error", "ERR_BACKEND")
    assert end["error"]["retryable"] is True


async def test_an_original_agent_gets_one_document(caller: Caller) -> None:
    caller.headers.pop("netsonde-protocol")
    agent = await caller.register()
    status, answer, headers = await agent.call(
        "/claim", {"capacities": {}}, accept="application/x-ndjson"
    )
    assert (status, answer["leases"]) == (200, [])
    assert headers["Content-Type"] == "application/json"


async def test_a_release_by_claim_keeps_what_runs(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(3)
    leases = await agent.claim(claim_id="c1")
    kept = leases[0]["lease_id"]
    body = {"claim_ids": ["c1"], "keep_lease_ids": [kept]}
    status, answer, _ = await agent.call("/release", body)
    assert (status, answer) == (200, {"released": 2})
    assert await agent.report(kept) == ["accepted"]
    assert len(await agent.claim()) == 2


# ── reports ──


def line(seq: int, lease_id: int, **changes: Any) -> bytes:
    return wire.report_line(seq, json.dumps(result_item(lease_id) | changes).encode())


async def report(agent: RegisteredAgent, *chunks: bytes) -> list[dict[str, Any]]:
    async def sent() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    answer = await ask(agent, "report", None, sent())
    assert answer.status == 200, answer.body
    assert answer.chunks is not None
    async with aclosing(answer.chunks) as pieces:
        return [json.loads(each) async for piece in pieces for each in piece.splitlines()]


async def test_items_are_answered_after_their_commit(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(3)
    ids = [lease["lease_id"] for lease in await agent.claim()]
    answers = await report(agent, line(5, ids[0]) + line(6, ids[1]), line(9, ids[2]))
    assert answers == [
        {"t": "a", "seq": 5, "status": "accepted"},
        {"t": "a", "seq": 6, "status": "accepted"},
        {"t": "a", "seq": 9, "status": "accepted"},
        {"t": "end", "through": 9},
    ]
    assert await agent.report(*ids) == ["duplicate"] * 3


async def test_an_answer_comes_before_the_next_item_goes(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(2)
    ids = [lease["lease_id"] for lease in await agent.claim()]
    acknowledged = asyncio.Event()

    async def sent() -> AsyncIterator[bytes]:
        yield line(1, ids[0])
        await acknowledged.wait()
        yield line(2, ids[1])

    answer = await ask(agent, "report", None, sent())
    assert answer.chunks is not None
    async with aclosing(answer.chunks) as pieces:
        first = await anext(pieces)
        acknowledged.set()
        rest = b"".join([piece async for piece in pieces])
    assert json.loads(first) == {"t": "a", "seq": 1, "status": "accepted"}
    assert [json.loads(each)["t"] for each in rest.splitlines()] == ["a", "end"]


async def test_a_revoked_agent_reports_no_further_on_an_open_stream(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(2)
    first, second = await agent.claim()

    async def sent() -> AsyncIterator[bytes]:
        yield line(1, first["lease_id"])
        await caller.operator("POST", f"/v1/agents/{agent.agent_id}/revoke")
        yield line(2, second["lease_id"])

    answer = await ask(agent, "report", None, sent())
    assert answer.chunks is not None
    answers = [json.loads(one) async for chunk in answer.chunks for one in chunk.splitlines()]
    assert [one.get("status") for one in answers] == ["accepted", None]
    assert answers[1]["error"]["error"] == "ERR_FORBIDDEN"


async def test_what_is_stored_has_no_line_number(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1)
    [lease] = await agent.claim()
    await report(agent, line(1, lease["lease_id"]))
    _, answer, _ = await caller.operator("GET", "/v1/results")
    [result] = answer["results"]
    assert result["outcome"] == "ok"
    assert not {"t", "seq"} & result.keys()


async def test_a_bad_item_and_a_foreign_lease_cost_themselves(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(1)
    [lease] = await agent.claim()
    answers = await report(
        agent,
        line(1, lease["lease_id"], started_at="noon")
        + line(2, 2**53 - 1)
        + line(3, lease["lease_id"]),
    )
    assert [one.get("status") for one in answers] == ["invalid", "unknown", "accepted", None]
    assert answers[0]["error"].startswith("ERR_VALIDATION")


async def test_a_tail_without_its_newline_is_not_taken(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(2)
    ids = [lease["lease_id"] for lease in await agent.claim()]
    answers = await report(agent, line(1, ids[0]) + line(2, ids[1])[:-1])
    assert [one.get("seq") for one in answers] == [1, None]
    assert answers[-1] == {"t": "end", "through": 1}
    assert await agent.report(ids[1]) == ["accepted"]


@pytest.mark.parametrize(
    ("chunk", "code"),
    [
        (b"<html>\n", "ERR_MALFORMED_JSON"),
        (b'{"t":"r","lease_id":1}\n', "ERR_MALFORMED_JSON"),
        (b"x" * (wire.LINE_MAX_BYTES + 1), "ERR_TOO_LARGE"),
    ],
)
async def test_what_cannot_be_read_ends_the_stream_and_loses_nothing(
    caller: Caller, chunk: bytes, code: str
) -> None:
    agent = await caller.register()
    await caller.tasks(1)
    [lease] = await agent.claim()
    answers = await report(agent, line(1, lease["lease_id"]), chunk, line(2, lease["lease_id"]))
    assert [one["t"] for one in answers] == ["a", "end"]
    assert answers[0]["status"] == "accepted"
    assert answers[1]["error"]["error"] == code


async def test_a_report_that_goes_on_for_too_long_is_ended_in_order(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks(2)
    ids = [lease["lease_id"] for lease in await agent.claim()]

    async def sent() -> AsyncIterator[bytes]:
        yield line(1, ids[0])
        await caller.clock.advance(wire.STREAM_MAX_MS * NS_PER_MS)
        yield line(2, ids[1])
        raise AssertionError("nobody listens any more")

    answer = await ask(agent, "report", None, sent())
    assert answer.chunks is not None
    async with aclosing(answer.chunks) as pieces:
        said = [json.loads(each) async for piece in pieces for each in piece.splitlines()]
    assert [one["t"] for one in said] == ["a", "a", "end"]


async def test_a_compressed_report_is_refused(caller: Caller) -> None:
    agent = await caller.register()

    async def sent() -> AsyncIterator[bytes]:
        yield b""

    answer = await ask(agent, "report", None, sent(), content_encoding="gzip")
    assert (answer.status, json.loads(answer.body)["error"]) == (415, "ERR_MEDIA_TYPE")


async def test_an_original_agent_does_not_report_in_lines(caller: Caller) -> None:
    agent = await caller.register()
    status, answer, _ = await agent.call("/report", {}, content_type=wire.NDJSON)
    assert (status, answer["error"]) == (415, "ERR_MEDIA_TYPE"), "a body without its lines"


async def test_only_reports_are_taken_in_lines(caller: Caller) -> None:
    assert caller.agents.takes_lines("POST", "/v1/report", f"{wire.NDJSON}; charset=utf-8")
    assert not caller.agents.takes_lines("POST", "/v1/claim", wire.NDJSON)
    assert not caller.agents.takes_lines("POST", "/nowhere", wire.NDJSON)
    assert not caller.agents.takes_lines("POST", "/v1/report", "application/json")


async def test_a_stream_waits_as_long_as_it_was_asked_to(caller: Caller) -> None:
    agent = await caller.register()
    stream = Stream(agent, wait_ms=0)
    await caller.clock.advance(NS_PER_MS)
    assert stream.lines == [{"t": "end", "reason": "wait"}]


# ── configurations ──


async def test_a_newer_configuration_is_told_at_once_and_once(caller: Caller) -> None:
    agent = await caller.register()
    stream = Stream(agent)
    await caller.clock.settle()
    for revision, scope in ((1, {"all": True}), (2, {"agents": [99]}), (3, {"all": True})):
        body = document(envelope(revision, scope=scope))
        status, answer, _ = await caller.operator("POST", "/v1/configs", body)
        assert status == 201, answer
        await caller.clock.settle()
    await caller.clock.advance(9 * NS_PER_S)
    assert stream.lines == [{"t": "config", "revision": 1}, {"t": "config", "revision": 3}]
    await hang_up(caller, stream)
    later = Stream(agent)
    await caller.clock.settle()
    assert later.lines == [], "claims and heartbeats name it"
    await hang_up(caller, later)
