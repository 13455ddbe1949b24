"""What an ICMP error or a refused send says about a probe (RFC 792, 1122, 1812, 4443)."""

import errno
import os

from netsonde.model import FailureSource, Reason

_UNREACHABLE_4 = {
    0: (Reason.UNREACHABLE_NET, "network unreachable"),
    1: (Reason.UNREACHABLE_HOST, "host unreachable"),
    2: (Reason.UNREACHABLE_PORT, "protocol unreachable"),
    3: (Reason.UNREACHABLE_PORT, "port unreachable"),
    4: (Reason.UNREACHABLE_NET, "packet too big for a link on the way"),
    5: (Reason.UNREACHABLE_NET, "source route failed"),
    6: (Reason.UNREACHABLE_NET, "network unknown"),
    7: (Reason.UNREACHABLE_HOST, "host unknown"),
    8: (Reason.UNREACHABLE_NET, "source host isolated"),
    9: (Reason.FILTERED, "network administratively prohibited"),
    10: (Reason.FILTERED, "host administratively prohibited"),
    11: (Reason.UNREACHABLE_NET, "network unreachable for this type of service"),
    12: (Reason.UNREACHABLE_HOST, "host unreachable for this type of service"),
    13: (Reason.FILTERED, "communication administratively prohibited"),
    14: (Reason.FILTERED, "host precedence violation"),
    15: (Reason.FILTERED, "precedence cutoff in effect"),
}
_UNREACHABLE_6 = {
    0: (Reason.UNREACHABLE_NET, "no route to destination"),
    1: (Reason.FILTERED, "communication administratively prohibited"),
    2: (Reason.UNREACHABLE_NET, "beyond the scope of the source address"),
    3: (Reason.UNREACHABLE_HOST, "address unreachable"),
    4: (Reason.UNREACHABLE_PORT, "port unreachable"),
    5: (Reason.FILTERED, "source address failed a policy"),
    6: (Reason.FILTERED, "route to destination rejects"),
}
_EXCEEDED = {0: "TTL exceeded in transit", 1: "fragments not reassembled in time"}

NO_ROUTE_ERRNOS = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH})

_SOURCES = {
    Reason.TIMEOUT: FailureSource.TARGET,
    Reason.UNREACHABLE_NET: FailureSource.PATH,
    Reason.UNREACHABLE_HOST: FailureSource.TARGET,
    Reason.UNREACHABLE_PORT: FailureSource.TARGET,
    Reason.FILTERED: FailureSource.PATH,
    Reason.TTL_EXCEEDED: FailureSource.PATH,
    Reason.PROTOCOL_ERROR: FailureSource.PATH,
}


def explain_icmp(family: int, icmp_type: int, code: int) -> tuple[Reason, str]:
    """Return the reason and the words for an ICMP error of family 4 or 6."""
    unreachable, table = (3, _UNREACHABLE_4) if family == 4 else (1, _UNREACHABLE_6)
    if icmp_type == unreachable:
        return table.get(code, (Reason.UNREACHABLE_NET, f"unreachable, code {code}"))
    if icmp_type == (11 if family == 4 else 3):
        return Reason.TTL_EXCEEDED, _EXCEEDED.get(code, f"time exceeded, code {code}")
    if family == 6 and icmp_type == 2:
        return Reason.UNREACHABLE_NET, "packet too big for a link on the way"
    return Reason.PROTOCOL_ERROR, f"ICMP error type {icmp_type} code {code}"


def explain_send(code: int) -> tuple[Reason, str]:
    """Return the reason and the words for the errno of a send the kernel refused."""
    if code in NO_ROUTE_ERRNOS:
        return Reason.NO_ROUTE, f"this host has no route there: {os.strerror(code)}"
    return Reason.TX_ERROR, f"the kernel did not send it: {os.strerror(code)}"


def source_of(reason: Reason) -> FailureSource:
    """Return whose failure a probe's reason is."""
    return _SOURCES.get(reason, FailureSource.SELF)
