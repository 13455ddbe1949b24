"""What a scenario says of one destination: who is at each TTL, over which links, and the end.

The oracle for traceroute. It follows every way at once and knows no chance: loss, rate limits and
flows decide on the network which of it is seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from typing import Literal, NamedTuple

from support.netsim.graph import Edge, graph_of
from support.netsim.routes import DESTINATION, HOST, Label, Nat, Protocol, Route, Router
from support.netsim.scenario import Scenario

How = Literal["expired", "refused", "destination"]
Translation = Literal["", "checksum", "source"]

TTLS_MAX = 255


class Hop(NamedTuple):
    """Who may answer a TTL, and how; a destination and a refusing router answer greater ones too.

    node: a router's name, or "destination". address: None when it says nothing. translated: what of
    the header it quotes shows a NAT: nothing, the transport's checksum alone, or its source too.
    """

    node: str
    address: str | None
    how: How
    is_limited: bool
    labels: tuple[Label, ...]
    translated: Translation


class Link(NamedTuple):
    """A link by the names of its ends; ttl: of the farther one."""

    ttl: int
    tail: str
    head: str


class Narrow(NamedTuple):
    """A link with an MTU, and who says so at which TTL; address: None when nobody does."""

    ttl: int
    address: str | None
    mtu: int
    reported: int


class _State(NamedTuple):
    """Where a probe is, and the NATs it came through."""

    node: str
    crossed: tuple[str, ...]


@dataclass(frozen=True)
class Paths:
    """All ways to a destination. hops: by TTL, from 1 on, as far as a probe can go."""

    destination: str
    hops: tuple[frozenset[Hop], ...]
    links: frozenset[Link]
    narrows: frozenset[Narrow]

    def at(self, ttl: int) -> frozenset[Hop]:
        """Who may answer a TTL; from the last one on always the same."""
        return self.hops[min(ttl, len(self.hops)) - 1]

    def nodes(self, ttl: int) -> frozenset[str]:
        """The names of what lies just so many hops away."""
        return frozenset(link.head for link in self.links if link.ttl == ttl)

    def addresses(self, ttl: int) -> frozenset[str]:
        """The addresses that may answer a TTL."""
        return frozenset(hop.address for hop in self.at(ttl) if hop.address is not None)

    @cached_property
    def answering_links(self) -> frozenset[tuple[int, str | None, str | None]]:
        """Links between hops: the farther one's TTL, and who answers at the ends, None: nobody."""
        address = {
            (ttl, hop.node): hop.address
            for ttl, hops in enumerate(self.hops, 1)
            for hop in hops
            if hop.how != "refused"
        }
        return frozenset(
            (ttl, address.get((ttl - 1, tail)), address.get((ttl, head)))
            for ttl, tail, head in self.links
            if tail != HOST
        )

    @cached_property
    def address_links(self) -> frozenset[tuple[int, str, str]]:
        """Links of which both ends answer."""
        return frozenset(
            (ttl, tail, head)
            for ttl, tail, head in self.answering_links
            if tail is not None and head is not None
        )

    @property
    def nat_ttl(self) -> int | None:
        """The first TTL whose quote shows that a NAT translated it."""
        return next((ttl for ttl, hops in self._each() if any(h.translated for h in hops)), None)

    @property
    def end_ttls(self) -> tuple[int, ...]:
        """How many hops away the destination is, on each way, the least first."""
        return tuple(sorted({link.ttl for link in self.links if link.head == DESTINATION}))

    def stop_reason(self, *, max_hops: int = 30, gap_limit: int = 5) -> str:
        """Why a trace without loss ends that takes the nearest end there is."""
        gap, seen = 0, set[str]()
        for ttl in range(1, max_hops + 1):
            answering = {hop for hop in self.at(ttl) if hop.address is not None}
            hows = {hop.how for hop in answering}
            if hows & {"destination", "refused"}:
                return "completed" if "destination" in hows else "unreachable"
            names = {hop.node for hop in answering}
            if names & seen:
                return "loop"
            seen |= names
            gap = 0 if answering else gap + 1
            if gap == gap_limit:
                return "gap_limit"
        return "max_hops"

    def _each(self) -> Iterator[tuple[int, frozenset[Hop]]]:
        return enumerate(self.hops, 1)


def paths_to(
    scenario: Scenario, destination: str, *, method: Protocol = "icmp", max_hops: int = 30
) -> Paths:
    """Follow the route of a destination, at most so many hops; KeyError when it has none."""
    address = ip_address(destination)
    attached = [each for each in scenario.networks() if address in each.network]
    longest = max(attached, key=lambda each: each.network.prefixlen, default=None)
    if longest is None or longest.route is None:
        raise KeyError(destination)
    walk = _Walk(scenario, scenario.route[longest.route], destination, method)
    return walk.run(min(max_hops, TTLS_MAX))


