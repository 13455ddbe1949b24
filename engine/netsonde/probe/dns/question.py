"""What a DNS check asks and whom: from the spec's words to a name, types and servers."""

from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
import dns.reversename

from netsonde.errors import ResolveError
from netsonde.model import DnsSpec
from netsonde.probe.targets import endpoint

DNS_PORT = 53
PORT_DIGITS_MAX = 5  # of 65535; int() raises for thousands of them
DEFAULT_TYPES = (dns.rdatatype.A, dns.rdatatype.AAAA)
SYSTEM_SERVERS_MAX = 3  # resolv.conf(5): MAXNS
# Transfers and pseudo types need another protocol than question and answer.
_NOT_ASKABLE = frozenset({0, 41, 249, 250, 251, 252})


class BadQuestion(ValueError):
    """The spec cannot be asked; the message names the field and what is allowed."""


class Server(NamedTuple):
    """A name server's address and port."""

    address: str
    port: int

    def __str__(self) -> str:
        return endpoint(self.address, self.port)


def question_of(spec: DnsSpec) -> tuple[dns.name.Name, tuple[dns.rdatatype.RdataType, ...]]:
    """Return the name and the types that spec asks for.

    Some control planes write the type into the query ("A example.com"); PTR of an address asks
    for its reverse name.

    Raises:
        BadQuestion: query or qtype is not what DNS can ask for.
    """
    words = spec.query.split()
    qtype = spec.qtype
    if len(words) == 2 and (prefix := _known_type(words[0])) is not None:
        qtype = prefix if qtype is None else qtype
        words = words[1:]
    if len(words) != 1:
        raise BadQuestion(f"query: {spec.query!r} must be one DNS name")
    types = DEFAULT_TYPES if qtype is None else (_askable(qtype),)
    try:
        if types == (dns.rdatatype.PTR,) and _is_address(words[0]):
            return dns.reversename.from_address(words[0]), types
        return dns.name.from_text(words[0]), types
    except (dns.exception.DNSException, UnicodeError) as error:
        raise BadQuestion(f"query: {spec.query!r} is not a DNS name: {error}") from None


def _known_type(word: str | int) -> dns.rdatatype.RdataType | None:
    try:
        if isinstance(word, int) or word.isdecimal():
            return dns.rdatatype.RdataType.make(int(word))
        return dns.rdatatype.from_text(word)
    except (dns.exception.DNSException, ValueError):
        return None


def _askable(qtype: str | int) -> dns.rdatatype.RdataType:
    known = _known_type(qtype)
    if known is None or known in _NOT_ASKABLE:
        raise BadQuestion(
            f"qtype: {qtype!r} must be the name of a record type such as MX, or a number from "
            "1 to 65535, and no transfer or pseudo type"
        )
    return known


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def parse_server(text: str) -> Server:
    """Read `ip`, `ip:port` or `[ipv6]:port`.

    Raises:
        BadQuestion: it is none of these.
    """
    if _is_address(text):
        return Server(text, DNS_PORT)
    host, colon, port_text = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        host, colon, port_text = text, ":", str(DNS_PORT)
    bracketed = host.startswith("[") and host.endswith("]")
    address = host[1:-1] if bracketed else host
    is_number = port_text.isascii() and port_text.isdecimal() and len(port_text) <= PORT_DIGITS_MAX
    port = int(port_text) if is_number else 0
    is_valid = bool(colon) and _is_address(address) and bracketed == (":" in address)
    if not is_valid or not 1 <= port <= 65_535:
        raise BadQuestion(
            f"server: {text!r} must be an IP address with an optional port from 1 to 65535, "
            "such as 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:53"
        )
    return Server(address, port)


def system_servers(resolv_conf: Path) -> tuple[Server, ...]:
    """Return the name servers this host is configured to use.

    Raises:
        ResolveError: there are none.
    """
    try:
        configured = dns.resolver.Resolver(filename=str(resolv_conf)).nameservers
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise ResolveError(
            f"no name server is configured in {resolv_conf} ({error}); name one with `server`"
        ) from None
    servers = tuple(Server(str(each), DNS_PORT) for each in configured[:SYSTEM_SERVERS_MAX])
    if not servers:
        raise ResolveError(f"no name server is configured in {resolv_conf}; name one with `server`")
    return servers
