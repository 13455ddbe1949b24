"""How far apart an agent's calls must be."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cadence:
    """The least time between two calls of one verb that the control plane's quotas allow."""

    heartbeat_ms: int
    claim_ms: int
    extend_ms: int
    report_ms: int


CADENCE = Cadence(heartbeat_ms=2_000, claim_ms=100, extend_ms=100, report_ms=50)
# The original server takes 6 heartbeats, 12 claims, 30 extensions and 12 reports a minute.
LEGACY_CADENCE = Cadence(heartbeat_ms=10_000, claim_ms=5_000, extend_ms=2_000, report_ms=5_000)
