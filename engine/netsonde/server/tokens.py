"""The texts that prove who somebody is: made here, and kept as hashes only."""

import hashlib
import secrets

TOKEN_BYTES = 32  # 256 bits
ENROLMENT_PREFIX = "net_"
OPERATOR_PREFIX = "nop_"


def new_token(prefix: str = "") -> str:
    """Make a token; the prefix tells people, and what looks for leaked secrets, its kind."""
    return prefix + secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(token: str) -> bytes:
    """Hash a token for keeping and comparing; it is random, so a plain hash will do."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
