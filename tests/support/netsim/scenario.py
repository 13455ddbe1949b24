"""Scenarios: what a simulated network does, read from TOML and checked.

Prefixes have a behaviour (behaviours.py), a route (routes.py) or both; every address of a prefix
is a host of its own, the longest prefix decides. Without a route a host answers echo requests of
any TTL. Times are milliseconds, shares are of the requests to a host, 0 to 1. The classes say what
each field means; `scenarios/` has whole examples.
"""

import tomllib
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from support.netsim.behaviours import Behaviour
from support.netsim.extension import extension_bytes
from support.netsim.graph import graph_of
from support.netsim.parts import Part, ScenarioError, check_part, convert
from support.netsim.routes import Route, Router

HOST_ADDRESS = {4: "198.18.0.1", 6: "2001:2::1"}  # RFC 2544 and RFC 5180: benchmarks
GATEWAY_ADDRESS = {4: "198.18.0.2", 6: "2001:2::2"}
LINK = {4: "198.18.0.0/30", 6: "2001:2::/64"}
NOWHERE = {4: "192.0.2.0/24", 6: "2001:db8::/64"}  # quoted as destinations of foreign probes
SIMULATOR_MAC = "02:4e:53:49:4d:01"
EXTENSION_MAX_BYTES = 256  # topology.h
NATS_MAX = 4  # nat.h

Network = IPv4Network | IPv6Network


class Hosts(Part, frozen=True):
    """Prefixes, the name of what their hosts do, and of the route to them; one of both at least."""

    prefixes: Annotated[tuple[str, ...], Meta(min_length=1)]
    behaviour: str | None = None
    route: str | None = None


class Limits(Part, frozen=True):
    """What the simulator holds; a truth that ran into one of them is refused."""

    hosts: Annotated[int, Meta(ge=1, le=1 << 26)] = 1 << 20
    in_flight: Annotated[int, Meta(ge=1, le=1 << 26)] = 1 << 22
    ring_frames: Annotated[int, Meta(ge=64, le=1 << 18)] = 1 << 15


class Attached(NamedTuple):
    """A prefix, and the names of what is attached to it."""

    network: Network
    behaviour: str | None
    route: str | None


class Scenario(Part, frozen=True, kw_only=True):
    """A network.

    record: "targets" keeps counts for each target, "probes" each request and packet as well.
    """

    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    record: Literal["targets", "probes"] = "targets"
    limits: Limits = Limits()
    hosts: Annotated[tuple[Hosts, ...], Meta(min_length=1)]
    behaviour: Mapping[str, Behaviour] = {}
    router: Mapping[str, Router] = {}
    route: Mapping[str, Route] = {}

    def networks(self) -> Iterator[Attached]:
        """Yield every prefix with what is attached to it."""
        for hosts in self.hosts:
            for prefix in hosts.prefixes:
                yield Attached(ip_network(prefix), hosts.behaviour, hosts.route)


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file; ScenarioError names the field that is wrong."""
    return parse_scenario(path.read_text())


def parse_scenario(text: str) -> Scenario:
    """Read a scenario from TOML; ScenarioError names the field that is wrong."""
    try:
        return make_scenario(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"scenario: {error}") from error


def make_scenario(table: Mapping[str, Any]) -> Scenario:
    """Check a scenario given as tables; ScenarioError names the field that is wrong."""
    behaviours = _read_each(table, "behaviour", Behaviour)
    routes = _read_each(table, "route", Route)
    if not behaviours and not routes:
        raise ScenarioError("behaviour: not a table of at least one behaviour, and no route")
    routers = _read_each(table, "router", Router)
    bare = {**table, "behaviour": {}, "router": {}, "route": {}}
    scenario: Scenario = convert(bare, Scenario, "")
    scenario = msgspec.structs.replace(scenario, behaviour=behaviours, router=routers, route=routes)
    check_scenario(scenario)
    return scenario


def check_scenario(scenario: Scenario) -> None:
    """Check what the parts of a scenario say of each other; ScenarioError names the field."""
    for name, router in scenario.router.items():
        if len(extension_bytes(router.extension, router.mpls)) > EXTENSION_MAX_BYTES:
            raise ScenarioError(f"router.{name}.extension: more than {EXTENSION_MAX_BYTES} bytes")
    for name, route in scenario.route.items():
        _check_route(scenario, route, f"route.{name}")
    _check_hosts(scenario)


def _check_route(scenario: Scenario, route: Route, place: str) -> None:
    graph = graph_of(route, place, scenario.router)
    translating = [node for node in graph.nodes[1:] if _is_nat(scenario.router.get(node))]
    if len(translating) > NATS_MAX:
        raise ScenarioError(f"{place}.hops: more than {NATS_MAX} routers with a NAT")


def _is_nat(router: Router | None) -> bool:
    return router is not None and router.nat is not None


def _read_each(table: Mapping[str, Any], kind: str, part: type[Part]) -> dict[str, Any]:
    """Read the tables of a kind one by one, so that a fault is told with its table's name."""
    bodies = table.get(kind, {})
    if not isinstance(bodies, Mapping):
        raise ScenarioError(f"{kind}: not a table of tables")
    read = {}
    for name, body in bodies.items():
        place = f"{kind}.{name}"
        read[name] = convert(body, part, place)
        check_part(read[name], place)
    return read


def _check_hosts(scenario: Scenario) -> None:
    seen: set[Network] = set()
    for index, hosts in enumerate(scenario.hosts):
        place = f"hosts[{index}]"
        if hosts.behaviour is None and hosts.route is None:
            raise ScenarioError(f"{place}: neither a behaviour nor a route")
        if hosts.behaviour is not None and hosts.behaviour not in scenario.behaviour:
            raise ScenarioError(f"{place}.behaviour: {hosts.behaviour} is not described")
        if hosts.route is not None and hosts.route not in scenario.route:
            raise ScenarioError(f"{place}.route: {hosts.route} is not described")
        for position, prefix in enumerate(hosts.prefixes):
            network = _network(prefix, f"{place}.prefixes[{position}]")
            if network in seen:
                raise ScenarioError(f"{place}.prefixes[{position}]: {prefix} comes twice")
            seen.add(network)


def _network(prefix: str, field: str) -> Network:
    try:
        network = ip_network(prefix)
    except ValueError as error:
        raise ScenarioError(f"{field}: {error}") from error
    for taken in (LINK[network.version], NOWHERE[network.version]):
        if network.overlaps(ip_network(taken)):
            raise ScenarioError(f"{field}: {prefix} overlaps {taken}, which has another use")
    return network
