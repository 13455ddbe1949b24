"""What hosts do with echo requests, and what is injected on account of them."""

from typing import Annotated, Literal, get_args

from msgspec import Meta

from support.netsim.parts import (
    DELAY_MAX_MS,
    PAYLOAD_MAX_BYTES,
    Copies,
    IcmpError,
    Milliseconds,
    Part,
    Rate,
    Share,
)

ForgedPayload = Literal["random", "zero", "altered"]
Checksum = Literal["bad", "recomputed"]
Difference = Literal["ident", "sequence", "destination", "payload"]
NoiseKind = Literal["foreign_reply", "short", "long_length", "short_length", "lying_quote"]


class Constant(Part, frozen=True, tag_field="distribution", tag="constant"):
    """Always the same delay."""

    ms: Milliseconds = 0.0


class Uniform(Part, frozen=True, tag_field="distribution", tag="uniform"):
    """Any delay from min_ms to max_ms."""

    min_ms: Milliseconds
    max_ms: Milliseconds


class Normal(Part, frozen=True, tag_field="distribution", tag="normal"):
    """Around a mean, clipped to min_ms and max_ms."""

    mean_ms: Milliseconds
    deviation_ms: Milliseconds
    min_ms: Milliseconds = 0.0
    max_ms: Milliseconds = DELAY_MAX_MS


class Lognormal(Part, frozen=True, tag_field="distribution", tag="lognormal"):
    """A long tail: sigma is the standard deviation of the logarithm; clipped."""

    median_ms: Milliseconds
    sigma: Annotated[float, Meta(ge=0, le=10)]
    min_ms: Milliseconds = 0.0
    max_ms: Milliseconds = DELAY_MAX_MS


Delay = Constant | Uniform | Normal | Lognormal


class BurstLoss(Part, frozen=True):
    """Loss after Gilbert and Elliott: a chance to change state, then the state's loss."""

    to_bad: Share
    to_good: Share
    loss_good: Share = 0.0
    loss_bad: Share = 1.0


class Reorder(Part, frozen=True):
    """A share of the replies comes delay_ms later than it would."""

    share: Share
    delay_ms: Milliseconds


class Duplicate(Part, frozen=True):
    """A share of the replies comes again, `copies` times."""

    share: Share
    copies: Copies = 1
    spacing_ms: Milliseconds = 0.0


class Elsewhere(Part, frozen=True):
    """A share of the replies comes from another address, in the families that have one."""

    share: Share
    from4: str | None = None
    from6: str | None = None


class Truncate(Part, frozen=True):
    """A share of the replies has no more than this of its payload; they count as no replies."""

    share: Share
    payload_bytes: Annotated[int, Meta(ge=0, le=PAYLOAD_MAX_BYTES)]


class ErrorAnswer(IcmpError, frozen=True):
    """A share of the requests is answered by an error and not by a reply."""

    share: Share = 1.0


class RateLimit(Part, frozen=True):
    """A token bucket for replies, of each host or of the whole prefix; it is full at first."""

    per: Literal["host", "prefix"]
    per_second: Rate
    burst: Annotated[float, Meta(ge=1, le=1e9)]
    beyond: Literal["silence", "error"] = "silence"
    error: IcmpError = IcmpError()


class Injection(Part, frozen=True):
    """A share of the requests brings packets nobody asked for, whatever else becomes of it.

    delay_ms: after the request; None draws from 0 to twice the reply's own delay, so that they
    come before the reply as well as after it.
    """

    share: Share
    copies: Copies = 1
    delay_ms: Milliseconds | None = None


class Forged(Injection, frozen=True):
    """Replies of an off-path attacker: all is right but the payload, which a request must have."""

    payload: tuple[ForgedPayload, ...] = get_args(ForgedPayload)


class Corrupted(Injection, frozen=True):
    """Replies with one bit flipped, under their old checksum or under a new one."""

    checksum: tuple[Checksum, ...] = get_args(Checksum)


class ForeignError(Injection, frozen=True):
    """Errors that quote a datagram that was never sent."""

    differs_in: tuple[Difference, ...] = get_args(Difference)
    error: IcmpError = IcmpError()


class Noise(Injection, frozen=True):
    """Foreign replies, packets that end early or lie about a length."""

    kind: tuple[NoiseKind, ...] = get_args(NoiseKind)


class Behaviour(Part, frozen=True):
    """What the hosts of a prefix do.

    delay is drawn once for each host, jitter for each request; a reply takes their sum. On a route
    this comes after the way there, and what is injected comes whatever became of a probe; UDP and
    TCP have foreign errors alone.
    """

    delay: Delay = Constant()
    jitter: Delay = Constant()
    reply_ttl: Annotated[int, Meta(ge=1, le=255)] = 64
    loss: Share = 0.0
    burst_loss: BurstLoss | None = None
    reorder: Reorder | None = None
    duplicate: Duplicate | None = None
    elsewhere: Elsewhere | None = None
    truncate: Truncate | None = None
    error: ErrorAnswer | None = None
    rate_limit: RateLimit | None = None
    forged: Forged | None = None
    corrupted: Corrupted | None = None
    foreign_error: ForeignError | None = None
    noise: Noise | None = None
