"""What `netsonde config sign` signs: a new revision of a configuration, or one that there is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from netsonde import wire
from netsonde.cli.options import split_pair
from netsonde.clock import NS_PER_S, SystemClock
from netsonde.dsse import Envelope, SigningKey, payload_bytes, seal
from netsonde.errors import ConfigError
from netsonde.remote_config import PAYLOAD_TYPE, RemoteConfig, inspect

DAY_MS = 86_400_000
EXPIRES_MS = 90 * DAY_MS
EXPIRES_MAX_MS = 3650 * DAY_MS  # what lives longer is never looked at again
ID_DIGITS_MAX = 16  # 2^53 has 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a new configuration is to say beside its values; None and empty: as is usual."""

    revision: int | None = None
    expires_ms: int | None = None
    labels: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything is wanted."""
        return self != Wanted()


def new_envelope(values: Mapping[str, Any], wanted: Wanted, keys: Sequence[SigningKey]) -> Envelope:
    """Sign values as a new revision.

    Raises:
        ConfigError: no agent would take it.
    """
    sealed = seal(PAYLOAD_TYPE, _payload(values, wanted), keys)
    inspect(sealed)
    return sealed


def signed_too(sealed: Envelope, wanted: Wanted, keys: Sequence[SigningKey]) -> Envelope:
    """Add signatures to an envelope; one that a key has made already is replaced.

    Raises:
        ConfigError: it is to say something else, or no agent would take it.
    """
    if wanted:
        raise ConfigError(
            "an envelope is signed as it is: --revision, --expires, --label and --agent are for new"
            " ones"
        )
    inspect(sealed)
    payload = payload_bytes(sealed)
    added = [key.sign(sealed.payload_type, payload) for key in keys]
    made = {one.keyid for one in added}
    kept = [one for one in sealed.signatures if one.keyid not in made]
    return msgspec.structs.replace(sealed, signatures=(*kept, *added))


def _payload(values: Mapping[str, Any], wanted: Wanted) -> bytes:
    if wanted.revision is None:
        raise ConfigError(
            "--revision is needed: one more than the greatest that `netsonde config show` lists"
        )
    now_s = SystemClock().realtime_ns() // NS_PER_S
    expires_ms = EXPIRES_MS if wanted.expires_ms is None else wanted.expires_ms
    if not 0 < expires_ms <= EXPIRES_MAX_MS:
        raise ConfigError(f"--expires must be more than 0 and at most {EXPIRES_MAX_MS // DAY_MS}d")
    try:
        config_values = msgspec.convert(values, RemoteConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the values are not a configuration's: {error}") from error
    return wire.encode(
        {
            "spec": 1,
            "revision": wanted.revision,
            "issued_at": _instant(now_s),
            "expires_at": _instant(now_s + -(-expires_ms // 1000)),
            "scope": _scope(wanted),
            "config": config_values,
        }
    )


def _scope(wanted: Wanted) -> dict[str, Any]:
    labels = dict(split_pair("--label", text) for text in wanted.labels)
    agents = [
        int(one) if one.isascii() and one.isdecimal() and len(one) <= ID_DIGITS_MAX else one
        for one in wanted.agents
    ]
    if labels and agents:
        raise ConfigError("--agent names the agents: give it without --label")
    if agents:
        return {"agents": agents}
    return {"labels": labels} if labels else {"all": True}


def _instant(epoch_s: int) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
