"""A tiny authoritative DNS server on loopback, so that a host has DNS to measure when offline.

It answers A, AAAA and TXT for a few names under `netsonde.test.` (RFC 6761 keeps `test.` free of
the real tree) and refuses everything else.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from netsonde.errors import ConfigError

ZONE = dns.name.from_text("netsonde.test.")
NAME = "up.netsonde.test"
ANSWER_TTL_S = 60
UDP_MAX_BYTES = 512  # without EDNS (RFC 1035 4.2.1)
EDNS_MAX_BYTES = 1232  # what fits everywhere (DNS flag day 2020)
TCP_IDLE_S = 10.0
TCP_QUERIES_MAX = 100  # per connection
TCP_CONNECTIONS_MAX = 64

_SOA = "ns.netsonde.test. hostmaster.netsonde.test. 1 3600 600 86400 60"
_RECORDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("netsonde.test.", "SOA"): (_SOA,),
    ("netsonde.test.", "NS"): ("ns.netsonde.test.",),
    ("ns.netsonde.test.", "A"): ("127.0.0.1",),
    ("ns.netsonde.test.", "AAAA"): ("::1",),
    ("up.netsonde.test.", "A"): ("127.0.0.1",),
    ("up.netsonde.test.", "AAAA"): ("::1",),
    ("up.netsonde.test.", "TXT"): ('"netsonde beacon"',),
}


@dataclass(frozen=True, slots=True)
class Beacon:
    """A running beacon."""

    address: str
    port: int

    @property
    def endpoint(self) -> str:
        """Return `address:port` as a DNS spec's `server` takes it."""
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


@asynccontextmanager
async def beacon(address: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Beacon]:
    """Answer DNS on address over UDP and TCP for the duration of the block.

    Port 0 lets the kernel choose one that is free for both.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    connections = _Connections()
    try:
        server = await asyncio.start_server(connections.serve, address, port)
        bound: int = server.sockets[0].getsockname()[1]
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                _Datagrams, local_addr=(address, bound)
            )
        except BaseException:
            server.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"the DNS beacon cannot listen on {address}:{port}: {error.strerror or error}"
        ) from error
    try:
        yield Beacon(address, bound)
    finally:
        transport.close()
        server.close()
        connections.close()
        await server.wait_closed()


def answer(query: bytes, *, is_tcp: bool) -> bytes | None:
    """Return the answer to a query; None for what is not one.

    A name of the zone that is not there is NXDOMAIN, another zone's is REFUSED (RFC 1034 4.3.2,
    RFC 1035 4.1.1).
    """
    if len(query) < 12 or query[2] & 0x80:  # shorter than a header, or itself an answer
        return None
    try:
        message = dns.message.from_wire(query, ignore_trailing=True)
    except dns.exception.DNSException:
        return _refused_header(query, dns.rcode.FORMERR)
    response = dns.message.make_response(message)
    if message.opcode() != dns.opcode.QUERY:
        response.set_rcode(dns.rcode.NOTIMP)
    elif len(message.question) != 1:
        response.set_rcode(dns.rcode.FORMERR)
    else:
        _fill(response, message.question[0])
    if is_tcp:
        return response.to_wire()
    limit = EDNS_MAX_BYTES if message.edns >= 0 else UDP_MAX_BYTES
    if message.edns >= 0:
        limit = min(limit, max(message.payload, UDP_MAX_BYTES))
    try:
        return response.to_wire(max_size=limit)
    except dns.exception.TooBig:
        return _refused_header(query, dns.rcode.SERVFAIL)


def _fill(response: dns.message.Message, question: dns.rrset.RRset) -> None:
    name = question.name
    if question.rdclass != dns.rdataclass.IN or not name.is_subdomain(ZONE):
        response.set_rcode(dns.rcode.REFUSED)
        return
    response.flags |= dns.flags.AA
    key = name.to_text().lower()
    type_name = dns.rdatatype.to_text(question.rdtype)
    values = _RECORDS.get((key, type_name))
    if values is not None:
        response.answer.append(
            dns.rrset.from_text_list(name, ANSWER_TTL_S, "IN", type_name, values)
        )
        return
    if not any(known == key for known, _ in _RECORDS):
        response.set_rcode(dns.rcode.NXDOMAIN)
    # The SOA tells how long nothing lasts (RFC 2308 3).
    response.authority.append(dns.rrset.from_text(ZONE, ANSWER_TTL_S, "IN", "SOA", _SOA))


def _refused_header(query: bytes, rcode: int) -> bytes:
    """Answer with a bare header: the query's id, and why not."""
    flags = 0x8000 | (query[2] & 0x79) << 8 | rcode  # QR; opcode and RD as they came
    return struct.pack("!2sHHHHH", query[:2], flags, 0, 0, 0, 0)


class _Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: neither uvloop's transport nor 3.11's own is an instance of the protocol's.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        response = answer(data, is_tcp=False)
        if response is not None:
            self._transport.sendto(response, addr)


class _Connections:
    """TCP connections, counted and bounded (RFC 7766)."""

    def __init__(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._writers) >= TCP_CONNECTIONS_MAX:
            writer.close()
            return
        self._writers.add(writer)
        try:
            await self._converse(reader, writer)
        except (TimeoutError, asyncio.IncompleteReadError, OSError):
            return  # the client is silent or gone
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(TCP_QUERIES_MAX):
            async with asyncio.timeout(TCP_IDLE_S):
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                query = await reader.readexactly(length)
            response = answer(query, is_tcp=True)
            if response is None:
                return
            writer.write(struct.pack("!H", len(response)) + response)
            await writer.drain()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
