"""Pings by tcp and udp: a socket per attempt, the same runs, the same results."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_network

from netsonde import netinfo
from netsonde._native import icmp
from netsonde._native.ledger import EchoLedger
from netsonde.clock import NS_PER_MS, Clock
from netsonde.errors import ConfigError, NetsondeError, PrivilegeError, ResolveError, SendError
from netsonde.model import FailureSource, Reason
from netsonde.pacing import RATE_MAX_PPS, KeyedBuckets, Pacer, TokenBucket
from netsonde.probe.connect import IcmpError, SocketFailure
from netsonde.probe.ping.engines import EngineOptions
from netsonde.probe.ping.run import COMPLETION, NOBODY, Completion, PingRun, packed_address
from netsonde.probe.ping.ways import Wanted
from netsonde.probe.targets import socket_address

SOCKETS_MAX = 256  # of a method at once: a quarter of the descriptors a process has by default
CATCH_UP_NS = 2 * NS_PER_MS  # a late loop may shorten a gap by this much, as the echo engine does
KEYS_MAX = 65_536  # prefixes and targets paced at once; those beyond share one bucket
PREFIX_BITS = {4: 24, 6: 48}  # of one site, as the echo engine paces

KERNEL_CLOCKS = icmp.RX_KERNEL | icmp.TX_KERNEL

# Linux numbers that the socket module does not name (linux/in.h, in6.h, asm-generic/socket.h).
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_SO_MARK = 36

# What the kernel has read out of an ICMP message before it forgot the message.
_UNREACHABLES = {
    Reason.UNREACHABLE_NET: {4: (3, 0), 6: (1, 0)},
    Reason.UNREACHABLE_HOST: {4: (3, 1), 6: (1, 3)},
    Reason.UNREACHABLE_PORT: {4: (3, 3), 6: (1, 4)},
    Reason.REFUSED: {4: (3, 3), 6: (1, 4)},
    Reason.FILTERED: {4: (3, 13), 6: (1, 1)},
}

Try = Callable[[PingRun, int], Awaitable[Completion]]  # of the attempt with this token


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """What packets look like and which way they leave, as options of one family's sockets."""

    family: int
    ttl: int
    tos: int
    df: bool
    wanted: Wanted

    def check(self, kind: socket.SocketKind) -> None:
        """Find out whether a socket takes them.

        Raises:
            ConfigError: no such interface, or the source is not this host's.
            PrivilegeError: this process may not set the mark.
            SendError: no socket of this family can be had at all.
        """
        if self.wanted.interface is not None:
            netinfo.interface_index(self.wanted.interface)
        domain = socket.AF_INET if self.family == 4 else socket.AF_INET6
        try:
            with socket.socket(domain, kind) as probe:
                self.apply(probe)
        except ResolveError as error:
            raise ConfigError(f"source {error}") from error
        except OSError as error:
            raise self._explained(error) from error

    def apply(self, sock: socket.socket) -> None:
        """Set them.

        Raises:
            OSError: the kernel refuses one.
        """
        discover = _PMTUDISC_DO if self.df else _PMTUDISC_DONT
        if self.family == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, self.ttl)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, self.tos)
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, discover)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, self.ttl)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, self.tos)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, discover)
        if self.wanted.interface is not None:
            name = self.wanted.interface.encode()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        if self.wanted.mark is not None:
            sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, self.wanted.mark)
        if self.wanted.source is not None:
            sock.bind(socket_address(self.wanted.source, 0)[1])

    def _explained(self, error: OSError) -> NetsondeError:
        if error.errno == errno.EADDRNOTAVAIL:
            return ConfigError(f"source {self.wanted.source} is not an address of this host")
        if error.errno == errno.EPERM:
            return PrivilegeError("interface and mark need CAP_NET_RAW, mark CAP_NET_ADMIN"
                                  " before Linux 5.17: leave them out, or grant it")  # fmt: skip
        text = error.strerror or str(error)
        return SendError(f"open IPv{self.family} socket", error.errno or 0, text)


