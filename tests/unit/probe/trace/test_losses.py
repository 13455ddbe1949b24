"""Loss classes on paths whose losses are known: every lost probe has one cause."""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsonde.probe.trace.answers import Answer, Flag, Kind, Stop, Traced
from netsonde.probe.trace.losses import (
    CONFIDENCE_MAX,
    SENT_MIN,
    HopProbes,
    Loss,
    LossClass,
    classify,
    hop_probes,
)

HOPS = 16
CASES = 200
INTERVAL_S = 0.1
RATES = (1.0, 2.0, 3.0, 4.0, 5.0, 7.5)  # tokens per second
BURSTS = (1, 3, 6, 10, 20)


@dataclass
class Bucket:
    """A router's token bucket, full at first, from which others take too."""

    rate: float
    burst: int
    others: float = 0.0  # per second
    tokens: float = field(init=False)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = float(self.burst)

    def take(self, at: float, rng: random.Random) -> bool:
        """Take a token at an instant in seconds, if there is one."""
        while self.others:
            next_at = self.now + rng.expovariate(self.others)
            if next_at >= at:
                break
            self._take(next_at)
        return self._take(at)

    def _take(self, at: float) -> bool:
        self.tokens = min(self.tokens + (at - self.now) * self.rate, self.burst)
        self.now = at
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass
class Network:
    """What each hop of a path does to probes and answers."""

    links: dict[int, float] = field(default_factory=dict)  # forward loss, by the TTL after it
    back: dict[int, float] = field(default_factory=dict)  # loss of a hop's own way back
    buckets: dict[int, Bucket] = field(default_factory=dict)
    silent: frozenset[int] = frozenset()

    def cause(self, ttl: int, at: float, rng: random.Random) -> LossClass | None:
        """Send a probe; return what it is lost to."""
        if any(hop <= ttl and rng.random() < loss for hop, loss in self.links.items()):
            return LossClass.PATH
        if ttl in self.silent:
            return LossClass.SILENT
        if ttl in self.buckets and not self.buckets[ttl].take(at, rng):
            return LossClass.RATE_LIMITED
        return LossClass.RETURN if rng.random() < self.back.get(ttl, 0.0) else None


def draw(rng: random.Random) -> Network:
    """Return a network with some of all ills."""
    inner = range(1, HOPS)
    return Network(
        {rng.randint(2, HOPS): rng.uniform(0.01, 0.3)} if rng.random() < 0.5 else {},
        {rng.choice(inner): rng.uniform(0.01, 0.3)} if rng.random() < 0.25 else {},
        {
            ttl: Bucket(
                rng.choice(RATES), rng.choice(BURSTS), rng.choice([0, 0, 0, rng.uniform(0, 2)])
            )
            for ttl in rng.sample(inner, rng.choice([0, 1, 1, 2, 3]))
        },
        frozenset(rng.sample(inner, 1) if rng.random() < 0.3 else ()),
    )


def probe(network: Network, rounds: int, rng: random.Random) -> list[list[LossClass | None]]:
    """Probe every hop in rounds; return for each what its probes were lost to."""
    instants = [number * INTERVAL_S + rng.uniform(0, 0.005) for number in range(rounds)]
    return [[network.cause(ttl, at, rng) for at in instants] for ttl in range(1, HOPS + 1)]


def seen(causes: list[list[LossClass | None]]) -> list[HopProbes]:
    """Return what a trace sees of this."""
    return [
        HopProbes(ttl, tuple((0, cause is None) for cause in each), ttl == len(causes))
        for ttl, each in enumerate(causes, 1)
    ]


def main_cause(causes: list[LossClass | None]) -> LossClass | None:
    """Return what a hop's losses are due to, None where no cause has two thirds of them."""
    counts = Counter(cause for cause in causes if cause is not None)
    cause, count = max(counts.items(), key=lambda item: item[1], default=(None, 0))
    return cause if 3 * count >= 2 * counts.total() else None


@cache
def verdicts() -> list[tuple[LossClass, Loss]]:
    """Return truth and verdict of every hop with losses in the labelled set."""
    rng = random.Random(20261127)
    found = []
    for _ in range(CASES):
        causes = probe(draw(rng), rng.randint(20, 100), rng)
        for each, loss in zip(causes, classify(seen(causes)), strict=True):
            assert (loss is None) is not any(each)
            truth = main_cause(each)
            if loss is not None and truth is not None:
                found.append((truth, loss))
    return found


def share(truth: LossClass, verdict: LossClass) -> float:
    """Return the share of hops of a true class that get a verdict."""
    given_to = [loss.loss_class for known, loss in verdicts() if known is truth]
    return given_to.count(verdict) / len(given_to)


@pytest.mark.parametrize(
    ("truth", "least"),
    [
        (LossClass.RATE_LIMITED, 0.95),
        (LossClass.PATH, 0.97),
        (LossClass.SILENT, 0.99),
        (LossClass.RETURN, 0.5),  # a few random losses tell little: the rest is unknown
    ],
)
def test_losses_are_told_apart(truth: LossClass, least: float) -> None:
    assert sum(known is truth for known, _ in verdicts()) >= 30
    assert share(truth, truth) >= least
    assert share(truth, truth) + share(truth, LossClass.UNKNOWN) >= 0.95


def test_limits_and_path_loss_are_not_taken_for_each_other() -> None:
    assert share(LossClass.RATE_LIMITED, LossClass.PATH) <= 0.01
    assert share(LossClass.PATH, LossClass.RATE_LIMITED) <= 0.01


