"""Scenarios: what a simulated network does, read from TOML and checked.

A behaviour is attached to prefixes; every address of a prefix is a host of its own, the longest
prefix decides. Times are milliseconds, shares are of the requests to a host, 0 to 1. The classes
say what each field means; `scenarios/` has whole examples.
"""

import tomllib
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

HOST_ADDRESS = {4: "198.18.0.1", 6: "2001:2::1"}  # RFC 2544 and RFC 5180: benchmarks
GATEWAY_ADDRESS = {4: "198.18.0.2", 6: "2001:2::2"}
LINK = {4: "198.18.0.0/30", 6: "2001:2::/64"}
NOWHERE = {4: "192.0.2.0/24", 6: "2001:db8::/64"}  # quoted as destinations of foreign probes
SIMULATOR_MAC = "02:4e:53:49:4d:01"
DELAY_MAX_MS = 60_000
PAYLOAD_MAX_BYTES = 1472

Network = IPv4Network | IPv6Network

Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[float, Meta(ge=0, le=DELAY_MAX_MS)]
Copies = Annotated[int, Meta(ge=1, le=8)]
Byte = Annotated[int, Meta(ge=0, le=255)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]

ForgedPayload = Literal["random", "zero", "altered"]
Checksum = Literal["bad", "recomputed"]
Difference = Literal["ident", "sequence", "destination", "payload"]
NoiseKind = Literal["foreign_reply", "short", "long_length", "short_length", "lying_quote"]


class ScenarioError(ValueError):
    """A scenario is not valid; the message begins with the field's name."""


class Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the scenario."""


class Constant(Part, frozen=True, tag_field="distribution", tag="constant"):
    """Always the same delay."""

    ms: Milliseconds = 0.0


class Uniform(Part, frozen=True, tag_field="distribution", tag="uniform"):
    """Any delay from min_ms to max_ms."""

    min_ms: Milliseconds
    max_ms: Milliseconds


class Normal(Part, frozen=True, tag_field="distribution", tag="normal"):
    """Around a mean, clipped to min_ms and max_ms."""

    mean_ms: Milliseconds
    deviation_ms: Milliseconds
    min_ms: Milliseconds = 0.0
    max_ms: Milliseconds = DELAY_MAX_MS


class Lognormal(Part, frozen=True, tag_field="distribution", tag="lognormal"):
    """A long tail: sigma is the standard deviation of the logarithm; clipped."""

    median_ms: Milliseconds
    sigma: Annotated[float, Meta(ge=0, le=10)]
    min_ms: Milliseconds = 0.0
    max_ms: Milliseconds = DELAY_MAX_MS


Delay = Constant | Uniform | Normal | Lognormal


class BurstLoss(Part, frozen=True):
    """Loss after Gilbert and Elliott: a chance to change state, then the state's loss."""

    to_bad: Share
    to_good: Share
    loss_good: Share = 0.0
    loss_bad: Share = 1.0


class Reorder(Part, frozen=True):
    """A share of the replies comes delay_ms later than it would."""

    share: Share
    delay_ms: Milliseconds


class Duplicate(Part, frozen=True):
    """A share of the replies comes again, `copies` times."""

    share: Share
    copies: Copies = 1
    spacing_ms: Milliseconds = 0.0


class Elsewhere(Part, frozen=True):
    """A share of the replies comes from another address, in the families that have one."""

    share: Share
    from4: str | None = None
    from6: str | None = None


class Truncate(Part, frozen=True):
    """A share of the replies has no more than this of its payload; they count as no replies."""

    share: Share
    payload_bytes: Annotated[int, Meta(ge=0, le=PAYLOAD_MAX_BYTES)]


class IcmpError(Part, frozen=True):
    """An ICMP error; its default is host unreachable, from the destination itself.

    quoted: bytes after the quoted IP header, or all that RFC 1812 (576 bytes) and RFC 4443
    (1280 bytes) have room for.
    """

    type4: Byte = 3
    code4: Byte = 1
    type6: Byte = 1
    code6: Byte = 3
    from4: str | None = None
    from6: str | None = None
    quoted: Annotated[int, Meta(ge=8, le=PAYLOAD_MAX_BYTES)] | Literal["full"] = "full"


class ErrorAnswer(IcmpError, frozen=True):
    """A share of the requests is answered by an error and not by a reply."""

    share: Share = 1.0


class RateLimit(Part, frozen=True):
    """A token bucket for replies, of each host or of the whole prefix; it is full at first."""

    per: Literal["host", "prefix"]
    per_second: Rate
    burst: Annotated[float, Meta(ge=1, le=1e9)]
    beyond: Literal["silence", "error"] = "silence"
    error: IcmpError = IcmpError()


class Injection(Part, frozen=True):
    """A share of the requests brings packets nobody asked for, whatever else becomes of it.

    delay_ms: after the request; None draws from 0 to twice the reply's own delay, so that they
    come before the reply as well as after it.
    """

    share: Share
    copies: Copies = 1
    delay_ms: Milliseconds | None = None


