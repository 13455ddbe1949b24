"""What a control plane's registration says about leases, and what holds where it says nothing."""

from netsonde.model import RegisterResponse

CLAIM_WAIT_MS = 20_000  # the hold of a server that did not say what it prefers
CLAIM_WAIT_MAX_MS = 55_000
TERM_DEFAULT_MS = 60_000  # of a server that says 0
TERM_MAX_MS = 86_400_000  # a server that says more is mistaken; a standing lease has an hour


def lease_term_ms(registration: RegisterResponse | None) -> int:
    """Return how long a lease lasts."""
    named_ms = registration.lease_duration_ms if registration else 0
    return min(named_ms, TERM_MAX_MS) if named_ms > 0 else TERM_DEFAULT_MS


def claim_hold_ms(registration: RegisterResponse | None, wanted_ms: int | None = None) -> int:
    """Return how long an empty claim is held; None is the control plane's preference."""
    if wanted_ms is not None:
        return min(wanted_ms, CLAIM_WAIT_MAX_MS)
    named_ms = registration.claim_wait_ms if registration else None
    return CLAIM_WAIT_MS if named_ms is None else max(0, min(named_ms, CLAIM_WAIT_MAX_MS))
