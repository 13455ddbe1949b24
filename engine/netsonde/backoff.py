"""How long to wait before asking again, and how often: pure arithmetic, time passed in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from netsonde.clock import NS_PER_MS

HINT_MAX_MS = 3_600_000  # a longer hint is a mistake; the longest real one is 10 min (register)
DOUBLINGS_MAX = 40  # base * 2^40 is beyond every cap, and stays a small integer


class Verb(StrEnum):
    """The calls of the agent API, each with its own patience."""

    REGISTER = "register"
    HEARTBEAT = "heartbeat"
    CLAIM = "claim"
    EXTEND = "extend"
    RELEASE = "release"
    REPORT = "report"
    CONFIG = "config"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """Exponential backoff with full jitter: uniform(0, min(cap, base * 2^attempt)).

    Full jitter, because a fleet that lost its control plane together must not return together.
    """

    base_ms: int
    cap_ms: int

    def __post_init__(self) -> None:
        if not 0 < self.base_ms <= self.cap_ms:
            raise ValueError(f"0 < base_ms <= cap_ms, not {self.base_ms} and {self.cap_ms}")

    def delay_ms(self, attempt: int, rng: Random, hint_ms: int | None = None) -> int:
        """Return how long to wait after failure number `attempt`, which counts from 0.

        hint_ms is what the server asked for; it wins when it is larger, up to an hour.
        """
        ceiling_ms = min(self.cap_ms, self.base_ms << min(attempt, DOUBLINGS_MAX))
        return max(rng.randint(0, ceiling_ms), min(hint_ms or 0, HINT_MAX_MS))


# docs/control-plane-api.md, "Retries".
POLICIES: Mapping[Verb, BackoffPolicy] = {
    Verb.REGISTER: BackoffPolicy(1000, 300_000),
    Verb.HEARTBEAT: BackoffPolicy(100, 5_000),
    Verb.CLAIM: BackoffPolicy(100, 30_000),
    Verb.EXTEND: BackoffPolicy(100, 30_000),
    Verb.RELEASE: BackoffPolicy(100, 30_000),
    Verb.REPORT: BackoffPolicy(100, 30_000),
    Verb.CONFIG: BackoffPolicy(100, 30_000),
    Verb.METRICS: BackoffPolicy(1000, 60_000),
}

RETRY_COST = 5  # so that in a steady state at most one call in six is a retry
SUCCESS_REFILL = 1
SHARED_TOKENS = 100  # 20 retries by anybody before the first success
# What claims cannot use up: results must leave, and the server must hear that the agent lives.
RESERVED_TOKENS: Mapping[Verb, int] = {Verb.HEARTBEAT: 25, Verb.REPORT: 50}


class RetryBudget:
    """A bucket of retries for one host, so that a sick server does not get more requests.

    A first try is free; a retry costs. Any success, of a first try or of a retry, refills: the
    reserves first, then what is shared.
    """

    def __init__(
        self,
        shared: int = SHARED_TOKENS,
        reserved: Mapping[Verb, int] = RESERVED_TOKENS,
    ) -> None:
        self._shared_max = self._shared = shared
        self._reserved_max = dict(reserved)
        self._reserved = dict(reserved)

    @property
    def tokens(self) -> int:
        """What is left of it altogether."""
        return self._shared + sum(self._reserved.values())

    def take(self, verb: Verb) -> bool:
        """Pay for one retry of verb; return whether there was enough."""
        if self._shared >= RETRY_COST:
            self._shared -= RETRY_COST
            return True
        if self._reserved.get(verb, 0) >= RETRY_COST:
            self._reserved[verb] -= RETRY_COST
            return True
        return False

    def succeeded(self, retries: int = 0) -> None:
        """Refill after a call that succeeded with this many retries, whose cost comes back."""
        refill = SUCCESS_REFILL + retries * RETRY_COST
        for verb, most in self._reserved_max.items():
            part = min(refill, most - self._reserved[verb])
            self._reserved[verb] += part
            refill -= part
        self._shared = min(self._shared_max, self._shared + refill)


@dataclass(slots=True)
class Cooldown:
    """Keeps calls apart that follow failed ones, so that no loop above can become a storm.

    A call's own retries count from its first attempt; this remembers across calls how often a verb
    failed in a row and until when the server asked to be left alone. When one verb succeeds again
    the others need not wait any more, save where the server said how long.
    """

    rng: Random
    policies: Mapping[Verb, BackoffPolicy] = field(default_factory=lambda: POLICIES)
    _failures: dict[Verb, int] = field(default_factory=dict)
    _not_before_ns: dict[Verb, int] = field(default_factory=dict)
    _asked: set[Verb] = field(default_factory=set)  # to wait, by the server

    def wait_ns(self, verb: Verb, now_ns: int) -> int:
        """Return how long the next call of verb has to wait; 0 for not at all."""
        return max(0, self._not_before_ns.get(verb, now_ns) - now_ns)

    def failed(self, verb: Verb, now_ns: int, hint_ms: int | None = None) -> None:
        """Note a call that failed for good; hint_ms is what the server asked for."""
        failures = self._failures.get(verb, 0)
        delay_ms = self.policies[verb].delay_ms(failures, self.rng, hint_ms)
        self._failures[verb] = failures + 1
        self._not_before_ns[verb] = now_ns + delay_ms * NS_PER_MS
        (self._asked.add if hint_ms else self._asked.discard)(verb)

    def refused(self, verb: Verb, now_ns: int) -> None:
        """Note a refusal that only a person can lift: the next try comes at the policy's cap."""
        self._not_before_ns[verb] = now_ns + self.policies[verb].cap_ms * NS_PER_MS
        self._asked.add(verb)

    def succeeded(self, verb: Verb) -> bool:
        """Forget the failures of verb; return whether it had any, so that the others may hurry."""
        self._not_before_ns.pop(verb, None)
        self._asked.discard(verb)
        if self._failures.pop(verb, 0) == 0:
            return False
        for other in self._not_before_ns.keys() - self._asked:
            del self._not_before_ns[other]
        return True
