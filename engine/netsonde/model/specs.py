"""What to measure: the five kinds of task, and what each of them takes."""

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, field

from netsonde.model.values import Leaf

HOST_MAX = 253  # characters, RFC 1035 2.3.4
HostName = Annotated[str, Meta(min_length=1, max_length=HOST_MAX)]  # or an address
TimeoutMs = Annotated[int, Meta(ge=1, le=60_000)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Ttl = Annotated[int, Meta(ge=1, le=255)]
Family = Literal[4, 6, "any"]
PositiveMs = Annotated[float, Meta(gt=0, le=60_000)]


class TaskKind(StrEnum):
    """The five kinds of measurement."""

    DNS = "dns"
    HTTP = "http"
    TCP = "tcp"
    PING = "ping"
    TRACE = "trace"


class DnsSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="dns"):
    """Ask one DNS server one question.

    `server` is an address with an optional port, absent: the system's resolver. `qtype` is a type
    name or number; absent: A and AAAA, as the original agent asked.
    """

    query: Annotated[str, Meta(min_length=1, max_length=255)]
    server: str | None = None
    qtype: str | int | None = None
    transport: Literal["udp", "tcp"] = "udp"
    timeout_ms: TimeoutMs = 2500
    retries: Annotated[int, Meta(ge=0, le=10)] = 1


class HttpSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="http"):
    """Make one HTTP request over a fresh connection and time its phases.

    `method` is of capital letters. Whoever writes a spec or makes the request insists on that: in
    every lease an expression would cost as much as all else in it.
    """

    url: Annotated[str, Meta(min_length=1, max_length=8192)]
    method: Annotated[str, Meta(min_length=1, max_length=20)] = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    timeout_ms: TimeoutMs = 10_000
    family: Family = "any"
    redirects: Annotated[int, Meta(ge=0, le=20)] = 5
    verify: bool = True
    max_body: Annotated[int, Meta(ge=0, le=64 * 1024 * 1024)] = 1024 * 1024


class TcpSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="tcp"):
    """Open one TCP connection, racing the host's addresses (RFC 8305)."""

    host: HostName
    port: Port
    timeout_ms: TimeoutMs = 5000
    family: Family = "any"


class PingExpect(Leaf, frozen=True, kw_only=True):
    """What a ping must stay below to be `ok`."""

    loss_pct_max: Annotated[float, Meta(ge=0, le=100)] | None = None
    avg_ms_max: PositiveMs | None = None
    p95_ms_max: PositiveMs | None = None
    jitter_ms_max: PositiveMs | None = None


class PingSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="ping"):
    """Send echo requests to one host, or what `method` names.

    `interval_ms` absent: 1000 / rate_limit_per_sec. `size` is the ICMP payload in bytes. `df`
    forbids fragments. `source`, `interface` and `mark` (fwmark) choose the way out. `addresses`:
    the host's first one, or every one. `port` is for methods tcp and udp.
    """

    host: HostName
    count: Annotated[int, Meta(ge=1, le=100_000)] = 4
    interval_ms: Annotated[int, Meta(ge=0, le=60_000)] | None = None
    timeout_ms: TimeoutMs = 1000
    rate_limit_per_sec: Annotated[int, Meta(ge=1, le=100_000)] = 10
    size: Annotated[int, Meta(ge=16, le=65_507)] = 56
    ttl: Ttl = 64
    dscp: Annotated[int, Meta(ge=0, le=63)] = 0
    df: bool = False
    family: Family = "any"
    source: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    interface: Annotated[str, Meta(min_length=1, max_length=15)] | None = None
    mark: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None
    addresses: Literal["first", "all"] = "first"
    method: Literal["icmp", "tcp", "udp"] = "icmp"
    port: Port | None = None
    expect: PingExpect | None = None


class TraceSpec(Leaf, frozen=True, kw_only=True, tag_field="kind", tag="trace"):
    """Find the routers on the way to one host by stepping the TTL; all TTLs are in flight at once.

    A hop is asked again, up to `probes_per_hop` times, while it owes an answer; with `all_probes`
    it gets that many whether it answers or not, `interval_ms` apart. `gap_limit` ends the path
    after that many silent hops in a row. `port` is the destination's, for methods udp (33434) and
    tcp (80). `size` is the payload of methods icmp and udp in bytes. `multipath` finds every path
    that routers balance load over, with `confidence` in percent that none is missed. `pmtud` finds
    the path's MTU too. `source`, `interface` and `mark` (fwmark) choose the way out.
    """

    host: HostName
    max_hops: Ttl = 30
    first_hop: Ttl = 1
    probes_per_hop: Annotated[int, Meta(ge=1, le=100)] = 3
    timeout_ms: TimeoutMs = 1500
    gap_limit: Annotated[int, Meta(ge=1, le=255)] = 5
    family: Family = "any"
    method: Literal["icmp", "udp", "tcp"] = "icmp"
    port: Port | None = None
    size: Annotated[int, Meta(ge=18, le=65_507)] = 20
    dscp: Annotated[int, Meta(ge=0, le=63)] = 0
    all_probes: bool = False
    interval_ms: Annotated[int, Meta(ge=0, le=60_000)] = 100
    multipath: Literal["none", "mda"] = "none"
    confidence: Annotated[float, Meta(ge=50, le=99.9)] = 95
    pmtud: bool = False
    source: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    interface: Annotated[str, Meta(min_length=1, max_length=15)] | None = None
    mark: Annotated[int, Meta(ge=0, le=2**32 - 1)] | None = None


TaskSpec = DnsSpec | HttpSpec | TcpSpec | PingSpec | TraceSpec

SPEC_TYPES: dict[TaskKind, type[TaskSpec]] = {
    TaskKind.DNS: DnsSpec,
    TaskKind.HTTP: HttpSpec,
    TaskKind.TCP: TcpSpec,
    TaskKind.PING: PingSpec,
    TaskKind.TRACE: TraceSpec,
}

# The field of each spec that a check's `targets` fill.
TARGET_FIELDS: dict[TaskKind, str] = {
    TaskKind.DNS: "query",
    TaskKind.HTTP: "url",
    TaskKind.TCP: "host",
    TaskKind.PING: "host",
    TaskKind.TRACE: "host",
}
