"""Routers and routes as the simulator reads them: parts.c lists their settings."""

import hashlib
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import get_args

from support.netsim.extension import extension_bytes
from support.netsim.graph import Graph, graph_of
from support.netsim.routes import (
    Balance,
    Destination,
    LengthField,
    Link,
    Nat,
    Protocol,
    Refusal,
    Restores,
    Route,
    Router,
    TokenBucket,
)

Setting = tuple[str, object]


def ns_of(ms: float) -> int:
    """Return nanoseconds."""
    return round(ms * 1_000_000)


def router_settings(name: str, router: Router, seed: int) -> Iterator[Setting]:
    """Yield what differs from the program's defaults. seed: the scenario's."""
    yield from _addresses("", address4=router.address4, address6=router.address6)
    yield "seed", _seed(name, seed) if router.seed is None else router.seed
    yield "silent", int(router.silent)
    yield "balance", get_args(Balance).index(router.balance)
    yield "quoted_bytes", _quoted(router.quoted)
    yield "quoted_ttl", router.quoted_ttl
    yield "reply_ttl", router.reply_ttl
    yield "answer_delay_ns", ns_of(router.answer_delay_ms)
    yield "copies", router.copies
    yield from _bucket(router.rate_limit)
    if router.tos is not None:
        yield "tos", router.tos
    if structure := extension_bytes(router.extension, router.mpls):
        yield "extension", structure.hex()
        yield "extension.length", get_args(LengthField).index(router.extension.length)
    if router.nat is not None:
        yield from _nat(router.nat)
    if router.refuses is not None:
        yield from _refusal(router.refuses)


def route_lines(route: Route, routers: Mapping[str, int]) -> Iterator[str]:
    """Yield a route's lines. routers: their numbers by name."""
    yield "route"
    for name, value in _destination(route.destination):
        yield f"{name} {value}"
    yield f"return_hops {route.return_hops}"
    graph = graph_of(route)
    numbers = {name: number for number, name in enumerate(graph.nodes)}
    for node in graph.nodes:
        yield f"node {routers.get(node, node)}"
        yield from _edges(graph, node, numbers)


def _edges(graph: Graph, node: str, numbers: Mapping[str, int]) -> Iterator[str]:
    for edge in graph.leaving[node]:
        yield f"edge {numbers[edge.head]}"
        for name, value in _link(edge.link):
            yield f"{name} {value}"


def _seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8])


def _quoted(quoted: int | str) -> int:
    return quoted if isinstance(quoted, int) else 0


def _addresses(prefix: str, **addresses: str | None) -> Iterator[Setting]:
    for name, address in addresses.items():
        if address is not None:
            yield f"{prefix}{name}", ip_address(address)


def _bucket(bucket: TokenBucket | None) -> Iterator[Setting]:
    if bucket is not None:
        yield "limit.per_second", bucket.per_second
        yield "limit.burst", bucket.burst


def _nat(nat: Nat) -> Iterator[Setting]:
    yield from _addresses("nat.", address4=nat.address4, address6=nat.address6)
    yield "nat.ports", int(nat.ports)
    yield "nat.restores", get_args(Restores).index(nat.restores)


def _refusal(refusal: Refusal) -> Iterator[Setting]:
    bits = {protocol: 1 << bit for bit, protocol in enumerate(get_args(Protocol))}
    yield "refuses.protocols", sum(bits[protocol] for protocol in set(refusal.protocols))
    yield "refuses.first", int(refusal.first)
    yield "refuses.silently", int(refusal.silently)
    for name in ("type4", "code4", "type6", "code6"):
        yield f"refuses.{name}", getattr(refusal, name)


def _destination(destination: Destination) -> Iterator[Setting]:
    yield "echo", ("reply", "nothing").index(destination.echo)
    yield "udp", ("port_unreachable", "nothing").index(destination.udp)
    yield "tcp", ("syn_ack", "reset", "nothing").index(destination.tcp)
    yield from _addresses("", from4=destination.from4, from6=destination.from6)
    yield "quoted_bytes", _quoted(destination.quoted)
    yield "reply_ttl", destination.reply_ttl
    yield from _bucket(destination.rate_limit)


def _link(link: Link) -> Iterator[Setting]:
    back_ms = link.delay_ms if link.return_delay_ms is None else link.return_delay_ms
    delays = {"delay": link.delay_ms, "return_delay": back_ms, "jitter": link.jitter_ms}
    for name, ms in delays.items():
        if ms:
            yield f"{name}_ns", ns_of(ms)
    for name in ("loss", "return_loss"):
        if share := getattr(link, name):
            yield name, share
    if link.mtu is not None:
        yield "mtu", link.mtu
        yield "reported_mtu", link.mtu if link.reported_mtu is None else link.reported_mtu
        yield "black_hole", int(link.black_hole)
