"""Prefixes as targets: every host of `192.0.2.0/24`, one after the other."""

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

from netsonde.errors import ErrorCode, RequestError

ADDRESSES_MAX = 1 << 24  # an IPv4 /8; a day's work at 200 a second


def is_prefix(text: str) -> bool:
    """Whether text is meant to be a prefix: neither addresses nor names have a slash."""
    return "/" in text


def prefix_of(text: str) -> IPv4Network | IPv6Network:
    """Read a prefix; bits below it do not matter.

    Raises:
        RequestError: it is none, or has more than ADDRESSES_MAX addresses.
    """
    if "%" in text:
        raise _refusal(f"{text!r} is not a prefix: one with a zone cannot be listed")
    try:
        prefix = ip_network(text, strict=False)
    except ValueError as error:
        raise _refusal(f"{text!r} is not a prefix such as 192.0.2.0/24") from error
    if prefix.num_addresses > ADDRESSES_MAX:
        shortest = prefix.max_prefixlen - (ADDRESSES_MAX.bit_length() - 1)
        raise _refusal(
            f"{text} has too many addresses: IPv{prefix.version} prefixes may be /{shortest}"
            " or longer"
        )
    return prefix


def host_count(prefix: IPv4Network | IPv6Network) -> int:
    """Return how many hosts a prefix has."""
    return prefix.num_addresses - 2 * _has_edges(prefix)


def hosts_of(prefix: IPv4Network | IPv6Network) -> Iterator[str]:
    """Return a prefix's hosts one by one: its addresses, but for network and broadcast."""
    edge = int(_has_edges(prefix))
    first = int(prefix.network_address)
    write = _dotted if prefix.version == 4 else _colons
    return map(write, range(first + edge, first + prefix.num_addresses - edge))


def _has_edges(prefix: IPv4Network | IPv6Network) -> bool:
    """Whether the first address names the network and the last is for all (RFC 3021, 4291)."""
    return prefix.version == 4 and prefix.prefixlen < 31


def _dotted(number: int) -> str:
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _colons(number: int) -> str:
    return str(IPv6Address(number))


def _refusal(message: str) -> RequestError:
    return RequestError(ErrorCode.VALIDATION, message, violations=(("$.host", message),))
