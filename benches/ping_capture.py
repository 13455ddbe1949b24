"""The truth about round trips: the kernel's stamps of packets as they pass the host's interface.

A packet sent through AF_PACKET past the queueing discipline is past captures too, so a contestant
whose round trips are judged sends through an ICMP or IPPROTO_RAW socket.
"""

import contextlib
import math
import statistics
import subprocess
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benches.ping_floor import floor_program
from benches.ping_network import SAMPLED, PingNetwork, ProgramError

STOP_S = 10

# Per target the round trip of each request in order, None where no reply came.
RoundTripsNs = Mapping[str, Sequence[int | None]]


@dataclass
class Capture:
    """What a capture saw; complete once its block has been left."""

    round_trips_ns: dict[str, list[int | None]] = field(default_factory=dict)


@contextlib.contextmanager
def captured(network: PingNetwork) -> Iterator[Capture]:
    """Watch the targets of SAMPLED for the block.

    Raises:
        ProgramError: the capture failed or lost a packet, so there is no truth.
    """
    command = (
        floor_program("capture"),
        str(network.link.index),
        str(SAMPLED.network_address),
        str(SAMPLED.prefixlen),
    )
    capture = Capture()
    process = network.start(command, stdin=subprocess.PIPE)
    try:
        _await_ready(process)
        yield capture
        said, _ = process.communicate(timeout=STOP_S)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    *packets, end = said.splitlines()
    if process.returncode or end != "dropped 0":
        raise ProgramError(f"the capture ended with {process.returncode}: {end}")
    capture.round_trips_ns = pair(packets)


def _await_ready(process: "subprocess.Popen[str]") -> None:
    if process.stdout is None or process.stdout.readline() != "ready\n":
        raise ProgramError("the capture did not start")


def pair(packets: Iterable[str]) -> dict[str, list[int | None]]:
    """Make round trips of the capture's lines."""
    found: dict[str, list[int | None]] = defaultdict(list)
    waiting: dict[tuple[str, str, str], deque[tuple[int, int]]] = defaultdict(deque)
    for line in packets:
        kind, target, ident, sequence, ns = line.split()
        requests = waiting[target, ident, sequence]
        if kind == "request":
            requests.append((len(found[target]), int(ns)))
            found[target].append(None)
        elif requests:
            number, sent_ns = requests.popleft()
            found[target][number] = int(ns) - sent_ns
    return dict(found)


def errors_us(reported_ns: RoundTripsNs, true_ns: RoundTripsNs) -> dict[str, float]:
    """Compare what a contestant reported with the truth; return p50 and p99 of its error.

    Infinite for one that missed every reply, as a rival does that cannot keep up with the load.

    Raises:
        ProgramError: they do not tell of the same requests.
    """
    errors: list[float] = []
    for target, reported in reported_ns.items():
        truth = true_ns.get(target, ())
        if len(reported) != len(truth):
            raise ProgramError(f"{target}: {len(reported)} reported, {len(truth)} captured")
        errors += [
            abs(ours - true) / 1000
            for ours, true in zip(reported, truth, strict=True)
            if ours is not None and true is not None
        ]
    if len(errors) < 2:
        return {"error p50": math.inf, "error p99": math.inf}
    percentiles = statistics.quantiles(errors, n=100, method="inclusive")
    return {"error p50": percentiles[49], "error p99": percentiles[98]}
