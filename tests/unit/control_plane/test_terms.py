"""What holds of leases, whatever a control plane says at registration."""

import pytest

from netsonde.control_plane.terms import claim_hold_ms, lease_term_ms
from netsonde.model import RegisterResponse


def registration(term_ms: int, wait_ms: int | None = None) -> RegisterResponse:
    return RegisterResponse(
        agent_id=7,
        lease_duration_ms=term_ms,
        heartbeat_timeout_ms=45_000,
        auth_token="t",
        claim_wait_ms=wait_ms,
    )


@pytest.mark.parametrize(
    ("named_ms", "term_ms"),
    [(90_000, 90_000), (0, 60_000), (-1, 60_000), (10**15, 86_400_000)],
)
def test_a_lease_lasts_as_named_within_reason(named_ms: int, term_ms: int) -> None:
    assert lease_term_ms(registration(named_ms)) == term_ms


@pytest.mark.parametrize(
    ("named_ms", "hold_ms"), [(44_000, 44_000), (0, 0), (-1, 0), (10**9, 55_000), (None, 20_000)]
)
def test_an_empty_claim_is_held_as_preferred_within_reason(
    named_ms: int | None, hold_ms: int
) -> None:
    assert claim_hold_ms(registration(1, named_ms)) == hold_ms


def test_who_claims_may_want_another_hold() -> None:
    assert claim_hold_ms(registration(1, 44_000), 0) == 0
    assert claim_hold_ms(registration(1, 44_000), 10**9) == 55_000


def test_before_registration_the_defaults_hold() -> None:
    assert (lease_term_ms(None), claim_hold_ms(None)) == (60_000, 20_000)
