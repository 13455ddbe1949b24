"""Keeps an agent's signed configuration: fetches, verifies, applies, remembers, and says so.

What is applied is in force until a greater revision replaces it, also past its end (`stale`). A
revision that is refused changes nothing.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Protocol

import msgspec
from msgspec import structs

from netsonde import dsse, wire
from netsonde.agent.config_applier import ConfigApplier, InForce, Judged, crashed
from netsonde.ceiling import Clamped
from netsonde.clock import NS_PER_S, Clock
from netsonde.control_plane import ControlPlaneError, TransportError
from netsonde.control_plane.calls import ConfigAnswer
from netsonde.dsse import Envelope
from netsonde.errors import ConfigRefused, RefusalReason
from netsonde.model import MINTED_ID_MAX, ConfigStatus
from netsonde.remote_config import Accepted

ASK_NS = 600 * NS_PER_S  # an original control plane answers six times an hour
ASK_JITTER = 0.2
FETCH_SPREAD_NS = 5 * NS_PER_S  # a fleet that hears of a revision must not fetch together
FETCH_GAP_NS = 2 * NS_PER_S  # whatever is announced
ANSWER_MAX_BYTES = 2 * dsse.PAYLOAD_MAX_BYTES * 4 // 3  # the payload, and its unsigned copy
AT_ONCE_MAX_BYTES = 16 << 10  # judging more, such as thousands of prefixes, would stop the loop
ERROR_MAX_CHARS = 500
CLAMPED_MAX, TOLD_MAX_CHARS = 32, 256  # told to the control plane; the log has all
# What a look later cannot change, so that the same bytes need not be fetched again. Of the others
# some pass (another clock, another disk), and some are of bytes that nobody has vouched for: what
# came under a tag need not be what the control plane has under it.
FINAL = frozenset(
    {
        RefusalReason.INVALID,
        RefusalReason.REPLAYED,
        RefusalReason.OUT_OF_SCOPE,
        RefusalReason.CRASHED,
    }
)

_log = logging.getLogger("netsonde.agent")


class ConfigSource(Protocol):
    """What a keeper needs of a control plane."""

    async def config(self, etag: str | None) -> ConfigAnswer | None:
        """Ask for the configuration unless etag names it; None: there is none.

        Raises:
            ControlPlaneError: the control plane refused.
            TransportError: there was no usable answer.
        """
        ...


class _Answer(msgspec.Struct, frozen=True):
    """The answer as it came; `revision` is the unsigned copy's, good for naming only."""

    payload_type: str = ""
    payload: str = ""
    signatures: tuple[dsse.Signature, ...] = ()
    revision: str | int | None = None


