"""One attempt of a ping by udp: a datagram. Whatever comes back from the target is an answer."""

import os

from netsonde._native import icmp
from netsonde.clock import Clock
from netsonde.model import Reason
from netsonde.probe.connect import IcmpError, SocketFailure
from netsonde.probe.datagram import Answer, DatagramSocket
from netsonde.probe.icmp_errors import explain_icmp
from netsonde.probe.ping.run import Completion, PingRun, packed_address
from netsonde.probe.ping.sockets import failed, timed_out

ACCESS = "datagram"
COOKIE_BYTES = 16


class UdpAttempt:
    """Sends a datagram nobody could guess, from a port of its own, to which the target answers.

    An answer is a datagram, or the target's word that the port is closed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def __call__(self, run: PingRun, token: int) -> Completion:
        """Make the attempt with this token."""
        sent_ns = self._clock.monotonic_ns()
        sock = DatagramSocket.open(self._clock, run.address, run.port, run.prepare)
        if isinstance(sock, SocketFailure):
            return failed(run, token, sent_ns, sock, None)
        try:
            found = await sock.exchange(payload(run.size), lambda _datagram: True)
        finally:
            sock.close()
        if found is None:
            return timed_out(token, sent_ns)
        reply = timed_out(token, sent_ns)._replace(
            rtt_ns=found.rtt_ns,
            responder=run.destination,
            kind=icmp.REPLY,
            clocks=icmp.RX_KERNEL if found.rx_clock == "kernel" else 0,
        )
        if isinstance(found, Answer):
            return reply._replace(size=len(found.data))
        error = found.icmp
        if error is None or not is_from_target(run, error):
            return failed(run, token, sent_ns, found.failure, error)
        return reply._replace(icmp_type=error.type, code=error.code)


def payload(size: int) -> bytes:
    """Return a cookie and a filling."""
    return os.urandom(COOKIE_BYTES) + bytes(size - COOKIE_BYTES)


def is_from_target(run: PingRun, error: IcmpError) -> bool:
    """Whether the target itself said that the port is closed, and no router on the way."""
    if error.offender is None:
        return False
    reason, _ = explain_icmp(run.family, error.type, error.code)
    return (
        reason is Reason.UNREACHABLE_PORT and packed_address(error.offender)[0] == run.destination
    )
