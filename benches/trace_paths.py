"""The truth about the paths of the trace benches."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Target n is `first` + n and lies behind the same routers as all others."""

    source: IPv4Address
    first: IPv4Address
    routers: tuple[str, ...]

    @property
    def hops(self) -> int:
        """How many there are to a target, which is the last one."""
        return len(self.routers) + 1

    def targets(self, count: int) -> list[str]:
        """Return the first targets."""
        return [str(self.first + number) for number in range(count)]

    def found(self, target: str, responders: Mapping[int, str]) -> int:
        """Count the TTLs whose responder is the true hop of a path."""
        truth = enumerate((*self.routers, target), 1)
        return sum(responders.get(ttl) == address for ttl, address in truth)
