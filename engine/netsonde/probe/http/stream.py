"""Byte streams of HTTP checks: a connected socket, and TLS over one with its handshake apart."""

import asyncio
import socket
import ssl
from typing import Any, Protocol

from netsonde.probe.http.certificate import certificate_facts

CHUNK_BYTES = 65_536
TURN_BYTES = 4 * CHUNK_BYTES  # received before other work of the loop gets its turn: about 1 ms
ALPN = ("http/1.1",)


class Stream(Protocol):
    """A connected stream; `receive` returns b"" at its end."""

    async def send(self, data: bytes) -> None:
        """Send all of data."""
        ...

    async def receive(self) -> bytes:
        """Return the next bytes."""
        ...


class SocketStream:
    """A non-blocking connected socket; it stays its opener's to close."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._turn_bytes = 0

    async def send(self, data: bytes) -> None:
        """Send all of data."""
        await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        """Return the next bytes.

        The loop's own call does not wait for what is already there, so that a peer which is never
        slow would keep everything else of this process waiting, the timeout of the check too.
        """
        if self._turn_bytes >= TURN_BYTES:
            self._turn_bytes = 0
            await asyncio.sleep(0)
        data = await self._loop.sock_recv(self._sock, CHUNK_BYTES)
        self._turn_bytes += len(data)
        return data


class TlsStream:
    """TLS over another stream; call `handshake` first."""

    def __init__(self, under: Stream, context: ssl.SSLContext, server_name: str) -> None:
        self._under = under
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=server_name.rstrip(".")
        )

    async def handshake(self) -> None:
        """Agree on keys and verify the peer as the context says.

        Raises:
            ssl.SSLError: the peers do not agree, or the peer is not who it should be.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._exchange()
            except ssl.SSLError:
                await self._flush()  # the alert that tells the peer why
                raise
            else:
                break
        await self._flush()

    async def send(self, data: bytes) -> None:
        """Encrypt and send all of data."""
        self._tls.write(data)
        await self._flush()

    async def receive(self) -> bytes:
        """Return the next decrypted bytes; a peer that just hangs up ends the stream too."""
        while True:
            try:
                return self._tls.read(CHUNK_BYTES)
            except ssl.SSLWantReadError:
                await self._exchange()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def facts(self) -> dict[str, Any]:
        """Return version, cipher, ALPN and the leaf certificate of a finished handshake."""
        cipher = self._tls.cipher()
        certificate = self._tls.getpeercert(binary_form=True)
        return {
            "version": self._tls.version(),
            "cipher": cipher[0] if cipher else None,
            "alpn": self._tls.selected_alpn_protocol(),
            "certificate": certificate_facts(certificate) if certificate else None,
        }

    async def _exchange(self) -> None:
        await self._flush()
        data = await self._under.receive()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._under.send(self._outgoing.read())


def client_context(*, verify: bool) -> ssl.SSLContext:
    """Return TLS settings for a check: the system's trust store, or no verification at all."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(list(ALPN))
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
