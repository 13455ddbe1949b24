"""Which addresses may be probed: judged by address, after resolution, at the last gate.

Every address belongs to one class of the IANA special-purpose registries (RFC 6890) or to the
public rest. An agent probes the public internet unless one local line opens more; a person at a
command line may probe anything that is not a crowd. IPv4 addresses inside IPv6 ones (mapped,
NAT64, 6to4, Teredo) are judged as the IPv4 address a packet would end at.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Generic, NamedTuple, Self, TypeVar

from netsonde.errors import ConfigError, TargetDeniedError

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network
T = TypeVar("T")

VERSION_DIGITS = 12  # 48 bits: enough to tell the rule sets of a fleet apart
RULES_MAX = 100_000  # a deny list of this size still loads within a second


class AddressClass(StrEnum):
    """What an address is for; the values read well after "is"."""

    PUBLIC = "public"
    PRIVATE = "private (RFC 1918)"
    SHARED = "shared carrier space (RFC 6598)"
    UNIQUE_LOCAL = "unique local (RFC 4193)"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    METADATA = "a cloud metadata service"
    RESERVED = "reserved"
    MULTICAST = "multicast"
    BROADCAST = "the broadcast address"
    UNSPECIFIED = "the unspecified address"


NEVER = frozenset({AddressClass.MULTICAST, AddressClass.BROADCAST, AddressClass.UNSPECIFIED})
WORDS = {
    "public": frozenset({AddressClass.PUBLIC}),
    "private": frozenset(
        {AddressClass.PRIVATE, AddressClass.SHARED, AddressClass.UNIQUE_LOCAL},
    ),
}

# IANA's IPv4 and IPv6 special-purpose address registries; the longest prefix decides.
_RANGES: dict[AddressClass, tuple[str, ...]] = {
    AddressClass.PUBLIC: (
        "0.0.0.0/0",
        "192.0.0.9/32",  # port control anycast, RFC 7723
        "192.0.0.10/32",  # TURN anycast, RFC 8155
        "2000::/3",
        "2001:1::1/128",
        "2001:1::2/128",
        "2001:1::3/128",
        "2001:3::/32",  # AMT, RFC 7450
        "2001:4:112::/48",  # AS112, RFC 7535
    ),
    AddressClass.PRIVATE: ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    AddressClass.SHARED: ("100.64.0.0/10",),
    AddressClass.UNIQUE_LOCAL: ("fc00::/7",),
    AddressClass.LOOPBACK: ("127.0.0.0/8", "::1/128"),
    AddressClass.LINK_LOCAL: ("169.254.0.0/16", "fe80::/10"),
    # Whoever reaches one of these from inside a cloud machine can become that machine.
    AddressClass.METADATA: (
        "169.254.169.254/32",
        "169.254.170.2/32",
        "169.254.170.23/32",
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.192/32",
        "fd00:ec2::254/128",
        "fd00:ec2::23/128",
        "fd20:ce::254/128",
    ),
    AddressClass.RESERVED: (
        "0.0.0.0/8",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
        "::/0",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
    ),
    AddressClass.MULTICAST: ("224.0.0.0/4", "ff00::/8"),
    AddressClass.BROADCAST: ("255.255.255.255/32",),
    AddressClass.UNSPECIFIED: ("0.0.0.0/32", "::/128"),
}

_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_EMBEDDING = (
    IPv6Network("::ffff:0:0/96"),
    IPv6Network("64:ff9b::/96"),
    _NAT64_LOCAL,
    IPv6Network("2002::/16"),
    IPv6Network("2001::/32"),
)
MAPPED_BITS = 96  # of ::ffff:0:0/96 before the IPv4 address
_THIS_NETWORK = IPv4Network("0.0.0.0/8")


class _Prefixes(Generic[T]):
    """A map from prefixes to values; one dictionary look-up per prefix length in use."""

    def __init__(self) -> None:
        self._lengths: dict[int, dict[int, dict[int, tuple[IpNetwork, T]]]] = {4: {}, 6: {}}

    def add(self, network: IpNetwork, value: T) -> None:
        lengths = self._lengths[network.version]
        by_start = lengths.setdefault(network.prefixlen, {})
        by_start[int(network.network_address)] = (network, value)
        self._lengths[network.version] = dict(sorted(lengths.items(), reverse=True))

    def find(self, address: IpAddress) -> tuple[IpNetwork, T] | None:
        """Return the longest prefix that contains address, with its value."""
        value, bits = int(address), address.max_prefixlen
        for length, by_start in self._lengths[address.version].items():
            shift = bits - length
            if (found := by_start.get(value >> shift << shift)) is not None:
                return found
        return None


class _Refusal(NamedTuple):
    """Why an address may not be probed, and the rule that would open it, if one can."""

    text: str
    rule: str | None


def _registry() -> _Prefixes[AddressClass]:
    prefixes = _Prefixes[AddressClass]()
    for kind, ranges in _RANGES.items():
        for text in ranges:
            prefixes.add(ip_network(text), kind)
    return prefixes


_REGISTRY = _registry()


def embedded(address: IpAddress) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses inside an IPv6 address; empty when it is not such a form.

    The local NAT64 prefix does not say how long an operator's own prefix in it is, so every
    reading of RFC 6052 2.2 counts that is not 0.0.0.0/8. Teredo carries a server and a client.
    """
    if address.version == 4:
        return ()
    value = int(address)
    if address in _EMBEDDING[0] or address in _EMBEDDING[1]:
        return (IPv4Address(value & 0xFFFF_FFFF),)
    if address in _NAT64_LOCAL:
        readings = tuple(_nat64_readings(value))
        return tuple(each for each in readings if each not in _THIS_NETWORK) or readings
    if (inner := address.sixtofour) is not None:
        return (inner,)
    return address.teredo or ()


