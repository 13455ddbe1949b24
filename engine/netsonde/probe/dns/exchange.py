"""One DNS query and its answer over UDP or TCP, with own sockets and exact timings."""

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from functools import cache

import dns.exception
import dns.message
import dns.rdata

from netsonde.clock import NS_PER_MS, Clock
from netsonde.model import FailureSource, Reason
from netsonde.probe.connect import Attempt, Dialer, SocketFailure, explain_oserror
from netsonde.probe.datagram import DatagramSocket
from netsonde.probe.dns.question import Server
from netsonde.probe.limits import time_limit

TYPES_MAX = 4096  # pairs of class and type; one message can bring some 5000

_HEADER_BYTES = 12
_TC_BIT = 0x02
_QR_BIT = 0x80


@dataclass(slots=True)
class Exchange:
    """One question put to one server over one transport, and what came of it."""

    server: Server
    transport: str
    number: int
    message: dns.message.Message | None = None
    failure: SocketFailure | None = None
    truncated: bool = False
    size: int = 0
    strays: int = 0
    rtt_ns: int | None = None
    rx_clock: str = "user"
    local: str | None = None
    phases: dict[str, float] = field(default_factory=dict)


@cache
def load_record_types() -> None:
    """Load the code of every record type, once.

    dnspython would do so on demand, in the middle of a measurement. Worse, it would take a record
    of a foreign class for proof that its type has no code, and read none of that type ever again.
    """
    dns.rdata.load_all_types()  # type: ignore[no-untyped-call]


def forget_unknown_types() -> None:
    """Drop what dnspython remembers of types it does not know, when that has become much.

    It keeps an entry for each pair of class and type it was ever shown, of 2^32 there are.
    """
    known = dns.rdata._rdata_classes  # there is no public way
    if len(known) > TYPES_MAX:
        for pair in [pair for pair, code in known.items() if code is dns.rdata.GenericRdata]:
            del known[pair]


class Reader:
    """Decides which messages answer a query, and keeps the one that does.

    `malformed` says what was wrong with a message that had the right id but could not be read.
    """

    def __init__(self, query: dns.message.Message) -> None:
        load_record_types()
        self._query = query
        self.message: dns.message.Message | None = None
        self.truncated = False
        self.malformed: str | None = None

    def accept(self, data: bytes) -> bool:
        """Return whether data answers the query; it then is `message`."""
        if len(data) < _HEADER_BYTES or int.from_bytes(data[:2]) != self._query.id:
            return False
        if not data[2] & _QR_BIT:
            return False
        self.truncated = bool(data[2] & _TC_BIT)
        try:
            message = dns.message.from_wire(data, question_only=self.truncated)
            if not self._query.is_response(message):
                return False
        except (dns.exception.DNSException, ValueError, IndexError, struct.error) as error:
            self.malformed = str(error) or type(error).__name__
            return False
        finally:
            forget_unknown_types()
        self.message = message
        return True


class Exchanger:
    """Makes single exchanges; what fails is recorded in them, only cancellation passes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._dial = Dialer(clock)

    async def over_udp(
        self, query: dns.message.Message, exchange: Exchange, timeout_ns: int
    ) -> None:
        """Put query to exchange's server in one datagram."""
        server, reader = exchange.server, Reader(query)
        sock = DatagramSocket.open(self._clock, server.address, server.port)
        if isinstance(sock, SocketFailure):
            exchange.failure = sock
            return
        try:
            exchange.local = sock.local
            answer = await sock.ask(query.to_wire(), reader.accept, timeout_ns)
        finally:
            sock.close()
            exchange.strays = sock.strays
        if isinstance(answer, SocketFailure):
            exchange.failure = _malformed(reader) or answer
            return
        exchange.message, exchange.truncated = reader.message, reader.truncated
        exchange.size, exchange.rtt_ns = len(answer.data), answer.rtt_ns
        exchange.rx_clock = answer.rx_clock
        exchange.phases = {"response_ms": answer.rtt_ns / NS_PER_MS}

    async def over_tcp(
        self, query: dns.message.Message, exchange: Exchange, timeout_ns: int
    ) -> None:
        """Put query to exchange's server over a fresh connection; timeout_ns covers it all."""
        server = exchange.server
        attempt = Attempt(1, server.address, server.port)
        try:
            async with time_limit(timeout_ns):
                await self._dial(attempt)
                exchange.local, exchange.failure = attempt.local, attempt.failure
                if attempt.sock is not None:
                    await self._converse(attempt.sock, attempt, query, exchange)
        except TimeoutError:
            exchange.failure = SocketFailure(
                Reason.TIMEOUT, FailureSource.TARGET, "no answer in time"
            )
        except OSError as error:
            exchange.failure = explain_oserror(error)
        finally:
            attempt.close()

    async def _converse(
        self,
        sock: socket.socket,
        attempt: Attempt,
        query: dns.message.Message,
        exchange: Exchange,
    ) -> None:
        loop = asyncio.get_running_loop()
        wire = query.to_wire()
        sent_ns = self._clock.monotonic_ns()
        await loop.sock_sendall(sock, struct.pack("!H", len(wire)) + wire)
        written_ns = self._clock.monotonic_ns()
        data = await _read_framed(loop, sock)
        ended_ns = self._clock.monotonic_ns()
        reader = Reader(query)
        if data is None:
            exchange.failure = SocketFailure(
                Reason.PROTOCOL_ERROR,
                FailureSource.TARGET,
                "the server closed the connection before its answer was complete",
            )
        elif not reader.accept(data):
            exchange.failure = _malformed(reader) or SocketFailure(
                Reason.PROTOCOL_ERROR, FailureSource.TARGET, "the answer is to another question"
            )
        else:
            exchange.message, exchange.size = reader.message, len(data)
        exchange.rtt_ns = ended_ns - sent_ns if data is not None else None
        exchange.phases = {
            "connect_ms": (attempt.rtt_ns or 0) / NS_PER_MS,
            "request_ms": (written_ns - sent_ns) / NS_PER_MS,
            "response_ms": (ended_ns - written_ns) / NS_PER_MS,
        }


async def _read_framed(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes | None:
    """Read one length-prefixed message (RFC 1035 4.2.2); None when the peer closed early."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
        chunk = await loop.sock_recv(sock, 65_537)
        if not chunk:
            return None
        data += chunk
    return data[2 : 2 + int.from_bytes(data[:2])]


def _malformed(reader: Reader) -> SocketFailure | None:
    if reader.malformed is None:
        return None
    text = f"the answer is not a DNS message: {reader.malformed}"
    return SocketFailure(Reason.PROTOCOL_ERROR, FailureSource.TARGET, text)
