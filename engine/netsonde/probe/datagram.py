"""One UDP question and its answer, timed with the kernel's receive stamp.

The socket is connected, so the kernel drops what comes from any other address or port and hands
over the ICMP errors that belong to it.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import NamedTuple, Self

from netsonde.clock import NS_PER_MS, Clock
from netsonde.errors import ResolveError
from netsonde.model import FailureSource, Reason
from netsonde.probe.connect import (
    SO_TIMESTAMPNS,
    IcmpError,
    SocketFailure,
    explain,
    kernel_stamp_ns,
    queue_icmp_errors,
    queued_icmp_error,
)
from netsonde.probe.limits import time_limit
from netsonde.probe.targets import socket_address

_DATAGRAM_MAX = 65_535
_STRAYS_MAX = 1000  # a flood of forged answers must not keep the loop busy for a whole timeout
_STEP_NS = NS_PER_MS  # wall clock against monotonic: slewing stays far below this, a step does not


class Answer(NamedTuple):
    """An accepted datagram, its round trip, and the clock that stamped its arrival."""

    data: bytes
    rtt_ns: int
    rx_clock: str


class Refusal(NamedTuple):
    """Why no datagram came, after what time, and the ICMP error that said so."""

    failure: SocketFailure
    rtt_ns: int
    rx_clock: str
    icmp: IcmpError | None


class DatagramSocket:
    """A connected UDP socket to one vetted address, on a port the kernel picks at random."""

    def __init__(self, clock: Clock, sock: socket.socket) -> None:
        self._clock = clock
        self._sock = sock
        self.strays = 0

    @classmethod
    def open(
        cls,
        clock: Clock,
        address: str,
        port: int,
        prepare: Callable[[socket.socket], None] | None = None,
    ) -> "Self | SocketFailure":
        """Open and connect a socket; a failure to do so is this host's.

        prepare, where given, sets its options.
        """
        try:
            family, target = socket_address(address, port)
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except ResolveError as error:
            return SocketFailure(Reason.NO_ROUTE, FailureSource.SELF, str(error))
        except OSError as error:
            return explain(error.errno or errno.EIO, local=True)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            queue_icmp_errors(sock)
            if prepare is not None:
                prepare(sock)
            sock.connect(target)
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError):
                raise
            return explain(error.errno or errno.EIO, local=True)
        return cls(clock, sock)

    @property
    def local(self) -> str:
        """The source address the kernel chose."""
        return str(self._sock.getsockname()[0])

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    async def ask(
        self, question: bytes, accept: Callable[[bytes], bool], timeout_ns: int
    ) -> Answer | SocketFailure:
        """Send question and return the first datagram that accept takes, or why there is none.

        Datagrams that accept refuses are counted in `strays`.
        """
        limit = SocketFailure(Reason.TIMEOUT, FailureSource.TARGET, "no answer in time")
        try:
            async with time_limit(timeout_ns):
                found = await self.exchange(question, accept)
        except TimeoutError:
            return limit
        if found is None:
            return limit._replace(text=f"{_STRAYS_MAX} datagrams came and none was the answer")
        return found.failure if isinstance(found, Refusal) else found

    async def exchange(
        self, question: bytes, accept: Callable[[bytes], bool]
    ) -> Answer | Refusal | None:
        """Send question and return the first datagram that accept takes, however long that takes.

        None: too many came that were not the answer.
        """
        before = (self._clock.realtime_ns(), self._clock.monotonic_ns())
        try:
            self._sock.send(question)
        except OSError as error:
            return Refusal(explain(error.errno or errno.EIO, local=True), 0, "user", None)
        while self.strays < _STRAYS_MAX:
            found = await self._receive(before)
            if isinstance(found, Refusal) or accept(found.data):
                return found
            self.strays += 1
        return None

    async def _receive(self, before: tuple[int, int]) -> Answer | Refusal:
        while True:
            await _readable(self._sock)
            try:
                data, ancillary, _, _ = self._sock.recvmsg(_DATAGRAM_MAX, 128)
            except BlockingIOError:
                if (icmp := queued_icmp_error(self._sock)) is not None and icmp.is_failure:
                    return self._refusal(errno.EHOSTUNREACH, icmp, before)
                continue
            except OSError as error:
                icmp = queued_icmp_error(self._sock)
                return self._refusal(error.errno or errno.EIO, icmp, before)
            return Answer(data, *self._timed(before, kernel_stamp_ns(ancillary)))

    def _refusal(self, code: int, icmp: IcmpError | None, before: tuple[int, int]) -> Refusal:
        timed = self._timed(before, None if icmp is None else icmp.stamp_ns)
        return Refusal(_explain(code, icmp), *timed, icmp)

    def _timed(self, before: tuple[int, int], stamp_ns: int | None) -> tuple[int, str]:
        now = (self._clock.realtime_ns(), self._clock.monotonic_ns())
        return _round_trip(before, now, stamp_ns)


def _explain(code: int, icmp: IcmpError | None) -> SocketFailure:
    failure = explain(code, local=False, icmp=icmp)
    if failure.reason is Reason.UNREACHABLE_PORT:  # how a host says that a UDP port is closed
        return failure._replace(reason=Reason.REFUSED)
    return failure


def _round_trip(
    before: tuple[int, int], now: tuple[int, int], stamp_ns: int | None
) -> tuple[int, str]:
    """Return the round trip and the clock that ended it.

    before and now are (realtime, monotonic) pairs of the send and of the read. The kernel's stamp
    is wall time: it counts only when the two clocks agree that no step fell in between.
    """
    user_ns = now[1] - before[1]
    stepped = abs((now[0] - before[0]) - user_ns) > _STEP_NS
    if stamp_ns is None or stepped:
        return user_ns, "user"
    queued_ns = now[0] - stamp_ns
    if not 0 <= queued_ns <= user_ns:
        return user_ns, "user"
    return user_ns - queued_ns, "kernel"


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock)