class Forged(Injection, frozen=True):
    """Replies of an off-path attacker: all is right but the payload, which a request must have."""

    payload: tuple[ForgedPayload, ...] = get_args(ForgedPayload)


class Corrupted(Injection, frozen=True):
    """Replies with one bit flipped, under their old checksum or under a new one."""

    checksum: tuple[Checksum, ...] = get_args(Checksum)


class ForeignError(Injection, frozen=True):
    """Errors that quote a datagram that was never sent."""

    differs_in: tuple[Difference, ...] = get_args(Difference)
    error: IcmpError = IcmpError()


class Noise(Injection, frozen=True):
    """Foreign replies, packets that end early or lie about a length."""

    kind: tuple[NoiseKind, ...] = get_args(NoiseKind)


class Behaviour(Part, frozen=True):
    """What the hosts of a prefix do.

    delay is drawn once for each host, jitter for each request; a reply takes their sum.
    """

    delay: Delay = Constant()
    jitter: Delay = Constant()
    reply_ttl: Annotated[int, Meta(ge=1, le=255)] = 64
    loss: Share = 0.0
    burst_loss: BurstLoss | None = None
    reorder: Reorder | None = None
    duplicate: Duplicate | None = None
    elsewhere: Elsewhere | None = None
    truncate: Truncate | None = None
    error: ErrorAnswer | None = None
    rate_limit: RateLimit | None = None
    forged: Forged | None = None
    corrupted: Corrupted | None = None
    foreign_error: ForeignError | None = None
    noise: Noise | None = None


class Hosts(Part, frozen=True):
    """Prefixes, and the name of what their hosts do."""

    prefixes: Annotated[tuple[str, ...], Meta(min_length=1)]
    behaviour: str


class Limits(Part, frozen=True):
    """What the simulator holds; a truth that ran into one of them is refused."""

    hosts: Annotated[int, Meta(ge=1, le=1 << 26)] = 1 << 20
    in_flight: Annotated[int, Meta(ge=1, le=1 << 26)] = 1 << 22
    ring_frames: Annotated[int, Meta(ge=64, le=1 << 18)] = 1 << 15


class Scenario(Part, frozen=True, kw_only=True):
    """A network.

    record: "targets" keeps counts for each target, "probes" each request and packet as well.
    """

    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    record: Literal["targets", "probes"] = "targets"
    limits: Limits = Limits()
    hosts: Annotated[tuple[Hosts, ...], Meta(min_length=1)]
    behaviour: Mapping[str, Behaviour]

    def networks(self) -> Iterator[tuple[Network, str]]:
        """Yield every prefix with the name of its behaviour."""
        for hosts in self.hosts:
            for prefix in hosts.prefixes:
                yield ip_network(prefix), hosts.behaviour


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
    behaviours = table.get("behaviour", {})
    if not isinstance(behaviours, Mapping) or not behaviours:
        raise ScenarioError("behaviour: not a table of at least one behaviour")
    read = {
        name: _convert(body, Behaviour, f"behaviour.{name}") for name, body in behaviours.items()
    }
    scenario: Scenario = _convert({**table, "behaviour": {}}, Scenario, "")
    scenario = msgspec.structs.replace(scenario, behaviour=read)
    for name, behaviour in read.items():
        _check_part(behaviour, f"behaviour.{name}")
    _check_hosts(scenario)
    return scenario


def _convert(table: object, kind: type[Any], place: str) -> Any:
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        complaint, _, where = str(error).partition(" - at `$")
        field = f"{place}{where.rstrip('`')}".lstrip(".")
        raise ScenarioError(f"{field or 'scenario'}: {complaint}") from error


def _check_part(part: Part, place: str) -> None:
    """Check what one field says against another, here and in the tables below."""
    for name in part.__struct_fields__:
        value, field = getattr(part, name), f"{place}.{name}"
        if isinstance(value, Part):
            _check_part(value, field)
        elif name in {"from4", "from6"} and value is not None:
            _check_address(value, int(name[-1]), field)
        elif isinstance(value, tuple) and not value:
            raise ScenarioError(f"{field}: nothing to choose from")
    if not isinstance(part, Constant) and getattr(part, "min_ms", 0) > getattr(part, "max_ms", 0):
        raise ScenarioError(f"{place}.min_ms: more than max_ms")


def _check_address(text: str, family: int, field: str) -> None:
    try:
        version = ip_address(text).version
    except ValueError as error:
        raise ScenarioError(f"{field}: {error}") from error
    if version != family:
        raise ScenarioError(f"{field}: {text} is not an IPv{family} address")


def _check_hosts(scenario: Scenario) -> None:
    seen: set[Network] = set()
    for index, hosts in enumerate(scenario.hosts):
        if hosts.behaviour not in scenario.behaviour:
            raise ScenarioError(f"hosts[{index}].behaviour: {hosts.behaviour} is not described")
        for position, prefix in enumerate(hosts.prefixes):
            network = _network(prefix, f"hosts[{index}].prefixes[{position}]")
            if network in seen:
                raise ScenarioError(f"hosts[{index}].prefixes[{position}]: {prefix} comes twice")
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
