"""Where the control plane's clock stands, told by its answers. Pure."""

from netsonde.clock import NS_PER_MS


class ServerClock:
    """The control plane's clock by this host's CLOCK_BOOTTIME.

    An answer that names its server's instant bounds the difference of the two clocks: the instant
    was after the request left and before the answer came. The estimate is the middle of the closest
    bounds so far; it moves when an answer's are twice as close, or when an answer contradicts it,
    and then no further than it must. Between answers, and through an outage, it goes on with
    CLOCK_BOOTTIME. This host's wall clock has no part in it.
    """

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        self._width_ns = 0

    def hear(
        self, server_time_ms: int | None, sent_ns: int, received_ns: int, held_ms: int = 0
    ) -> None:
        """Take note of an answer; it was held for held_ms before its server looked at its clock."""
        if server_time_ms is None:
            return
        server_ns = server_time_ms * NS_PER_MS
        looked_ns = min(sent_ns + max(held_ms, 0) * NS_PER_MS, received_ns)
        least_ns, most_ns = server_ns - received_ns, server_ns + NS_PER_MS - looked_ns
        if self._offset_ns is None or 2 * (most_ns - least_ns) < self._width_ns:
            self._offset_ns = (least_ns + most_ns) // 2
            self._width_ns = most_ns - least_ns
        self._offset_ns = min(max(self._offset_ns, least_ns), most_ns)

    def at_ns(self, boottime_ns: int) -> int | None:
        """Return the control plane's instant at an instant here; None until it has named one."""
        return None if self._offset_ns is None else boottime_ns + self._offset_ns
