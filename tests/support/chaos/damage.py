"""The answers that no control plane gave: pages, storms, garbage, halves. Pure."""

from random import Random

import msgspec

from support.chaos.bodies import Seen
from support.chaos.faults import Fault
from support.chaos.framing import Head

PAGE = b"<html><head><title>Sign in</title></head><body>Welcome to the network.</body></html>"
STORM_5XX = (
    (500, "text/html", b"<h1>Internal Server Error</h1>"),
    (502, "text/html", b"<h1>Bad Gateway</h1>"),
    (503, "text/plain", b""),
    (504, "application/json", b'{"error":"upstream timed out"}'),
)
RETRY_AFTER_S = 1


def forged(status: int, kind: str, body: bytes, **fields: int) -> tuple[Head, bytes]:
    """Make an answer of a proxy's own."""
    listed = [(b"Content-Type", kind.encode())]
    listed += [(name.replace("_", "-").encode(), b"%d" % value) for name, value in fields.items()]
    return Head(b"HTTP/1.1 %d Whatever" % status, listed), body


def forged_answer(seen: Seen) -> tuple[Head, bytes]:
    """Return the answer that takes a report or an envelope of metrics."""
    if seen.metered is not None:
        taken = msgspec.json.encode({"accepted": True, "stored": seen.metered.samples})
        return forged(202, "application/json", taken, Netsonde_Protocol=1)
    verdicts = [{"lease_id": one, "status": "accepted"} for one in seen.items]
    body = msgspec.json.encode({"acknowledged": len(verdicts), "results": verdicts})
    return forged(200, "application/json", body, Netsonde_Protocol=1)


def unstreamed() -> tuple[Head, bytes]:
    """Return what a report is answered that comes as a stream where none is taken."""
    head, body = forged(415, "text/html", b"<h1>Unsupported Media Type</h1>")
    head.fields.append((b"Connection", b"close"))
    return head, body


def storm(fault: Fault, rng: Random) -> tuple[Head, bytes]:
    """Return what everybody is answered during a storm."""
    if fault is Fault.STORM_5XX:
        return forged(*rng.choice(STORM_5XX))
    body = b'{"error":"too many requests"}'
    if fault is Fault.STORM_429_BARE:
        return forged(429, "application/json", body)
    return forged(429, "application/json", body, Retry_After=RETRY_AFTER_S)


def damaged(fault: Fault, head: Head, body: bytes, rng: Random) -> tuple[Head, bytes]:
    """Return what becomes of an answer that is still framed as if it were right."""
    if fault is Fault.ANSWER_PAGE:
        return forged(200, "text/html; charset=utf-8", PAGE)
    if fault is Fault.ANSWER_GARBAGE:
        return head, rng.randbytes(max(1, len(body)))
    return head, body[: len(body) // 2]  # truncated
