"""The most that a signed configuration may ask of one host, and what becomes of what is above."""

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from netsonde.remote_config import (
    CadenceValues,
    Flag,
    KindValues,
    Level,
    Rate,
    RemoteConfig,
    check_resolver,
)

LEVELS = ("debug", "info", "warning", "error")

T = TypeVar("T")
N = TypeVar("N", int, float)


class Ceiling(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most that a configuration may ask of one host, as its own operator wrote it down.

    `cadence_min` is how often at most; `log_level` how much at most is logged; `resolvers` and
    `features` are those that may be named at all, None: any.
    """

    kinds: dict[TaskKind, KindValues] = {}
    target_starts_per_s: Rate | None = None
    cadence_min: CadenceValues = CadenceValues()
    resolvers: tuple[str, ...] | None = None
    log_level: Level = "debug"
    features: tuple[Flag, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a resolver that is no address."""
        for text in self.resolvers or ():
            check_resolver(text)

    def over(self, own: "Ceiling") -> "Ceiling":
        """Return this ceiling; what it does not mention is bounded as `own` says."""
        kinds = {
            kind: _merged(self.kinds.get(kind, KindValues()), own.kinds.get(kind, KindValues()))
            for kind in TaskKind
        }
        return msgspec.structs.replace(
            self,
            kinds=kinds,
            target_starts_per_s=_first(self.target_starts_per_s, own.target_starts_per_s),
        )


class Clamped(Struct, frozen=True, kw_only=True):
    """A value that was above the ceiling, and what became of it."""

    path: str
    asked: str
    applied: str


def read_ceiling(table: Mapping[str, object]) -> Ceiling:
    """Read a ceiling file's table.

    Raises:
        ConfigError: naming what is wrong.
    """
    try:
        return msgspec.convert(table, Ceiling, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error


def clamp(config: RemoteConfig, ceiling: Ceiling) -> tuple[RemoteConfig, tuple[Clamped, ...]]:
    """Lower what is above the ceiling; return what may be applied, and what was lowered."""
    found: list[Clamped] = []
    kinds = {
        kind: _lowered(f"kinds.{kind.value}", values, ceiling.kinds.get(kind), found)
        for kind, values in config.kinds.items()
    }
    rate = _least(
        "target_starts_per_s", config.target_starts_per_s, ceiling.target_starts_per_s, found
    )
    resolvers = _allowed("resolvers", config.resolvers, ceiling.resolvers, found)
    features = _allowed("features", tuple(config.features), ceiling.features, found)
    applied = msgspec.structs.replace(
        config,
        kinds=kinds,
        target_starts_per_s=rate,
        cadence=_slowed(config.cadence, ceiling.cadence_min, found),
        resolvers=resolvers,
        log_level=_level(config.log_level, ceiling.log_level, found),
        features={name: config.features[name] for name in features},
    )
    return applied, tuple(found)


def _lowered(
    path: str, asked: KindValues, most: KindValues | None, found: list[Clamped]
) -> KindValues:
    if most is None:
        return asked
    return KindValues(
        concurrency=_least(f"{path}.concurrency", asked.concurrency, most.concurrency, found),
        starts_per_s=_least(f"{path}.starts_per_s", asked.starts_per_s, most.starts_per_s, found),
        timeout_ms=_least(f"{path}.timeout_ms", asked.timeout_ms, most.timeout_ms, found),
    )


def _slowed(asked: CadenceValues, least: CadenceValues, found: list[Clamped]) -> CadenceValues:
    chosen: dict[str, int | None] = {}
    for name in CadenceValues.__struct_fields__:
        value, bound = getattr(asked, name), getattr(least, name)
        chosen[name] = value
        if value is not None and bound is not None and value < bound:
            chosen[name] = bound
            found.append(Clamped(path=f"cadence.{name}", asked=str(value), applied=str(bound)))
    return CadenceValues(**chosen)


def _least(path: str, asked: N | None, most: N | None, found: list[Clamped]) -> N | None:
    if asked is None or most is None or asked <= most:
        return asked
    found.append(Clamped(path=path, asked=f"{asked:g}", applied=f"{most:g}"))
    return most


def _level(asked: Level | None, most: Level, found: list[Clamped]) -> Level | None:
    if asked is None or LEVELS.index(asked) >= LEVELS.index(most):
        return asked
    found.append(Clamped(path="log_level", asked=asked, applied=most))
    return most


def _allowed(
    path: str, asked: Sequence[str], allowed: Collection[str] | None, found: list[Clamped]
) -> tuple[str, ...]:
    if allowed is None:
        return tuple(asked)
    for name in asked:
        if name not in allowed:
            found.append(Clamped(path=path, asked=name, applied="left out"))
    return tuple(name for name in asked if name in allowed)


def _merged(stated: KindValues, own: KindValues) -> KindValues:
    return KindValues(
        concurrency=_first(stated.concurrency, own.concurrency),
        starts_per_s=_first(stated.starts_per_s, own.starts_per_s),
        timeout_ms=_first(stated.timeout_ms, own.timeout_ms),
    )


def _first(stated: T | None, own: T | None) -> T | None:
    return own if stated is None else stated
