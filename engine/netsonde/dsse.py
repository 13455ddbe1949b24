"""DSSE envelopes: Ed25519 signatures over a payload's type and its exact bytes.

The protocol is https://github.com/secure-systems-lab/dsse, version 1. A key's id is made from the
key, so that a pinned key cannot be pinned under a wrong name. Pure; whoever makes a key brings its
seed.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from msgspec import Meta, Struct

from netsonde.errors import ConfigError, ConfigRefused, RefusalReason

PAYLOAD_MAX_BYTES = 512 * 1024  # a deny list of 25 000 prefixes
SIGNATURES_MAX = 16  # a rotation needs two
KEYS_MAX = 16
SEED_BYTES = 32
KEY_PREFIX = "ed25519:"  # before the base64 of a public key
KEY_ID_CHARS = 32  # 128 bits of its SHA-256
_URL_SAFE = str.maketrans("-_", "+/")


class Signature(Struct, frozen=True, kw_only=True):
    """One signature, in base64; `keyid` says which key to try, and proves nothing."""

    keyid: Annotated[str, Meta(max_length=128)] = ""
    sig: Annotated[str, Meta(max_length=128)]


class Envelope(Struct, frozen=True, kw_only=True):
    """A payload in base64, what it is, and who signed both. Nothing in it is true by itself."""

    payload_type: Annotated[str, Meta(max_length=128)]
    payload: str
    signatures: tuple[Signature, ...]


class Verified:
    """A payload that a trusted key has signed. Only `TrustedKeys.verify` makes one."""

    __slots__ = ("digest", "keyids", "payload")

    def __init__(self, payload: bytes, keyids: tuple[str, ...]) -> None:
        self.payload = payload
        self.keyids = keyids
        self.digest = payload_digest(payload)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what is really signed: type and payload, each behind its length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def payload_digest(payload: bytes) -> str:
    """Return the SHA-256 of a payload, in hexadecimal."""
    return hashlib.sha256(payload).hexdigest()


def payload_bytes(envelope: Envelope) -> bytes:
    """Return the payload as it was signed, by whomever.

    Raises:
        ConfigRefused: it is too large, or not base64; its signatures are too many or none.
    """
    if len(envelope.payload) > (PAYLOAD_MAX_BYTES + 2) // 3 * 4:
        raise _refused(
            RefusalReason.OVERSIZE, f"the payload has more than {PAYLOAD_MAX_BYTES} bytes"
        )
    payload = _decoded(envelope.payload)
    if payload is None:
        raise _refused(RefusalReason.MALFORMED, "the payload is not base64")
    if not 0 < len(envelope.signatures) <= SIGNATURES_MAX:
        count = len(envelope.signatures)
        text = f"an envelope has 1 to {SIGNATURES_MAX} signatures, not {count}"
        raise _refused(RefusalReason.MALFORMED, text)
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise _refused(
            RefusalReason.OVERSIZE, f"the payload has more than {PAYLOAD_MAX_BYTES} bytes"
        )
    return payload


class PublicKey:
    """A key that signatures are checked with; its text is `ed25519:` and base64.

    Raises:
        ConfigError: the text is no such key.
    """

    def __init__(self, text: str) -> None:
        raw = _decoded(text.removeprefix(KEY_PREFIX)) if text.startswith(KEY_PREFIX) else None
        if raw is None or len(raw) != SEED_BYTES:
            raise ConfigError(
                f"a public key is {KEY_PREFIX} and the base64 of {SEED_BYTES} bytes, as"
                f" `netsonde config keygen` prints it, not {text[:80]!r}"
            )
        self.text = KEY_PREFIX + base64.b64encode(raw).decode()
        self.keyid = hashlib.sha256(raw).hexdigest()[:KEY_ID_CHARS]
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    def has_signed(self, message: bytes, signature: Signature) -> bool:
        """Whether this key made signature over message."""
        raw = _decoded(signature.sig)
        if raw is None:
            return False
        try:
            self._key.verify(raw, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A key that signs. `seed` is 32 secret random bytes."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        raw = self._key.public_key().public_bytes_raw()
        self.public = PublicKey(KEY_PREFIX + base64.b64encode(raw).decode())

    @classmethod
    def from_pem(cls, pem: bytes) -> "SigningKey":
        """Read a key as `pem` writes it, or as `openssl genpkey -algorithm ed25519` does.

        Raises:
            ConfigError: it is none, or has a passphrase.
        """
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError("not a private key in PEM without passphrase") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError("a private key, but not of Ed25519")
        return cls(key.private_bytes_raw())

    def pem(self) -> bytes:
        """Return the key as PKCS #8 in PEM. Secret."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, payload_type: str, payload: bytes) -> Signature:
        """Sign a payload as what it is."""
        sig = self._key.sign(pae(payload_type, payload))
        return Signature(keyid=self.public.keyid, sig=base64.b64encode(sig).decode())


class TrustedKeys:
    """The keys whose signatures count; one of them is enough."""

    def __init__(self, keys: Iterable[PublicKey] = ()) -> None:
        self._keys = {key.keyid: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def verify(self, envelope: Envelope, payload_type: str) -> Verified:
        """Return the payload once a trusted key is known to have signed it as payload_type.

        Raises:
            ConfigRefused: too large, malformed, of another type, by nobody we trust, or forged.
        """
        payload = payload_bytes(envelope)
        if envelope.payload_type != payload_type:
            shown = envelope.payload_type[:80]
            raise _refused(RefusalReason.WRONG_TYPE, f"a {payload_type}, not a {shown!r}")
        tried = [one for one in envelope.signatures if one.keyid in self._keys]
        if not tried:
            named = ", ".join(one.keyid[:KEY_ID_CHARS] for one in envelope.signatures)
            raise _refused(
                RefusalReason.UNKNOWN_KEY,
                f"it is signed by {named}; trusted are {', '.join(self._keys) or 'no keys'}",
            )
        message = pae(payload_type, payload)
        good = [one.keyid for one in tried if self._keys[one.keyid].has_signed(message, one)]
        if not good:
            named = ", ".join(one.keyid for one in tried)
            text = f"the signature by {named} is not of these bytes"
            raise _refused(RefusalReason.BAD_SIGNATURE, text)
        return Verified(payload, tuple(dict.fromkeys(good)))


def seal(payload_type: str, payload: bytes, keys: Sequence[SigningKey]) -> Envelope:
    """Put a payload into an envelope, signed with every key."""
    return Envelope(
        payload_type=payload_type,
        payload=base64.b64encode(payload).decode(),
        signatures=tuple(key.sign(payload_type, payload) for key in keys),
    )


def _decoded(text: str) -> bytes | None:
    """Read base64 of either alphabet, as the protocol allows; None: it is none."""
    plain = text.translate(_URL_SAFE)
    if re.search(r"[^A-Za-z0-9+/=]", plain):
        return None
    try:
        return base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError):
        return None


def _refused(reason: RefusalReason, text: str) -> ConfigRefused:
    return ConfigRefused(reason, text)
