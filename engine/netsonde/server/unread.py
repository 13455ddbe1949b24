"""Bodies that are still coming: how many bytes of them are held at once, and who gives way."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from netsonde.clock import NS_PER_S, Clock
from netsonde.errors import ErrorCode, RequestError
from netsonde.listening.connections import Connection

BODIES_MAX_BYTES = 512 * 1024 * 1024  # 128 of the largest reports, on slow ways
STRANGERS_MAX_BYTES = 64 * 1024 * 1024  # of it; what is sent without a token is small
RETRY_AFTER_MS = 1_000
SAID_EVERY_NS = 60 * NS_PER_S

_log = logging.getLogger("netsonde.server")


@dataclass(slots=True, eq=False)
class _Held:
    sender: Connection
    is_proven: bool
    size: int = 0


class UnreadBodies:
    """What is held of the bodies that one listener is being sent, at most `limit` bytes.

    Of those whose sender has not proved who it is, at most `strangers_limit`. When there is more,
    the largest gives way, of strangers first. So whoever sends much of much and ends none of it
    costs those that send little nothing.
    """

    def __init__(
        self,
        clock: Clock,
        limit: int = BODIES_MAX_BYTES,
        strangers_limit: int = STRANGERS_MAX_BYTES,
    ) -> None:
        self.total = 0
        self._strangers = 0
        self._clock = clock
        self._limit = limit
        self._strangers_limit = strangers_limit
        self._held: set[_Held] = set()
        self._said_ns: int | None = None

    @contextmanager
    def reading(self, sender: Connection, *, is_proven: bool) -> Iterator[Callable[[int], None]]:
        """Count a body while it comes; give what to call with the size of each part.

        Raises:
            RequestError: ERR_UNAVAILABLE, this very body gives way.
        """
        held = _Held(sender, is_proven)
        self._held.add(held)
        try:
            yield lambda size: self._grow(held, size)
        finally:
            self._forget(held)

    def _grow(self, held: _Held, size: int) -> None:
        if held not in self._held:
            return  # it gave way, and its connection is ending
        self._count(held, size)
        while self.total > self._limit or self._strangers > self._strangers_limit:
            largest = max(self._held, key=lambda one: (not one.is_proven, one.size))
            self._say()
            self._forget(largest)
            if largest is held:
                raise RequestError(
                    ErrorCode.UNAVAILABLE,
                    "too much is being sent at once",
                    retry_after_ms=RETRY_AFTER_MS,
                )
            largest.sender.drop()

    def _count(self, held: _Held, size: int) -> None:
        held.size += size
        self.total += size
        if not held.is_proven:
            self._strangers += size

    def _forget(self, held: _Held) -> None:
        if held in self._held:
            self._held.remove(held)
            self._count(held, -held.size)

    def _say(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if self._said_ns is None or now_ns - self._said_ns >= SAID_EVERY_NS:
            self._said_ns = now_ns
            _log.warning(
                "more than %d bytes of unfinished bodies, or %d of senders without a token: the"
                " largest give way",
                self._limit,
                self._strangers_limit,
                extra={"action": "bodies_dropped"},
            )
