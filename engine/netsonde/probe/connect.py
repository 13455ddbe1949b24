"""TCP connections to vetted addresses: one attempt, or a race of several (RFC 8305).

An attempt's failure is data: its reason comes from the errno and, where the kernel queued one,
from the ICMP error that caused it, so that a firewall is told from a router and from the host.
"""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple

from netsonde.clock import NS_PER_MS, NS_PER_S, NS_PER_US, Clock
from netsonde.errors import ResolveError, remedy
from netsonde.model import FailureSource, Outcome, Reason
from netsonde.probe.icmp_errors import explain_icmp, source_of
from netsonde.probe.targets import endpoint, socket_address

STAGGER_NS = 250 * NS_PER_MS  # RFC 8305 section 8: the recommended connection attempt delay

# Linux numbers that the socket module does not name (linux/in.h, in6.h, errqueue.h, tcp.h).
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_SO_EE_ORIGIN_ICMP = 2
_SO_EE_ORIGIN_ICMP6 = 3
_EXTENDED_ERROR = struct.Struct("=IBBBBII")  # struct sock_extended_err
_TCP_INFO_RTT = struct.Struct("=I")
_TCP_INFO_RTT_OFFSET = 68
_TCP_INFO_TOTAL_RETRANS_OFFSET = 100
_TCP_INFO_SIZE = 104
SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the message that carries the stamp has the same number
_TIMESPEC = struct.Struct("@ll")

# The ICMP errors that end a connection attempt: unreachable and time exceeded, per family.
_ENDING_TYPES = {4: (3, 11), 6: (1, 3)}
_FRAGMENTATION_NEEDED = (4, 3, 4)  # the kernel sends smaller packets by itself


class SocketFailure(NamedTuple):
    """Why a socket operation failed, whose failure that is, and the words for it."""

    reason: Reason
    source: FailureSource
    text: str
    errno: int | None = None

    @property
    def outcome(self) -> Outcome:
        """Return the outcome of a run that ends this way."""
        own = self.source is FailureSource.SELF
        return Outcome.AGENT_ERROR if own else Outcome.TARGET_ERROR


class IcmpError(NamedTuple):
    """An ICMP error that the kernel matched to a socket, and the router or host it came from.

    `stamp_ns` is when the kernel received it (CLOCK_REALTIME), where the socket asked for stamps.
    """

    version: int
    type: int
    code: int
    offender: str | None
    stamp_ns: int | None = None

    @property
    def is_failure(self) -> bool:
        """Whether it says that the target cannot be reached this way."""
        return self.type in _ENDING_TYPES[self.version] and tuple(self[:3]) != _FRAGMENTATION_NEEDED


def queue_icmp_errors(sock: socket.socket) -> None:
    """Ask the kernel to keep the ICMP errors that arrive for sock."""
    sock.setsockopt(*_error_queue(sock), 1)


def _error_queue(sock: socket.socket) -> tuple[int, int]:
    if sock.family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, _IPV6_RECVERR
    return socket.IPPROTO_IP, _IP_RECVERR


def queued_icmp_error(sock: socket.socket) -> IcmpError | None:
    """Take one ICMP error from sock's error queue; None when there is none."""
    try:
        _, ancillary, _, _ = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except OSError:
        return None
    for level, kind, data in ancillary:
        if (level, kind) in (
            (socket.IPPROTO_IP, _IP_RECVERR),
            (socket.IPPROTO_IPV6, _IPV6_RECVERR),
        ):
            error = parse_icmp_error(data)
            return error and error._replace(stamp_ns=kernel_stamp_ns(ancillary))
    return None