def test_no_claim_is_surer_than_it_is_right() -> None:
    bins: dict[tuple[LossClass | None, float], list[tuple[bool, float]]] = defaultdict(list)
    for truth, loss in verdicts():
        if loss.loss_class is not LossClass.UNKNOWN:
            least = max(edge for edge in (0.7, 0.85, 0.97) if loss.confidence >= edge)
            for of in (loss.loss_class, None):
                bins[of, least].append((loss.loss_class is truth, loss.confidence))
    assert len(bins) >= 8
    for claims in bins.values():
        right = sum(is_right for is_right, _ in claims)
        expected = sum(confidence for _, confidence in claims)
        deviation = sum(confidence * (1 - confidence) for _, confidence in claims) ** 0.5
        assert right >= expected - 2 * deviation


# ── single cases ──


def hop(ttl: int, text: str, *, is_end: bool = False) -> HopProbes:
    """Return a hop; a dot is an answer, anything else a loss."""
    return HopProbes(ttl, tuple((0, char == ".") for char in text), is_end)


def classes(*texts: str) -> list[LossClass | None]:
    """Classify hops; the last is the destination."""
    hops = [hop(ttl, text, is_end=ttl == len(texts)) for ttl, text in enumerate(texts, 1)]
    return [loss and loss.loss_class for loss in classify(hops)]


FINE = "." * 30


def test_nothing_lost_is_nothing_to_explain() -> None:
    assert classes(FINE, FINE) == [None, None]
    assert classify([]) == []


def test_linux_limit_of_one_a_second() -> None:
    limited = "......" + "xxxxxxxxx." * 4
    assert classes(FINE, limited, FINE, FINE) == [None, LossClass.RATE_LIMITED, None, None]


def test_loss_that_all_beyond_share_is_the_paths() -> None:
    lossy = [
        "..x.......x...x......xx.......",
        ".x.....x......x.x............x",
        "...xx.........x......x........",
    ]
    assert classes(FINE, FINE, *lossy) == [None, None, *[LossClass.PATH] * 3]


def test_loss_of_one_hop_at_random_is_its_way_back() -> None:
    back = ".x..........xx..............x............x......x......."
    whole = "." * len(back)
    assert classes(whole, back, *[whole] * 6)[1] is LossClass.RETURN


def test_both_ways_of_the_destination_are_the_path() -> None:
    assert classes(FINE, FINE, "..x..xx.......x....x......x...") == [None, None, LossClass.PATH]


def test_silence_before_hops_that_answer() -> None:
    assert classes("...", "xxx", "...", "...") == [None, LossClass.SILENT, None, None]


def test_silence_to_the_end_is_unknown() -> None:
    losses = classify([hop(1, "..."), hop(2, "xxx"), hop(3, "xxx")])
    assert losses == [None, *[Loss(LossClass.UNKNOWN, 0.0, 3, 3)] * 2]


def test_a_trace_of_three_attempts_is_too_little() -> None:
    assert SENT_MIN > 3
    assert classes("...", "x.", "...", "xx.", "...") == [
        None, LossClass.UNKNOWN, None, LossClass.UNKNOWN, None,
    ]  # fmt: skip


def test_one_loss_is_no_limit() -> None:
    assert classes(FINE, FINE[1:] + "x", FINE, FINE)[1] is LossClass.UNKNOWN


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), max_size=100), max_size=8), st.booleans())
def test_any_trace_gets_an_answer(sequences: list[list[bool]], is_reached: bool) -> None:
    hops = [
        HopProbes(ttl, tuple((0, each) for each in answers), is_reached and ttl == len(sequences))
        for ttl, answers in enumerate(sequences, 1)
    ]
    losses = classify(hops)
    assert len(losses) == len(hops)
    for answers, loss in zip(sequences, losses, strict=True):
        assert (loss is None) is all(answers)
        if loss is not None:
            assert (loss.lost, loss.sent) == (answers.count(False), len(answers))
            assert 0 <= loss.confidence <= CONFIDENCE_MAX
            assert (loss.loss_class is LossClass.UNKNOWN) is (loss.confidence == 0)
            assert loss.loss_class is not LossClass.SILENT or not any(answers)


# ── from a trace ──


def answer(ttl: int, attempt: int, kind: Kind = Kind.ERROR, flags: int = 0) -> Answer:
    return Answer(
        ttl, attempt, kind, bytes(4), 11, 0, 100 * ttl + attempt, 5, 64, 1, 0, flags, 0, b""
    )


def traced(stop: Stop, end_ttl: int, attempts: bytes, *answers: Answer) -> Traced:
    return Traced(
        1, stop, end_ttl, sum(attempts), 0, 0, 0, 0, 0, 0, bytes(4), 0, 0, 0, 1, attempts, answers
    )


def test_probes_of_a_trace_end_with_it() -> None:
    found = hop_probes(
        traced(
            Stop.COMPLETED, 2, bytes((3, 2, 1)),
            answer(1, 2), answer(2, 0, Kind.ECHO), answer(3, 0, Kind.ECHO),
        )
    )  # fmt: skip
    assert found == [
        HopProbes(1, ((0, False), (0, False), (102, True))),
        HopProbes(2, ((200, True), (0, False)), is_end=True),
    ]


def test_what_the_kernel_refused_was_not_sent_and_late_is_not_lost() -> None:
    found = hop_probes(
        traced(
            Stop.GAP_LIMIT, 0, bytes((4,)),
            answer(1, 0, Kind.REFUSED), answer(1, 1, flags=Flag.LATE),
            answer(1, 2), answer(1, 2, flags=Flag.DUPLICATE),
        )
    )  # fmt: skip
    assert found == [HopProbes(1, ((101, True), (102, True), (0, False)))]