class ConfigKeeper:
    """Keeps the signed configuration of one agent. `run` fetches; `announce` says when to.

    `on_verdict` is called when there is something new to say.
    """

    def __init__(
        self, clock: Clock, source: ConfigSource, applier: ConfigApplier, rng: Random
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.on_verdict: Callable[[], None] = lambda: None
        self._clock = clock
        self._source = source
        self._applier = applier
        self._rng = rng
        self._verdict = ConfigStatus()
        self._etag: str | None = None
        self._asked = asyncio.Event()
        self._announced: str | None = None
        self._handled: str | None = None
        self._said_stale = False

    def status(self) -> ConfigStatus | None:
        """Return what a heartbeat says of the configuration; None while there is nothing to say."""
        in_force = self._applier.in_force
        if in_force is None:
            return self._verdict if self._verdict.status else None
        return structs.replace(
            self._verdict,
            applied=in_force.payload.revision,
            stale=self._is_stale(in_force),
            clamped=tuple(map(_told, in_force.clamped[:CLAMPED_MAX])),
        )

    def announce(self, revision: str | int) -> None:
        """Take note of the revision that the control plane names."""
        self._announced = str(revision)
        if self._announced != self._handled:
            self._asked.set()

    async def refresh(self) -> None:
        """Look again soon, whatever was announced, and judge again what was refused."""
        self._etag = None
        self._asked.set()

    def start(self) -> None:
        """Put what was in force before a restart into force again.

        Raises:
            StorageError: what is remembered cannot be read.
        """
        memory = self._applier.memory
        died_in = memory.recall()
        if memory.kept.envelope is not None:
            accepted = memory.kept.accepted
            self._consider(memory.kept.envelope, accepted.revision if accepted else None)
        if died_in is not None:
            self._nack(crashed(died_in), named=None)

    async def run(self) -> None:
        """Fetch what is announced, and look now and then, until cancelled."""
        while True:
            self._asked.clear()
            if self._applier.keys:
                await self._fetch()
            elif self._announced is not None and self._announced != self._handled:
                self._handled = self._announced
                text = "this agent trusts no key: name the operator's in its setting trusted_keys"
                refusal = ConfigRefused(RefusalReason.UNKNOWN_KEY, text)
                self._nack(refusal, named=_number(self._announced))
                self.on_verdict()
            self._note_stale()
            wait_ns = round(ASK_NS * self._rng.uniform(1, 1 + ASK_JITTER))
            fetched_ns = self._clock.boottime_ns()
            if await self._clock.wait(self._asked, wait_ns):
                passed_ns = self._clock.boottime_ns() - fetched_ns
                spread_ns = round(self._rng.uniform(0, FETCH_SPREAD_NS))
                await self._clock.sleep(max(FETCH_GAP_NS - passed_ns, spread_ns))

    # ── fetching ──

    async def _fetch(self) -> None:
        announced = self._announced
        try:
            answer = await self._source.config(self._etag)
        except (ControlPlaneError, TransportError):
            self.counters["fetch_failed"] += 1  # the session tells the operator
            return
        self.counters["fetched"] += 1
        self._handled = announced
        if answer is None or answer.body is None:
            return
        before = self.status()
        reason = await self._take(answer.body)
        if self.status() != before:
            self.on_verdict()
        is_settled = reason is None or reason in FINAL
        self._etag = answer.etag if is_settled else None

    async def _take(self, body: bytes) -> RefusalReason | None:
        """Judge an answer; return why it was refused, None when it was taken."""
        if len(body) > ANSWER_MAX_BYTES:
            text = f"the answer has {len(body)} bytes, {ANSWER_MAX_BYTES} are allowed"
            return self._nack(ConfigRefused(RefusalReason.OVERSIZE, text), named=None)
        try:
            answer = wire.decode_answer(_Answer, body)
        except wire.DecodeError as error:
            return self._nack(ConfigRefused(RefusalReason.MALFORMED, str(error)), named=None)
        envelope = Envelope(
            payload_type=answer.payload_type,
            payload=answer.payload,
            signatures=answer.signatures,
        )
        named = _number(answer.revision)
        if len(body) <= AT_ONCE_MAX_BYTES:
            return self._consider(envelope, named)
        try:
            self._apply(await asyncio.to_thread(self._applier.judge, envelope))
        except ConfigRefused as refusal:
            return self._nack(refusal, named)
        return None

    # ── judging and applying ──

    def _consider(self, envelope: Envelope, named: int | None) -> RefusalReason | None:
        """Judge an envelope and, when it is good, put it into force."""
        try:
            self._apply(self._applier.judge(envelope))
        except ConfigRefused as refusal:
            return self._nack(refusal, named)
        return None

    def _apply(self, judged: Judged) -> None:
        """Put what is good into force, and say so.

        Raises:
            ConfigRefused: it was not put into force.
        """
        if self._applier.apply(judged):
            self._said_stale = False
            self._log_applied(judged.accepted, judged.in_force.clamped)
        self._verdict = ConfigStatus(status="ack", revision=judged.mark.revision)
        self.counters["ack"] += 1

    # ── telling ──

    def _nack(self, refusal: ConfigRefused, named: int | None) -> RefusalReason:
        revision = refusal.revision if refusal.revision is not None else named
        before, self._verdict = (
            self._verdict,
            ConfigStatus(
                status="nack",
                revision=revision,
                reason=refusal.reason.value,
                error=str(refusal)[:ERROR_MAX_CHARS],
            ),
        )
        self.counters[f"nack_{refusal.reason.value}"] += 1
        if self._verdict != before:
            self._log_refused(refusal, revision)
        return refusal.reason

    def _log_refused(self, refusal: ConfigRefused, revision: int | None) -> None:
        in_force = self._applier.in_force
        _log.error(
            "configuration %s is refused (%s): %s; %s",
            "of unknown revision" if revision is None else revision,
            refusal.reason.value,
            refusal,
            "this agent's own settings are in force"
            if in_force is None
            else f"revision {in_force.payload.revision} stays in force",
            extra={"action": "config_refused", "reason": refusal.reason.value},
        )

    def _log_applied(self, accepted: Accepted, clamped: tuple[Clamped, ...]) -> None:
        _log.info(
            "configuration %d, signed by %s, is in force",
            accepted.payload.revision,
            ", ".join(accepted.keyids),
            extra={"action": "config_applied", "revision": accepted.payload.revision},
        )
        for one in clamped:
            _log.warning(
                "configuration %d asks for %s = %s, above this host's ceiling: %s",
                accepted.payload.revision,
                one.path,
                one.asked,
                one.applied,
                extra={"action": "config_clamped", "path": one.path},
            )

    def _is_stale(self, in_force: InForce) -> bool:
        return in_force.payload.is_expired(self._clock.realtime_ns())

    def _note_stale(self) -> None:
        in_force = self._applier.in_force
        if in_force is None or self._said_stale or not self._is_stale(in_force):
            return
        self._said_stale = True
        _log.warning(
            "configuration %d expired at %s and stays in force until another comes: publish one",
            in_force.payload.revision,
            in_force.payload.expires_at.isoformat(),
            extra={"action": "config_stale"},
        )


def _told(clamped: Clamped) -> dict[str, str]:
    told = {"path": clamped.path, "asked": clamped.asked, "applied": clamped.applied}
    return {name: text[:TOLD_MAX_CHARS] for name, text in told.items()}


def _number(revision: str | int | None) -> int | None:
    """Read a revision that somebody named; None: it is no number of ours."""
    text = str(revision)
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MINTED_ID_MAX))
    return int(text) if is_number and int(text) <= MINTED_ID_MAX else None
