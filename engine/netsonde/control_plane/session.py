"""An agent's session with its control plane: identity, registration for ever, heartbeats."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from netsonde.backoff import POLICIES, Verb
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock
from netsonde.control_plane import credentials as stored
from netsonde.control_plane.client import ControlPlaneClient
from netsonde.control_plane.credentials import Credentials
from netsonde.control_plane.exchange import Identity, needs_operator
from netsonde.errors import (
    ControlPlaneError,
    ErrorCode,
    NetsondeError,
    StorageError,
    TransportError,
    log_fields,
)
from netsonde.model import (
    AgentCommand,
    HeartbeatRequest,
    HeartbeatResponse,
    RegisterRequest,
    RegisterResponse,
)

BEATS_PER_TIMEOUT = 3  # two may get lost
BEAT_INTERVAL_MAX_MS = 600_000  # a server that wants fewer would not notice that we are gone
BEAT_INTERVAL_DEFAULT_MS = 15_000
BEAT_JITTER = 0.1  # a fleet that was started together must not beat together
SETTLED_NS = 60 * NS_PER_S  # a token refused sooner than this was never good
# Calls that are made again until they succeed, so that their success tells that all is well.
LASTING_VERBS = frozenset({Verb.REGISTER, Verb.HEARTBEAT, Verb.CLAIM, Verb.REPORT})
ENROLMENT_CURE = (
    "make a token there with `netsonde token create --enrol` and give it to this agent"
    " (enrolment_token_file, which is read again, or enrolment_token)"
)

logger = logging.getLogger("netsonde.agent")


class AgentRuntime:
    """Keeps one agent known to its control plane.

    `describe` says who the agent is, `beat` how it feels (agent_id and seq are filled in),
    `on_lost` is called with lease ids the control plane does not want worked on any more,
    `on_commands` with the commands that every answer lists. `beat_ms` is how far apart heartbeats
    are, None: as the control plane likes it.
    """

    def __init__(
        self,
        client: ControlPlaneClient,
        clock: Clock,
        credentials_path: Path,
        describe: Callable[[], RegisterRequest],
        beat: Callable[[], HeartbeatRequest] | None = None,
        on_lost: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self.last_heartbeat: HeartbeatResponse | None = None
        self.beat_ms: int | None = None
        self.on_commands: Callable[[Sequence[AgentCommand]], None] = lambda _: None
        self._client = client
        self._clock = clock
        self._path = credentials_path
        self._describe = describe
        self._beat = beat or (lambda: HeartbeatRequest(agent_id=0))
        self._on_lost = on_lost or (lambda _: None)
        self._soon = asyncio.Event()
        self._credentials: Credentials | None = None
        self._identifying = asyncio.Lock()
        self._registered_ns: int | None = None
        self._refused_tokens = 0
        self._beats = 0
        self._watch = _Watch(client.control_plane, clock)

    async def start(self) -> None:
        """Load or make this agent's identity and register, for as long as it takes.

        An original control plane may be asked for one token in ten minutes only, so that a token
        it gave earlier is used again; ours is told of every start.

        Raises:
            StorageError: the credentials can be neither read nor written.
        """
        self._credentials = self._load()
        self._client.connect(reauthenticate=self._reauthenticate, observe=self._watch.observe)
        if self._client.identity is None and self._credentials.is_legacy:
            self._adopt(self._credentials)
        if self._client.identity is None:
            await self._reauthenticate(None)

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            self._soon.clear()
            await self.heartbeat()
            interval_ns = self.beat_interval_ns()
            least_ns = min(self._client.cadence.heartbeat_ms * NS_PER_MS, interval_ns)
            await self._clock.sleep(least_ns)
            if interval_ns > least_ns:
                await self._clock.wait(self._soon, interval_ns - least_ns)

    def hurry(self) -> None:
        """Send the next heartbeat as soon as one may be sent: there is news."""
        self._soon.set()

    async def heartbeat(self) -> None:
        """Send one heartbeat now and act on its answer; a failure is logged and not raised."""
        self._beats += 1
        request = msgspec.structs.replace(self._beat(), seq=self._beats)
        try:
            response = await self._client.heartbeat(request)
        except (ControlPlaneError, TransportError):
            return  # the watch has said so, and the next beat comes
        self.last_heartbeat = response
        lost = (*response.revoked_leases, *response.unknown_leases)
        if lost:
            self._on_lost(lost)
        self.on_commands(response.commands)

    def beat_interval_ns(self) -> int:
        """Return how long to wait for the next heartbeat, jittered downwards."""
        # Bounded before it is multiplied: JSON has integers that no float holds.
        named_ms = min(max(self._named_interval_ms(), 0), 2 * BEAT_INTERVAL_MAX_MS)
        jittered_ms = round(named_ms * self._client.rng.uniform(1 - BEAT_JITTER, 1))
        least_ms = self._client.cadence.heartbeat_ms
        return max(least_ms, min(jittered_ms, BEAT_INTERVAL_MAX_MS)) * NS_PER_MS

    def _named_interval_ms(self) -> int:
        if self.beat_ms is not None:
            return self.beat_ms
        for source in (self.last_heartbeat, self._client.registration):
            if source is not None and source.heartbeat_interval_ms:
                return source.heartbeat_interval_ms
        if self._client.registration is not None:
            return self._client.registration.heartbeat_timeout_ms // BEATS_PER_TIMEOUT
        return BEAT_INTERVAL_DEFAULT_MS

    def _load(self) -> Credentials:
        """Return this agent's identity; a new one is durable before anybody hears of it."""
        found = stored.load(self._path)
        if found is None:
            found = stored.new_credentials()
            stored.save(self._path, found)
        if found.registration and found.control_plane != self._client.control_plane:
            return stored.without_registration(found)
        return found

    def _adopt(self, credentials: Credentials) -> bool:
        """Use a stored registration; return whether there was one."""
        if credentials.registration is None:
            return False
        self._client.adopt(
            credentials.registration,
            prefix=credentials.prefix,
            is_legacy=credentials.is_legacy,
        )
        return True

    async def _reauthenticate(self, refused: Identity | None) -> None:
        """Get another identity than the refused one; callers at the same time share the work."""
        async with self._identifying:
            if self._client.identity != refused:
                return
            if refused is not None and self._reload(refused):
                return
            await self._settle()
            self._keep(await self._register())

    def _reload(self, refused: Identity) -> bool:
        """Take a token that another process stored meanwhile, if there is one."""
        try:
            found = stored.load(self._path)
        except StorageError as error:
            logger.warning("%s", error, extra={"action": "credentials_unreadable"})
            return False
        if found is None or found.control_plane != self._client.control_plane:
            return False
        if found.registration is None or found.registration.auth_token == refused.token:
            return False
        self._credentials = found
        return self._adopt(found)

    async def _settle(self) -> None:
        """Wait before registering again when the last token was refused at once."""
        if self._registered_ns is None:
            return
        if self._clock.boottime_ns() - self._registered_ns >= SETTLED_NS:
            self._refused_tokens = 0
            return
        policy = POLICIES[Verb.REGISTER]
        delay_ms = policy.delay_ms(self._refused_tokens, self._client.rng)
        self._refused_tokens += 1
        await self._clock.sleep(delay_ms * NS_PER_MS)

    async def _register(self) -> RegisterResponse:
        """Register, for ever: an agent that gives up needs somebody to go there.

        The client keeps the attempts apart, up to five minutes, and the watch logs them.
        """
        if self._credentials is None:
            raise RuntimeError("the session was not started")
        while True:
            request = msgspec.structs.replace(
                self._describe(), agent_key=self._credentials.agent_key
            )
            try:
                return await self._client.register(request, attempts=1)
            except (ControlPlaneError, TransportError):
                continue

    def _keep(self, registration: RegisterResponse) -> None:
        """Store a registration; without a disk the agent goes on and registers at its next start.

        On this thread: the file is one page, written once per registration.
        """
        self._registered_ns = self._clock.boottime_ns()
        logger.info(
            "registered with %s as agent %d",
            self._client.control_plane,
            registration.agent_id,
            extra={"action": "registered", "agent_id": registration.agent_id},
        )
        if self._credentials is None:
            return
        self._credentials = msgspec.structs.replace(
            self._credentials,
            control_plane=self._client.control_plane,
            prefix=self._client.prefix,
            is_legacy=self._client.is_legacy is True,
            registration=registration,
        )
        try:
            stored.save(self._path, self._credentials)
        except StorageError as error:
            logger.warning("%s", error, extra={"action": "credentials_not_kept"})