def kernel_stamp_ns(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """Return when the kernel received a message (SO_TIMESTAMPNS), where it says so."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS) and len(data) >= _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack_from(data)
            return int(seconds) * NS_PER_S + int(nanoseconds)
    return None


def parse_icmp_error(data: bytes) -> IcmpError | None:
    """Read a sock_extended_err and the offender's sockaddr behind it."""
    if len(data) < _EXTENDED_ERROR.size:
        return None
    _, origin, kind, code, _, _, _ = _EXTENDED_ERROR.unpack_from(data)
    if origin not in (_SO_EE_ORIGIN_ICMP, _SO_EE_ORIGIN_ICMP6):
        return None
    sockaddr = data[_EXTENDED_ERROR.size :]
    offender = None
    if len(sockaddr) >= 8 and sockaddr[:2] == struct.pack("=H", socket.AF_INET):
        offender = str(ip_address(sockaddr[4:8]))
    elif len(sockaddr) >= 24 and sockaddr[:2] == struct.pack("=H", socket.AF_INET6):
        offender = str(ip_address(sockaddr[8:24]))
    return IcmpError(4 if origin == _SO_EE_ORIGIN_ICMP else 6, kind, code, offender)


_REMOTE_ERRORS = {
    errno.ECONNREFUSED: (Reason.REFUSED, FailureSource.TARGET),
    errno.ECONNRESET: (Reason.RESET, FailureSource.TARGET),
    errno.EPIPE: (Reason.RESET, FailureSource.TARGET),
    errno.ECONNABORTED: (Reason.RESET, FailureSource.TARGET),
    errno.ENOTCONN: (Reason.RESET, FailureSource.TARGET),  # reset after the connect succeeded
    errno.ETIMEDOUT: (Reason.TIMEOUT, FailureSource.TARGET),
    errno.ENETUNREACH: (Reason.UNREACHABLE_NET, FailureSource.PATH),
    errno.EHOSTUNREACH: (Reason.UNREACHABLE_HOST, FailureSource.TARGET),
    errno.EHOSTDOWN: (Reason.UNREACHABLE_HOST, FailureSource.TARGET),
    errno.ENONET: (Reason.UNREACHABLE_HOST, FailureSource.TARGET),
    errno.ENOPROTOOPT: (Reason.UNREACHABLE_PORT, FailureSource.TARGET),
    errno.EACCES: (Reason.FILTERED, FailureSource.PATH),
}
_OWN_ERRORS = {
    errno.ENETUNREACH: Reason.NO_ROUTE,
    errno.EHOSTUNREACH: Reason.NO_ROUTE,
    errno.EADDRNOTAVAIL: Reason.NO_ROUTE,
    errno.EACCES: Reason.FILTERED,
    errno.EPERM: Reason.FILTERED,
}


def explain(code: int, *, local: bool, icmp: IcmpError | None = None) -> SocketFailure:
    """Turn an errno into a failure; local: the kernel gave it before any packet was answered."""
    if icmp is not None and icmp.is_failure:
        reason, words = explain_icmp(icmp.version, icmp.type, icmp.code)
        by = f", from {icmp.offender}" if icmp.offender else ""
        words += f" (ICMP type {icmp.type} code {icmp.code}{by})"
        return SocketFailure(reason, source_of(reason), words, code)
    text = os.strerror(code)
    if local and code not in (errno.ECONNREFUSED, errno.ECONNRESET):
        reason = _OWN_ERRORS.get(code, Reason.TX_ERROR)
        return SocketFailure(
            reason, FailureSource.SELF, f"{text} (on this host){remedy(code)}", code
        )
    reason, source = _REMOTE_ERRORS.get(code, (Reason.TX_ERROR, FailureSource.SELF))
    return SocketFailure(reason, source, text, code)


def explain_oserror(error: OSError) -> SocketFailure:
    """Explain what a send or receive on a connected socket raised."""
    if error.errno is None:
        return SocketFailure(Reason.TX_ERROR, FailureSource.SELF, str(error))
    return explain(error.errno, local=False)


@dataclass(slots=True)
class Attempt:
    """One try to connect to one address; `sock` is there exactly when it succeeded.

    `prepare`, where given, sets the new socket's options. `icmp` is the error that ended it.
    """

    number: int
    address: str
    port: int
    prepare: Callable[[socket.socket], None] | None = None
    started_ns: int | None = None
    ended_ns: int | None = None
    sock: socket.socket | None = None
    failure: SocketFailure | None = None
    icmp: IcmpError | None = None
    syn_rtt_ns: int | None = None
    retransmits: int = 0
    superseded: bool = False
    local: str | None = None

    @property
    def rtt_ns(self) -> int | None:
        """How long the connect took; None while it lasts or when it was cut short.

        The kernel's own SYN round trip where it has one: the instants seen by the event loop
        contain the loop's lag.
        """
        if self.syn_rtt_ns is not None:
            return self.syn_rtt_ns
        if self.started_ns is None or self.ended_ns is None:
            return None
        return self.ended_ns - self.started_ns

    @property
    def rtt_clock(self) -> str:
        """Who timed `rtt_ns`: kernel or user."""
        return "user" if self.syn_rtt_ns is None else "kernel"

    @property
    def is_made(self) -> bool:
        """Whether the attempt was begun at all."""
        return self.started_ns is not None or self.failure is not None

    @property
    def endpoint(self) -> str:
        """Address and port as one string."""
        return endpoint(self.address, self.port)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.sock is not None:
            self.sock.close()


Dial = Callable[[Attempt], Awaitable[None]]


class Dialer:
    """Makes one connection attempt on a real socket; stamps come from the clock given."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def __call__(self, attempt: Attempt) -> None:
        """Connect and fill attempt in; failures are recorded, only cancellation passes."""
        try:
            family, address = socket_address(attempt.address, attempt.port)
            sock = socket.socket(family, socket.SOCK_STREAM)
        except ResolveError as error:
            attempt.failure = SocketFailure(Reason.NO_ROUTE, FailureSource.SELF, str(error))
            return
        except OSError as error:
            attempt.failure = explain(error.errno or errno.EIO, local=True)
            return
        try:
            sock.setblocking(False)
            queue_icmp_errors(sock)
            if attempt.prepare is not None:
                attempt.prepare(sock)
            await self._connect(attempt, sock, address)
        except OSError as error:
            local = attempt.started_ns is None
            attempt.failure = explain(error.errno or errno.EIO, local=local)
        except BaseException:
            sock.close()
            raise
        if attempt.failure is not None:
            sock.close()

    async def _connect(self, attempt: Attempt, sock: socket.socket, address: object) -> None:
        attempt.started_ns = self._clock.monotonic_ns()
        code = sock.connect_ex(address)  # type: ignore[arg-type]  # a tuple of socket_address
        local = code not in (0, errno.EINPROGRESS)
        if code == errno.EINPROGRESS:
            attempt.ended_ns = await _writable(self._clock, sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        else:
            attempt.ended_ns = self._clock.monotonic_ns()
        if code != 0:
            attempt.icmp = queued_icmp_error(sock)
            attempt.failure = explain(code, local=local, icmp=attempt.icmp)
        elif sock.getsockname() == sock.getpeername():
            # A free ephemeral port can meet itself (simultaneous open): nobody listens there.
            attempt.failure = explain(errno.ECONNREFUSED, local=False)
        else:
            # On a connection that stands, an ICMP error is no reason to give it up.
            sock.setsockopt(*_error_queue(sock), 0)
            attempt.local = sock.getsockname()[0]
            _read_tcp_info(attempt, sock)
            attempt.sock = sock


async def _writable(clock: Clock, sock: socket.socket) -> int:
    """Wait until sock is writable; return the instant the event loop saw it."""
    loop = asyncio.get_running_loop()
    seen: asyncio.Future[int] = loop.create_future()

    def stamp() -> None:
        if not seen.done():
            seen.set_result(clock.monotonic_ns())

    loop.add_writer(sock, stamp)
    try:
        return await seen
    finally:
        loop.remove_writer(sock)


def _read_tcp_info(attempt: Attempt, sock: socket.socket) -> None:
    """Take the kernel's own SYN round trip, which knows nothing of this process's delays."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    if len(info) < _TCP_INFO_SIZE:
        return
    (rtt_us,) = _TCP_INFO_RTT.unpack_from(info, _TCP_INFO_RTT_OFFSET)
    (attempt.retransmits,) = _TCP_INFO_RTT.unpack_from(info, _TCP_INFO_TOTAL_RETRANS_OFFSET)
    # A retransmitted SYN leaves no sample (Karn), and the kernel says 0.
    attempt.syn_rtt_ns = rtt_us * NS_PER_US if rtt_us else None


def interleave(addresses: Sequence[str]) -> tuple[str, ...]:
    """Order addresses so that the families alternate, the first one's first (RFC 8305 4)."""
    if not addresses:
        return ()
    first = [each for each in addresses if (":" in each) == (":" in addresses[0])]
    second = [each for each in addresses if (":" in each) != (":" in addresses[0])]
    ordered: list[str] = []
    while first or second:
        ordered += first[:1] + second[:1]
        first, second = first[1:], second[1:]
    return tuple(ordered)


@contextmanager
def attempts_to(addresses: Sequence[str], port: int) -> Iterator[list[Attempt]]:
    """Yield one attempt per address in race order; close on leaving what nobody detached."""
    attempts = [
        Attempt(number, address, port)
        for number, address in enumerate(interleave(addresses), start=1)
    ]
    try:
        yield attempts
    finally:
        for attempt in attempts:
            attempt.close()


async def race(clock: Clock, attempts: Sequence[Attempt], dial: Dial) -> None:
    """Start attempts one by one until one connects or all have failed.

    The next one starts STAGGER_NS after the last, at once when one has failed (RFC 8305 5).
    The others are then cancelled and marked superseded.
    """
    changed = asyncio.Event()
    finished: list[Attempt] = []

    async def run(attempt: Attempt) -> None:
        await dial(attempt)
        finished.append(attempt)
        changed.set()

    async with asyncio.TaskGroup() as group:
        tasks = []
        for attempt in attempts:
            changed.clear()
            tasks.append(group.create_task(run(attempt)))
            await clock.wait(changed, STAGGER_NS)
            if first_connected(finished) is not None:
                break
        while first_connected(finished) is None and len(finished) < len(attempts):
            changed.clear()
            await changed.wait()
        for attempt, task in zip(attempts, tasks, strict=False):
            attempt.superseded = attempt.sock is None and attempt.failure is None
            task.cancel()


def first_connected(attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the attempt that connected first; None when none did."""
    connected = [each for each in attempts if each.sock is not None]
    return min(connected, key=lambda each: each.ended_ns or 0, default=None)


def decisive_failure(attempts: Sequence[Attempt]) -> SocketFailure | None:
    """Pick the failure that says most: the target's own word, then the path's, then ours."""
    order = (FailureSource.TARGET, FailureSource.PATH, FailureSource.SELF)
    failures = [each.failure for each in attempts if each.failure is not None]
    return min(failures, key=lambda failure: order.index(failure.source), default=None)
