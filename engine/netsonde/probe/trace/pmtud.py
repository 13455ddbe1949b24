"""Finds the largest packet that a path carries whole, and the hop that carries no larger one.

Routers' too-big messages say what to try (RFC 1191, RFC 8201), and its table of plateaus where an
old router says 0; nothing is believed before packets of that size and one byte more have shown it.
Where packets vanish without a message it is searched for with packets that may not be fragmented
(as in RFC 8899). Then the smallest packet that is too big is sent to ever closer TTLs: a router at
which its TTL still runs out has received it. No I/O: probes to send come out, answers come in.

An echo reply is as large as its request: with ICMP the way back counts too, by UDP and TCP not.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from netsonde.probe.trace.answers import Answer, Kind

DESTINATION_TTL = 255
MTU_MIN = {4: 68, 6: 1280}  # RFC 791, RFC 8200
MTU_MAX = 65_535
BASE_MTU = {4: 1200, 6: 1280}  # RFC 8899, section 5.1.2: likely to pass
PLATEAUS = (65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)  # RFC 1191, table 7-1
TOO_BIG_V4 = (3, 4)  # RFC 792
TOO_BIG_V6 = 2  # with any code (RFC 4443, section 3.2)
TRIES = 2  # without an answer, of three attempts each (RFC 8899, MAX_PROBES: 3)
SPREAD = 7  # sizes asked at once: silence costs whole timeouts
PROBES_MAX = 160


class SizeProbe(NamedTuple):
    """A packet of `size` bytes (IP header included) that no router may fragment.

    ttl: a hop's, or DESTINATION_TTL. again: once more, since nothing came of the first.
    """

    size: int
    ttl: int
    again: int = 0


class Pmtu(NamedTuple):
    """The largest packet that passes, in bytes, and the hop that passes no larger one.

    ttl, address: of that router, None if not known or if nothing is smaller than the first link;
    of a black hole, of the last router that is known to receive larger ones. black_hole: it drops
    them without a message that can be believed.
    """

    mtu: int
    ttl: int | None = None
    address: str | None = None
    black_hole: bool = False


class PmtuSearch:
    """A search for the `Search` protocol.

    first_mtu: of the outgoing interface. end_ttl: the destination's. answering: TTLs at which
    routers are known to answer, None: take all for such.
    """

    def __init__(
        self,
        *,
        method: str,
        version: int,
        first_mtu: int,
        end_ttl: int,
        answering: Collection[int] | None = None,
    ) -> None:
        self._method = method
        self._version = version
        self._first_mtu = min(first_mtu, MTU_MAX)
        self._answering = {*(range(1, end_ttl) if answering is None else answering), end_ttl}
        self._end_ttl = end_ttl
        self._passed = 0  # the largest size that is known to
        self._too_big: dict[int, Answer | None] = {}  # sizes, and the message that said so
        self._wanted = {min(BASE_MTU[version], self._first_mtu), self._first_mtu}
        self._came: dict[SizeProbe, Answer | None] = {}  # what came as far as its TTL
        self._dropped: set[SizeProbe] = set()  # and what did not
        self._tries: Counter[SizeProbe] = Counter()
        self._under_way: set[SizeProbe] = set()
        self._probes = 0

    def due(self) -> list[SizeProbe]:
        """Return the probes that may be sent now."""
        due = [probe for probe in self._next() if probe not in self._under_way]
        due = due[: PROBES_MAX - self._probes]
        self._under_way.update(due)
        self._probes += len(due)
        return [probe._replace(again=self._tries[probe]) for probe in due]

    def take(self, probe: SizeProbe, answer: Answer | None) -> None:
        """Learn what came of a probe."""
        probe = probe._replace(again=0)
        self._under_way.discard(probe)
        if answer is not None and answer.is_end(self._method):
            self._passed = max(self._passed, probe.size)
        elif probe.ttl != DESTINATION_TTL:
            self._take_hop(probe, answer)
        elif answer is not None and self._is_message(answer) and self._is_believed(probe, answer):
            self._take_message(probe, answer)
        else:
            self._tries[probe] += 1
            if self._tries[probe] >= TRIES:
                self._too_big.setdefault(probe.size, None)

    @property
    def result(self) -> Pmtu | None:
        """What was found; None: not yet, or nothing, as when the destination does not answer."""
        if not self._is_size_known():
            return None
        if self._passed == self._first_mtu:
            return Pmtu(self._passed)
        is_placed = self._next_ttl() is None
        if not is_placed and self._probes < PROBES_MAX:
            return None
        ttl = max(self._ttls_reached(), default=None) if is_placed else None
        reached = self._came[SizeProbe(self._limit(), ttl)] if ttl else None
        message = self._message(reached)
        witness = message or reached
        address = None if witness is None else witness.address
        return Pmtu(self._passed, ttl, address, message is None)

    # ── sizes ──

    def _limit(self) -> int:
        """Return the smallest size that is known not to pass."""
        too_big = (size for size in self._too_big if size > self._passed)
        return min(too_big, default=self._first_mtu + 1)

    def _is_size_known(self) -> bool:
        return self._passed > 0 and self._limit() == self._passed + 1

    def _next(self) -> list[SizeProbe]:
        """Return all that would tell more now, whether or not it is under way."""
        if self._is_size_known():
            ttl = None if self._passed == self._first_mtu else self._next_ttl()
            return [] if ttl is None else [SizeProbe(self._limit(), ttl)]
        passed, limit = self._passed, self._limit()
        sizes = {size for size in self._wanted if passed < size < limit}
        if not sizes:
            sizes = set(self._spread(passed, limit))
            self._wanted |= sizes
        return [SizeProbe(size, DESTINATION_TTL) for size in sorted(sizes)]

    def _spread(self, passed: int, limit: int) -> Iterator[int]:
        """Yield sizes that divide what is open evenly; the least there is before one has passed."""
        least = MTU_MIN[self._version]
        if passed == 0:
            if least < limit:
                yield least
            return
        for part in range(1, SPREAD + 1):
            size = passed + (limit - passed) * part // (SPREAD + 1)
            if size > passed:
                yield size

    def _is_message(self, answer: Answer) -> bool:
        """Whether a router says that the packet is too big for its next link."""
        if answer.kind != Kind.ERROR:
            return False
        if answer.version == 6:
            return answer.icmp_type == TOO_BIG_V6
        return (answer.icmp_type, answer.icmp_code) == TOO_BIG_V4

    def _is_believed(self, probe: SizeProbe, answer: Answer) -> bool:
        """Whether what a too-big message says is possible (RFC 1191, section 3; RFC 8201, 4)."""
        if answer.mtu == 0 and answer.version == 4:
            return True
        return MTU_MIN[answer.version] <= answer.mtu < probe.size

    def _take_message(self, probe: SizeProbe, answer: Answer) -> None:
        self._too_big[probe.size] = answer
        said = answer.mtu or max(size for size in (*PLATEAUS, 0) if size < probe.size)
        self._wanted |= {said, said + 1}

    def _message(self, reached: Answer | None) -> Answer | None:
        """Return the message of the router that passes no larger packet.

        reached: what the last hop said that got one. Another router's message may name the right
        size by chance.
        """
        said = self._too_big.get(self._limit())
        messages = (
            each
            for each in self._too_big.values()
            if each
            and each.mtu == self._passed
            and (reached is None or each.responder == reached.responder)
        )
        return said or next(messages, None)

    # ── hops ──

    def _ttls_reached(self) -> Iterator[int]:
        """Yield the TTLs as far as which the smallest packet that is too big has come."""
        limit = self._limit()
        return (probe.ttl for probe in self._came if probe.size == limit)

    def _next_ttl(self) -> int | None:
        """Return the middle one of the TTLs it may have come as far as, None: it is known.

        A hop that never answers tells something only if a message would come from before it. The
        destination is asked too: sometimes the size was lost by chance.
        """
        limit = self._limit()
        nearest = max(self._ttls_reached(), default=0)
        dropped = (probe.ttl for probe in self._dropped if probe.size == limit)
        farthest = min(dropped, default=self._end_ttl + 1)
        ttls = [
            ttl
            for ttl in range(nearest + 1, farthest)
            if ttl in self._answering or self._is_told(limit)
        ]
        return ttls[len(ttls) // 2] if ttls else None

    def _is_told(self, size: int) -> bool:
        """Whether a message says that this size is too big."""
        return self._too_big.get(size) is not None

    def _take_hop(self, probe: SizeProbe, answer: Answer | None) -> None:
        """Learn whether a packet that is too big came as far as a hop."""
        if answer is not None and answer.is_expiry:
            self._came[probe] = answer
        elif answer is not None and self._is_message(answer):
            self._dropped.add(probe)
        else:
            self._tries[probe] += 1
            if self._tries[probe] >= TRIES:
                self._take_silence(probe)

    def _take_silence(self, probe: SizeProbe) -> None:
        """Learn that nothing comes from a hop: it is silent by nature, or got nothing."""
        if self._is_told(probe.size) and probe.ttl not in self._answering:
            self._came[probe] = None
        else:
            self._dropped.add(probe)
