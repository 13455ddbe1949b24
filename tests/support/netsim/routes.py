"""Routers, links and routes: what lies between the host and its destinations.

    [[hosts]]
    prefixes = ["10.20.0.0/16"]
    route = "wide"

    [route.wide]
    hops = ["a", ["b1", "b2", ["c1", "c2"]], "d"]

    [router.a]
    address4 = "10.21.0.1"

A probe's TTL expires at the router that is its TTL's hop; the destination comes after the last one.
graph.py says how `hops` are joined, paths.py what follows for a destination.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from support.netsim.parts import Byte, Copies, Milliseconds, Part, Quoted, Rate, Share

Protocol = Literal["icmp", "udp", "tcp"]
Mtu = Annotated[int, Meta(ge=68, le=65_535)]  # RFC 791 3.2: the least
Balance = Literal["flow", "packet", "destination"]
Restores = Literal["everything", "addresses", "nothing"]
LengthField = Literal["right", "zero", "long", "short"]

HOST = "host"  # where every route begins
DESTINATION = "destination"
NOWHERE = "nowhere"
RESERVED = (HOST, DESTINATION, NOWHERE)


class TokenBucket(Part, frozen=True):
    """So many answers a second on average, and so many at once; full at first."""

    per_second: Rate
    burst: Annotated[float, Meta(ge=1, le=1e9)] = 1.0


class Label(Part, frozen=True):
    """An entry of an MPLS label stack (RFC 3032 2.1); the last one says it is the bottom."""

    label: Annotated[int, Meta(ge=0, lt=1 << 20)]
    tc: Annotated[int, Meta(ge=0, le=7)] = 0
    ttl: Byte = 1


class ExtensionObject(Part, frozen=True):
    """An object of an extension structure (RFC 4884 8); data: hexadecimal, whole words."""

    class_: Byte = field(name="class")
    type: Byte = 1
    data: Annotated[str, Meta(pattern="^([0-9a-f]{8})*$", max_length=160)] = ""


class Extension(Part, frozen=True):
    """What follows a quote beside the label stack, and what is wrong with it.

    length: what the ICMP header's length field says; "zero" is the layout from before RFC 4884:
    nothing, and the structure begins after 128 bytes. "long" points behind the packet, "short" is
    less than the RFC allows. object_length: what the first object's header says, "long" being more
    than there is, "short" less than the header itself. checksum "none" is a zero (RFC 4884 7).
    """

    objects: Annotated[tuple[ExtensionObject, ...], Meta(max_length=8)] = ()
    checksum: Literal["right", "wrong", "none"] = "right"
    length: LengthField = "right"
    object_length: Literal["right", "long", "short"] = "right"
    version: Annotated[int, Meta(ge=0, le=15)] = 2


class Nat(Part, frozen=True):
    """Sources are translated in what leaves, in the families that have an address here.

    ports: source ports and ICMP identifiers as well. restores: what is put back in the header that
    an error from behind quotes: everything, all but the transport's checksum, or nothing.
    """

    address4: str | None = None
    address6: str | None = None
    ports: bool = False
    restores: Restores = "everything"


class Refusal(Part, frozen=True):
    """An error in place of forwarding; by default prohibited by administration.

    first: it comes before the TTL is looked at, so that this router never says it has expired.
    silently: without an error.
    """

    protocols: tuple[Protocol, ...] = ("icmp", "udp", "tcp")
    type4: Byte = 3
    code4: Byte = 13
    type6: Byte = 1
    code6: Byte = 1
    first: bool = False
    silently: bool = False


class Router(Part, frozen=True):
    """A router. Without an address of a family it is silent in it; two may have the same.

    balance: how it chooses between several links: by a hash of the flow, by chance for each packet,
    or by a hash of the destination. A flow is source, destination, protocol, the first 4 bytes of
    what follows the IP header, an ICMP message's identifier and the IPv6 flow label. seed: of
    the hash; without one each router has its own. quoted: as for an IcmpError. quoted_ttl: of what
    expired here. reply_ttl: which its own errors start with. tos: of all that leaves. copies: so
    often each error comes.
    """

    address4: str | None = None
    address6: str | None = None
    silent: bool = False
    balance: Balance = "flow"
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    rate_limit: TokenBucket | None = None
    quoted: Quoted = "full"
    quoted_ttl: Literal[0, 1] = 1
    reply_ttl: Annotated[int, Meta(ge=1, le=255)] = 255
    tos: Byte | None = None
    answer_delay_ms: Milliseconds = 0.0
    copies: Copies = 1
    mpls: Annotated[tuple[Label, ...], Meta(max_length=8)] = ()
    extension: Extension = Extension()
    nat: Nat | None = None
    refuses: Refusal | None = None


class Link(Part, frozen=True):
    """A link in both directions.

    return_delay_ms: None is as long as the way there. jitter_ms: up to so much more, each way. mtu:
    of the way there, in bytes of IP packet; an IPv4 packet that may be fragmented always fits.
    reported_mtu: what the router before it says; None is the truth. black_hole: it says nothing.
    """

    delay_ms: Milliseconds = 0.0
    return_delay_ms: Milliseconds | None = None
    jitter_ms: Milliseconds = 0.0
    loss: Share = 0.0
    return_loss: Share = 0.0
    mtu: Mtu | None = None
    reported_mtu: Annotated[int, Meta(ge=0, le=65_535)] | None = None
    black_hole: bool = False


class LinkBetween(Link, frozen=True, kw_only=True):
    """A link between two hops, in the direction of the destination."""

    between: tuple[str, str]


class Destination(Part, frozen=True):
    """What the hosts at the end of a route do. A behaviour may do more with echo requests.

    from4, from6: another address that answers. rate_limit: of each host's answers.
    """

    echo: Literal["reply", "nothing"] = "reply"
    udp: Literal["port_unreachable", "nothing"] = "port_unreachable"
    tcp: Literal["syn_ack", "reset", "nothing"] = "syn_ack"
    from4: str | None = None
    from6: str | None = None
    quoted: Quoted = "full"
    reply_ttl: Annotated[int, Meta(ge=1, le=255)] = 64
    rate_limit: TokenBucket | None = None


class Route(Part, frozen=True):
    """A graph of routers; graph.py says how hops are joined.

    end: where the last hop forwards to: the destination, "nowhere", or a router of this route
    again, which makes a loop. link: every link that is not in `links`. return_hops: routers on the
    way back beside those of the way there.
    """

    hops: tuple[Any, ...] = ()
    end: str = DESTINATION
    link: Link = Link()
    links: tuple[LinkBetween, ...] = ()
    destination: Destination = Destination()
    return_hops: Annotated[int, Meta(ge=0, le=255)] = 0
