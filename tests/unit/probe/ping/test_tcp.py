"""An attempt by tcp: who answers, and what is a failure."""

import errno
import socket

import pytest

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.probe.connect import Attempt, IcmpError, explain
from netsonde.probe.ping.run import Completion, PingRun
from netsonde.probe.ping.sockets import KERNEL_CLOCKS, SocketDriver
from netsonde.probe.ping.tcp import TcpAttempt

CLOCK = ManualClock()


async def made(
    code: int = 0, error: IcmpError | None = None, syn_rtt_ns: int | None = None
) -> tuple[Completion, Attempt]:
    """Make an attempt that a connect with this errno ends 5 ms later."""
    seen: list[Attempt] = []

    async def dial(attempt: Attempt) -> None:
        seen.append(attempt)
        attempt.started_ns, attempt.ended_ns = 10, 10 + 5 * NS_PER_MS
        attempt.syn_rtt_ns, attempt.icmp = syn_rtt_ns, error
        if code:
            attempt.failure = explain(code, local=False, icmp=error)
        else:
            attempt.sock = socket.socket()

    ping = TcpAttempt(CLOCK, dial)
    run = PingRun(
        carrier=SocketDriver(CLOCK, ping, "stream"), address="192.0.2.1", count=1, interval_ns=0,
        timeout_ns=NS_PER_MS, method="tcp", port=443, prepare=lambda _sock: None,
    )  # fmt: skip
    completion = await ping(run, 7)
    assert (seen[0].address, seen[0].port, seen[0].prepare) == ("192.0.2.1", 443, run.prepare)
    assert (completion.token, completion.sent_ns) == (7, 10)
    return completion, seen[0]


async def test_a_connection_is_an_answer_with_the_kernels_time() -> None:
    completion, attempt = await made(syn_rtt_ns=2 * NS_PER_MS)
    assert (completion.kind, completion.rtt_ns) == (icmp.REPLY, 2 * NS_PER_MS)
    assert (completion.clocks, completion.errno) == (KERNEL_CLOCKS, 0)
    assert attempt.sock is not None
    assert attempt.sock.fileno() == -1  # closed at once


async def test_a_repeated_syn_has_the_loops_time_and_says_so() -> None:
    completion, _ = await made()
    assert (completion.rtt_ns, completion.clocks) == (5 * NS_PER_MS, 0)


@pytest.mark.parametrize("code", [errno.ECONNREFUSED, errno.ECONNRESET])
async def test_a_reset_is_an_answer_and_is_noted(code: int) -> None:
    completion, _ = await made(code)
    assert (completion.kind, completion.rtt_ns) == (icmp.REPLY, 5 * NS_PER_MS)
    assert (completion.errno, completion.clocks) == (code, 0)


async def test_a_firewalls_word_is_none() -> None:
    error = IcmpError(4, 3, 3, "192.0.2.1")  # as iptables rejects
    completion, _ = await made(errno.ECONNREFUSED, error)
    assert (completion.kind, completion.icmp_type, completion.code) == (icmp.ERROR, 3, 3)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ETIMEDOUT, icmp.TIMEOUT),
        (errno.EHOSTUNREACH, icmp.ERROR),
        (errno.EMFILE, icmp.TX_ERROR),
    ],
)
async def test_everything_else_is_a_failure(code: int, kind: int) -> None:
    completion, _ = await made(code)
    assert (completion.kind, completion.rtt_ns) == (kind, -1)
