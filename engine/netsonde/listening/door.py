"""Where connections come in: accepted, counted, and given TLS where it is wanted.

Connections are accepted here rather than by the loop's own server, so that one is counted from
its first moment: a handshake that nobody ends is a connection too.
"""

import asyncio
import errno
import logging
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from netsonde.listening.connections import Connections

BACKLOG = 1024
ACCEPT_BATCH = 64  # connections taken in a row, before the loop does other work
ACCEPT_PAUSE_S = 0.1  # after the system had no descriptor or no memory for one
HANDSHAKE_TIMEOUT_S = 10.0
TLS_GOODBYE_S = 2.0  # for the other side's part of the end of TLS
UNHEARD_MS = 75_000  # a peer that acknowledges nothing, or takes nothing, is gone after this
NO_TLS = frozenset({"HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "WRONG_VERSION_NUMBER"})
SAID_EVERY_S = 60.0
DESCRIPTORS_SPARE = 64  # for the database, the logs, and connections on their way out
LIMIT_MIN = 16

_log = logging.getLogger("netsonde.listening")

TlsNow = Callable[[], ssl.SSLContext]


class Visitor:
    """One accepted connection, from the handshake to its end."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.handshake: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None

    def work(self) -> None:
        """Note that a request is being answered."""
        self._connections.work(self)

    def rest(self) -> None:
        """Note that it was."""
        self._connections.rest(self)

    def leave(self) -> None:
        """Note that the connection is gone. Idempotent."""
        self._connections.leave(self)
        self.handshake = self.transport = None  # a circle that nobody would break for long

    def drop(self) -> None:
        """End the connection at once, whatever it is at."""
        if self.transport is not None:
            self.transport.abort()
        elif self.handshake is not None:
            self.handshake.cancel()


MakeProtocol = Callable[[Visitor], asyncio.Protocol]


@dataclass
class _Seldom:
    """Says one kind of thing at most once a minute, and then how often it was."""

    action: str
    _said_s: float | None = None
    _unsaid: int = field(default=0)

    def say(self, now_s: float, text: str) -> None:
        if self._said_s is not None and now_s < self._said_s + SAID_EVERY_S:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last such line)" if self._unsaid else ""
        _log.warning("%s%s", text, more, extra={"action": self.action})
        self._said_s, self._unsaid = now_s, 0


class Door:
    """The listening sockets of one listener; `open_door` makes it."""

    def __init__(
        self,
        group: asyncio.TaskGroup,
        connections: Connections,
        make_protocol: MakeProtocol,
        tls: TlsNow | None,
    ) -> None:
        self._group = group
        self._connections = connections
        self._make_protocol = make_protocol
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshake = _handshakes(self._note_handshake)
        self._turned_away = _Seldom("connections_refused")
        self._not_accepted = _Seldom("accept_failed")
        self._not_tls = _Seldom("tls_handshake_failed")

    @property
    def address(self) -> tuple[str, int]:
        """The first host and port that is listened on."""
        name = self._sockets[0].getsockname()
        return name[0], name[1]

    async def listen(self, host: str, port: int) -> None:
        """Listen on every address of host.

        Raises:
            OSError: one of them cannot be listened on.
        """
        found = await self._loop.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            self._sockets.append(listening)
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        for listening in self._sockets:
            self._resume(listening)

    def close(self) -> None:
        """Stop listening and end what is still shaking hands."""
        while self._sockets:
            listening = self._sockets.pop()
            self._loop.remove_reader(listening)
            listening.close()
        for task in self._tasks:
            task.cancel()

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(ACCEPT_BATCH):
            try:
                accepted, _address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                text = f"connections cannot be accepted: {error.strerror}; they wait"
                if error.errno == errno.EMFILE:
                    text += "; raise this process's limit of open files (LimitNOFILE=)"
                self._not_accepted.say(self._loop.time(), text)
                self._loop.remove_reader(listening)
                self._loop.call_later(ACCEPT_PAUSE_S, self._resume, listening)
                return
            self._let_in(accepted)

    def _let_in(self, accepted: socket.socket) -> None:
        visitor = Visitor(self._connections)
        if not self._connections.enter(visitor):
            accepted.close()
            text = f"{self._connections.limit} connections are at work: no more are taken"
            self._turned_away.say(self._loop.time(), text)
            return
        accepted.setblocking(False)
        visitor.handshake = task = self._group.create_task(self._shake_hands(visitor, accepted))
        self._tasks.add(task)
        task.add_done_callback(partial(self._shaken, visitor, accepted))

    def _shaken(self, visitor: Visitor, accepted: socket.socket, task: asyncio.Task[None]) -> None:
        """Forget a handshake; one that failed, or never began, leaves nothing open."""
        self._tasks.discard(task)
        if visitor.transport is None:
            visitor.leave()
            accepted.close()

    async def _shake_hands(self, visitor: Visitor, accepted: socket.socket) -> None:
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MS)
            tls = None if self._tls is None else self._tls()
            if tls is not None:
                tls.sslobject_class = self._handshake
            await self._loop.connect_accepted_socket(
                lambda: self._make_protocol(visitor),
                accepted,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if tls else None,
                ssl_shutdown_timeout=TLS_GOODBYE_S if tls else None,
            )
        except ConnectionAbortedError:
            self._note_handshake(f"it took longer than {HANDSHAKE_TIMEOUT_S:g} s")
        except OSError as error:
            # TLS's own failures were noted; who just hangs up is a health check or a scanner.
            _log.debug("a connection ended before its first request: %s", error)
        except Exception:
            # A connection is never the end of the others.
            _log.exception("broken connection", extra={"action": "connection_failed"})

    def _note_handshake(self, why: str) -> None:
        self._not_tls.say(self._loop.time(), f"a TLS handshake failed: {why}")


def _handshakes(note: Callable[[str], None]) -> type[ssl.SSLObject]:
    """Return the class of TLS connections that tell the other side why a handshake failed.

    The loop ends a connection whose handshake fails before the alert has left. So the failure is
    held back until that has been sent, which the loop does when more is to be read. Who does not
    speak TLS gets none and is not waited for.
    """

    class Handshake(ssl.SSLObject):
        _failure: ssl.SSLError | None = None

        def do_handshake(self) -> None:
            if self._failure is not None:
                raise self._failure
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                note(_reason(error))
                if error.reason in NO_TLS:
                    raise
                self._failure = error
                raise ssl.SSLWantReadError from error

    return Handshake


@asynccontextmanager
async def open_door(
    connections: Connections, make_protocol: MakeProtocol, tls: TlsNow | None
) -> AsyncIterator[Door]:
    """Make a door for the duration of the block; `listen` opens it."""
    group = asyncio.TaskGroup()
    await group.__aenter__()
    door = Door(group, connections, make_protocol, tls)
    try:
        yield door
    finally:
        door.close()
        # Not `async with`: that would wrap what the block raises, and its tasks raise nothing.
        await group.__aexit__(None, None, None)


def connection_limit(wanted: int) -> int:
    """Return how many connections one of two listeners may have with this process's descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(LIMIT_MIN, (soft - DESCRIPTORS_SPARE) // 2))


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate is not valid: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()
