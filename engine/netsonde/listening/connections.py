"""Which connections of a listener are open, and which gives way when there are too many."""

from typing import Protocol


class Connection(Protocol):
    """What is counted."""

    def drop(self) -> None:
        """End it at once."""


class Connections:
    """The open connections of one listener, at most `limit`.

    When a newcomer finds no room, one that has not yet sent a whole request, body and all, gives
    way to it, or else one that rests between two requests: the one that has waited for the longest.
    One that is being answered never gives way, and who has no token is answered at once. So many
    that only hold connections cost those that work nothing.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: set[Connection] = set()
        self._new: dict[Connection, None] = {}  # in the order of their coming
        self._resting: dict[Connection, None] = {}  # in the order of their last answers

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, one: Connection) -> bool:
        """Count a connection in; False: all are at work and there is no room."""
        if len(self._open) >= self.limit:
            longest = next(iter(self._new or self._resting), None)
            if longest is None:
                return False
            self.leave(longest)
            longest.drop()
        self._open.add(one)
        self._new[one] = None
        return True

    def work(self, one: Connection) -> None:
        """A whole request has come, or a stream has begun: the connection is being answered."""
        self._new.pop(one, None)
        self._resting.pop(one, None)

    def rest(self, one: Connection) -> None:
        """The answer has gone; what is not open any more stays out."""
        if one in self._open:
            self._resting[one] = None

    def leave(self, one: Connection) -> None:
        """Count a connection out. Idempotent."""
        self._open.discard(one)
        self.work(one)
