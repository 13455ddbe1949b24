"""Token buckets, alone and stacked: how often something may start. Pure; time is passed in.

All arithmetic is on integers, so that a bucket that runs for a year has lost or won no token.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from fractions import Fraction

from netsonde.clock import NS_PER_S

RATE_MIN_PPS = 0.000_001  # one packet in 11 days
RATE_MAX_PPS = 1_000_000_000  # more than any link carries: as good as no limit
RATE_DENOMINATOR_MAX = 1_000_000  # a rate given as a float is read as the fraction it means
EVICTION_LOOKS = 8  # how many keys are looked at for one that is full; next time, others


class TokenBucket:
    """Holds up to `burst` tokens and gains `rate` a second; starts full.

    All it knows is when it will be full again (the generic cell rate algorithm, ITU-T I.371): an
    instant in `units` of ns times its gain, so that it is an integer at any rate.

    Raises:
        ValueError: the rate is not positive or the burst below 1.
    """

    __slots__ = ("_burst", "_gain", "_token", "_whole", "full_at")

    def __init__(self, rate: float | Fraction, burst: int) -> None:
        if not 0 < rate < float("inf") or burst < 1:
            raise ValueError(f"a bucket needs rate > 0 and burst >= 1, not {rate} and {burst}")
        exact = Fraction(rate).limit_denominator(RATE_DENOMINATOR_MAX)
        if exact == 0:
            raise ValueError(f"{rate} tokens a second are too few: the least is 0.000001")
        self._burst = burst
        self._gain = exact.numerator  # units per nanosecond
        self._token = exact.denominator * NS_PER_S  # units per token
        self._whole = burst * self._token
        self.full_at = 0

    def like(self) -> "TokenBucket":
        """Return a new bucket of this shape."""
        bucket = TokenBucket.__new__(TokenBucket)
        bucket._burst, bucket._gain, bucket._token = self._burst, self._gain, self._token
        bucket._whole, bucket.full_at = self._whole, 0
        return bucket

    def take(self, count: int, now_ns: int) -> int:
        """Take count tokens and return 0, or take none and return the ns until they are there.

        Raises:
            ValueError: count is below 1 or above the burst, so that waiting cannot help.
        """
        wait_ns = self.peek(count, now_ns)
        if wait_ns == 0:
            self._spend(count, now_ns)
        return wait_ns

    def peek(self, count: int, now_ns: int) -> int:
        """Return what `take` would, taking nothing.

        Raises:
            ValueError: as `take`.
        """
        if not 1 <= count <= self._burst:
            raise ValueError(f"{count} tokens at once from a bucket of {self._burst}")
        late = self.full_at + count * self._token - self._whole - now_ns * self._gain
        return -(-late // self._gain) if late > 0 else 0

    def reserve(self, count: int, now_ns: int) -> int:
        """Take count tokens, be they there or not, and return the ns until they are the caller's.

        Callers that wait as long as they are told come one after another, in the order of asking.

        Raises:
            ValueError: as `take`.
        """
        wait_ns = self.peek(count, now_ns)
        self._spend(count, now_ns)
        return wait_ns

    def is_full(self, now_ns: int) -> bool:
        """Whether a new bucket would be no different."""
        return self.full_at <= now_ns * self._gain

    def bounds(self, now_ns: int) -> tuple[int, int, int]:
        """Return now, up to when a bucket that has a token is full again, and what a token adds."""
        now = now_ns * self._gain
        return now, now + self._whole - self._token, self._token

    def _spend(self, count: int, now_ns: int) -> None:
        self.full_at = max(self.full_at, now_ns * self._gain) + count * self._token


def take_all(buckets: Sequence[TokenBucket], count: int, now_ns: int) -> int:
    """Take count tokens from every bucket and return 0, or from none and return the ns to wait.

    Raises:
        ValueError: as `TokenBucket.take`; nothing was taken.
    """
    wait_ns = max((bucket.peek(count, now_ns) for bucket in buckets), default=0)
    if wait_ns == 0:
        for bucket in buckets:
            bucket.take(count, now_ns)
    return wait_ns


class KeyedBuckets:
    """One bucket of the same shape per key, at most `keys_max` of them.

    A bucket that has filled up again is forgotten when its place is needed: a new one is the same.
    While none has, keys beyond the limit share one bucket, so that nobody gains by using many keys.
    """

    def __init__(self, rate: float | Fraction, burst: int, keys_max: int) -> None:
        if keys_max < 1:
            raise ValueError(f"keys_max must be at least 1, not {keys_max}")
        self._keys_max = keys_max
        self._shared = TokenBucket(rate, burst)
        self._buckets: OrderedDict[object, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: object, now_ns: int) -> TokenBucket:
        """Return the bucket of key, for use at once: another key's turn may take its place."""
        bucket = self._buckets.get(key)
        if bucket is not None:
            return bucket
        if len(self._buckets) >= self._keys_max and not self._evict(now_ns):
            return self._shared
        return self._buckets.setdefault(key, self._shared.like())

    def take_each(self, keys: Iterable[object], now_ns: int) -> list[bool]:
        """Take a token of every key's bucket that has one; return whether, key by key."""
        now, latest, token = self._shared.bounds(now_ns)
        known = self._buckets.get
        taken = []
        for key in keys:
            bucket = known(key) or self.of(key, now_ns)
            full_at = bucket.full_at
            has_one = full_at <= latest
            if has_one:
                bucket.full_at = (full_at if full_at > now else now) + token
            taken.append(has_one)
        return taken

    def _evict(self, now_ns: int) -> bool:
        for key in _first(self._buckets, EVICTION_LOOKS):
            if self._buckets[key].is_full(now_ns):
                del self._buckets[key]
                return True
            self._buckets.move_to_end(key)
        return False


