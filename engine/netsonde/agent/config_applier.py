"""Puts signed configurations into force: judged, prepared, set, remembered, or put back.

Three writes make a crash a fact: what is begun is durable before its first value is set.
"""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from netsonde.agent.kept_config import ConfigMemory, Mark
from netsonde.ceiling import Ceiling, Clamped, clamp
from netsonde.clock import Clock
from netsonde.dsse import Envelope, TrustedKeys
from netsonde.errors import ConfigError, ConfigRefused, RefusalReason, StorageError
from netsonde.remote_config import Accepted, Floor, Holder, Payload, RemoteConfig, judge

Prepare = Callable[[RemoteConfig], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class InForce:
    """What is in force: what was signed, what of it this host allows, and what was lowered."""

    payload: Payload
    values: RemoteConfig
    clamped: tuple[Clamped, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """An envelope that may be in force; `commit` puts it there, None: it is."""

    envelope: Envelope
    accepted: Accepted
    mark: Mark
    in_force: InForce
    commit: Callable[[], None] | None


class ConfigApplier:
    """Judges envelopes and puts the good ones into force; a refused one changes nothing.

    `prepare` turns values into what sets them, or raises ConfigError: it changes nothing yet.
    `holder` says who this agent is.
    """

    def __init__(
        self, clock: Clock, memory: ConfigMemory, keys: TrustedKeys, ceiling: Ceiling
    ) -> None:
        self.prepare: Prepare = lambda _: lambda: None
        self.holder: Callable[[], Holder] = lambda: Holder(0, "", {})
        self.in_force: InForce | None = None
        self.keys = keys
        self.memory = memory
        self._clock = clock
        self._ceiling = ceiling

    def judge(self, envelope: Envelope) -> Judged:
        """Verify and validate everything. Nothing changes, so that a thread may do it.

        Raises:
            ConfigRefused: it must not be put into force.
        """
        kept = self.memory.kept
        floor = (
            None if kept.accepted is None else Floor(kept.accepted.revision, kept.accepted.digest)
        )
        accepted = judge(envelope, self.keys, self.holder(), floor, self._clock.realtime_ns())
        mark = Mark(accepted.payload.revision, accepted.digest)
        if mark in kept.crashed:
            raise crashed(mark)
        values, clamped = clamp(accepted.payload.config, self._ceiling)
        commit = None
        if not accepted.is_known or self.in_force is None:
            commit = self._prepared(values, mark.revision)
        in_force = InForce(accepted.payload, values, clamped)
        return Judged(envelope, accepted, mark, in_force, commit)

    def apply(self, judged: Judged) -> bool:
        """Put what is good into force; on failure what was in force stays.

        Return whether it was put there, False: it was there before.

        Raises:
            ConfigRefused: it was not put into force.
        """
        if judged.commit is None:
            self._renew(judged)
            return False
        try:
            self.memory.begin(judged.mark)
        except StorageError as error:
            raise _not_kept(judged.mark, error) from error
        self._commit(judged.commit, judged.mark)
        try:
            self.memory.finish(judged.mark, judged.envelope)
        except StorageError as error:
            self._restore()
            raise _not_kept(judged.mark, error) from error
        self.in_force = judged.in_force
        return True

    def _prepared(self, values: RemoteConfig, revision: int) -> Callable[[], None]:
        try:
            return self.prepare(values)
        except Exception as error:  # no bug here may end every agent that a revision reaches
            is_known = isinstance(error, ConfigError)
            reason = RefusalReason.INVALID if is_known else RefusalReason.APPLY_FAILED
            raise ConfigRefused(reason, str(error), revision) from error

    def _commit(self, commit: Callable[[], None], mark: Mark) -> None:
        try:
            commit()
        except Exception as error:
            self._restore()
            try:
                self.memory.keep(self.memory.kept.given_up())
            except StorageError as full:
                raise _not_kept(mark, full) from full
            text = f"it could not be applied: {type(error).__name__}: {error}"
            raise ConfigRefused(RefusalReason.APPLY_FAILED, text, mark.revision) from error

    def _restore(self) -> None:
        """Put back what was in force.

        Should even that fail the agent ends, with what it was applying written down.
        """
        self.prepare(self.in_force.values if self.in_force else RemoteConfig())()

    def _renew(self, judged: Judged) -> None:
        """Keep the signatures of what is in force: after a rotation only the new ones hold."""
        kept = self.memory.kept
        if judged.envelope == kept.envelope:
            return
        try:
            self.memory.keep(structs.replace(kept, envelope=judged.envelope))
        except StorageError as error:
            raise _not_kept(judged.mark, error) from error


def crashed(mark: Mark) -> ConfigRefused:
    """Return why a revision in whose midst the process ended is not tried again."""
    return ConfigRefused(
        RefusalReason.CRASHED,
        f"the agent ended while it applied revision {mark.revision}: it is not tried again, publish"
        " another",
        mark.revision,
    )


def _not_kept(mark: Mark, error: StorageError) -> ConfigRefused:
    return ConfigRefused(RefusalReason.NOT_KEPT, str(error), mark.revision)
