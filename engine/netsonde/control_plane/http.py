"""The HTTP transport: the one client-side module that knows aiohttp."""

import asyncio
import errno
import logging
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from urllib.parse import urlsplit

import aiohttp

from netsonde.control_plane.transport import (
    Headers,
    TransportRequest,
    TransportResponse,
    TransportStream,
)
from netsonde.errors import ConfigError, TransportError, remedy
from netsonde.tls import ClientTls, RenewableContext, distrust, refusal

CONNECTIONS_MAX = 8  # reports, extensions and heartbeats at once; more would only queue elsewhere
HELD_CONNECTIONS_MAX = 6  # long polls: one per kind of work and one to spare
KEEPALIVE_S = 30.0  # below every server's idle limit (ours 75 s, proxies 60 s): never a dead one
CONNECT_TIMEOUT_S = 10.0  # within a request's own timeout
FILES_LOOK_S = 10.0  # how often renewed certificate files are looked for
CANONICAL_PREFIX = "/v1/agents"

_log = logging.getLogger("netsonde.control_plane")


class HttpControlPlaneTransport:
    """Carries requests over HTTP/1.1 with kept connections.

    Redirects are answers, not followed: a token goes only where its owner said. Nothing is
    decompressed, so no answer grows in memory, and cookies are not kept. `tls` names the files to
    use instead of the system's certificate authorities, and this client's own certificate; files
    that are renewed serve the connections made after that.

    Raises:
        ConfigError: base_url is not an http or https address, or a file cannot be used.
    """

    def __init__(self, base_url: str, *, tls: ClientTls | None = None) -> None:
        self._base_url = normalise_base_url(base_url)
        self._address = urlsplit(self._base_url).netloc
        self._tls: RenewableContext | None = None
        if self._base_url.startswith("https:"):
            tls = tls or ClientTls()
            self._tls = RenewableContext(tls.files, tls.context)
        self._looked_s = 0.0
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._is_closed = False

    @property
    def base_url(self) -> str:
        """The control plane's address, without a trailing slash."""
        return self._base_url

    async def call(self, request: TransportRequest) -> TransportResponse:
        """Send request and return the complete answer; nothing is retried.

        Raises:
            TransportError: no complete answer came; the message says why in words.
        """
        async with self.stream(request) as answer:
            chunks: list[bytes] = []
            size = 0
            async for chunk in answer.chunks:
                size += len(chunk)
                if size > request.answer_max_bytes:
                    raise TransportError(
                        request.operation,
                        f"the answer of {self._address} is larger than"
                        f" {request.answer_max_bytes} bytes",
                    )
                chunks.append(chunk)
            return TransportResponse(answer.status, answer.headers, b"".join(chunks))

    @asynccontextmanager
    async def stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None = None
    ) -> AsyncIterator[TransportStream]:
        """Send request, its body from `lines` when given, and bring the answer piece by piece.

        The answer may begin before `lines` has ended. Leaving the block ends both.

        Raises:
            TransportError: no answer came; the message says why in words.
        """
        if self._is_closed:
            raise TransportError(request.operation, "the transport is closed")
        async with AsyncExitStack() as stack:
            with self._explained(request):
                response = await stack.enter_async_context(
                    self._session(request.is_held).request(
                        request.method,
                        f"{self._base_url}{request.path}",
                        data=lines or request.body or None,
                        headers={"Accept-Encoding": "identity", **request.headers},
                        timeout=aiohttp.ClientTimeout(
                            total=request.timeout_s,
                            sock_connect=CONNECT_TIMEOUT_S,
                            sock_read=request.idle_timeout_s,
                        ),
                        allow_redirects=False,
                        ssl=self._context(),
                    )
                )
            coding = response.headers.get("Content-Encoding", "identity").lower()
            if coding != "identity":
                raise TransportError(
                    request.operation,
                    f"{self._address} compressed its answer ({coding}), which was not asked for",
                )
            yield TransportStream(
                response.status, Headers(response.headers), self._chunks(request, response)
            )

    async def close(self) -> None:
        """Close every connection. Idempotent; later calls raise TransportError."""
        self._is_closed = True
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()

    def _session(self, is_held: bool) -> aiohttp.ClientSession:
        """Return the session of one class of requests; made late, because it needs the loop."""
        session = self._sessions.get(is_held)
        if session is None:
            connector = aiohttp.TCPConnector(
                limit=HELD_CONNECTIONS_MAX if is_held else CONNECTIONS_MAX,
                keepalive_timeout=KEEPALIVE_S,
            )
            session = self._sessions[is_held] = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Content-Type"),
            )
        return session

    def _context(self) -> ssl.SSLContext | bool:
        """Return the TLS to make a connection with; while it stays the same, so do connections."""
        if self._tls is None:
            return True
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._looked_s + FILES_LOOK_S:
            self._looked_s = now_s
            try:
                if self._tls.renew():
                    _log.info("certificate files were renewed", extra={"action": "tls_reloaded"})
            except ConfigError as error:
                _log.warning(
                    "the certificates read before are used on: %s",
                    error,
                    extra={"action": "tls_reload_failed"},
                )
        return self._tls.context

    async def _chunks(
        self, request: TransportRequest, response: aiohttp.ClientResponse
    ) -> AsyncIterator[bytes]:
        with self._explained(request):
            async for chunk in response.content.iter_any():
                yield chunk

    @contextmanager
    def _explained(self, request: TransportRequest) -> Iterator[None]:
        """Map aiohttp's exceptions and the system's to TransportError, once."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError as error:
            raise TransportError(
                request.operation,
                f"cannot connect to {self._address} within {CONNECT_TIMEOUT_S:g} s",
            ) from error
        except aiohttp.SocketTimeoutError as error:
            raise TransportError(
                request.operation,
                f"nothing came from {self._address} for {request.idle_timeout_s:g} s",
            ) from error
        except TimeoutError as error:
            raise TransportError(
                request.operation,
                f"no complete answer from {self._address} within {request.timeout_s:g} s",
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TransportError(request.operation, self._cause(error)) from error

    def _cause(self, error: Exception) -> str:
        where = self._address
        if (of_tls := _tls_cause(where, error)) is not None:
            return of_tls
        match error:
            case aiohttp.ClientConnectorDNSError():
                text = f"the name in {where} cannot be resolved: {_system_text(error.os_error)}"
            case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ECONNREFUSED:
                text = f"connection refused by {where}"
            case aiohttp.ClientConnectorError():
                text = f"cannot connect to {where}: {_system_text(error.os_error)}"
            case aiohttp.ServerDisconnectedError():
                text = f"{where} closed the connection before it answered"
            case aiohttp.ClientPayloadError():
                text = f"the answer of {where} broke off"
            case aiohttp.ClientResponseError():
                text = f"{where} does not speak HTTP: {error.message}"
            case OSError():
                text = f"the connection to {where} broke: {_system_text(error)}"
            case _:
                text = f"the request to {where} failed: {error}"
        return text


def normalise_base_url(url: str) -> str:
    """Return a base address without a trailing slash, to which absolute paths are appended.

    The original's address ends in `/v1/agents`, which every client asks first anyway: it is cut.

    Raises:
        ConfigError: url is not an http or https address, or carries what an address does not.
    """
    wanted = "write http://host:port or https://host"
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r} is not an address: {error}; {wanted}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(f"{url!r} is not the address of a control plane; {wanted}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(f"the control plane's address takes no user, ? or #; {wanted}")
    path = parts.path.rstrip("/").removesuffix(CANONICAL_PREFIX).rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _tls_cause(where: str, error: Exception) -> str | None:
    """Say what TLS failed of; None when it was something else.

    A refusal of this client's certificate may come with the first answer (RFC 8446 4.4.2.4), as
    an error of the connection.
    """
    match error:
        case aiohttp.ClientConnectorCertificateError():
            cause = error.certificate_error
            if isinstance(cause, ssl.SSLCertVerificationError):
                return f"the certificate of {where} {distrust(cause)}"
            return f"the certificate of {where} is not valid: {cause}"
        case aiohttp.ClientSSLError():
            said = refusal(error.os_error) or _system_text(error.os_error)
            return f"TLS with {where} failed: {said}"
        case aiohttp.ClientOSError() if why := refusal(error):
            return f"TLS with {where} failed: {why}"
    return None


def _system_text(error: OSError) -> str:
    """Name an error the way the system does, without aiohttp's wrapping."""
    if isinstance(error, ConnectionResetError):
        return "reset by the other side"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower() + remedy(error.errno)
    return error.strerror or str(error) or type(error).__name__
