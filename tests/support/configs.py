"""Signed configurations for tests: keys, payloads, envelopes."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from netsonde import wire
from netsonde.dsse import Envelope, SigningKey, seal
from netsonde.remote_config import PAYLOAD_TYPE

KEY = SigningKey(b"k" * 32)
OTHER_KEY = SigningKey(b"o" * 32)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CONFIG = {"kinds": {"ping": {"concurrency": 2}}}
EVERYTHING = {
    "kinds": {"ping": {"concurrency": 10, "starts_per_s": 50, "timeout_ms": 900}},
    "target_starts_per_s": 2.5,
    "cadence": {"claim_ms": 500, "report_ms": 50, "heartbeat_ms": 5000, "metrics_ms": 30000},
    "resolvers": ["192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:53"],
    "deny": ["198.51.100.0/24", "2001:db8::/32"],
    "log_level": "debug",
    "features": {"claim_streams": False, "something_new": True},
}


def payload(
    revision: int = 1,
    config: Any = None,
    *,
    issued_s: float = 0,
    expires_s: float = 4_102_444_800,  # 2100
    **changes: Any,
) -> bytes:
    """Write a payload; instants are Unix seconds."""
    value = {
        "spec": 1,
        "revision": revision,
        "issued_at": (EPOCH + timedelta(seconds=issued_s)).isoformat(),
        "expires_at": (EPOCH + timedelta(seconds=expires_s)).isoformat(),
        "scope": {"all": True},
        "config": CONFIG if config is None else config,
    }
    return json.dumps(value | changes).encode()  # which writes numbers of any size


def envelope(revision: int = 1, config: Any = None, *keys: SigningKey, **changes: Any) -> Envelope:
    """Sign a payload, by KEY unless others are named."""
    return seal(PAYLOAD_TYPE, payload(revision, config, **changes), keys or (KEY,))


def document(sealed: Envelope) -> dict[str, Any]:
    """Return an envelope as JSON has it."""
    value: dict[str, Any] = wire.parse(wire.encode(sealed))
    return value
