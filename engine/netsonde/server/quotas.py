"""How often one agent may call: the contract's table, one bucket per call and caller."""

from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType

from netsonde.clock import NS_PER_MS
from netsonde.errors import ErrorCode, RequestError
from netsonde.pacing import KeyedBuckets

CALLERS_MAX = 100_000  # buckets per call; beyond it strangers share one

# Requests a minute, and how many may come at once.
QUOTAS: Mapping[str, tuple[Fraction, int]] = MappingProxyType(
    {
        "register": (Fraction(1), 5),
        "heartbeat": (Fraction(30), 10),
        "claim": (Fraction(600), 60),
        "extend": (Fraction(600), 60),
        "release": (Fraction(600), 60),
        "report": (Fraction(1200), 200),
        "metrics": (Fraction(60), 10),
        "config": (Fraction(1), 10),
    }
)


class Quotas:
    """Spends a caller's allowance; `scale` multiplies the contract's table."""

    def __init__(self, scale: int = 1) -> None:
        self._buckets = {
            call: KeyedBuckets(per_minute * scale / 60, burst * scale, CALLERS_MAX)
            for call, (per_minute, burst) in QUOTAS.items()
        }

    def spend(self, call: str, caller: str, now_ns: int) -> None:
        """Count one request.

        Raises:
            RequestError: ERR_RATE_LIMITED with the time until the next one is allowed.
        """
        wait_ns = self._buckets[call].of(caller, now_ns).take(1, now_ns)
        if wait_ns:
            raise RequestError(
                ErrorCode.RATE_LIMITED,
                f"too many {call} requests",
                retry_after_ms=max(-(-wait_ns // NS_PER_MS), 1_000),
            )
