"""Envelopes: what is signed, who is believed, and that one changed byte is enough."""

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from netsonde.dsse import (
    PAYLOAD_MAX_BYTES,
    SIGNATURES_MAX,
    Envelope,
    PublicKey,
    Signature,
    SigningKey,
    TrustedKeys,
    pae,
    seal,
)
from netsonde.errors import ConfigError, ConfigRefused, RefusalReason
from support.configs import KEY, OTHER_KEY

TYPE = "text/plain"
BODY = b"hello world"
TRUSTED = TrustedKeys([KEY.public])


def refusal(envelope: Envelope, keys: TrustedKeys = TRUSTED) -> RefusalReason:
    with pytest.raises(ConfigRefused) as caught:
        keys.verify(envelope, TYPE)
    return caught.value.reason


def test_what_is_signed_is_the_protocols_example() -> None:
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("http://example.com/HelloWorld", BODY) == expected


def test_lengths_are_of_bytes() -> None:
    assert pae("é", b"\x00 ") == b"DSSEv1 2 \xc3\xa9 2 \x00 "


@given(st.text(max_size=8), st.binary(max_size=8), st.text(max_size=8), st.binary(max_size=8))
def test_no_two_payloads_are_signed_alike(a: str, b: bytes, c: str, d: bytes) -> None:
    assert (pae(a, b) == pae(c, d)) == ((a, b) == (c, d))


def test_the_signature_is_that_of_rfc_8032() -> None:
    """Section 7.1, test 2: the key, and a signature by it over one byte."""
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    key = SigningKey(seed)
    text = "ed25519:" + base64.b64encode(bytes.fromhex(public)).decode()
    made = Signature(sig=base64.b64encode(bytes.fromhex(signature)).decode())

    assert key.public.text == text
    assert PublicKey(text).has_signed(b"\x72", made)
    assert not PublicKey(text).has_signed(b"\x73", made)


def test_a_trusted_signature_gives_the_payload() -> None:
    verified = TRUSTED.verify(seal(TYPE, BODY, [KEY]), TYPE)

    assert (verified.payload, verified.keyids) == (BODY, (KEY.public.keyid,))


@pytest.mark.parametrize("keys", [[KEY, OTHER_KEY], [OTHER_KEY, KEY]])
def test_one_of_several_signatures_is_enough(keys: list[SigningKey]) -> None:
    envelope = seal(TYPE, BODY, keys)

    assert TRUSTED.verify(envelope, TYPE).keyids == (KEY.public.keyid,)
    both = TrustedKeys([KEY.public, OTHER_KEY.public])
    assert len(both.verify(envelope, TYPE).keyids) == 2


def test_a_forged_signature_beside_a_good_one_changes_nothing() -> None:
    good = seal(TYPE, BODY, [KEY])
    forged = Signature(keyid=OTHER_KEY.public.keyid, sig=good.signatures[0].sig)
    envelope = structs.replace(good, signatures=(forged, *good.signatures))
    keys = TrustedKeys([KEY.public, OTHER_KEY.public])

    assert keys.verify(envelope, TYPE).keyids == (KEY.public.keyid,)


def test_the_url_safe_alphabet_is_base64_too() -> None:
    body = b"\xfb\xff\xfe" * 5
    envelope = seal(TYPE, body, [KEY])
    assert "+" in envelope.payload or "/" in envelope.payload
    safe = structs.replace(envelope, payload=base64.urlsafe_b64encode(body).decode())

    assert TRUSTED.verify(safe, TYPE).payload == body


