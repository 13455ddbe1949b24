"""Runs of a socket per attempt: pace, timeouts, cancellation, and what a failure amounts to."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable

import pytest

from netsonde import netinfo
from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, NS_PER_S, ManualClock
from netsonde.errors import ConfigError, PrivilegeError, SendError
from netsonde.model import FailureSource, Reason
from netsonde.probe.connect import IcmpError, SocketFailure
from netsonde.probe.ping import sockets
from netsonde.probe.ping.engines import EngineOptions, budgets
from netsonde.probe.ping.run import NOBODY, Completion, PingRun
from netsonde.probe.ping.sockets import (
    SocketDriver,
    SocketOptions,
    failed,
    pacer_of,
    timed_out,
)
from netsonde.probe.ping.ways import ANY, Wanted

Script = Callable[[int], Awaitable[None]]  # of an attempt; it is answered when this returns


class Bench:
    def __init__(self, options: EngineOptions | None = None) -> None:
        self.clock = ManualClock()
        self.begun: list[tuple[str, int, int]] = []
        self.open = 0
        self.most = 0
        self.script: Script = self.at_once
        self.driver = SocketDriver(
            self.clock, self.attempt, "stream", None if options is None else pacer_of(options)
        )

    async def at_once(self, _attempt: int) -> None:
        """Be answered after 1 ms."""
        await self.clock.sleep(NS_PER_MS)

    async def never(self, _attempt: int) -> None:
        """Be never answered."""
        await asyncio.get_running_loop().create_future()

    async def attempt(self, run: PingRun, token: int) -> Completion:
        attempt, sent_ns = token & 0xFFFFFFFF, self.clock.monotonic_ns()
        self.begun.append((run.address, attempt, sent_ns))
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await self.script(attempt)
        finally:
            self.open -= 1
        rtt_ns = self.clock.monotonic_ns() - sent_ns
        return timed_out(token, sent_ns)._replace(kind=icmp.REPLY, rtt_ns=rtt_ns)

    def run(self, address: str = "192.0.2.1", count: int = 3, interval_ms: int = 10) -> PingRun:
        return PingRun(
            carrier=self.driver, address=address, count=count, interval_ns=interval_ms * NS_PER_MS,
            timeout_ns=100 * NS_PER_MS, method="tcp", port=80,
        )  # fmt: skip

    def gaps_ms(self) -> list[float]:
        instants = [sent_ns for *_, sent_ns in self.begun]
        return [
            (after - before) / NS_PER_MS
            for before, after in zip(instants, instants[1:], strict=False)  # noqa: RUF007
        ]

    async def all_of(self, *runs: PingRun, within_ns: int = 60 * NS_PER_S) -> None:
        async with asyncio.TaskGroup() as group:
            for run in runs:
                group.create_task(self.driver.run(run))
            await self.clock.advance(within_ns)


async def test_attempts_keep_their_distance() -> None:
    bench = Bench()
    run = bench.run(count=5, interval_ms=30)
    await bench.all_of(run)
    assert bench.gaps_ms() == [30] * 4
    assert (run.counts.sent, run.counts.received) == (5, 5)
    assert set(run.rtts_ns) == {NS_PER_MS}
    bench.driver.forget(run)
    bench.driver.forget(run)
    assert len(bench.driver._ledger) == 0


async def test_a_slow_answer_does_not_hold_up_the_next_attempt() -> None:
    bench = Bench()
    bench.script = bench.never
    run = bench.run(count=4)
    await bench.all_of(run)
    assert bench.gaps_ms() == [10] * 3
    assert run.kinds == bytes([icmp.TIMEOUT]) * 4
    assert bench.open == 0


async def test_a_late_loop_does_not_burst() -> None:
    bench = Bench()
    run = bench.run(count=10)
    async with asyncio.TaskGroup() as group:
        group.create_task(bench.driver.run(run))
        await bench.clock.settle()
        bench.clock._now_ns += 50 * NS_PER_MS  # nobody ran for 50 ms
        await bench.clock.advance(NS_PER_S)
    assert min(bench.gaps_ms()[1:]) >= 8


async def test_sockets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SOCKETS_MAX", 8)
    bench = Bench()
    runs = [bench.run(f"192.0.2.{n}", count=20, interval_ms=0) for n in range(5)]
    await bench.all_of(*runs)
    assert bench.most == 8
    assert [run.counts.received for run in runs] == [20] * 5


async def test_cancelled_it_knows_what_was_sent() -> None:
    bench = Bench()
    bench.script = bench.never
    run = bench.run(count=1000)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.driver.run(run))
        await bench.clock.advance(35 * NS_PER_MS)
        task.cancel()
    assert task.cancelled()
    assert (run.counts.submitted, run.counts.settled, bench.open) == (4, 0, 0)
    assert len(bench.begun) == 4


async def test_places_of_what_was_cancelled_are_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sockets, "SOCKETS_MAX", 4)
    bench = Bench()
    bench.script = bench.never
    for turns in range(5):  # cancelled after so many turns of the loop
        async with asyncio.TaskGroup() as group:
            task = group.create_task(bench.driver.run(bench.run(count=50, interval_ms=0)))
            await bench.clock.settle(turns)
            task.cancel()
    bench.script = bench.at_once
    run = bench.run(count=50, interval_ms=0)
    await bench.all_of(run)
    assert run.counts.received == 50


async def test_a_watched_run_is_told_of_every_attempt() -> None:
    bench = Bench()
    seen: list[int] = []
    run = bench.run(count=3)
    run.on_packet = lambda _run, packet: seen.append(packet.attempt)
    await bench.all_of(run)
    assert seen == [0, 1, 2]


# ── rates ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "gap_ms"),
    [
        (EngineOptions(budgets=budgets(100)), 10),
        (EngineOptions(budgets=budgets(1000, 50)), 20),
        (EngineOptions(prefix_pps=20), 50),
        (EngineOptions(target_pps=10), 100),
        (EngineOptions(budgets=budgets(100), prefix_pps=50, target_pps=25), 40),
    ],
)
async def test_attempts_obey_the_rates(options: EngineOptions, gap_ms: float) -> None:
    bench = Bench(options)
    await bench.all_of(bench.run(count=6, interval_ms=0))
    assert bench.gaps_ms() == pytest.approx([gap_ms] * 5)


async def test_a_rate_holds_for_all_runs_together() -> None:
    bench = Bench(EngineOptions(budgets=budgets(100), target_pps=1))
    await bench.all_of(*(bench.run(f"192.0.{n}.1", count=1) for n in range(10)))
    assert bench.gaps_ms() == pytest.approx([10] * 9)


async def test_a_prefix_is_a_24_or_a_48() -> None:
    bench = Bench(EngineOptions(prefix_pps=1))
    hosts = ["192.0.2.1", "192.0.2.200", "192.0.3.1", "2001:db8:1::1", "2001:db8:1:ff::1"]
    await bench.all_of(*(bench.run(host, count=1) for host in hosts))
    first_ns = bench.begun[0][2]
    late = {host for host, _, sent_ns in bench.begun if sent_ns - first_ns >= NS_PER_S}
    assert late == {"192.0.2.200", "2001:db8:1:ff::1"}


async def test_a_run_far_ahead_takes_no_tokens_of_now() -> None:
    bench = Bench(EngineOptions(budgets=budgets(10)))
    slow = bench.run("192.0.2.1", count=2, interval_ms=50_000)
    quick = bench.run("192.0.2.2", count=5, interval_ms=0)
    await bench.all_of(slow, quick)
    assert quick.counts.last_sent_ns - quick.counts.first_sent_ns == 400 * NS_PER_MS


def test_without_a_rate_there_is_no_pacer() -> None:
    assert pacer_of(EngineOptions()) is None


# ── options ──────────────────────────────────────────────────────────────────────────────────────


def options(family: int = 4, *, df: bool = False, wanted: Wanted = ANY) -> SocketOptions:
    return SocketOptions(family, ttl=9, tos=0xB8, df=df, wanted=wanted)


@pytest.mark.parametrize("df", [False, True])
def test_what_was_asked_for_is_set(df: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        options(df=df, wanted=Wanted(source="127.0.0.1")).apply(sock)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 9
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0xB8
        assert sock.getsockopt(socket.IPPROTO_IP, 10) == (2 if df else 0)  # IP_MTU_DISCOVER
        assert sock.getsockname()[0] == "127.0.0.1"


def test_ipv6_has_the_same() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        options(6, df=True).apply(sock)
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) == 9
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 0xB8
        assert sock.getsockopt(socket.IPPROTO_IPV6, 23) == 2  # IPV6_MTU_DISCOVER


def test_what_this_host_does_not_have_is_named() -> None:
    with pytest.raises(ConfigError, match=r"source 192\.0\.2\.77 is not an address"):
        options(wanted=Wanted(source="192.0.2.77")).check(socket.SOCK_STREAM)
    with pytest.raises(ConfigError, match="no interface 'nosuch0'"):
        options(wanted=Wanted(interface="nosuch0")).check(socket.SOCK_STREAM)
    with pytest.raises(ConfigError, match="source fe80::1%nosuch0: this host has no interface"):
        options(6, wanted=Wanted(source="fe80::1%nosuch0")).check(socket.SOCK_STREAM)
    options(wanted=Wanted(interface="lo", source="127.0.0.1")).check(socket.SOCK_DGRAM)


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.EPERM, PrivilegeError), (errno.EMFILE, SendError)]
)
def test_a_refusal_says_whose_it_is(
    monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(SocketOptions, "apply", refuse)
    monkeypatch.setattr(netinfo, "interface_index", lambda _name: 1)
    with pytest.raises(expected):
        options(wanted=Wanted(interface="eth0", mark=1)).check(socket.SOCK_STREAM)


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


def failure(reason: Reason, source: FailureSource, code: int | None = None) -> SocketFailure:
    return SocketFailure(reason, source, "words", code)


PATH, TARGET, SELF = FailureSource.PATH, FailureSource.TARGET, FailureSource.SELF


@pytest.mark.parametrize(
    ("address", "told", "error", "kind", "icmp_type", "code", "responder"),
    [
        ("192.0.2.1", failure(Reason.TIMEOUT, TARGET, 110), None, icmp.TIMEOUT, 0, 0, None),
        ("192.0.2.1", failure(Reason.NO_ROUTE, SELF, 101), None, icmp.TX_ERROR, 0, 0, None),
        ("192.0.2.1", failure(Reason.FILTERED, PATH, 113), IcmpError(4, 3, 13, "192.0.2.254"),
         icmp.ERROR, 3, 13, "192.0.2.254"),
        ("192.0.2.1", failure(Reason.FILTERED, PATH, 113), IcmpError(4, 3, 13, None),
         icmp.ERROR, 3, 13, None),
        ("192.0.2.1", failure(Reason.UNREACHABLE_HOST, TARGET, 113), None, icmp.ERROR, 3, 1, None),
        ("192.0.2.1", failure(Reason.UNREACHABLE_NET, PATH, 101), IcmpError(4, 3, 4, "192.0.2.9"),
         icmp.ERROR, 3, 0, None),
        ("2001:db8::1", failure(Reason.UNREACHABLE_NET, PATH, 101), None, icmp.ERROR, 1, 0, None),
        ("2001:db8::1", failure(Reason.REFUSED, TARGET, 111), None, icmp.ERROR, 1, 4, None),
        ("192.0.2.1", failure(Reason.TX_ERROR, SELF), None, icmp.TX_ERROR, 0, 0, None),
    ],
)  # fmt: skip
async def test_a_failure_is_a_completion(
    address: str,
    told: SocketFailure,
    error: IcmpError | None,
    kind: int,
    icmp_type: int,
    code: int,
    responder: str | None,
) -> None:
    run = Bench().run(address)
    found = failed(run, 7, 5, told, error)
    assert (found.kind, found.icmp_type, found.code) == (kind, icmp_type, code)
    assert run.responder(found.responder) == responder
    assert (found.rtt_ns, found.sent_ns, found.token) == (-1, 5, 7)
    if kind == icmp.TX_ERROR:
        assert found.errno == (told.errno or errno.EIO)
    assert responder is not None or found.responder == NOBODY