class _Watch:
    """Says once that the control plane is gone or refuses, and once that it is back."""

    def __init__(self, control_plane: str, clock: Clock) -> None:
        self._control_plane = control_plane
        self._clock = clock
        self._failing: set[Verb] = set()
        self._since_ns = 0
        self._refusals: dict[Verb, str] = {}

    def observe(self, verb: Verb, failure: NetsondeError | None) -> None:
        """Take note of how a call ended."""
        if failure is None:
            self._succeeded(verb)
        elif isinstance(failure, ControlPlaneError) and not failure.retryable:
            self._refused(verb, failure)
        elif isinstance(failure, TransportError) or _is_down(failure):
            self._failed(verb, failure)

    def _succeeded(self, verb: Verb) -> None:
        self._refusals.pop(verb, None)
        if not self._failing:
            return
        self._failing.discard(verb)
        if not self._failing:
            logger.info(
                "the control plane %s answers again, after %d s",
                self._control_plane,
                (self._clock.boottime_ns() - self._since_ns) // NS_PER_S,
                extra={"action": "control_plane_back"},
            )

    def _failed(self, verb: Verb, failure: NetsondeError) -> None:
        if verb not in LASTING_VERBS:
            return
        if not self._failing:
            self._since_ns = self._clock.boottime_ns()
            logger.warning(
                "no usable answer from the control plane %s: %s; leases are worked on until their"
                " deadlines, results wait in the spool, and it is asked again within %d s",
                self._control_plane,
                failure,
                POLICIES[verb].cap_ms // 1000,
                extra={"action": "control_plane_lost", **log_fields(failure)},
            )
        self._failing.add(verb)

    def _refused(self, verb: Verb, failure: ControlPlaneError) -> None:
        """Log a refusal when it is new, louder when only a person can lift it."""
        is_enrolment = failure.code == ErrorCode.ENROLMENT_REQUIRED
        refusal = str(failure) if is_enrolment else failure.code  # another token, another reason
        if self._refusals.get(verb) == refusal:
            return
        self._refusals[verb] = refusal
        again = f"it asks again every {POLICIES[verb].cap_ms // 1000} s"
        cure = ""
        if is_enrolment:
            cure = f"; {ENROLMENT_CURE}, {again}"
        elif needs_operator(verb, failure):
            cure = f"; an operator has to allow this agent, {again}"
        logger.error(
            "the control plane %s refuses %s: %s%s",
            self._control_plane,
            verb.value,
            failure,
            cure,
            extra={
                "action": "control_plane_refuses",
                "code": failure.code,
                **log_fields(failure),
            },
        )


def _is_down(failure: NetsondeError) -> bool:
    """Whether a refusal means trouble there, and not just too many requests from here."""
    return isinstance(failure, ControlPlaneError) and failure.status >= 500
