"""What the silence of some flows means where others are answered, for multipath detection.

Behind a node they come from, a next hop may never answer; or it answers, and what these flows sent
was lost, or over its rate limit. So they are asked again, until that is of no use: as often as it
ever helped at their TTL, and twice more. Those that are silent even then pass a silent hop, if they
are as many as one would get; if they are fewer, they count for nothing.

A rate limit can make that long. If it often helps to ask again, and all that answer show one next
hop, so many that another would have been seen, then the others are presumed to pass it as well.
They serve to look beyond it; what they alone show to be linked to it has yet to be proven.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from netsonde.probe.trace.graph import Node

ASKS_MAX = 10  # of a silent flow
VAIN_ASKS = 3  # more than ever helped, and asking is of no use
SAMPLE = 10  # flows that are asked first, to see whether it helps
# A silent next hop would get so few flows, or fewer, with this probability: then it is none.
STAR_DOUBT = 0.01
OFTEN = 1 / 10  # of the times a flow was asked again, it helped: a rate limit or loss


class Meaning(NamedTuple):
    """What is thought of silent flows.

    places: where each is thought to be; None: that is unknown. again: those to be asked again.
    is_presumed: they are thought to pass the one hop that answers. lost: how many count for
    nothing. is_unsure: they may be a next hop's that more asking would have shown.
    """

    places: dict[int, Node | None]
    again: list[int]
    is_presumed: bool = False
    lost: int = 0
    is_unsure: bool = False


@dataclass(frozen=True, kw_only=True)
class Silence:
    """The silent flows that come from one node, and what is known beside them.

    silences: by flow, how often it was asked in vain. hops: next hops that answer its other flows,
    `seen` in number. recovered: flows that answered when asked again. depth: after how many
    silences one did so at this TTL. is_alone: nobody answers at this TTL. enough: flows that must
    have shown one hop to say that there is no other.
    """

    ttl: int
    silences: Mapping[int, int]
    hops: list[Node]
    seen: int
    recovered: int
    depth: int
    is_alone: bool
    enough: int

    def meaning(self) -> Meaning:
        """Return what is thought of it."""
        stuck = [flow for flow, count in self.silences.items() if count >= self._limit]
        if self.is_alone or not self.hops:
            return self._of_all(stuck)
        if not stuck and self._is_sole_hop():
            return Meaning(dict.fromkeys(self.silences, self.hops[0]), [], is_presumed=True)
        is_star = self._is_another(len(stuck))
        places: dict[int, Node | None] = dict.fromkeys(self.silences)
        if is_star:
            places |= dict.fromkeys(stuck, self._star)
        again = self._open()
        if len(self.hops) == 1 and not stuck:
            again = again[:SAMPLE]
        ended = sum(ASKS_MAX <= count < self._limit for count in self.silences.values())
        lost = ended + (0 if is_star else len(stuck))
        return Meaning(places, again, lost=lost, is_unsure=self._is_another(ended))

    @property
    def _star(self) -> Node:
        return Node(self.ttl, None)

    @property
    def _limit(self) -> int:
        """How often a flow is asked in vain until that is of no use."""
        return self.depth + VAIN_ASKS

    def _open(self) -> list[int]:
        return [flow for flow, count in self.silences.items() if count < min(self._limit, ASKS_MAX)]

    def _of_all(self, stuck: list[int]) -> Meaning:
        """Return what is thought of it where none of these flows is answered."""
        again = [] if self.is_alone else self._open()[: max(SAMPLE - len(stuck), 0)]
        is_star = self.is_alone or len(stuck) >= min(len(self.silences), SAMPLE)
        place = self._star if is_star else None
        places: dict[int, Node | None] = dict.fromkeys(self.silences, place)
        return Meaning(places, again, is_unsure=not again and not is_star)

    def _is_sole_hop(self) -> bool:
        vain = sum(count - 1 for count in self.silences.values())
        helps = self.recovered > OFTEN * (self.recovered + vain)
        return helps and len(self.hops) == 1 and self.seen >= self.enough

    def _is_another(self, flows: int) -> bool:
        """Whether so many flows may be those of one more next hop."""
        share = 1 / (len(self.hops) + 1)
        return flows > 0 and at_most(flows, flows + self.seen, share) >= STAR_DOUBT


def at_most(successes: int, trials: int, probability: float) -> float:
    """Return the probability of so many successes or fewer (binomial distribution)."""
    if successes >= trials * probability:
        return 1.0  # the mean or more: no less than a half, as good as certain here
    odds = probability / (1 - probability)
    term = total = (1 - probability) ** trials
    for number in range(successes):
        term *= odds * (trials - number) / (number + 1)
        total += term
    return total