@given(st.integers(0, len(BODY) * 8 - 1))
def test_one_changed_bit_of_the_payload_is_a_bad_signature(bit: int) -> None:
    changed = bytearray(BODY)
    changed[bit // 8] ^= 1 << bit % 8
    envelope = structs.replace(seal(TYPE, BODY, [KEY]), payload=base64.b64encode(changed).decode())

    assert refusal(envelope) is RefusalReason.BAD_SIGNATURE


@given(st.integers(0, 511))
def test_one_changed_bit_of_the_signature_is_a_bad_signature(bit: int) -> None:
    envelope = seal(TYPE, BODY, [KEY])
    raw = bytearray(base64.b64decode(envelope.signatures[0].sig))
    raw[bit // 8] ^= 1 << bit % 8
    sig = Signature(keyid=KEY.public.keyid, sig=base64.b64encode(raw).decode())

    assert refusal(structs.replace(envelope, signatures=(sig,))) is RefusalReason.BAD_SIGNATURE


def test_a_signature_over_another_type_is_no_good() -> None:
    envelope = structs.replace(seal("text/html", BODY, [KEY]), payload_type=TYPE)

    assert refusal(envelope) is RefusalReason.BAD_SIGNATURE
    assert refusal(seal("text/html", BODY, [KEY])) is RefusalReason.WRONG_TYPE


def test_strangers_are_unknown_whatever_they_call_themselves() -> None:
    envelope = seal(TYPE, BODY, [OTHER_KEY])
    disguised = Signature(keyid=KEY.public.keyid, sig=envelope.signatures[0].sig)

    assert refusal(envelope) is RefusalReason.UNKNOWN_KEY
    assert refusal(envelope, TrustedKeys()) is RefusalReason.UNKNOWN_KEY
    disguise = structs.replace(envelope, signatures=(disguised,))
    assert refusal(disguise) is RefusalReason.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payload": "?"}, RefusalReason.MALFORMED),
        ({"payload": "aGVsbG8"}, RefusalReason.MALFORMED),
        ({"payload": "aGVs\nbG8="}, RefusalReason.MALFORMED),
        ({"payload": "ä"}, RefusalReason.MALFORMED),
        ({"signatures": ()}, RefusalReason.MALFORMED),
        ({"signatures": (Signature(sig=""),) * (SIGNATURES_MAX + 1)}, RefusalReason.MALFORMED),
        ({"signatures": (Signature(sig=""),)}, RefusalReason.UNKNOWN_KEY),
        ({"payload": "A" * (PAYLOAD_MAX_BYTES * 2)}, RefusalReason.OVERSIZE),
    ],
)
def test_what_is_no_envelope_is_refused(changes: dict[str, Any], reason: RefusalReason) -> None:
    assert refusal(structs.replace(seal(TYPE, BODY, [KEY]), **changes)) is reason


@pytest.mark.parametrize(("more", "is_taken"), [(0, True), (1, False), (2, False)])
def test_the_largest_payload_is_a_payload(more: int, is_taken: bool) -> None:
    envelope = seal(TYPE, b"x" * (PAYLOAD_MAX_BYTES + more), [KEY])
    if is_taken:
        assert len(TRUSTED.verify(envelope, TYPE).payload) == PAYLOAD_MAX_BYTES
    else:
        assert refusal(envelope) is RefusalReason.OVERSIZE


@pytest.mark.parametrize("sig", ["", "?", "AAAA", "ä", "=" * 88])
def test_what_is_no_signature_is_a_bad_one(sig: str) -> None:
    signed = Signature(keyid=KEY.public.keyid, sig=sig)
    envelope = structs.replace(seal(TYPE, BODY, [KEY]), signatures=(signed,))

    assert refusal(envelope) is RefusalReason.BAD_SIGNATURE


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:AAAA", "rsa:AAAA", "ed25519:?", "x" * 99]
)
def test_what_is_no_public_key_is_told_so(text: str) -> None:
    with pytest.raises(ConfigError, match="a public key is ed25519:"):
        PublicKey(text)


def test_a_key_keeps_its_name_whatever_alphabet_it_is_written_in() -> None:
    text = KEY.public.text.replace("+", "-").replace("/", "_")

    assert PublicKey(text).keyid == KEY.public.keyid
    assert PublicKey(text).text == KEY.public.text


def test_a_private_key_survives_its_file() -> None:
    assert SigningKey.from_pem(KEY.pem()).public.keyid == KEY.public.keyid


def test_what_is_no_private_key_is_told_so() -> None:
    with pytest.raises(ConfigError, match="not a private key"):
        SigningKey.from_pem(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match="not a private key"):
        SigningKey.from_pem(b"")


def test_openssl_makes_keys_that_fit(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl here")
    key = SigningKey.from_pem(path.read_bytes())

    assert TrustedKeys([key.public]).verify(seal(TYPE, BODY, [key]), TYPE).payload == BODY
