"""Names of addresses: PTR records."""

from collections.abc import Iterable
from functools import cached_property

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.reversename

QUESTION_S = 2.0  # for one address, all servers and repeats together


class ReverseResolver:
    """Asks the name servers of `/etc/resolv.conf`, or those given, for PTR records."""

    def __init__(self, servers: Iterable[str] = (), port: int = 53) -> None:
        self._servers = [*servers]
        self._port = port

    @cached_property
    def _resolver(self) -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=not self._servers)
        if self._servers:
            resolver.nameservers = self._servers
            resolver.port = self._port
        return resolver

    async def name_of(self, address: str) -> str | None:
        """Return the first name of an address, None when there is none or nobody says."""
        bare = address.partition("%")[0]
        try:
            answer = await self._resolver.resolve(
                dns.reversename.from_address(bare), dns.rdatatype.PTR, lifetime=QUESTION_S
            )
        except (dns.exception.DNSException, OSError):
            return None
        name: str = answer[0].target.to_text(omit_final_dot=True)
        return name
