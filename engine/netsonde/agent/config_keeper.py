"""Keeps an agent's signed configuration: fetches, verifies, applies, remembers, and says so.

What is applied is in force until a greater revision replaces it, also past its end (`stale`). A
revision that is refused changes nothing.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Protocol

import msgspec
from msgspec import structs

from netsonde import dsse, wire
from netsonde.agent import kept_config
from netsonde.agent.kept_config import KeptConfig, Mark
from netsonde.clock import NS_PER_S, Clock
from netsonde.control_plane import ControlPlaneError, TransportError
from netsonde.control_plane.calls import ConfigAnswer
from netsonde.dsse import Envelope, TrustedKeys
from netsonde.errors import ConfigError, ConfigRefused, RefusalReason, StorageError
from netsonde.model import MINTED_ID_MAX, ConfigStatus
from netsonde.remote_config import (
    Accepted,
    Ceiling,
    Clamped,
    Floor,
    Holder,
    Payload,
    RemoteConfig,
    clamp,
    judge,
)

ASK_NS = 600 * NS_PER_S  # an original control plane answers six times an hour
ASK_JITTER = 0.2
FETCH_SPREAD_NS = 5 * NS_PER_S  # a fleet that hears of a revision must not fetch together
FETCH_GAP_NS = 2 * NS_PER_S  # whatever is announced
ANSWER_MAX_BYTES = 2 * dsse.PAYLOAD_MAX_BYTES * 4 // 3  # the payload, and its unsigned copy
AT_ONCE_MAX_BYTES = 16 << 10  # judging more, such as thousands of prefixes, would stop the loop
ERROR_MAX_CHARS = 500
CLAMPED_MAX, TOLD_MAX_CHARS = 32, 256  # told to the control plane; the log has all
# What may be judged otherwise later, so that it is fetched again: by another clock, another disk.
PASSING = frozenset({RefusalReason.EXPIRED, RefusalReason.NOT_KEPT, RefusalReason.APPLY_FAILED})

Prepare = Callable[[RemoteConfig], Callable[[], None]]

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


@dataclass(frozen=True, slots=True)
class _InForce:
    payload: Payload
    values: RemoteConfig
    clamped: tuple[Clamped, ...]


@dataclass(frozen=True, slots=True)
class _Judged:
    """An envelope that may be in force; `commit` puts it there, None: it is."""

    envelope: Envelope
    accepted: Accepted
    mark: Mark
    in_force: _InForce
    commit: Callable[[], None] | None


class ConfigKeeper:
    """Keeps the signed configuration of one agent. `run` fetches; `announce` says when to.

    `prepare` turns values into what puts them into force, or raises ConfigError: it changes
    nothing yet. `holder` says who this agent is. `on_verdict` is called when there is something new
    to say.
    """

    def __init__(
        self,
        clock: Clock,
        source: ConfigSource,
        path: Path,
        keys: TrustedKeys,
        ceiling: Ceiling,
        rng: Random,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.prepare: Prepare = lambda _: lambda: None
        self.on_verdict: Callable[[], None] = lambda: None
        self.holder: Callable[[], Holder] = lambda: Holder(0, "", {})
        self._clock = clock
        self._source = source
        self._path = path
        self._keys = keys
        self._ceiling = ceiling
        self._rng = rng
        self._kept = KeptConfig()
        self._in_force: _InForce | None = None
        self._verdict = ConfigStatus()
        self._etag: str | None = None
        self._asked = asyncio.Event()
        self._announced: str | None = None
        self._handled: str | None = None
        self._said_stale = False

    def status(self) -> ConfigStatus | None:
        """Return what a heartbeat says of the configuration; None while there is nothing to say."""
        if self._in_force is None:
            return self._verdict if self._verdict.status else None
        return structs.replace(
            self._verdict,
            applied=self._in_force.payload.revision,
            stale=self._is_stale(),
            clamped=tuple(map(_told, self._in_force.clamped[:CLAMPED_MAX])),
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
        self._kept = kept_config.load(self._path)
        died_in = self._kept.applying
        if died_in is not None:
            kept = self._kept.after_crash()
            try:
                self._keep(kept)
            except StorageError:  # as it stands the file says so too
                self._kept = kept
        if self._kept.envelope is not None:
            accepted = self._kept.accepted
            self._consider(self._kept.envelope, accepted.revision if accepted else None)
        if died_in is not None:
            self._nack(_crashed(died_in), named=None)

    async def run(self) -> None:
        """Fetch what is announced, and look now and then, until cancelled."""
        while True:
            self._asked.clear()
            if self._keys:
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
        self._etag = None if reason in PASSING else answer.etag

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
            self._apply(await asyncio.to_thread(self._judged, envelope))
        except ConfigRefused as refusal:
            return self._nack(refusal, named)
        return None

    # ── judging and applying ──

    def _consider(self, envelope: Envelope, named: int | None) -> RefusalReason | None:
        """Judge an envelope and, when it is good, put it into force."""
        try:
            self._apply(self._judged(envelope))
        except ConfigRefused as refusal:
            return self._nack(refusal, named)
        return None

    def _judged(self, envelope: Envelope) -> _Judged:
        """Verify and validate everything. Nothing changes, so that a thread may do it.

        Raises:
            ConfigRefused: it must not be put into force.
        """
        kept = self._kept.accepted
        floor = None if kept is None else Floor(kept.revision, kept.digest)
        accepted = judge(envelope, self._keys, self.holder(), floor, self._clock.realtime_ns())
        mark = Mark(accepted.payload.revision, accepted.digest)
        if mark in self._kept.crashed:
            raise _crashed(mark)
        values, clamped = clamp(accepted.payload.config, self._ceiling)
        commit = None
        if not accepted.is_known or self._in_force is None:
            try:
                commit = self.prepare(values)
            except Exception as error:  # no bug here may end every agent that a revision reaches
                is_known = isinstance(error, ConfigError)
                reason = RefusalReason.INVALID if is_known else RefusalReason.APPLY_FAILED
                raise ConfigRefused(reason, str(error), mark.revision) from error
        in_force = _InForce(accepted.payload, values, clamped)
        return _Judged(envelope, accepted, mark, in_force, commit)

    def _apply(self, judged: _Judged) -> None:
        """Put what is good into force; on failure what was in force stays.

        Raises:
            ConfigRefused: it was not put into force.
        """
        revision = judged.mark.revision
        if judged.commit is None:
            self._renew(judged.envelope)
        else:
            is_again = judged.mark == self._kept.accepted
            keep = self._keep_if_possible if is_again else self._keep_or_refuse
            keep(structs.replace(self._kept, applying=judged.mark), revision)
            self._commit(judged.commit, revision)
            try:
                keep(self._kept.in_force(judged.mark, judged.envelope), revision)
            except ConfigRefused:
                self._restore()
                raise
            self._in_force = judged.in_force
            self._said_stale = False
            self._log_applied(judged.accepted, judged.in_force.clamped)
        self._verdict = ConfigStatus(status="ack", revision=revision)
        self.counters["ack"] += 1

    def _commit(self, commit: Callable[[], None], revision: int) -> None:
        try:
            commit()
        except Exception as error:
            self._restore()
            self._keep_or_refuse(structs.replace(self._kept, applying=None), revision)
            text = f"it could not be applied: {type(error).__name__}: {error}"
            raise ConfigRefused(RefusalReason.APPLY_FAILED, text, revision) from error

    def _restore(self) -> None:
        """Put back what was in force.

        Should even that fail the agent ends, with what it was applying written down.
        """
        self.prepare(self._in_force.values if self._in_force else RemoteConfig())()

    def _renew(self, envelope: Envelope) -> None:
        """Keep the signatures of what is in force: after a rotation only the new ones hold."""
        if envelope != self._kept.envelope:
            revision = self._kept.accepted.revision if self._kept.accepted else 0
            self._keep_or_refuse(structs.replace(self._kept, envelope=envelope), revision)

    # ── remembering, telling ──

    def _keep_or_refuse(self, kept: KeptConfig, revision: int) -> None:
        try:
            self._keep(kept)
        except StorageError as error:
            raise ConfigRefused(RefusalReason.NOT_KEPT, str(error), revision) from error

    def _keep_if_possible(self, kept: KeptConfig, revision: int) -> None:
        """Remember how far it is with one that was in force before: without a disk it is again."""
        try:
            self._keep(kept)
        except StorageError as error:
            self._kept = kept
            text = "%s; configuration %d was in force before and is again"
            _log.warning(text, error, revision, extra={"action": "config_not_kept"})

    def _keep(self, kept: KeptConfig) -> None:
        """Remember durably. On this thread: the file is small and written twice per revision."""
        kept_config.save(self._path, kept)
        self._kept = kept

    def _nack(self, refusal: ConfigRefused, named: int | None) -> RefusalReason:
        revision = refusal.revision if refusal.revision is not None else named
        self._verdict = ConfigStatus(
            status="nack",
            revision=revision,
            reason=refusal.reason.value,
            error=str(refusal)[:ERROR_MAX_CHARS],
        )
        self.counters[f"nack_{refusal.reason.value}"] += 1
        in_force = self._in_force.payload.revision if self._in_force else None
        _log.error(
            "configuration %s is refused (%s): %s; %s",
            "of unknown revision" if revision is None else revision,
            refusal.reason.value,
            refusal,
            "this agent's own settings are in force"
            if in_force is None
            else f"revision {in_force} stays in force",
            extra={"action": "config_refused", "reason": refusal.reason.value},
        )
        return refusal.reason

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

    def _is_stale(self) -> bool:
        now_ns = self._clock.realtime_ns()
        return self._in_force is not None and self._in_force.payload.is_expired(now_ns)

    def _note_stale(self) -> None:
        if self._in_force is None or self._said_stale or not self._is_stale():
            return
        self._said_stale = True
        _log.warning(
            "configuration %d expired at %s and stays in force until another comes: publish one",
            self._in_force.payload.revision,
            self._in_force.payload.expires_at.isoformat(),
            extra={"action": "config_stale"},
        )


def _crashed(mark: Mark) -> ConfigRefused:
    return ConfigRefused(
        RefusalReason.CRASHED,
        f"the agent ended while it applied revision {mark.revision}: it is not tried again, publish"
        " another",
        mark.revision,
    )


def _told(clamped: Clamped) -> dict[str, str]:
    told = {"path": clamped.path, "asked": clamped.asked, "applied": clamped.applied}
    return {name: text[:TOLD_MAX_CHARS] for name, text in told.items()}


def _number(revision: str | int | None) -> int | None:
    """Read a revision that somebody named; None: it is no number of ours."""
    text = str(revision)
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MINTED_ID_MAX))
    return int(text) if is_number and int(text) <= MINTED_ID_MAX else None
