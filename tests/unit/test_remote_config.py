"""What a signed configuration may say, whom it concerns, and what a host allows of it."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from netsonde import remote_config, wire
from netsonde.clock import NS_PER_S
from netsonde.dsse import Envelope, Signature, TrustedKeys, pae, payload_digest
from netsonde.errors import ConfigRefused, RefusalReason
from netsonde.model import TaskKind
from netsonde.remote_config import (
    Floor,
    Holder,
    KindValues,
    Scope,
    inspect,
    judge,
)
from netsonde.wire.codec import is_too_deep
from support.configs import EVERYTHING, KEY, OTHER_KEY, envelope, payload

KEYS = TrustedKeys([KEY.public])
ME = Holder(7, "ams-1", {"site": "ams", "tier": "1"})
NOW_NS = 1_700_000_000 * NS_PER_S


def refused(sealed: Envelope, floor: Floor | None = None, holder: Holder = ME) -> ConfigRefused:
    with pytest.raises(ConfigRefused) as caught:
        judge(sealed, KEYS, holder, floor, NOW_NS)
    return caught.value


def test_everything_that_may_be_said_is_understood() -> None:
    config = judge(envelope(3, EVERYTHING), KEYS, ME, None, NOW_NS).payload.config

    assert config.kinds == {
        TaskKind.PING: KindValues(concurrency=10, starts_per_s=50, timeout_ms=900)
    }
    assert config.cadence.heartbeat_ms == 5000
    assert config.features == {"claim_streams": False, "something_new": True}


@pytest.mark.parametrize(
    "config",
    [
        {"control_plane": "http://evil.example"},
        {"trusted_keys": []},
        {"ca_file": "/tmp/ca"},
        {"spool_bytes": 1},
        {"state_dir": "/"},
        {"exec": "rm"},
        {"targets": ["private"]},
        {"kinds": {"ping": {"concurrency": -1}}},
        {"kinds": {"ping": {"concurrency": 10_001}}},
        {"kinds": {"ping": {"concurrency": 2**70}}},
        {"kinds": {"ping": {"concurrency": True}}},
        {"kinds": {"ping": {"concurrency": "9"}}},
        {"kinds": {"ping": {"concurrency": 1.5}}},
        {"kinds": {"pong": {"concurrency": 1}}},
        {"kinds": {"ping": {"burst": 1}}},
        {"kinds": {"ping": {"starts_per_s": 0}}},
        {"kinds": {"ping": {"timeout_ms": 0}}},
        {"kinds": []},
        {"target_starts_per_s": -1},
        {"cadence": {"heartbeat_ms": 1}},
        {"cadence": {"heartbeat_ms": 10**9}},
        {"cadence": {"beat_ms": 5000}},
        {"resolvers": ["dns.example"]},
        {"resolvers": ["192.0.2.1:0"]},
        {"resolvers": ["192.0.2.1:65536"]},
        {"resolvers": ["[192.0.2.1]:53"]},
        {"resolvers": ["2001:db8::1:99999"]},
        {"resolvers": ["192.0.2.1"] * 9},
        {"deny": ["10.0.0.1/8"]},
        {"deny": ["everything"]},
        {"log_level": "trace"},
        {"features": {"BAD NAME": True}},
        {"features": {"x": 1}},
        {"features": {f"f{n}": True for n in range(65)}},
    ],
)
def test_poison_is_invalid_however_well_it_is_signed(config: dict[str, Any]) -> None:
    assert refused(envelope(3, config)).reason is RefusalReason.INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": 2},
        {"revision": 0},
        {"revision": 2**53},
        {"revision": "3"},
        {"expires_at": "1970-01-01T00:00:00Z"},
        {"issued_at": "yesterday"},
        {"issued_at": "2026-01-01T00:00:00"},
        {"scope": {}},
        {"scope": {"all": False}},
        {"scope": {"all": True, "agents": [1]}},
        {"scope": {"labels": {}}},
        {"scope": {"agents": []}},
        {"scope": {"agents": [0]}},
        {"scope": {"everybody": True}},
        {"more": 1},
        {"config": None},
    ],
)
def test_a_payload_has_exactly_its_fields(changes: dict[str, Any]) -> None:
    body = json.dumps(json.loads(payload()) | changes).encode()
    assert refused(sealed_bytes(body)).reason is RefusalReason.INVALID


def sealed_bytes(body: bytes) -> Envelope:
    sig = KEY.sign(remote_config.PAYLOAD_TYPE, body)
    return Envelope(
        payload_type=remote_config.PAYLOAD_TYPE,
        payload=base64.b64encode(body).decode(),
        signatures=(sig,),
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"spec":' * 30_000,
        payload()[:-1],
        payload(config={"target_starts_per_s": 7}).replace(b": 7", b": 1e999"),
        payload(config={"target_starts_per_s": 7}).replace(b": 7", b": NaN"),
    ],
)
def test_what_is_no_payload_is_invalid(body: bytes) -> None:
    assert refused(sealed_bytes(body)).reason is RefusalReason.INVALID


@given(st.binary(max_size=200))
def test_any_signed_bytes_have_a_verdict(body: bytes) -> None:
    assert refused(sealed_bytes(body)).reason is RefusalReason.INVALID


# ── verified before parsed ──


@st.composite
def damaged(draw: st.DrawFn) -> Envelope:
    """An envelope with something in it that its signer did not write, now and then with nothing."""
    good = envelope(draw(st.integers(1, 5)), {"target_starts_per_s": draw(st.integers(1, 9))})
    body = bytearray(base64.b64decode(good.payload))
    match draw(st.sampled_from(["nothing", "flip", "cut", "grow", "type", "sig", "key", "other"])):
        case "flip":
            body[draw(st.integers(0, len(body) - 1))] ^= 1 << draw(st.integers(0, 7))
        case "cut":
            del body[draw(st.integers(0, len(body))) :]
        case "grow":
            body += draw(st.binary(min_size=1, max_size=8))
        case "type":
            return structs.replace(good, payload_type=draw(st.text(max_size=8)))
        case "sig":
            sig = Signature(keyid=KEY.public.keyid, sig=draw(st.text(max_size=90)))
            return structs.replace(good, signatures=(sig,))
        case "key":
            sig = Signature(keyid=draw(st.text(max_size=40)), sig=good.signatures[0].sig)
            return structs.replace(good, signatures=(sig,))
        case "other":
            return envelope(9, None, OTHER_KEY)
    return structs.replace(good, payload=base64.b64encode(bytes(body)).decode())


@given(damaged())
def test_no_unverified_byte_reaches_the_parser(sealed: Envelope) -> None:
    """Whatever is parsed is, byte by byte, what a trusted key is known to have signed."""
    parsed: list[bytes] = []
    read = remote_config._read

    def spy(body: bytes) -> remote_config.Payload:
        parsed.append(body)
        return read(body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_config, "_read", spy)
        patch.setattr(wire, "decode_answer", _watched(parsed))
        patch.setattr(remote_config, "is_too_deep", _seen(parsed))
        try:
            judge(sealed, KEYS, ME, None, NOW_NS)
            is_taken = True
        except ConfigRefused:
            is_taken = False

    for body in parsed:
        signed = pae(remote_config.PAYLOAD_TYPE, body)
        assert any(KEY.public.has_signed(signed, one) for one in sealed.signatures)
    assert is_taken <= bool(parsed)


def _watched(parsed: list[bytes]) -> Any:
    decode = wire.decode_answer

    def spy(type_: Any, body: bytes) -> Any:
        parsed.append(body)
        return decode(type_, body)

    return spy


def _seen(parsed: list[bytes]) -> Any:
    look = is_too_deep

    def spy(body: bytes) -> bool:
        parsed.append(body)
        return look(body)

    return spy


# ── who, when, which ──


@pytest.mark.parametrize(
    ("scope", "is_mine"),
    [
        ({"all": True}, True),
        ({"labels": {"site": "ams"}}, True),
        ({"labels": {"site": "ams", "tier": "1"}}, True),
        ({"labels": {"site": "ams", "tier": "2"}}, False),
        ({"labels": {"city": "ams"}}, False),
        ({"agents": [7]}, True),
        ({"agents": ["ams-1", 9]}, True),
        ({"agents": [8, "ams-2"]}, False),
        ({"agents": ["7"]}, False),
    ],
)
def test_a_scope_is_checked_by_who_applies_it(scope: dict[str, Any], is_mine: bool) -> None:
    sealed = envelope(3, None, scope=scope)
    if is_mine:
        assert judge(sealed, KEYS, ME, None, NOW_NS).payload.revision == 3
    else:
        refusal = refused(sealed)
        assert (refusal.reason, refusal.revision) == (RefusalReason.OUT_OF_SCOPE, 3)


def test_only_a_greater_revision_follows() -> None:
    floor = Floor(5, "digest")

    assert judge(envelope(6), KEYS, ME, floor, NOW_NS).payload.revision == 6
    for revision in (1, 4, 5):
        refusal = refused(envelope(revision), floor)
        assert (refusal.reason, refusal.revision) == (RefusalReason.REPLAYED, revision)


def test_the_same_revision_again_is_the_same_bytes() -> None:
    floor = Floor(5, payload_digest(payload(5)))

    accepted = judge(envelope(5, None, KEY, OTHER_KEY), KEYS, ME, floor, NOW_NS)
    assert accepted.is_known
    assert refused(envelope(5, {}), floor).reason is RefusalReason.REPLAYED


def test_an_expired_one_is_refused_unless_it_is_in_force() -> None:
    old = {"expires_s": 1_700_000_000}
    at_the_end = envelope(5, None, **old)

    assert refused(at_the_end).reason is RefusalReason.EXPIRED
    assert refused(at_the_end).revision == 5
    floor = Floor(5, payload_digest(payload(5, None, **old)))
    assert judge(at_the_end, KEYS, ME, floor, NOW_NS).is_known
    later = envelope(5, None, expires_s=1_700_000_001)
    assert judge(later, KEYS, ME, None, NOW_NS).payload.is_expired(NOW_NS) is False


def test_looking_needs_no_key() -> None:
    assert inspect(envelope(4, None, OTHER_KEY)).revision == 4
    with pytest.raises(ConfigRefused):
        inspect(structs.replace(envelope(4), payload_type="text/plain"))


# ── the ceiling ──


def test_scopes_say_one_thing() -> None:
    with pytest.raises(ValueError, match="a scope is"):
        Scope()
