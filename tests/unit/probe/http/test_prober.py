"""The parts of an HTTP check that need no network: a hop's phases, its exchange, its verdicts."""

import asyncio
import errno
import ssl
from collections.abc import Sequence
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.model import HttpSpec, Measurement, Outcome
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.http import HttpProber
from netsonde.probe.http.prober import Hop, HopFailure, converse, shown, tls_failure
from netsonde.probe.http.request import Request
from netsonde.probe.http.response import ResponseReader
from netsonde.probe.targets import TargetResolver

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class MemoryStream:
    """A stream whose peer sends chunks, each after 10 ms; an error is raised in its place."""

    def __init__(self, clock: ManualClock, chunks: Sequence[bytes | OSError]) -> None:
        self._clock = clock
        self._chunks = list(chunks)
        self.sent = b""

    async def send(self, data: bytes) -> None:
        await self._clock.sleep(5 * NS_PER_MS)
        self.sent += data

    async def receive(self) -> bytes:
        await self._clock.sleep(10 * NS_PER_MS)
        chunk = self._chunks.pop(0) if self._chunks else b""
        if isinstance(chunk, OSError):
            raise chunk
        return chunk


async def talk(*chunks: bytes | OSError) -> tuple[Hop, ResponseReader, MemoryStream]:
    clock = ManualClock()
    hop = Hop(clock, 1, Request.first(HttpSpec(url="http://example.net/")))
    hop.reader = ResponseReader("GET", 1000)
    stream = MemoryStream(clock, chunks)
    hop.enter("request")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(outcome_of(converse(stream, hop, hop.reader)))
        await clock.advance(1000 * NS_PER_MS)
    failure = task.result()
    if failure is not None:
        raise failure
    return hop, hop.reader, stream


async def outcome_of(conversation: Any) -> HopFailure | None:
    try:
        await conversation
    except HopFailure as failure:
        return failure
    return None


async def test_phases_follow_one_another_without_gaps() -> None:
    hop, reader, stream = await talk(OK[:10], OK[10:25], OK[25:])

    assert hop.value()["phases"] == {
        "request_ms": 5.0,
        "first_byte_ms": 10.0,
        "transfer_ms": 20.0,
    }
    assert "incomplete_phase" not in hop.value()
    assert reader.status == 200
    assert stream.sent.startswith(b"GET / HTTP/1.1\r\nHost: example.net\r\n")


@pytest.mark.parametrize(
    ("chunks", "reason", "words"),
    [
        ([], "protocol_error", "before any answer"),
        ([OK[:-1]], "protocol_error", "after 1 body bytes of 2"),
        ([b"SSH-2.0-x\r\n"], "protocol_error", "not HTTP"),
        ([ConnectionResetError(errno.ECONNRESET, "x")], "reset", "Connection reset"),
        ([OK[:-1], ConnectionResetError(errno.ECONNRESET, "x")], "reset", "Connection reset"),
        ([TimeoutError(errno.ETIMEDOUT, "x")], "timeout", "timed out"),
    ],
)
async def test_a_broken_exchange_says_how(
    chunks: list[bytes | OSError], reason: str, words: str
) -> None:
    with pytest.raises(HopFailure) as caught:
        await talk(*chunks)

    assert caught.value.failure.reason == reason
    assert words in caught.value.failure.text


def test_tls_failures_are_sentences() -> None:
    failure = tls_failure(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"))

    assert failure.reason == "tls_failed"
    assert "wrong version number" in failure.text.lower()
    assert "closed the connection" in tls_failure(ssl.SSLEOFError(8, "EOF")).text


def test_long_urls_are_cut_in_results() -> None:
    assert shown("x" * 1024) == "x" * 1024
    assert shown("x" * 1025) == "x" * 1024 + "…"


async def run(spec: HttpSpec) -> Measurement:
    async def nobody(name: str, family: int) -> list[tuple[Any, ...]]:
        raise AssertionError("nothing may be looked up")

    clock = ManualClock()
    record = Recorder(clock)
    prober = HttpProber(clock, TargetResolver(TargetPolicy(), look_up=nobody))
    await measure(prober, spec, record)
    return record.measurement()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (HttpSpec(url="gopher://example.net/"), "must begin with http://"),
        (HttpSpec(url="http://example.net/\r\nX: y"), "control characters"),
        (HttpSpec(url="http://example.net/", headers={"X": "a\r\nb"}), "control characters"),
        (HttpSpec(url="http://example.net/", method="CONNECT"), "CONNECT"),
    ],
)
async def test_a_request_that_cannot_be_made_is_rejected(spec: HttpSpec, words: str) -> None:
    measurement = await run(spec)

    assert measurement.outcome is Outcome.REJECTED
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("denied", "self")
    assert words in measurement.error.message
    (summary,) = measurement.observations
    assert summary.name == "http_summary"
    assert summary.value["success"] is False


async def test_a_denied_host_is_rejected_before_a_byte_leaves() -> None:
    measurement = await run(HttpSpec(url="http://169.254.169.254/latest/meta-data/"))

    assert measurement.outcome is Outcome.REJECTED
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == ("denied", "policy")
    assert [each.name for each in measurement.observations] == ["http_response", "http_summary"]
    assert measurement.observations[-1].value["reason"] == "denied"
