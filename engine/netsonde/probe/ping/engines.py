"""How echo engines are opened: by which back end, at what pace, on a thread of its own or not."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from netsonde._native import icmp
from netsonde.errors import PrivilegeError, SendError
from netsonde.probe.ping.driver import EchoEngine
from netsonde.probe.privilege import GRANT_HINT

Backend = Literal["header", "raw", "packet", "datagram"]

BACKENDS: tuple[Backend, ...] = ("header", "raw", "packet", "datagram")
DEFAULT_BACKENDS: tuple[Backend, ...] = ("header", "raw", "datagram")

Version = Literal[4, 6]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What engines are opened with.

    backends: what may be used, in order of preference; a later one is taken where the kernel does
    not permit the earlier ones, never anything else. exact: transmit stamps by the kernel. budgets:
    packet rates shared by all engines that have them. prefix_pps, target_pps: rates per /24 or /48
    and per address; 0: none. threaded: None lets the engine have a thread where there is a
    processor for it. largest_size: payload bytes that the packet back end makes room for. capacity:
    packets in flight or remembered for late replies; 64 bytes each, once there have been as many.
    """

    backends: tuple[Backend, ...] = DEFAULT_BACKENDS
    exact: bool = False
    budgets: tuple[icmp.PacketBudget, ...] = ()
    prefix_pps: float = 0
    target_pps: float = 0
    threaded: bool | None = None
    largest_size: int = 1856  # all that it can: 8 MiB per engine; up to 320 take 2 MiB
    capacity: int = icmp.CAPACITY


class OpenEngine(Protocol):
    """How a prober gets its engines: `open_engine`, or a test's twin."""

    def __call__(self, family: int) -> EchoEngine:
        """Open an engine for family 4 or 6."""
        ...


def open_engine(family: int, options: EngineOptions = EngineOptions()) -> EchoEngine:
    """Open the native engine by the first back end that this process may use.

    Raises:
        PrivilegeError: it may use none of them; the message says how to grant it.
        SendError: this host cannot at all, for instance because it has no IPv6.
    """
    version: Version = 4 if family == 4 else 6
    for backend in able(family, options.backends):
        with contextlib.suppress(PermissionError):
            return _open(version, backend, options)
    declared = ", ".join(options.backends)
    raise PrivilegeError(
        f"this process may not send ICMPv{family} (back end {declared}).\n{GRANT_HINT}"
    )


def able(family: int, backends: tuple[Backend, ...]) -> Iterator[Backend]:
    """Yield the back ends a family has: the kernel writes IPv6 headers for those it has not."""
    for backend in backends:
        if family == 4 or backend != "header":
            yield backend
        elif "raw" not in backends:
            yield "raw"


def _open(version: Version, backend: Backend, options: EngineOptions) -> icmp.EchoEngine:
    try:
        engine = icmp.EchoEngine(
            version,
            backend=backend,
            exact=options.exact,
            budgets=options.budgets,
            prefix_pps=options.prefix_pps,
            target_pps=options.target_pps,
            largest_size=options.largest_size,
            capacity=options.capacity,
        )
        try:
            if options.threaded if options.threaded is not None else processors() > 1:
                engine.start()
        except OSError:
            engine.close()
            raise
    except PermissionError:
        raise
    except OSError as error:
        text = error.strerror or str(error)
        raise SendError(f"open ICMPv{version} socket", error.errno or 0, text) from error
    return engine


def budgets(*rates_pps: float) -> tuple[icmp.PacketBudget, ...]:
    """Make budgets for `EngineOptions`: packets a second each; 0: no limit."""
    return tuple(icmp.PacketBudget(rate) for rate in rates_pps if rate)


def processors() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0))
