"""Topologies that are made, not written: a chain for benchmarks, and random ones by a seed."""

import itertools
import random
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Literal, get_args

import msgspec

from support.netsim.parts import Part, Quoted
from support.netsim.routes import (
    DESTINATION,
    HOST,
    Label,
    Link,
    LinkBetween,
    Nat,
    Restores,
    Route,
    Router,
    TokenBucket,
)
from support.netsim.scenario import Hosts, Limits, Scenario, check_scenario

CHAIN = {4: ip_address("10.16.0.0"), 6: ip_address("fd16::")}
CHAIN_ROUTERS = {4: ip_address("10.17.0.0"), 6: ip_address("fd17::")}
CHAIN_MAX = 1 << 16
RANDOM = {4: ip_address("10.32.0.0"), 6: ip_address("fd32::")}
RANDOM_ROUTERS = {4: ip_address("10.64.0.0"), 6: ip_address("fd64::")}
RANDOM_NATS = {4: ip_address("10.48.0.0"), 6: ip_address("fd48::")}
TRUNK_HOPS = 2
DIAMOND_MAX_HOPS = 3


def chain_destination(family: int, number: int) -> str:
    """Return the address of one of trace_chain's destinations, numbered from 0."""
    return str(CHAIN[family] + number)


def chain_router(family: int, ttl: int) -> str:
    """Return the address of trace_chain's router at a TTL."""
    return str(CHAIN_ROUTERS[family] + ttl)


def trace_chain(
    *,
    rtt_ms: float = 0.0,
    loss: float = 0.0,
    destinations: int = 4096,
    hops: int = 16,
    delay: Literal["first", "spread"] = "first",
    seed: int = 1,
    record: Literal["targets", "probes"] = "targets",
) -> Scenario:
    """Return many destinations behind one path, each of them its last hop.

    rtt_ms: of every hop, all of it on the first link; when spread evenly, of the destination. loss:
    of probes whose round trip fails, the same for every hop: half of it each way of the first link.
    Destinations and routers have the addresses of chain_destination and chain_router.
    """
    if not 1 <= destinations <= CHAIN_MAX or not 1 <= hops <= 255:
        raise ValueError(f"destinations 1 to {CHAIN_MAX}, hops 1 to 255")
    bits = (destinations - 1).bit_length()
    prefixes = f"{CHAIN[4]}/{32 - bits}", f"{CHAIN[6]}/{128 - bits}"
    names = [f"r{ttl}" for ttl in range(1, hops)]
    each_way = 1 - (1 - loss) ** 0.5
    one_way_ms = rtt_ms / 2 / (1 if delay == "first" else hops)
    first = LinkBetween(
        between=(HOST, names[0] if names else DESTINATION),
        delay_ms=one_way_ms, loss=each_way, return_loss=each_way,
    )  # fmt: skip
    links = (first,) if rtt_ms or loss else ()
    later = Link(delay_ms=0.0 if delay == "first" else one_way_ms)
    scenario = Scenario(
        seed=seed,
        record=record,
        limits=Limits(ring_frames=1 << 16),  # all probes to 4096 destinations at once
        hosts=(Hosts(prefixes=prefixes, route="chain"),),
        route={"chain": Route(hops=tuple(names), link=later, links=links)},
        router={
            name: Router(address4=chain_router(4, ttl), address6=chain_router(6, ttl))
            for ttl, name in enumerate(names, 1)
        },
    )
    check_scenario(scenario)
    return scenario


class Shape(Part, frozen=True):
    """What random topologies are like. Pairs are bounds, the rest are shares of what can have it.

    hops: to the destination, on its longest way. diamonds: of the places where one can begin; they
    are `width` wide, 1 to 3 hops long and have one router between them; meshed: those in which each
    hop is joined to every next one. uneven: diamonds with a shorter branch. nat: of routes, on one
    router. limited: routers with `limit`. loss: of probes, a half on each way of the first link.
    """

    hops: tuple[int, int] = (4, 20)
    diamonds: float = 0.4
    width: tuple[int, int] = (2, 16)
    meshed: float = 0.2
    uneven: float = 0.0
    mpls: float = 0.2
    nat: float = 0.2
    silent: float = 0.08
    limited: float = 0.08
    limit: TokenBucket = TokenBucket(per_second=100, burst=10)
    loss: float = 0.0
    delay_ms: tuple[float, float] = (0.05, 1.0)
    quoted: tuple[Quoted, ...] = (8, 28, "full")


ORDINARY = Shape()