def _nat64_readings(value: int) -> Iterator[IPv4Address]:
    without_u = (value >> 64 << 56) | (value & (1 << 56) - 1)  # RFC 6052: bits 64-71 are skipped
    for prefix_length in (48, 56, 64):
        yield IPv4Address(without_u >> (120 - prefix_length - 32) & 0xFFFF_FFFF)
    yield IPv4Address(value & 0xFFFF_FFFF)


def _registered(address: IpAddress) -> tuple[IpNetwork, AddressClass]:
    found = _REGISTRY.find(address)
    if found is None:
        raise AssertionError(f"no class covers {address}")
    return found


class TargetPolicy:
    """Rules that say which addresses this process may send packets to.

    `allow` holds the words `public` and `private` and prefixes; `deny` prefixes always win; `own`
    and `control_plane` are this host's and its control plane's addresses, which only a prefix in
    `allow` opens. Multicast, broadcast and unspecified addresses are never opened, metadata
    services only by their own /32 or /128. `version` is a short hash of `allow` and `deny`, equal
    on every host with the same rules.

    Raises:
        ConfigError: a rule is neither a word nor a prefix.
    """

    def __init__(
        self,
        allow: Sequence[str] = ("public",),
        *,
        deny: Sequence[str] = (),
        own: Collection[str] = (),
        control_plane: Collection[str] = (),
    ) -> None:
        self._allow_rules = _rules("targets", allow)
        self._allowed_classes = frozenset[AddressClass]().union(
            *(WORDS.get(rule, ()) for rule in self._allow_rules)
        )
        self._allow = _Prefixes[None]()
        for rule in self._allow_rules:
            if rule not in WORDS:
                self._allow.add(_openable(_network("targets", rule)), None)
        self._deny_rules = _rules("deny", deny)
        self._deny = _load("deny", deny)
        self._more_deny = _Prefixes[None]()
        self._own = _load("own addresses", own)
        self._control_plane = _load("control plane addresses", control_plane)
        self.version = _digest(self._allow_rules, self._deny_rules)

    @classmethod
    def person(cls) -> Self:
        """Return the policy of a person at a command line: anything but crowds and nobody."""
        return cls(("0.0.0.0/0", "::/0", *_RANGES[AddressClass.METADATA]))

    def prepare_deny(self, more: Sequence[str]) -> Callable[[], None]:
        """Return what makes `more` be denied beside the policy's own rules, in place of earlier.

        Raises:
            ConfigError: a rule is no prefix, or there are too many.
        """
        rules = _rules("deny", (*self._deny_rules, *_rules("deny", more)))
        prefixes, version = _load("deny", more), _digest(self._allow_rules, rules)

        def commit() -> None:
            self._more_deny, self.version = prefixes, version

        return commit

    def check(self, address: str) -> None:
        """Pass when address may be probed.

        A zone (`fe80::1%eth0`) is ignored.

        Raises:
            TargetDeniedError: it may not; the message names the rule that would allow it.
        """
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            raise TargetDeniedError(f"{address!r} is not an IP address") from None
        refusal = self._judge(parsed)
        if refusal is None:
            return
        message = f"{address} {refusal.text}"
        if refusal.rule is None:
            raise TargetDeniedError(message)
        line = ", ".join(f'"{rule}"' for rule in (*self._allow_rules, refusal.rule))
        raise TargetDeniedError(f"{message}; this line would allow it: targets = [{line}]")

    def _judge(self, address: IpAddress) -> _Refusal | None:
        if denied := self._deny.find(address) or self._more_deny.find(address):
            return _Refusal(f"is denied by the rule {denied[0]}, which nothing overrides", None)
        inner = embedded(address)
        for each in inner:
            if (refusal := self._judge(each)) is not None:
                return _Refusal(f"carries {each}, which {refusal.text}", refusal.rule)
        if not inner:
            return self._judge_plain(address)
        if (role := self._role(address, AddressClass.PUBLIC)) is not None:
            return _Refusal(f"is {role}: no rule allows that", None)
        return None

    def _judge_plain(self, address: IpAddress) -> _Refusal | None:
        network, kind = _registered(address)
        if kind in NEVER:
            return _Refusal(f"is {kind}: no rule allows that", None)
        if (opened := self._allow.find(address)) is not None and (
            kind is not AddressClass.METADATA or opened[0].num_addresses == 1
        ):
            return None
        alone = f"{address}/{address.max_prefixlen}"
        if (role := self._role(address, kind)) is not None:
            return _Refusal(f"is {role}", alone)
        if kind in self._allowed_classes:
            return None
        if kind is AddressClass.PUBLIC:
            return _Refusal(f"is {kind}, and the policy does not allow that", "public")
        return _Refusal(f"is {kind}", str(network) if network.prefixlen else alone)

    def _role(self, address: IpAddress, kind: AddressClass) -> str | None:
        """Name what makes address dangerous by itself, whatever words allow its class."""
        if kind is AddressClass.METADATA:
            return str(kind)
        if self._own.find(address) is not None:
            return "one of this host's own addresses"
        return "the control plane" if self._control_plane.find(address) is not None else None


