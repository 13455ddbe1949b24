"""One attempt of a ping by tcp: a connect. A reset is an answer too, of a host that is alive."""

from netsonde._native import icmp
from netsonde.clock import Clock
from netsonde.model import Reason
from netsonde.probe.connect import Attempt, Dial, Dialer
from netsonde.probe.ping.run import Completion, PingRun
from netsonde.probe.ping.sockets import KERNEL_CLOCKS, failed, timed_out

ACCESS = "stream"
RESETS = (Reason.REFUSED, Reason.RESET)


class TcpAttempt:
    """Connects, and closes at once; the round trip is the kernel's own of the SYN where it has it.

    A reset has the event loop's time: the kernel keeps none of a connection that never was.
    """

    def __init__(self, clock: Clock, dial: Dial | None = None) -> None:
        self._dial = dial or Dialer(clock)

    async def __call__(self, run: PingRun, token: int) -> Completion:
        """Make the attempt with this token."""
        attempt = Attempt(1, run.address, run.port, run.prepare)
        try:
            await self._dial(attempt)
        finally:
            attempt.close()
        sent_ns, failure = attempt.started_ns or 0, attempt.failure
        if failure is not None and failure.reason not in RESETS:
            return failed(run, token, sent_ns, failure, attempt.icmp)
        return timed_out(token, sent_ns)._replace(
            kind=icmp.REPLY,
            rtt_ns=attempt.rtt_ns or 0,
            responder=run.destination,
            clocks=0 if attempt.syn_rtt_ns is None else KERNEL_CLOCKS,
            errno=0 if failure is None else failure.errno or 0,
        )