class SocketDriver:
    """Carries the runs of one method; at most SOCKETS_MAX attempts of all are under way."""

    backend = None
    clock_steps = None

    def __init__(self, clock: Clock, attempt: Try, access: str, pacer: Pacer | None = None) -> None:
        self.access = access
        self._clock = clock
        self._try = attempt
        self._pacer = pacer
        self._ledger = EchoLedger()
        self._slots = asyncio.Semaphore(SOCKETS_MAX)

    async def run(self, run: PingRun) -> None:
        """Make a run's attempts and return when every one has ended. `forget` it then.

        When it is cancelled no more are made, and run holds what was seen so far.
        """
        run.enter(self._ledger)
        begun = 0

        async def attempt(number: int) -> None:
            nonlocal begun
            begun = number + 1
            self._fold(run, await self._in_time(run, run.token | number))

        try:
            async with asyncio.TaskGroup() as group:
                due_ns = self._clock.monotonic_ns()
                for number in range(run.count):
                    due_ns = await self._turn(run, due_ns)
                    await self._slots.acquire()
                    task = group.create_task(attempt(number))
                    # Not by the task itself: one that is cancelled early never runs.
                    task.add_done_callback(lambda _: self._slots.release())
                    due_ns = max(due_ns, self._clock.monotonic_ns() - CATCH_UP_NS) + run.interval_ns
        except asyncio.CancelledError:
            self._ledger.fold(run.stop_record(begun))
            raise

    def forget(self, run: PingRun) -> None:
        """Drop what is known of a run."""
        if run.ledger is not None:
            self._ledger.close(run.number)
            run.ledger = None

    async def _turn(self, run: PingRun, due_ns: int) -> int:
        """Wait for an attempt's instant, and for its tokens then; return when it was due."""
        await self._clock.sleep(due_ns - self._clock.monotonic_ns())
        if self._pacer is None:
            return due_ns
        width = 4 if run.family == 4 else 16
        site = ip_network((run.destination[:width], PREFIX_BITS[run.family]), strict=False)
        now_ns = self._clock.monotonic_ns()
        wait_ns = self._pacer.reserve((site, run.destination), now_ns)
        if wait_ns:
            await self._clock.sleep(wait_ns)
        return max(due_ns, now_ns + wait_ns)

    async def _in_time(self, run: PingRun, token: int) -> Completion:
        """Make one attempt and give it up after the run's timeout."""
        sent_ns = self._clock.monotonic_ns()
        ended = asyncio.Event()
        found: list[Completion] = []

        async def attempt() -> None:
            found.append(await self._try(run, token))
            ended.set()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(attempt())
            await self._clock.wait(ended, run.timeout_ns)
            task.cancel()
        return found[0] if found else timed_out(token, sent_ns)

    def _fold(self, run: PingRun, completion: Completion) -> None:
        self._ledger.fold(COMPLETION.pack(*completion))
        if run.on_packet is not None:
            run.on_packet(run, completion)


def pacer_of(options: EngineOptions) -> Pacer | None:
    """Make the pacer that holds attempts to the rates of the echo engines; None: no rate is set."""
    fixed = [TokenBucket(budget.rate_pps, 1) for budget in options.budgets]
    rates = (options.prefix_pps, options.target_pps)
    if not fixed and not any(rates):
        return None
    keyed = [KeyedBuckets(rate or RATE_MAX_PPS, 1, KEYS_MAX) for rate in rates]
    return Pacer(fixed, keyed)


# ── completions ──────────────────────────────────────────────────────────────────────────────────


def timed_out(token: int, sent_ns: int) -> Completion:
    """Nothing came in time."""
    return Completion(token, -1, sent_ns, NOBODY, icmp.TIMEOUT, 0, 0, 0, 0, 0, 0)


def failed(
    run: PingRun, token: int, sent_ns: int, failure: SocketFailure, error: IcmpError | None
) -> Completion:
    """Why there will be no reply: this host did not send it, or somebody said so."""
    nothing = timed_out(token, sent_ns)
    if failure.reason is Reason.TIMEOUT:
        return nothing
    if failure.source is not FailureSource.SELF:
        if error is not None and error.is_failure:
            who = NOBODY if error.offender is None else packed_address(error.offender)[0]
            return nothing._replace(
                kind=icmp.ERROR, icmp_type=error.type, code=error.code, responder=who
            )
        if failure.reason in _UNREACHABLES:
            icmp_type, code = _UNREACHABLES[failure.reason][run.family]
            return nothing._replace(kind=icmp.ERROR, icmp_type=icmp_type, code=code)
    return nothing._replace(kind=icmp.TX_ERROR, errno=failure.errno or errno.EIO)
