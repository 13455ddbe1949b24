"""One call of a verb: its attempts, its identity, its failures, and who must know of them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from random import Random
from typing import Generic, TypeVar

from netsonde import __version__, wire
from netsonde.backoff import POLICIES, Cooldown, RetryBudget, Verb
from netsonde.clock import NS_PER_MS, Clock
from netsonde.control_plane.transport import (
    ControlPlaneTransport,
    TransportRequest,
    TransportResponse,
    TransportStream,
)
from netsonde.errors import ControlPlaneError, ErrorCode, NetsondeError, TransportError
from netsonde.metrics import Durations

T = TypeVar("T")

PROTOCOL_HEADER = "Netsonde-Protocol"
PROTOCOL = "1"
JSON = "application/json"
USER_AGENT = f"netsonde/{__version__}"
# A claim of 1000 leases whose specs are the longest URLs has 8 MiB; nothing real comes near.
ANSWER_MAX_BYTES = 8 << 20
REFUSAL_MAX_BYTES = 64 * 1024  # of an answer to a stream that was refused
RATE_LIMIT_FLOOR_MS = 1000  # the original server rounds a Retry-After below 1 s down to 0
UNAUTHORIZED = 401
OPERATOR_STATUSES = frozenset({403, 409})  # only a person can lift these


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this agent is to the control plane."""

    agent_id: int
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful response, and when its request left and it came, on CLOCK_BOOTTIME."""

    response: TransportResponse
    sent_ns: int
    received_ns: int

    @property
    def date_epoch_ms(self) -> int | None:
        """The server's wall clock by its Date header, to the second; None without one."""
        text = self.response.headers.get("Date")
        if text is None:
            return None
        try:
            return int(parsedate_to_datetime(text).timestamp()) * 1000
        except (ValueError, OverflowError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """What to send and how to read the answer.

    `make` gets the agent's id: it can change between two attempts. `tolerated` are refusals that
    the caller understands, so that they count as answers and not as trouble with the host. A call
    with `follow` in place of `read` is a stream: follow gets the answer as it comes, the instant at
    which its request left, and what to call once the answer is of use; `lines` gives the body piece
    by piece. `understood` are statuses other than success that `read` takes.
    """

    verb: Verb
    make: Callable[[int], bytes]
    read: Callable[[Answer], T] | None = None
    follow: Callable[[TransportStream, int, Callable[[], None]], Awaitable[T]] | None = None
    lines: Callable[[], AsyncIterator[bytes]] | None = None
    timeout_s: float
    idle_timeout_s: float | None = None
    is_held: bool = False
    prefix: str | None = None
    tolerated: frozenset[int] = frozenset()
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    understood: frozenset[int] = frozenset()


class Exchange:
    """Sends a verb's request until it is answered, refused, or patience ends.

    `is_legacy` is None until a first answer was understood. `reauthenticate` is called with the
    identity that was refused, returns when there is another, and may take for ever; `observe` is
    told how every call ended.
    """

    def __init__(self, transport: ControlPlaneTransport, clock: Clock, rng: Random) -> None:
        self.identity: Identity | None = None
        self.prefix = "/v1/agents"
        self.is_legacy: bool | None = None
        self.counters: Counter[str] = Counter()
        self.durations: dict[Verb, Durations] = {}
        self.reauthenticate: Callable[[Identity | None], Awaitable[None]] | None = None
        self.observe: Callable[[Verb, NetsondeError | None], None] | None = None
        self.budget = RetryBudget()
        self.transport = transport
        self.rng = rng
        self._cooldown = Cooldown(rng)
        self._recovered = asyncio.Event()
        self._clock = clock

    async def call(self, call: Call[T], attempts: int) -> T:
        """Return what the answer says, after at most `attempts` attempts.

        A call that follows a failed one waits first for as long as the failed one would have, or
        until another verb shows that the control plane is back.

        Raises:
            ControlPlaneError: the last answer was a refusal.
            TransportError: the last attempt had no usable answer.
        """
        while wait_ns := self._cooldown.wait_ns(call.verb, self._clock.boottime_ns()):
            await self._clock.wait(self._recovered, wait_ns)
        retries, has_reauthenticated = 0, False
        while True:
            identity = await self._identity_for(call.verb)
            failure: ControlPlaneError | TransportError
            try:
                result = await self._attempt(call, identity)
            except (ControlPlaneError, TransportError) as error:
                failure = error
            else:
                self._succeeded(call.verb, retries)
                return result
            if self.reauthenticate and not has_reauthenticated and is_unauthorized(failure, call):
                has_reauthenticated = True
                await self.reauthenticate(identity)
                continue
            if retries + 1 >= attempts or not self._may_retry(call.verb, failure):
                if not is_tolerated(failure, call):
                    self.failed(call.verb, failure)
                raise failure
            await self._clock.sleep(self._delay_ms(call.verb, retries, failure) * NS_PER_MS)
            retries += 1
            self.counters["retries"] += 1

    def failed(self, verb: Verb, failure: ControlPlaneError | TransportError) -> None:
        """Note that a call failed for good: later ones wait, and the observer hears of it."""
        now_ns = self._clock.boottime_ns()
        if needs_operator(verb, failure):
            self._cooldown.refused(verb, now_ns)
        else:
            self._cooldown.failed(verb, now_ns, _hint_ms(failure))
        self.counters[f"{verb}_failed"] += 1
        if self.observe:
            self.observe(verb, failure)

    async def _identity_for(self, verb: Verb) -> Identity | None:
        if verb is Verb.REGISTER:
            return None
        if self.identity is None and self.reauthenticate is not None:
            await self.reauthenticate(None)
        if self.identity is None:
            raise RuntimeError(f"{verb} before register: the client has no identity yet")
        return self.identity

    async def _attempt(self, call: Call[T], identity: Identity | None) -> T:
        self.counters[f"{call.verb}_requests"] += 1
        request = self._request(call, identity)
        try:
            result, headers = await (
                self._read(call, request) if call.read else self._follow(call, request)
            )
        except TransportError:
            self.counters["transport_errors"] += 1
            raise
        except wire.DecodeError as error:
            self.counters["garbled_answers"] += 1
            raise TransportError(call.verb, f"the answer makes no sense: {error}") from error
        # Only an answer that was understood tells who is speaking: a proxy's page does not, and
        # what comes for a GET, which nobody has read here, may be a cache's.
        if call.method == "POST" or PROTOCOL_HEADER in headers:
            self.is_legacy = PROTOCOL_HEADER not in headers
        return result

    async def _read(self, call: Call[T], request: TransportRequest) -> tuple[T, Mapping[str, str]]:
        sent_ns = self._clock.boottime_ns()
        response = await self.transport.call(request)
        if not request.is_held:
            took = self.durations.setdefault(call.verb, Durations())
            took.observe(self._clock.boottime_ns() - sent_ns)
        if not 200 <= response.status < 300 and response.status not in call.understood:
            raise self._refusal(response)
        assert call.read is not None  # noqa: S101 (or this is not called)
        answer = Answer(response, sent_ns, self._clock.boottime_ns())
        return call.read(answer), response.headers

    async def _follow(
        self, call: Call[T], request: TransportRequest
    ) -> tuple[T, Mapping[str, str]]:
        sent_ns = self._clock.boottime_ns()
        assert call.follow is not None  # noqa: S101 (a call has one of both)
        async with self.transport.stream(request, call.lines() if call.lines else None) as stream:
            if not 200 <= stream.status < 300:
                raise self._refusal(await stream.response(REFUSAL_MAX_BYTES))
            try:
                result = await call.follow(stream, sent_ns, lambda: self._proven(call.verb))
            except TransportError:
                self.counters["streams_broken"] += 1
                raise
            return result, stream.headers

    def _request(self, call: Call[T], identity: Identity | None) -> TransportRequest:
        headers = {
            "Accept": f"{wire.NDJSON}, {JSON}" if call.follow else JSON,
            "Content-Type": wire.NDJSON if call.lines else JSON,
            "User-Agent": USER_AGENT,
            PROTOCOL_HEADER: PROTOCOL,
            **call.headers,
        }
        if identity is not None:
            headers["X-Agent-Id"] = str(identity.agent_id)
            headers["X-Agent-Token"] = identity.token
        prefix = self.prefix if call.prefix is None else call.prefix
        return TransportRequest(
            method=call.method,
            path=f"{prefix}/{call.verb}",
            headers=headers,
            body=b"" if call.lines else call.make(identity.agent_id if identity else 0),
            timeout_s=call.timeout_s,
            idle_timeout_s=call.idle_timeout_s,
            is_held=call.is_held,
            answer_max_bytes=ANSWER_MAX_BYTES,
            operation=call.verb,
        )

    def _refusal(self, response: TransportResponse) -> ControlPlaneError:
        self.counters[f"status_{response.status}"] += 1
        if response.status < 400:
            where = response.headers.get("Location", "nowhere")
            return ControlPlaneError(
                f"redirected ({response.status}) to {where}: redirects are not followed, set the"
                " control plane's address to where it is",
                code=ErrorCode.NOT_FOUND,
                status=response.status,
                retryable=False,
            )
        refusal = wire.decode_error(
            response.status, response.body, response.headers.get("Retry-After")
        )
        refusal.is_verdict = refusal.is_verdict or PROTOCOL_HEADER in response.headers
        return refusal

    def _succeeded(self, verb: Verb, retries: int) -> None:
        self.budget.succeeded(retries)
        self._proven(verb)
        if self.observe:
            self.observe(verb, None)

    def _proven(self, verb: Verb) -> None:
        """Note that the control plane does its work: what waited for it goes on.

        Of a stream, which may yet break off; what it has brought by then was no failure.
        """
        if self._cooldown.succeeded(verb):
            self._recovered.set()
            self._recovered = asyncio.Event()

    def _may_retry(self, verb: Verb, failure: ControlPlaneError | TransportError) -> bool:
        if isinstance(failure, ControlPlaneError) and not failure.retryable:
            return False
        if self.budget.take(verb):
            return True
        self.counters["retry_budget_empty"] += 1
        return False

    def _delay_ms(
        self, verb: Verb, retries: int, failure: ControlPlaneError | TransportError
    ) -> int:
        return POLICIES[verb].delay_ms(retries, self.rng, _hint_ms(failure))


def needs_operator(verb: Verb, failure: NetsondeError) -> bool:
    """Whether only a person can lift this refusal."""
    if not isinstance(failure, ControlPlaneError):
        return False
    if failure.status == UNAUTHORIZED:
        return verb is Verb.REGISTER
    return failure.status in OPERATOR_STATUSES


def is_unauthorized(failure: NetsondeError, call: Call[T]) -> bool:
    """Whether another identity could help."""
    return (
        isinstance(failure, ControlPlaneError)
        and failure.status == UNAUTHORIZED
        and call.verb is not Verb.REGISTER
    )


def is_tolerated(failure: NetsondeError, call: Call[T]) -> bool:
    """Whether the caller asked to judge this refusal itself."""
    return isinstance(failure, ControlPlaneError) and failure.status in call.tolerated


def _hint_ms(failure: ControlPlaneError | TransportError) -> int | None:
    if not isinstance(failure, ControlPlaneError):
        return None
    if failure.status == 429:
        return max(failure.retry_after_ms or 0, RATE_LIMIT_FLOOR_MS)
    return failure.retry_after_ms
