"""Why hops of a trace lost probes: on the path, on their own way back, or because they would not.

Forward loss shows at every hop beyond, what a hop loses by itself does not. So the hops are a
hidden Markov chain: the state is the forward loss up to a hop, which never falls from hop to hop,
and each hop may besides answer less than it receives. Forward and backward passes over the chain
(Rabiner, "A tutorial on hidden Markov models", 1989) give the posterior probability of each reason
at each hop: Bayes factors of marginal likelihoods, weighted by the priors named below.

* Loss of a link, either way: each probe by itself, at a rate with a Beta prior.
* A rate limit is a token bucket (RFC 4443, section 2.4 (f); RFC 1812, 4.3.2.8): first a burst is
  answered whole, then the distances between answers (or between losses, where these are rarer)
  are one whole number or the next. If others use up tokens too then nothing but the rate is left.

Forward loss on a link and loss of all replies on the way back over it look the same: both are PATH.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from netsonde.probe.trace.answers import Kind, Stop, Traced

SENT_MIN = 4  # with fewer probes nothing but silence is told apart
PATTERN_MIN = 2  # losses: one has no pattern that would tell of a limit
CLAIM_MIN = 0.7  # posterior from which on a class is claimed
CONFIDENCE_MAX = 0.99  # a model is not the world

# Priors. Of routers most limit what they answer, few as low as a trace asks (Ravaioli,
# Urvoy-Keller, Barakat, "Characterizing ICMP rate limitation on routers", 2015).
LOSSY_LINK = 0.02  # that a link loses, forward
LOSSY_RETURN = 0.03  # that a hop's own way back does
LIMITED = 0.15  # that a hop limits
LIMITED_END = 0.03  # that the destination does
SILENT = 0.1  # that a hop never answers
LOSS_SHAPE = 6.0  # the loss of a lossy link is Beta(1, 6)
SHARED_BUCKET = 0.1  # that others use up tokens of a bucket
STRAY_SHAPE = 12.0  # the share of distances that fit no bucket is Beta(1, 12)
BURST_MAX = 64  # probes
DISTANCE_MAX = 64  # probes
COMMON_DISTANCES = 3  # a bucket has two, and others fit it too badly to count

# Forward loss, in steps that 100 probes a hop could hardly tell apart.
LEVELS = (
    0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.12, 0.14, 0.165, 0.19, 0.22, 0.25,
    0.28, 0.32, 0.36, 0.4, 0.45, 0.5, 0.56, 0.63, 0.7, 0.78, 0.86, 0.94,
)  # fmt: skip


class LossClass(StrEnum):
    """Where the probes of a hop were lost."""

    PATH = "path"  # on the way there, as those of all hops beyond
    RATE_LIMITED = "rate_limited"  # the hop answers only so many
    RETURN = "return"  # at random, on the way back from this hop only
    SILENT = "silent"  # the hop never answers; hops beyond do
    UNKNOWN = "unknown"  # there is too little to go by


class HopProbes(NamedTuple):
    """The probes of one TTL in the order they were sent.

    probes: sent_ns (0: not known; only the order matters) and whether it was answered. is_end:
    this is the destination.
    """

    ttl: int
    probes: tuple[tuple[int, bool], ...]
    is_end: bool = False

    @property
    def answers(self) -> tuple[bool, ...]:
        """Whether each was answered."""
        return tuple(answered for _, answered in self.probes)


class Loss(NamedTuple):
    """What the loss of one hop is. confidence: that the class is right, 0 to 1; of UNKNOWN 0."""

    loss_class: LossClass
    confidence: float
    lost: int
    sent: int


class _Likelihood(NamedTuple):
    """Of what one hop answered, by forward loss (as LEVELS), times the prior of each reason."""

    path: list[float]  # the hop itself answers everything
    limited: list[float]
    back: list[float]
    silent: list[float]

    def total(self) -> list[float]:
        """Return it whatever the reason is."""
        return [sum(each) for each in zip(*self, strict=True)]


def hop_probes(traced: Traced) -> list[HopProbes]:
    """Return the probes of a trace up to its end, without those that the kernel refused.

    Only of answered ones it is known when they were sent. A late answer is no loss.
    """
    found = []
    for hop in traced.hops:
        if traced.end_ttl and hop.ttl > traced.end_ttl:
            break
        refused = {each.attempt for each in hop.answers if each.kind == Kind.REFUSED}
        sent_ns = {each.attempt: each.sent_ns for each in hop.answers if each.kind != Kind.REFUSED}
        probes = tuple(
            (sent_ns.get(attempt, 0), attempt in sent_ns)
            for attempt in range(hop.attempts)
            if attempt in sent_ns or attempt not in refused
        )
        is_end = traced.stop is Stop.COMPLETED and hop.ttl == traced.end_ttl
        found.append(HopProbes(hop.ttl, probes, is_end))
    return found


def classify(hops: Sequence[HopProbes]) -> list[Loss | None]:
    """Return why each hop lost probes, None where none were lost; hops are in order of TTL."""
    if not any(False in hop.answers for hop in hops):
        return [None] * len(hops)
    answered = [index for index, hop in enumerate(hops) if any(hop.answers)]
    heard = answered[-1] + 1 if answered else 0  # beyond that nothing tells silence from loss
    likelihoods = [_likelihood(hop) for hop in hops[:heard]]
    before, after = _passes([each.total() for each in likelihoods])
    losses: list[Loss | None] = []
    for index, hop in enumerate(hops):
        sent, lost = len(hop.probes), hop.answers.count(False)
        claim = (LossClass.UNKNOWN, 0.0)
        if index < heard:
            weight = [b * a for b, a in zip(before[index], after[index], strict=True)]
            claim = _claim(likelihoods[index], weight, sent, lost)
        losses.append(Loss(*claim, lost, sent) if lost else None)
    return losses


def _claim(
    likelihood: _Likelihood, weight: Sequence[float], sent: int, lost: int
) -> tuple[LossClass, float]:
    """Return the most probable class of a hop, given what all other hops say of forward loss.

    Where both the path and the hop lose, the greater loss counts.
    """
    share = dict.fromkeys(LossClass, 0.0)
    for level, loss in enumerate(LEVELS):
        is_mostly_path = lost and 2 * loss * sent >= lost
        limited = LossClass.PATH if is_mostly_path else LossClass.RATE_LIMITED
        back = LossClass.PATH if is_mostly_path else LossClass.RETURN
        share[LossClass.PATH] += weight[level] * likelihood.path[level]
        share[limited] += weight[level] * likelihood.limited[level]
        share[back] += weight[level] * likelihood.back[level]
        share[LossClass.SILENT] += weight[level] * likelihood.silent[level]
    best = max(share, key=share.__getitem__)
    confidence = share[best] / sum(share.values())
    is_vague = sent < SENT_MIN and best is not LossClass.SILENT
    is_vague |= lost < PATTERN_MIN and best is LossClass.RATE_LIMITED
    if is_vague or confidence < CLAIM_MIN:
        return LossClass.UNKNOWN, 0.0
    return best, min(confidence, CONFIDENCE_MAX)


# ── the chain ──


def _passes(totals: Sequence[list[float]]) -> tuple[list[list[float]], list[list[float]]]:
    """Return for each hop what those before and those beyond it say of its forward loss."""
    before: list[list[float]] = []
    state = [1.0] + [0.0] * (len(LEVELS) - 1)  # this host
    for total in totals:
        state = _scaled(
            sum(state[source] * row[target] for source, row in enumerate(_transitions()))
            for target in range(len(LEVELS))
        )
        before.append(state)
        state = _scaled(s * t for s, t in zip(state, total, strict=True))
    after: list[list[float]] = []
    state = [1.0] * len(LEVELS)
    for total in reversed(totals):
        after.append(state)
        seen = [s * t for s, t in zip(state, total, strict=True)]
        state = _scaled(_dot(row, seen) for row in _transitions())
    return before, after[::-1]


@cache
def _transitions() -> tuple[tuple[float, ...], ...]:
    """Return the probability of forward loss after a link, by the one before it."""
    last = len(LEVELS) - 1
    rows = []
    for source in range(len(LEVELS)):
        new = _loss_prior(source)
        stays = 1.0 if source == last else 1 - LOSSY_LINK
        rows.append((*(0.0,) * source, stays, *(LOSSY_LINK * each for each in new)))
    return tuple(rows)


@cache
def _loss_prior(source: int) -> tuple[float, ...]:
    """Return the prior of each level above one, if a lossy link or way back follows."""
    weights = []
    for level in range(source + 1, len(LEVELS)):
        following = LEVELS[level + 1] if level + 1 < len(LEVELS) else 1.0
        added = (LEVELS[level] - LEVELS[source]) / (1 - LEVELS[source])
        weights.append((1 - added) ** (LOSS_SHAPE - 1) * (following - LEVELS[level - 1]))
    return tuple(weight / sum(weights) for weight in weights)


def _dot(ones: Iterable[float], others: Iterable[float]) -> float:
    return sum(one * other for one, other in zip(ones, others, strict=True))


def _scaled(values: Iterable[float]) -> list[float]:
    found = list(values)
    largest = max(found)
    return [value / largest for value in found]


# ── one hop ──


def _likelihood(hop: HopProbes) -> _Likelihood:
    """Return how probable the answers of a hop are for each reason."""
    answers = hop.answers
    sent, lost = len(answers), answers.count(False)
    limits = LIMITED_END if hop.is_end else LIMITED
    # Both ways of the destination are the path.
    loses = 0.0 if hop.is_end else LOSSY_RETURN
    ignores = 0.0 if hop.is_end else SILENT
    nothing = [0.0] * len(LEVELS)
    path = [_independent(loss, sent, lost) for loss in LEVELS]
    if not lost:
        return _Likelihood(path, nothing, nothing, nothing)
    return _Likelihood(
        [(1 - limits - loses - ignores) * each for each in path],
        [limits * each for each in _limited(answers)],
        [loses * _back(loss, sent, lost) for loss in LEVELS] if loses else nothing,
        [ignores * (lost == sent)] * len(LEVELS),
    )


def _independent(loss: float, sent: int, lost: int) -> float:
    return float(loss**lost * (1 - loss) ** (sent - lost))


def _back(loss: float, sent: int, lost: int) -> float:
    """Return the likelihood if the way back loses too, at any rate."""
    return _dot(
        _loss_prior(0), [_independent(1 - (1 - loss) * (1 - x), sent, lost) for x in LEVELS[1:]]
    )


def _limited(answers: tuple[bool, ...]) -> list[float]:
    """Return the likelihood if there is a token bucket, at any rate and of any burst.

    Where the path loses too, what is lost in the burst is that; and what was answered arrived.
    """
    sent, lost = len(answers), answers.count(False)
    shared = SHARED_BUCKET * math.exp(_log_beta(lost, sent - lost))
    starts = list(_starts(answers))
    likelihoods = []
    for loss in LEVELS:
        own = sum(
            _independent(loss, burst, burst_lost) * regular for burst, burst_lost, regular in starts
        )
        regular = (1 - SHARED_BUCKET) * own
        likelihoods.append((shared + regular) * _arrival_bound(loss, sent, lost))
    return likelihoods


def _starts(answers: tuple[bool, ...]) -> Iterator[tuple[int, int, float]]:
    """Yield each possible burst, how many of it are lost, and the likelihood of what follows.

    That is none, or one that ends with a probe that is not answered.
    """
    longest = min(len(answers), BURST_MAX)
    burst_lost = 0
    for burst in range(longest):
        if burst == 0 or not answers[burst]:
            yield burst, burst_lost, _regular(answers[burst:]) / longest
        burst_lost += not answers[burst]


def _arrival_bound(loss: float, sent: int, lost: int) -> float:
    """Return the Chernoff bound of as many arrivals as there were answers."""
    answered, arrives = 1 - lost / sent, 1 - loss
    if answered <= arrives:
        return 1.0
    divergence = answered * math.log(answered / arrives)
    if lost:
        divergence += (1 - answered) * math.log((1 - answered) / loss)
    return math.exp(-sent * divergence)


def _regular(answers: tuple[bool, ...]) -> float:
    """Return the likelihood of what a bucket lets through once it has been emptied.

    With half a token or so per probe it is every second answer that has a steady distance.
    """
    length = len(answers)
    total = 0.0
    for event in (True, False):
        places = [place for place, answered in enumerate(answers) if answered is event]
        total += _spaced(places, length) + _spaced(places[::2], length) * _between(places, length)
    return total / 4


def _between(places: Sequence[int], length: int) -> float:
    """Return the likelihood of every second place, each anywhere between its neighbours."""
    around = (*places[::2], length + 1)  # the last may be missing
    return math.prod(1 / (later - earlier - 1) for earlier, later in pairwise(around))


def _spaced(places: Sequence[int], length: int) -> float:
    """Return the likelihood if places among so many have one distance or the next, of any size."""
    if not places:  # all fell into a single distance
        return sum(
            _distance_prior()[each] * (1 - length / (each + 1))
            for each in range(length, DISTANCE_MAX + 1)
        )
    ends = [places[0], length - places[-1] - 1]
    distances = [later - earlier for earlier, later in pairwise(places)]
    common = (distance for distance, _ in Counter(distances).most_common(COMMON_DISTANCES))
    likely = {each for distance in (*common, max(ends)) for each in (distance - 1, distance)}
    return sum(
        _distance_prior()[each] * _fit(each, distances, ends)
        for each in likely
        if 1 <= each <= DISTANCE_MAX
    )


@cache
def _distance_prior() -> tuple[float, ...]:
    """Return the prior of each distance: no order of magnitude is likelier than another."""
    whole = sum(1 / each for each in range(1, DISTANCE_MAX + 1))
    return (0.0, *(1 / each / whole for each in range(1, DISTANCE_MAX + 1)))


def _fit(distance: int, distances: Sequence[int], ends: Sequence[int]) -> float:
    """Return the likelihood of distances, cut short at both ends, around one."""
    short, long = distances.count(distance), distances.count(distance + 1)
    rate = 1 / (distance + 0.5)
    strays = [each for each in distances if not distance <= each <= distance + 1]
    strayed = len(strays) + sum(each > distance for each in ends)
    log = _log_beta(short, long) + _log_beta(strayed, short + long, STRAY_SHAPE)
    log += sum(math.log(rate) + (each - 1) * math.log1p(-rate) for each in strays)
    return math.exp(log) / (distance + 1)  # the first may fall anywhere in a distance


def _log_beta(ones: int, others: int, shape: float = 1.0) -> float:
    """Return the log likelihood of a sequence of so many, at a rate with a Beta(1, shape) prior."""
    return (
        math.lgamma(1 + ones) + math.lgamma(shape + others)
        - math.lgamma(1 + shape + ones + others)
        + math.log(shape)
    )  # fmt: skip
