"""From a host name to addresses that the target policy lets this process talk to.

Resolution happens once; probers connect to the addresses returned here and never resolve again,
so a name that changes its mind between check and use changes nothing.
"""

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from netsonde.clock import NS_PER_S
from netsonde.errors import ResolveError, TargetDeniedError, remedy
from netsonde.model import Family
from netsonde.policy import TargetPolicy
from netsonde.probe.limits import time_limit
from netsonde.probe.lookup import Entry, SystemLookUp

RESOLVE_TIMEOUT_NS = 5 * NS_PER_S  # the C library's own first try with one name server
ADDRESSES_MAX = 32  # more than any real name has; bounds the work one answer can cause
NAME_MAX = 254  # RFC 1035 2.3.4: 253 characters, and a dot at the end
HOST_SHOWN_MAX = 64
SCOPE_MAX = 2**32 - 1  # RFC 3493 3.3: sin6_scope_id has 32 bits
DENIED_SHOWN_MAX = 8  # refusals that a result lists

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
LookUp = Callable[[str, int], Awaitable[Sequence[Entry]]]

_FAMILIES: dict[int | str, socket.AddressFamily] = {
    4: socket.AF_INET,
    6: socket.AF_INET6,
    "any": socket.AF_UNSPEC,
}
_CAUSES = {
    socket.EAI_NONAME: "the name does not exist",
    socket.EAI_NODATA: "the name exists but has no address",
    socket.EAI_ADDRFAMILY: "the name exists but has no address of that family",
    socket.EAI_AGAIN: "temporary failure, no name server answered; try again",
    socket.EAI_FAIL: "the name server answered with a failure",
}


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a host resolved to: addresses that may be probed and what was left out, and why."""

    addresses: tuple[str, ...]
    denied: tuple[str, ...] = ()


class TargetResolver:
    """Resolves hosts with the system's resolver and lets only vetted addresses out."""

    def __init__(self, policy: TargetPolicy, *, look_up: LookUp | None = None) -> None:
        self.policy = policy
        self._look_up = look_up or SystemLookUp()

    async def addresses(self, host: str, family: Family = "any") -> tuple[str, ...]:
        """Return the addresses of host that may be probed, in the resolver's order.

        Raises:
            ResolveError: host has no address of this family.
            TargetDeniedError: it has, and the policy allows none of them.
        """
        return (await self.resolve(host, family)).addresses

    async def resolve(
        self, host: str, family: Family = "any", *, timeout_ns: int = RESOLVE_TIMEOUT_NS
    ) -> Resolution:
        """Resolve host as `addresses` does, and say which addresses the policy left out."""
        found = literal(host, family) or await self._names(host, family, timeout_ns)
        allowed: list[str] = []
        denied: list[str] = []
        for address in found:
            try:
                self.policy.check(address)
            except TargetDeniedError as error:
                denied.append(str(error))
            else:
                allowed.append(address)
        if not allowed:
            prefix = "" if found == (host,) else f"{host}: "
            raise TargetDeniedError(f"{prefix}{denied[0]}")
        return Resolution(tuple(allowed), tuple(denied[:DENIED_SHOWN_MAX]))

    async def _names(self, host: str, family: Family, timeout_ns: int) -> tuple[str, ...]:
        try:
            async with time_limit(timeout_ns):
                entries = await self._look_up(ascii_host(host), _FAMILIES[family])
        except TimeoutError:
            limit_s = timeout_ns / NS_PER_S
            raise ResolveError(f"{host}: the name was not resolved within {limit_s:g} s") from None
        except socket.gaierror as error:
            cause = _CAUSES.get(error.errno or 0, error.strerror or "unknown failure")
            asked = "" if family == "any" else f" (IPv{family})"
            raise ResolveError(f"{host}: {cause}{asked}") from None
        except OSError as error:
            cause = f"{error.strerror or error}{remedy(error.errno)}"
            raise ResolveError(f"{host}: the resolver failed: {cause}") from None
        if not (addresses := _unique(entries)):
            raise ResolveError(f"{host}: {_CAUSES[socket.EAI_NODATA]}")
        return addresses


def literal(host: str, family: Family = "any") -> tuple[str, ...]:
    """Return host itself when it is an IP address, brackets removed; else nothing.

    Raises:
        ResolveError: it is an address of the other family.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        version = 4 if _is_dotted(bare) else ip_address(bare).version
    except ValueError:
        return ()
    if family not in ("any", version):
        raise ResolveError(f"{bare} is an IPv{version} address and IPv{family} was asked for")
    return (bare,)


def _is_dotted(text: str) -> bool:
    """Whether ip_address takes text for IPv4, found ten times as fast."""
    try:
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):  # ValueError: a NUL in it
        return False
    return True


def socket_address(address: str, port: int) -> tuple[socket.AddressFamily, SocketAddress]:
    """Turn a vetted address into what a socket connects to, without resolving anything.

    Raises:
        ResolveError: the zone of a scoped address names no interface of this host.
    """
    bare, _, zone = address.partition("%")
    if ip_address(bare).version == 4:
        return socket.AF_INET, (bare, port)
    try:
        scope = (int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)) if zone else 0
    except (OSError, ValueError):  # ValueError: a NUL in it, or thousands of digits
        scope = -1
    if not 0 <= scope <= SCOPE_MAX:
        raise ResolveError(f"{address}: this host has no interface named {zone!r}")
    return socket.AF_INET6, (bare, port, 0, scope)


def endpoint(address: str, port: int) -> str:
    """Write address and port as one string, IPv6 in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def ascii_host(host: str) -> str:
    """Return host as a resolver takes it: ASCII, internationalised labels encoded (RFC 3490).

    Raises:
        ResolveError: no DNS name looks like this.
    """
    if len(host) > NAME_MAX:
        shown = host[:HOST_SHOWN_MAX]
        raise ResolveError(f"{shown!r}… is not a host name: it is longer than 253 characters")
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ResolveError(f"{host!r} is not a host name: {error}") from None
    if not name or any(character <= " " or character == "\x7f" for character in name):
        raise ResolveError(f"{host!r} is not a host name: it is empty or has blanks in it")
    labels = name.removesuffix(".").split(".")
    if len(name) > NAME_MAX or not all(0 < len(label) <= 63 for label in labels):
        raise ResolveError(f"{host!r} is not a host name: every label has 1 to 63 characters")
    return name


def _unique(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return the addresses of getaddrinfo's entries once each, in order, zones kept."""
    addresses: dict[str, None] = {}
    for *_, sockaddr in entries:
        scope = sockaddr[3] if len(sockaddr) == 4 else 0
        bare = sockaddr[0].partition("%")[0]
        addresses[f"{bare}%{scope}" if scope else bare] = None
    return tuple(addresses)[:ADDRESSES_MAX]