class _Walk:
    """Follows all ways of a route, TTL by TTL."""

    def __init__(
        self, scenario: Scenario, route: Route, destination: str, method: Protocol
    ) -> None:
        self.routers = scenario.router
        self.route = route
        self.destination = destination
        self.family: Literal[4, 6] = 6 if ":" in destination else 4
        self.method = method
        self.leaving = graph_of(route).leaving

    def run(self, max_hops: int) -> Paths:
        hops: list[frozenset[Hop]] = []
        links: set[Link] = set()
        narrows: set[Narrow] = set()
        states, lasting = {_State(HOST, ())}, frozenset[Hop]()
        while len(hops) < max_hops:
            ttl = len(hops) + 1
            steps = [(state, edge) for state in states for edge in self.leaving[state.node]]
            arrived = {_State(edge.head, self._crossed(state)) for state, edge in steps}
            found = lasting.union(*map(self._met, arrived))
            if not arrived and hops and found == hops[-1]:
                break
            hops.append(found)
            links |= {Link(ttl, edge.tail, edge.head) for _, edge in steps}
            narrows |= {n for _, edge in steps for n in self._narrow(edge, ttl - 1)}
            lasting = lasting.union(*map(self._lasting, arrived))
            states = {state for state in arrived if not self._stops(state)}
        return Paths(self.destination, tuple(hops), frozenset(links), frozenset(narrows))

    def _crossed(self, state: _State) -> tuple[str, ...]:
        """The NATs behind a node; one that comes again in a loop finds its own address."""
        nat = self._nat(state.node)
        if nat is None or getattr(nat, f"address{self.family}") is None:
            return state.crossed
        return state.crossed if state.node in state.crossed else (*state.crossed, state.node)

    def _nat(self, node: str) -> Nat | None:
        router = self.routers.get(node)
        return None if router is None else router.nat

    def _met(self, state: _State) -> Iterator[Hop]:
        """Who answers a probe whose TTL is spent on reaching a node."""
        if state.node == DESTINATION:
            yield self._end(state)
            return
        router = self.routers[state.node]
        if router.refuses is not None and router.refuses.first and self._refuses(router):
            yield from self._refused(state)
        else:
            yield self._router_hop(state, "expired", is_silent=router.silent)

    def _lasting(self, state: _State) -> Iterator[Hop]:
        """Who answers every greater TTL on this way."""
        if state.node == DESTINATION:
            yield self._end(state)
        else:
            yield from self._refused(state)

    def _refused(self, state: _State) -> Iterator[Hop]:
        router = self.routers[state.node]
        if router.refuses is not None and self._refuses(router):
            is_silent = router.silent or router.refuses.silently
            yield self._router_hop(state, "refused", is_silent=is_silent)

    def _refuses(self, router: Router) -> bool:
        return router.refuses is not None and self.method in router.refuses.protocols

    def _stops(self, state: _State) -> bool:
        return state.node == DESTINATION or self._refuses(self.routers[state.node])

    def _router_hop(self, state: _State, how: How, *, is_silent: bool) -> Hop:
        router = self.routers[state.node]
        address: str | None = getattr(router, f"address{self.family}")
        return Hop(
            state.node, None if is_silent else address, how, router.rate_limit is not None,
            router.mpls, self._translated(state.crossed),
        )  # fmt: skip

    def _end(self, state: _State) -> Hop:
        destination = self.route.destination
        elsewhere: str | None = getattr(destination, f"from{self.family}")
        answer = {"icmp": destination.echo, "udp": destination.udp, "tcp": destination.tcp}
        address = None if answer[self.method] == "nothing" else elsewhere or self.destination
        is_quoting = self.method == "udp"
        return Hop(
            DESTINATION, address, "destination", destination.rate_limit is not None, (),
            self._translated(state.crossed) if is_quoting else "",
        )  # fmt: skip

    def _translated(self, crossed: tuple[str, ...]) -> Translation:
        """What shows in a quote once the NATs have restored what they do, the last one first."""
        shown: Translation = ""
        for name in reversed(crossed):
            nat = self._nat(name)
            assert nat is not None
            if nat.restores == "nothing":
                return "source"
            if nat.restores == "addresses" and self._sums_change(nat):
                shown = "checksum"
        return shown

    def _sums_change(self, nat: Nat) -> bool:
        """Whether a translation is under the checksum: ICMPv4 has no pseudo header."""
        return nat.ports or self.method != "icmp" or self.family == 6

    def _narrow(self, edge: Edge, ttl: int) -> Iterator[Narrow]:
        link, router = edge.link, self.routers.get(edge.tail)
        if link.mtu is None:
            return
        address: str | None = None
        if router is not None and not router.silent and not link.black_hole:
            address = getattr(router, f"address{self.family}")
        reported = link.mtu if link.reported_mtu is None else link.reported_mtu
        yield Narrow(ttl, address, link.mtu, reported)