def _rules(setting: str, rules: Collection[str]) -> tuple[str, ...]:
    listed = (rules,) if isinstance(rules, str) else tuple(rules)
    if len(listed) > RULES_MAX:
        raise ConfigError(f"{setting}: {len(listed)} rules, at most {RULES_MAX} are allowed")
    return listed


def _network(setting: str, rule: str) -> IpNetwork:
    try:
        network = ip_network(rule if "/" in rule else rule.partition("%")[0], strict=False)
    except ValueError:
        words = ", ".join(f'"{word}"' for word in WORDS)
        choice = f"{words} or a prefix" if setting == "targets" else "an address or a prefix"
        raise ConfigError(f'{setting}: "{rule}" is not {choice} such as 10.0.0.0/8') from None
    if "/" in rule and ip_address(rule.partition("/")[0]) != network.network_address:
        raise ConfigError(f'{setting}: "{rule}" has host bits set; write {network}')
    return network


def _openable(network: IpNetwork) -> IpNetwork:
    if isinstance(network, IPv6Network) and any(network.subnet_of(each) for each in _EMBEDDING):
        raise ConfigError(
            f'targets: "{network}" only holds addresses that carry an IPv4 address and are judged '
            "by it; write the IPv4 prefix"
        )
    return network


def _load(setting: str, rules: Collection[str]) -> _Prefixes[None]:
    prefixes = _Prefixes[None]()
    for rule in _rules(setting, rules):
        network = _network(setting, rule)
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= MAPPED_BITS:
            network = IPv4Network((mapped, network.prefixlen - MAPPED_BITS))
        prefixes.add(network, None)
    return prefixes


def _digest(allow: Sequence[str], deny: Sequence[str]) -> str:
    lines = [f"allow {rule}" for rule in sorted(set(allow))]
    lines += [f"deny {rule}" for rule in sorted(set(deny))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:VERSION_DIGITS]
