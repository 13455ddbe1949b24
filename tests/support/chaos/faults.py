"""What goes wrong, by name, and the plan that a seed makes of it. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from random import Random

from msgspec import Struct

from netsonde.clock import NS_PER_MS, NS_PER_S


class Fault(StrEnum):
    """One kind of trouble."""

    REQUEST_CUT = "request cut"  # half a body reaches the control plane
    REQUEST_SLOW = "request slow"  # its body dribbles
    REQUEST_REPLAYED = "request replayed"
    RESET_AFTER_REQUEST = "reset after request"  # passed on, and nobody waits for the answer
    ANSWER_LOST = "answer lost"
    ANSWER_CUT = "answer cut"  # within its body
    ANSWER_TRUNCATED = "answer truncated"  # half the JSON, framed as if it were whole
    ANSWER_GARBAGE = "answer garbage"
    ANSWER_PAGE = "answer page"  # a proxy's HTML, with status 200
    ANSWER_SLOW = "answer slow"
    STORM_5XX = "5xx storm"
    STORM_429 = "429 storm"
    STORM_429_BARE = "429 storm without Retry-After"
    DELAY = "delay"
    PARTITION = "partition"
    AGENT_STOPPED = "agent stopped"
    AGENT_KILLED = "agent killed"
    AGENT_DRAINED = "agent drained"  # SIGTERM, and started again
    AGENT_DISK_FULL = "agent disk full"
    AGENT_NO_FILES = "agent out of descriptors"
    AGENT_ORDERED_AWAY = "agent drained by an operator"  # and resumed
    AGENT_REVOKED = "agent revoked"  # and let in again at once, so that it needs another token
    SERVER_STOPPED = "server stopped"
    SERVER_KILLED = "server killed"
    SERVER_NO_FILES = "server out of descriptors"


class Planned(Struct, frozen=True):
    """One fault to come: which, on which agent, for how long; salt draws its details."""

    number: int
    fault: Fault
    agent: int
    duration_ns: int
    salt: int


# Faults that strike one message: the next that passes.
MESSAGE_FAULTS = frozenset(
    {
        Fault.REQUEST_CUT,
        Fault.REQUEST_SLOW,
        Fault.REQUEST_REPLAYED,
        Fault.RESET_AFTER_REQUEST,
        Fault.ANSWER_LOST,
        Fault.ANSWER_CUT,
        Fault.ANSWER_TRUNCATED,
        Fault.ANSWER_GARBAGE,
        Fault.ANSWER_PAGE,
        Fault.ANSWER_SLOW,
    }
)
WEATHER = frozenset(
    {
        Fault.STORM_5XX,
        Fault.STORM_429,
        Fault.STORM_429_BARE,
        Fault.DELAY,
        Fault.PARTITION,
    }
)
SERVER_FAULTS = frozenset({Fault.SERVER_STOPPED, Fault.SERVER_KILLED, Fault.SERVER_NO_FILES})
AGENT_FAULTS = frozenset(
    {
        Fault.AGENT_STOPPED,
        Fault.AGENT_KILLED,
        Fault.AGENT_DRAINED,
        Fault.AGENT_DISK_FULL,
        Fault.AGENT_NO_FILES,
    }
)
# What an operator orders of an agent.
ORDERED_FAULTS = frozenset({Fault.AGENT_ORDERED_AWAY, Fault.AGENT_REVOKED})
SHORTAGES = frozenset({Fault.AGENT_DISK_FULL, Fault.AGENT_NO_FILES, Fault.SERVER_NO_FILES})
SERVER = -1  # in the place of an agent's number

# Of a thousand faults, and how long one lasts: from and to, in ms.
PLAN: Mapping[Fault, tuple[int, int, int]] = {
    Fault.REQUEST_CUT: (65, 0, 0),
    Fault.REQUEST_SLOW: (40, 200, 3_000),
    Fault.REQUEST_REPLAYED: (80, 0, 0),
    Fault.RESET_AFTER_REQUEST: (65, 0, 0),
    Fault.ANSWER_LOST: (75, 0, 0),
    Fault.ANSWER_CUT: (75, 0, 0),
    Fault.ANSWER_TRUNCATED: (65, 0, 0),
    Fault.ANSWER_GARBAGE: (65, 0, 0),
    Fault.ANSWER_PAGE: (65, 0, 0),
    Fault.ANSWER_SLOW: (40, 200, 3_000),
    Fault.STORM_5XX: (40, 500, 3_000),
    Fault.STORM_429: (30, 500, 2_000),
    Fault.STORM_429_BARE: (20, 500, 2_000),
    Fault.DELAY: (40, 500, 3_000),
    Fault.PARTITION: (35, 500, 8_000),
    Fault.AGENT_STOPPED: (40, 500, 10_000),
    Fault.AGENT_KILLED: (40, 0, 1_000),
    Fault.AGENT_DRAINED: (40, 0, 1_000),
    Fault.AGENT_ORDERED_AWAY: (20, 500, 6_000),
    Fault.AGENT_REVOKED: (10, 0, 0),
    Fault.AGENT_DISK_FULL: (15, 500, 4_000),
    Fault.AGENT_NO_FILES: (15, 500, 3_000),
    Fault.SERVER_STOPPED: (8, 500, 10_000),
    Fault.SERVER_KILLED: (8, 0, 500),
    Fault.SERVER_NO_FILES: (4, 500, 3_000),
}
SHORT = 2  # durations are drawn so that short ones are more frequent: low + span * u^SHORT


def planned(seed: int, number: int, agents: int) -> Planned:
    """Return a seed's fault of a number; each is drawn alone, so that a run can be taken up."""
    rng = Random(f"{seed}:{number}")
    fault = rng.choices(list(PLAN), [weight for weight, _, _ in PLAN.values()])[0]
    _, low_ms, high_ms = PLAN[fault]
    duration_ns = round((low_ms + (high_ms - low_ms) * rng.random() ** SHORT) * NS_PER_MS)
    return Planned(number, fault, rng.randrange(agents), duration_ns, rng.getrandbits(32))


def service_ns(seed: int, task: int) -> int:
    """Return how long the target takes over a task; some outlast a term, most take no time."""
    rng = Random(f"{seed}/{task}")
    draw = rng.random()
    if draw < 0.005:
        return round(rng.uniform(2, 7) * NS_PER_S)
    if draw < 0.02:
        return round(rng.uniform(0.5, 2.5) * NS_PER_S)
    if draw < 0.15:
        return round(rng.uniform(5, 200) * NS_PER_MS)
    return 0