class Pacer:
    """Buckets in a hierarchy: a start needs a token of each level that concerns it.

    `fixed` are the levels that every start passes, such as the agent's. `keyed` are the levels with
    a bucket per key, in the order of the keys given to `take`: kind, prefix, target.
    """

    def __init__(
        self, fixed: Iterable[TokenBucket] = (), keyed: Iterable[KeyedBuckets] = ()
    ) -> None:
        self._fixed = tuple(fixed)
        self._keyed = tuple(keyed)
        self._is_alone = not self._fixed and len(self._keyed) == 1

    def take(self, keys: Sequence[object], now_ns: int) -> int:
        """Take one token of every level and return 0, or take none and return the ns to wait.

        A key of None passes its level.

        Raises:
            ValueError: there are not as many keys as keyed levels.
        """
        return take_all(self._levels(keys, now_ns), 1, now_ns)

    def reserve(self, keys: Sequence[object], now_ns: int) -> int:
        """Take one token of every level, be they there or not, and return the ns to wait.

        Raises:
            ValueError: as `take`.
        """
        return max([bucket.reserve(1, now_ns) for bucket in self._levels(keys, now_ns)], default=0)

    def take_each(self, keys: Sequence[object], now_ns: int) -> list[bool]:
        """Take a token of every level for each key of the one keyed level; return whether.

        Raises:
            ValueError: there is not exactly one keyed level.
        """
        if self._is_alone:
            return self._keyed[0].take_each(keys, now_ns)
        return [self.take((key,), now_ns) == 0 for key in keys]

    def _levels(self, keys: Sequence[object], now_ns: int) -> tuple[TokenBucket, ...]:
        if self._is_alone and len(keys) == 1 and keys[0] is not None:
            return (self._keyed[0].of(keys[0], now_ns),)
        levels = zip(self._keyed, keys, strict=True)
        buckets = [level.of(key, now_ns) for level, key in levels if key is not None]
        return (*self._fixed, *buckets)


def _first(keys: Iterable[object], count: int) -> list[object]:
    return [key for key, _ in zip(keys, range(count), strict=False)]
