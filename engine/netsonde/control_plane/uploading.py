"""Uploading tasks: some lines at a time, again until each is answered, and none of them twice."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from random import Random

from netsonde import wire
from netsonde.backoff import BackoffPolicy
from netsonde.clock import NS_PER_MS, Clock
from netsonde.control_plane.streaming import is_streamed
from netsonde.control_plane.transport import ControlPlaneTransport, TransportRequest
from netsonde.errors import ControlPlaneError, TransportError

TASKS_PATH = "/v1/tasks"
PART_LINES = 1_000  # of one request; the server's limit is wire.LINES_MAX
PART_BYTES = 1 << 20  # of one request, whose body is sent at once
TIMEOUT_S = wire.STREAM_MAX_MS / 1000 + 15
IDLE_TIMEOUT_S = 30.0  # between two groups' answers
REFUSAL_MAX_BYTES = 64 << 10
RETRY_BASE_MS = 250
RETRY_CAP_MS = 5_000
FAILURES_MAX = 8  # in a row, without an answer to any line: a quarter of a minute, about
FIRST_FAILURES_MAX = 4  # before any answer: who named the wrong server hears of it in a second


class Uploader:
    """Uploads lines under one Idempotency-Key."""

    def __init__(
        self,
        transport: ControlPlaneTransport,
        headers: Mapping[str, str],
        key: str,
        clock: Clock,
        rng: Random,
    ) -> None:
        self._transport = transport
        self._headers = {
            **headers,
            "Accept": wire.NDJSON,
            "Content-Type": wire.NDJSON,
            "Idempotency-Key": key,
        }
        self._clock = clock
        self._rng = rng
        self._backoff = BackoffPolicy(RETRY_BASE_MS, RETRY_CAP_MS)
        self._has_begun = False

    async def answers(
        self, first_line: int, lines: Sequence[bytes]
    ) -> AsyncGenerator[wire.LineAnswer, None]:
        """Upload lines, at most PART_LINES and PART_BYTES, and yield each one's answer in order.

        What got no answer is sent again under its number, some times.

        Raises:
            ControlPlaneError: the server refuses the request.
            TransportError: it cannot be reached.
            DecodeError: what answers is no such server.
        """
        done = failures = 0
        while done < len(lines):
            before = done
            error: ControlPlaneError | TransportError | None = None
            try:
                async with aclosing(self._once(first_line + done, lines[done:])) as answers:
                    async for answer in answers:
                        done += 1
                        self._has_begun = True
                        yield answer
            except (ControlPlaneError, TransportError) as failure:
                error = failure
                if isinstance(failure, ControlPlaneError) and not failure.retryable:
                    raise
            failures = 0 if done > before else failures + 1
            if failures >= (FAILURES_MAX if self._has_begun else FIRST_FAILURES_MAX):
                raise error or TransportError("POST /v1/tasks", "lines are left without an answer")
            if error is not None or failures:
                hint_ms = error.retry_after_ms if isinstance(error, ControlPlaneError) else None
                delay_ms = self._backoff.delay_ms(failures, self._rng, hint_ms)
                await self._clock.sleep(delay_ms * NS_PER_MS)

    async def _once(
        self, first_line: int, lines: Sequence[bytes]
    ) -> AsyncGenerator[wire.LineAnswer, None]:
        request = TransportRequest(
            method="POST",
            path=f"{TASKS_PATH}?first_line={first_line}",
            headers=self._headers,
            body=b"".join([line + b"\n" for line in lines]),
            timeout_s=TIMEOUT_S,
            idle_timeout_s=IDLE_TIMEOUT_S,
        )
        async with self._transport.stream(request) as answer:
            if answer.status != 200:
                refusal = await answer.response(REFUSAL_MAX_BYTES)
                hint = refusal.headers.get("Retry-After")
                raise wire.decode_error(refusal.status, refusal.body, hint)
            if not is_streamed(answer):
                raise wire.DecodeError("the answer is no stream of lines")
            cut, expected = wire.Lines(lines_max=len(lines) + wire.LINES_MAX), first_line
            async for chunk in answer.chunks:
                for line in cut.feed(chunk):
                    part = wire.read_upload_line(line)
                    if isinstance(part, wire.UploadEnd):
                        if part.error is not None:
                            raise part.error
                        return
                    if part is not None:
                        if part.line != expected or expected >= first_line + len(lines):
                            raise wire.DecodeError(f"line {part.line} is answered out of turn")
                        expected += 1
                        yield part
            raise TransportError(request.operation, "the answer stopped before its end")
