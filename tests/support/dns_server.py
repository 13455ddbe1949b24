"""A DNS server for tests: UDP and TCP on one port, answering as a function says."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset


@dataclass
class Query:
    """One question that arrived, over udp or tcp, from `client`."""

    message: dns.message.Message
    transport: str
    client: tuple[str, int]

    @property
    def name(self) -> str:
        return self.message.question[0].name.to_text(omit_final_dot=True).lower()

    @property
    def rdtype(self) -> str:
        return dns.rdatatype.to_text(self.message.question[0].rdtype)


# What to send back: whole messages, in order. An empty list is silence.
Responder = Callable[[Query], Sequence[bytes]]


@dataclass
class DnsServer:
    """Where the server listens and what it was asked."""

    address: str
    port: int
    queries: list[Query] = field(default_factory=list)

    @property
    def spec(self) -> str:
        """The server as a spec names it."""
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


def zone(*lines: str) -> Responder:
    """Answer from records such as `example.net 60 A 192.0.2.1`, following CNAMEs; else NXDOMAIN."""
    rrsets: dict[tuple[str, str], dns.rrset.RRset] = {}
    for line in lines:
        name, dns_ttl_s, rdtype, data = line.split(maxsplit=3)
        key = (name.lower(), rdtype)
        rrset = dns.rrset.from_text(name + ".", int(dns_ttl_s), "IN", rdtype, data)
        for rdata in rrset:
            rrsets.setdefault(key, rrset).add(rdata)

    def respond(query: Query) -> list[bytes]:
        response = dns.message.make_response(query.message, recursion_available=True)
        name = query.name
        while (alias := rrsets.get((name, "CNAME"))) is not None and query.rdtype != "CNAME":
            response.answer.append(alias)
            name = alias[0].target.to_text(omit_final_dot=True)
        if (found := rrsets.get((name, query.rdtype))) is not None:
            response.answer.append(found)
        elif not any(known == name for known, _ in rrsets):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if (
            query.transport == "udp"
            and len(response.to_wire(max_size=65_535)) > query.message.payload
        ):
            response.answer.clear()
            response.flags |= dns.flags.TC
        return [response.to_wire(max_size=65_535)]

    return respond


def with_rcode(rcode: dns.rcode.Rcode) -> Responder:
    """Answer everything with rcode."""

    def respond(query: Query) -> list[bytes]:
        response = dns.message.make_response(query.message)
        response.set_rcode(rcode)
        return [response.to_wire(max_size=65_535)]

    return respond


@asynccontextmanager
async def dns_server(respond: Responder, address: str = "127.0.0.1") -> AsyncIterator[DnsServer]:
    """Serve on a free port of address while the block runs."""
    queries: list[Query] = []
    server = await asyncio.start_server(_tcp_handler(respond, queries), address, 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Udp(respond, queries), local_addr=(address, port)
    )
    try:
        async with server:
            yield DnsServer(address, port, queries)
    finally:
        transport.close()


def silent_port(address: str = "127.0.0.1") -> socket.socket:
    """Open a UDP socket that answers nothing; its port is a server that is silent."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 0))
    return sock


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, respond: Responder, queries: list[Query]) -> None:
        self._respond = respond
        self._queries = queries

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport is one in all but its base class.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = Query(dns.message.from_wire(data), "udp", (addr[0], addr[1]))
        self._queries.append(query)
        for answer in self._respond(query):
            self._transport.sendto(answer, addr)


def _tcp_handler(
    respond: Responder, queries: list[Query]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            length = int.from_bytes(await reader.readexactly(2))
            wire = await reader.readexactly(length)
        except asyncio.IncompleteReadError:
            writer.close()  # somebody only connected
            return
        query = Query(dns.message.from_wire(wire), "tcp", writer.get_extra_info("peername")[:2])
        queries.append(query)
        for answer in respond(query):
            writer.write(len(answer).to_bytes(2) + answer)
        writer.close()

    return serve