@dataclass
class _Maker:
    """Makes routers and routes, each from the next draws of one stream of chance."""

    chance: random.Random
    shape: Shape
    routers: dict[str, Router] = field(default_factory=dict)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def route(self, trunk: list[str]) -> Route:
        """Return a route that begins with the trunk."""
        longest = self.chance.randint(*self.shape.hops)
        hops: list[Any] = trunk[: longest - 1]
        length = len(hops)
        while length < longest - 1:
            room = longest - 2 - length  # a diamond has a router behind it
            if room > 0 and self._is(self.shape.diamonds):
                depth = self.chance.randint(1, min(DIAMOND_MAX_HOPS, room))
                hops += self._diamond(depth)
                length += depth
            hops.append(self._router())
            length += 1
        self._translate([hop for hop in hops[TRUNK_HOPS:] if isinstance(hop, str)])
        each_way = 1 - (1 - self.shape.loss) ** 0.5
        first = LinkBetween(
            between=(HOST, hops[0] if hops else DESTINATION), delay_ms=self._delay_ms(),
            loss=each_way, return_loss=each_way,
        )  # fmt: skip
        return Route(hops=tuple(hops), link=Link(delay_ms=self._delay_ms()), links=(first,))

    def plain(self) -> str:
        """Make a router that has nothing wrong."""
        return self._add()

    def _router(self) -> str:
        return self._add(
            silent=self._is(self.shape.silent),
            rate_limit=self.shape.limit if self._is(self.shape.limited) else None,
            quoted=self.chance.choice(self.shape.quoted),
            quoted_ttl=self.chance.choice((0, 1)),
            reply_ttl=self.chance.choice((64, 255)),
            mpls=self._labels() if self._is(self.shape.mpls) else (),
        )

    def _diamond(self, depth: int) -> list[Any]:
        """Return the hops of a diamond, whose branches have `depth` routers each."""
        width = self.chance.randint(*self.shape.width)
        if self._is(self.shape.meshed):
            return [[self._router() for _ in range(width)] for _ in range(depth)]
        branches = [[self._router() for _ in range(depth)] for _ in range(width)]
        if width > 1 and self._is(self.shape.uneven):
            self.routers.pop(branches[-1].pop())
        return [branches]

    def _translate(self, names: list[str]) -> None:
        """Let one of these routers be a NAT, perhaps."""
        if not names or not self._is(self.shape.nat):
            return
        name, number = self.chance.choice(names), next(self.numbers)
        nat = Nat(
            address4=str(RANDOM_NATS[4] + number), address6=str(RANDOM_NATS[6] + number),
            restores=self.chance.choice(get_args(Restores)),
        )  # fmt: skip
        self.routers[name] = msgspec.structs.replace(self.routers[name], nat=nat)

    def _labels(self) -> tuple[Label, ...]:
        return tuple(
            Label(label=self.chance.randrange(16, 1 << 20), tc=self.chance.randrange(8))
            for _ in range(self.chance.randint(1, 3))
        )

    def _add(self, **settings: Any) -> str:
        number = next(self.numbers)
        name = f"r{number}"
        self.routers[name] = Router(
            address4=str(RANDOM_ROUTERS[4] + number), address6=str(RANDOM_ROUTERS[6] + number),
            **settings,
        )  # fmt: skip
        return name

    def _is(self, share: float) -> bool:
        return self.chance.random() < share

    def _delay_ms(self) -> float:
        return round(self.chance.uniform(*self.shape.delay_ms), 3)


def random_destination(family: int, number: int) -> str:
    """Return the address of one of random_topology's destinations, numbered from 0."""
    return str(RANDOM[family] + number)


def random_topology(
    seed: int,
    *,
    destinations: int = 16,
    shape: Shape = ORDINARY,
    record: Literal["targets", "probes"] = "probes",
) -> Scenario:
    """Return a network with a route of its own for each destination, the same for the same seed.

    The first two routers are those of all routes and have nothing wrong. Destinations have the
    addresses of random_destination; paths.paths_to says what is on the way to each.
    """
    chance = random.Random(seed)
    maker = _Maker(chance, shape)
    trunk = [maker.plain(), maker.plain()]
    routes = {f"to{number}": maker.route(trunk) for number in range(destinations)}
    hosts = tuple(
        Hosts(
            prefixes=(
                f"{random_destination(4, number)}/32",
                f"{random_destination(6, number)}/128",
            ),
            route=f"to{number}",
        )
        for number in range(destinations)
    )
    scenario = Scenario(seed=seed, record=record, hosts=hosts, route=routes, router=maker.routers)
    check_scenario(scenario)
    return scenario
