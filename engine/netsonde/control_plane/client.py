"""The agent API as methods: the verbs, and what original control planes make of them."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

from netsonde import wire
from netsonde.backoff import Verb
from netsonde.clock import Clock
from netsonde.control_plane.cadence import CADENCE, LEGACY_CADENCE, Cadence
from netsonde.control_plane.calls import (
    ABSENT_STATUSES,
    STREAMLESS_STATUSES,
    UNREPORTED_STATUSES,
    ConfigAnswer,
    claim_call,
    claim_stream_call,
    config_call,
    extend_call,
    heartbeat_call,
    lease_id_parts,
    metrics_call,
    register_call,
    report_call,
    report_stream_call,
)
from netsonde.control_plane.exchange import Call, Exchange, Identity
from netsonde.control_plane.grants import ClaimGrant, Extension
from netsonde.control_plane.reporting import Batch, report_all
from netsonde.control_plane.returning import Returns
from netsonde.control_plane.server_clock import ServerClock
from netsonde.control_plane.streaming import (
    ClaimSink,
    ClaimStream,
    ReportSource,
    ReportStream,
    Streams,
)
from netsonde.control_plane.terms import CLAIM_WAIT_MS, claim_hold_ms, lease_term_ms
from netsonde.control_plane.transport import ControlPlaneTransport
from netsonde.errors import ControlPlaneError, NetsondeError, TransportError
from netsonde.metrics import Durations
from netsonde.model import (
    HeartbeatRequest,
    HeartbeatResponse,
    MetricsEnvelope,
    MetricsResponse,
    RegisterRequest,
    RegisterResponse,
    ReportResponse,
)
from netsonde.wire import RejectedLease

ATTEMPTS = 4  # about a second of retries; who calls in a loop comes back anyway
# Aliases of the same handlers; a base address may end in one, so that the others are not there.
PREFIXES = ("/v1/agents", "", "/v1", "/api/v1")


class ControlPlaneClient:
    """Speaks the agent API to ours and to both original control planes.

    Each verb is tried up to `attempts` times with backoff, then raises ControlPlaneError or
    TransportError. Calls may run concurrently. `on_config` hears of every revision of a signed
    configuration that the control plane names.
    """

    def __init__(self, transport: ControlPlaneTransport, clock: Clock, rng: Random) -> None:
        self.registration: RegisterResponse | None = None
        self._clock = clock
        self._exchange = Exchange(transport, clock, rng)
        self._claim_streams = Streams(clock, self.counters)
        self._report_streams = Streams(clock, self.counters)
        self._server_clock = ServerClock()
        self._returns = Returns(self._exchange, clock, self._report_cancelled)
        self.on_config: Callable[[str | int], None] = lambda _: None

    @property
    def counters(self) -> Counter[str]:
        """What happened so far, by name; only ever grows."""
        return self._exchange.counters

    @property
    def durations(self) -> Mapping[Verb, Durations]:
        """How long answers took that were not held, by verb."""
        return self._exchange.durations

    @property
    def control_plane(self) -> str:
        """The control plane's address."""
        return self._exchange.transport.base_url

    @property
    def rng(self) -> Random:
        """What delays are drawn from."""
        return self._exchange.rng

    @property
    def identity(self) -> Identity | None:
        """Who this agent is, once registered."""
        return self._exchange.identity

    @property
    def prefix(self) -> str:
        """The path prefix under which the control plane answers."""
        return self._exchange.prefix

    @property
    def is_legacy(self) -> bool | None:
        """Whether the control plane is an original one; None before its first answer."""
        return self._exchange.is_legacy

    @property
    def cadence(self) -> Cadence:
        """How far apart calls must be; gentle until the control plane is known not to mind."""
        return CADENCE if self.is_legacy is False else LEGACY_CADENCE

    @property
    def term_ms(self) -> int:
        """The lease term that the control plane named at registration."""
        return lease_term_ms(self.registration)

    def server_now_ns(self) -> int:
        """Return the control plane's instant; until it has named one, this host's wall clock."""
        server_ns = self._server_clock.at_ns(self._clock.boottime_ns())
        return self._clock.realtime_ns() if server_ns is None else server_ns

    @property
    def claim_wait_ms(self) -> int:
        """How long the control plane would like to hold an empty claim."""
        return claim_hold_ms(self.registration)

    def adopt(
        self, registration: RegisterResponse, *, prefix: str = PREFIXES[0], is_legacy: bool | None
    ) -> None:
        """Go on with an earlier registration, as after a restart."""
        self.registration = registration
        self._exchange.identity = Identity(registration.agent_id, registration.auth_token)
        self._exchange.prefix = prefix
        self._exchange.is_legacy = is_legacy

    def connect(
        self,
        *,
        reauthenticate: Callable[[Identity | None], Awaitable[None]],
        observe: Callable[[Verb, NetsondeError | None], None],
    ) -> None:
        """Let a session supply identities and hear how every call ends.

        reauthenticate gets the identity that was refused, None when there is none yet, and
        returns when the client has another.
        """
        self._exchange.reauthenticate = reauthenticate
        self._exchange.observe = observe

    def allow_streams(self, *, claims: bool, reports: bool) -> None:
        """Let claims and reports go as streams where the control plane has them, or never."""
        self._claim_streams.are_allowed = claims
        self._report_streams.are_allowed = reports

    async def close(self) -> None:
        """Close the transport. Idempotent."""
        await self._exchange.transport.close()

    async def register(
        self, request: RegisterRequest, *, attempts: int = ATTEMPTS
    ) -> RegisterResponse:
        """Introduce this agent and go on as who the answer says it is.

        A 404 means that the API is under another of its prefixes, which is then remembered.
        """
        known = self._exchange.prefix
        refusal: ControlPlaneError | None = None
        for prefix in (known, *(other for other in PREFIXES if other != known)):
            try:
                registration = await self._exchange.call(
                    register_call(request, prefix, self._server_clock), attempts
                )
            except ControlPlaneError as error:
                if error.status not in ABSENT_STATUSES:
                    raise
                refusal = refusal or error
            else:
                self.adopt(registration, prefix=prefix, is_legacy=self.is_legacy)
                self._hear_config(registration.config_revision)
                return registration
        assert refusal is not None  # noqa: S101 (the loop ran at least once)
        self._exchange.failed(Verb.REGISTER, refusal)
        raise refusal

    async def heartbeat(
        self, request: HeartbeatRequest, *, attempts: int = ATTEMPTS
    ) -> HeartbeatResponse:
        """Say that this agent lives; the request's agent_id is filled in."""
        timeout_ms = self.registration.heartbeat_timeout_ms if self.registration else 0
        response = await self._exchange.call(
            heartbeat_call(request, timeout_ms, self._server_clock), attempts
        )
        self._hear_config(response.config_revision)
        return response

    async def claim(
        self,
        capacities: Mapping[str, int],
        *,
        claim_id: str,
        max_leases: int | None = None,
        wait_ms: int | None = None,
        attempts: int = ATTEMPTS,
    ) -> ClaimGrant:
        """Ask for work, free slots per kind; wait_ms None is the control plane's preference.

        Every attempt repeats claim_id, so a lost answer strands no lease. Without a free slot
        nothing is asked: an original server reads 0 as "as many as you like".
        """
        free = _free(capacities)
        if not free:
            return ClaimGrant()
        hold_ms = claim_hold_ms(self.registration, wait_ms)
        # An original server holds an empty claim for 20 s whatever it is asked.
        longest_ms = hold_ms if self.is_legacy is False else max(hold_ms, CLAIM_WAIT_MS)
        call = claim_call(
            free,
            claim_id,
            max_leases,
            (hold_ms, longest_ms),
            lambda: self.term_ms,
            self._server_clock,
        )
        grant = await self._exchange.call(call, attempts)
        self._hear_config(grant.response.config_revision)
        return grant

    async def claim_into(
        self,
        sink: ClaimSink,
        capacities: Mapping[str, int],
        *,
        claim_id: str,
        wait_ms: int | None = None,
    ) -> None:
        """Ask for work, and hand the sink what comes until the control plane ends the claim.

        A stream where the control plane has them, else one answer. After an exception some leases
        may have come, and others be on their way: repeat claim_id.

        Raises:
            ControlPlaneError: the control plane refused, or ended the stream with an error.
            TransportError: there was no usable answer, or it broke off.
        """
        free = _free(capacities)
        if not free:
            return
        if self.is_legacy is False and self._claim_streams.are_usable:
            claim = ClaimStream(sink, self._clock, lambda: self.term_ms, self._hear_config)
            hold_ms = claim_hold_ms(self.registration, wait_ms)
            call = claim_stream_call(free, claim_id, hold_ms, claim)
            if await self._streamed(call, claim, self._claim_streams, STREAMLESS_STATUSES):
                return
        most = min(sum(free.values()), wire.LEASES_PER_CLAIM_MAX)
        await sink.take(await self.claim(free, claim_id=claim_id, max_leases=most, wait_ms=wait_ms))

    async def extend(
        self, lease_ids: Sequence[int], extend_by_ms: int, *, attempts: int = ATTEMPTS
    ) -> Extension:
        """Ask for extend_by_ms more, from now, on every lease.

        Leases that the answer does not mention, or whose part of a very long list got no answer,
        are in neither result: they keep the deadlines they have.
        """
        got = Extension({})
        for ids in lease_id_parts(lease_ids):
            try:
                call = extend_call(ids, extend_by_ms, self.term_ms)
                got |= await self._exchange.call(call, attempts)
            except (ControlPlaneError, TransportError):
                if not got.deadlines_ns:
                    raise
                break
        return got

    async def release(
        self,
        lease_ids: Sequence[int],
        claim_ids: Sequence[str] = (),
        *,
        keep: Sequence[int] = (),
        attempts: int = ATTEMPTS,
    ) -> int:
        """Give leases back unworked, no attempt consumed; return how many went back.

        claim_ids gives back whatever is held of these claims, but for the leases to keep. An
        original control plane has no such call: it is told that they were cancelled.
        """
        return await self._returns.release(lease_ids, claim_ids, keep, attempts)

    async def hand_back(
        self, rejected: Sequence[RejectedLease], *, attempts: int = ATTEMPTS
    ) -> int:
        """Give back leases this agent cannot work on; return how many went back.

        One whose id could not be read cannot be given back: it ends by itself.
        """
        return await self._returns.hand_back(rejected, attempts)

    async def config(self, etag: str | None) -> ConfigAnswer | None:
        """Ask for the signed configuration unless etag names it; None: there is none."""
        try:
            return await self._exchange.call(config_call(etag), attempts=1)
        except ControlPlaneError as error:
            if error.status in ABSENT_STATUSES:
                return None
            raise

    async def report(
        self,
        completed: Sequence[bytes],
        cancelled: Sequence[bytes],
        *,
        attempts: int = ATTEMPTS,
    ) -> ReportResponse:
        """Hand in encoded report items; `results` has one entry each, completed ones first.

        A batch that is refused as a whole is split until the item at fault is alone: that one is
        `invalid`. Items that got no answer because a later request failed are `retry`. An original
        control plane answers with a count only, which is final: its items are `accepted`.
        """
        batch = Batch([*completed, *cancelled], len(completed))

        async def send(batch: Batch) -> ReportResponse:
            return await self._exchange.call(report_call(batch), attempts)

        return await report_all(batch.within_limits(), send, self.counters)

    async def report_from(self, source: ReportSource) -> bool:
        """Hand in what source has, as a stream; False: no streams are to be had, use `report`.

        Raises:
            ControlPlaneError: the control plane refused, or ended the stream with an error.
            StorageError: the source failed.
            TransportError: there was no usable answer, or it broke off.
        """
        if self.is_legacy is not False or not self._report_streams.are_usable:
            return False
        report = ReportStream(source, self._clock)
        call = report_stream_call(report)
        return await self._streamed(call, report, self._report_streams, UNREPORTED_STATUSES)

    async def metrics(self, envelope: MetricsEnvelope) -> MetricsResponse:
        """Tell what this agent counts of itself, once: it costs nobody else's retries."""
        return await self._exchange.call(metrics_call(envelope), attempts=1)

    async def _streamed(
        self,
        call: Call[None],
        stream: ClaimStream | ReportStream,
        streams: Streams,
        refusals: frozenset[int],
    ) -> bool:
        """Make a call that is a stream; return False when the same is to be had without."""
        try:
            await self._exchange.call(call, attempts=1)
        except ControlPlaneError as error:
            if error.status not in refusals:
                raise
            streams.refused()
            return False
        except TransportError:
            if stream.has_begun:
                streams.broke()
            raise
        finally:
            if stream.is_held_up:
                streams.refused()
        streams.ended()
        return True

    async def _report_cancelled(self, items: Sequence[bytes], attempts: int) -> None:
        await self.report((), items, attempts=attempts)

    def _hear_config(self, revision: str | int | None) -> None:
        if revision is not None:
            self.on_config(revision)


def _free(capacities: Mapping[str, int]) -> dict[str, int]:
    return {kind: slots for kind, slots in capacities.items() if slots > 0}
