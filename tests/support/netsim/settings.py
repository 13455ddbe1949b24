"""Scenarios as the simulator reads them: scenario.h describes the text, here it is written."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import get_args

from support.netsim.behaviours import (
    Behaviour,
    Checksum,
    Constant,
    Delay,
    Difference,
    Elsewhere,
    ForgedPayload,
    Injection,
    Lognormal,
    NoiseKind,
    Normal,
)
from support.netsim.parts import IcmpError
from support.netsim.route_settings import ns_of, route_lines, router_settings
from support.netsim.scenario import GATEWAY_ADDRESS, SIMULATOR_MAC, Scenario

PLAIN = Behaviour()  # of hosts that have a route alone

Setting = tuple[str, object]


def scenario_text(scenario: Scenario) -> str:
    """Return the scenario as the simulator reads it, a setting a line."""
    return "".join(f"{line}\n" for line in _lines(scenario))


def _lines(scenario: Scenario) -> Iterator[str]:
    yield "netsim 1"
    yield f"seed {scenario.seed}"
    yield f"hosts_max {scenario.limits.hosts}"
    yield f"in_flight_max {scenario.limits.in_flight}"
    yield f"ring_frames {scenario.limits.ring_frames}"
    yield f"record_probes {int(scenario.record == 'probes')}"
    yield f"mac {SIMULATOR_MAC}"
    for address in GATEWAY_ADDRESS.values():
        yield f"gateway {address}"
    for behaviour in (*scenario.behaviour.values(), PLAIN):
        yield from _part("behaviour", _behaviour(behaviour))
    for name, router in scenario.router.items():
        yield from _part("router", router_settings(name, router, scenario.seed))
    routers = _numbers(scenario.router)
    for route in scenario.route.values():
        yield from route_lines(route, routers)
    behaviours, routes = _numbers(scenario.behaviour), _numbers(scenario.route)
    for network, behaviour_name, route_name in scenario.networks():
        number = behaviours.get(behaviour_name or "", len(behaviours))
        yield f"prefix {network} {number}{f' {routes[route_name]}' if route_name else ''}"
    yield "end"


def _part(kind: str, settings: Iterable[Setting]) -> Iterator[str]:
    yield kind
    for name, value in settings:
        yield f"{name} {value}"


def _numbers(named: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(named)}


def _behaviour(behaviour: Behaviour) -> Iterator[Setting]:
    yield from _delay("host_delay", behaviour.delay)
    yield from _delay("jitter", behaviour.jitter)
    yield "reply_ttl", behaviour.reply_ttl
    yield "loss", behaviour.loss
    yield from _fate(behaviour)
    yield from _reply(behaviour)
    yield from _injections(behaviour)


def _delay(name: str, delay: Delay) -> Iterator[Setting]:
    yield f"{name}.kind", get_args(Delay).index(type(delay))
    if isinstance(delay, Constant):
        yield f"{name}.location_ns", ns_of(delay.ms)
        return
    yield f"{name}.min_ns", ns_of(delay.min_ms)
    yield f"{name}.max_ns", ns_of(delay.max_ms)
    if isinstance(delay, Normal):
        yield f"{name}.location_ns", ns_of(delay.mean_ms)
        yield f"{name}.spread", ns_of(delay.deviation_ms)
    elif isinstance(delay, Lognormal):
        yield f"{name}.location_ns", ns_of(delay.median_ms)
        yield f"{name}.spread", delay.sigma


def _fate(behaviour: Behaviour) -> Iterator[Setting]:
    if (burst := behaviour.burst_loss) is not None:
        for name in burst.__struct_fields__:
            yield f"burst_loss.{name}", getattr(burst, name)
    if (limit := behaviour.rate_limit) is not None:
        yield "rate_limit.scope", {"host": 1, "prefix": 2}[limit.per]
        yield "rate_limit.per_second", limit.per_second
        yield "rate_limit.burst", limit.burst
        yield "rate_limit.says_error", int(limit.beyond == "error")
        yield from _icmp_error("rate_limit", limit.error)
    if (error := behaviour.error) is not None:
        yield "error.share", error.share
        yield from _icmp_error("error", error)


def _icmp_error(name: str, error: IcmpError) -> Iterator[Setting]:
    for field in ("type4", "code4", "type6", "code6"):
        yield f"{name}.{field}", getattr(error, field)
    yield from _sources(name, error)
    yield f"{name}.quoted_bytes", 0 if error.quoted == "full" else error.quoted


def _sources(name: str, part: IcmpError | Elsewhere) -> Iterator[Setting]:
    for field in ("from4", "from6"):
        if (address := getattr(part, field)) is not None:
            yield f"{name}.{field}", ip_address(address)


def _reply(behaviour: Behaviour) -> Iterator[Setting]:
    if (reorder := behaviour.reorder) is not None:
        yield "reorder.share", reorder.share
        yield "reorder.delay_ns", ns_of(reorder.delay_ms)
    if (duplicate := behaviour.duplicate) is not None:
        yield "duplicate.share", duplicate.share
        yield "duplicate.copies", duplicate.copies
        yield "duplicate.spacing_ns", ns_of(duplicate.spacing_ms)
    if (elsewhere := behaviour.elsewhere) is not None:
        yield "elsewhere.share", elsewhere.share
        yield from _sources("elsewhere", elsewhere)
    if (truncate := behaviour.truncate) is not None:
        yield "truncate.share", truncate.share
        yield "truncate.payload_bytes", truncate.payload_bytes


def _injections(behaviour: Behaviour) -> Iterator[Setting]:
    if (forged := behaviour.forged) is not None:
        yield from _injection("forged", forged, forged.payload, get_args(ForgedPayload))
    if (corrupted := behaviour.corrupted) is not None:
        yield from _injection("corrupted", corrupted, corrupted.checksum, get_args(Checksum))
    if (foreign := behaviour.foreign_error) is not None:
        yield from _injection("foreign_error", foreign, foreign.differs_in, get_args(Difference))
        yield from _icmp_error("foreign_error", foreign.error)
    if (noise := behaviour.noise) is not None:
        yield from _injection("noise", noise, noise.kind, get_args(NoiseKind))


def _injection(
    name: str, injection: Injection, chosen: tuple[str, ...], kinds: tuple[str, ...]
) -> Iterator[Setting]:
    yield f"{name}.share", injection.share
    yield f"{name}.copies", injection.copies
    yield f"{name}.kinds", sum(1 << kinds.index(kind) for kind in set(chosen))
    yield f"{name}.delay_ns", -1 if injection.delay_ms is None else ns_of(injection.delay_ms)
