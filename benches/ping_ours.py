"""netsonde's part in the ping benches: a program that is started on the host as its rivals are.

usage: python -m benches.ping_ours MODE --first ADDRESS --targets N --count N [OPTION VALUE] ...

Prints one JSON object. `footprint` prints one per round, each when asked for by a line of standard
input.
"""

import argparse
import asyncio
import contextlib
import json
import select
import statistics
import struct
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from typing import Any, cast

import uvloop

from benches.ticker import Ticker
from netsonde._native.icmp import (
    COMPLETION_FORMAT,
    REPLY,
    REQUEST_FORMAT,
    EchoEngine,
    PacketBudget,
    pack_requests,
)
from netsonde.clock import SystemClock
from netsonde.model import PingSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.ping import PingProber
from netsonde.probe.ping.driver import EchoDriver
from netsonde.probe.ping.driver import EchoEngine as DrivenEngine
from netsonde.probe.ping.run import Completion
from netsonde.probe.targets import TargetResolver
from netsonde.wire import encode_report_item

REQUEST_BYTES = struct.calcsize(REQUEST_FORMAT)
COMPLETION = struct.Struct(COMPLETION_FORMAT)
KIND_OFFSET = struct.calcsize("=Qqq16s")
SUBMIT_BATCH = 2048  # requests made at once
ADDRESS_BYTES = 4
WINDOW = 8192  # futures waited for at once
TIMEOUT_NS = 1_000_000_000
DATA_BYTES = 56
WAIT_MS = 2000
US_NS = 1000


class Usage:
    """Time and processor time since it was made."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._cpu = time.process_time()

    def figures(self, sent: int, answered: int) -> dict[str, float]:
        """Return the figures of so many probes."""
        cpu = time.process_time() - self._cpu
        return {
            "rate": answered / (time.perf_counter() - self._begun),
            "cpu": cpu / answered * 1e6,
            "lost": sent - answered,
        }


class Exchange:
    """Requests on their way into an engine and the completions that came out, so far."""

    def __init__(self, engine: EchoEngine, addresses: bytes, path: int) -> None:
        self._engine = engine
        self._addresses = addresses
        self._path = path
        self._made = b""  # requests that the engine had no room for
        self._taken = 0
        self.count = len(addresses) // ADDRESS_BYTES
        self.settled = 0
        self.answered = 0
        self.completions: list[bytes] | None = None  # a list keeps them

    @property
    def is_over(self) -> bool:
        """Whether every request has been settled."""
        return self.settled >= self.count

    def offer(self) -> None:
        """Hand the engine as many requests as it has room for."""
        while self._taken < self.count:
            if not self._made:
                self._made = self._make()
            taken = self._engine.submit(self._made)
            self._taken += taken
            self._made = self._made[taken * REQUEST_BYTES :]
            if self._made:
                return

    def _make(self) -> bytes:
        """Make the next requests."""
        begin = self._taken * ADDRESS_BYTES
        addresses = self._addresses[begin : begin + SUBMIT_BATCH * ADDRESS_BYTES]
        return pack_requests(
            4, addresses, token=self._taken, timeout_ns=TIMEOUT_NS, size=DATA_BYTES,
            path=self._path,
        )  # fmt: skip

    def collect(self) -> None:
        """Take the completions there are. (None is late or double on this network.)"""
        while completions := self._engine.poll():
            self.settled += len(completions) // COMPLETION.size
            self.answered += completions[KIND_OFFSET :: COMPLETION.size].count(REPLY)
            if self.completions is not None:
                self.completions.append(completions)

    def run(self) -> None:
        """Exchange all, blocking."""
        poller = select.poll()
        poller.register(self._engine.fileno(), select.POLLIN)
        while not self.is_over:
            self.offer()
            poller.poll(WAIT_MS)
            self.collect()


@contextlib.contextmanager
def started(chosen: argparse.Namespace, **options: Any) -> Iterator[tuple[EchoEngine, int]]:
    """Open and start the engine; yield it with the path its packets take."""
    with EchoEngine(4, backend=chosen.backend, capacity=8192, **options) as engine:
        path = 0
        if chosen.backend == "packet":
            path = engine.add_path(
                source=chosen.source.packed,
                interface=chosen.ifindex,
                link_address=bytes.fromhex(chosen.gateway_link.replace(":", "")),
            )
        engine.start()
        yield engine, path


def packed(addresses: Iterable[IPv4Address]) -> bytes:
    """Return addresses one behind the other."""
    return b"".join(address.packed for address in addresses)


def cycled(first: IPv4Address, targets: int, count: int) -> list[IPv4Address]:
    """Return `count` targets, going round as often as need be."""
    addresses = [first + number for number in range(targets)]
    return [addresses[number % targets] for number in range(count)]


def sweep(chosen: argparse.Namespace) -> dict[str, float]:
    """Ping every target once by batches."""
    addresses = packed(cycled(chosen.first, chosen.targets, chosen.count))
    with started(chosen) as (engine, path):
        usage = Usage()
        exchange = Exchange(engine, addresses, path)
        exchange.run()
        return usage.figures(exchange.count, exchange.answered)


def futures(chosen: argparse.Namespace) -> dict[str, float]:
    """Ping every target once by a future each."""
    return uvloop.run(_futures(chosen))


async def _futures(chosen: argparse.Namespace) -> dict[str, float]:
    targets = [str(address) for address in cycled(chosen.first, chosen.targets, chosen.count)]
    with started(chosen) as (engine, path):
        driver = EchoDriver(SystemClock(), cast("DrivenEngine", engine))
        usage = Usage()
        waiting: deque[asyncio.Future[Completion]] = deque()
        answered = 0
        for target in targets:
            if len(waiting) == WINDOW:
                answered += (await waiting.popleft()).kind == REPLY
            waiting.append(driver.probe(target, timeout_ns=TIMEOUT_NS, size=DATA_BYTES, path=path))
        for future in waiting:
            answered += (await future).kind == REPLY
        figures = usage.figures(len(targets), answered)
        driver.close()
    return figures


def paced(chosen: argparse.Namespace) -> dict[str, float]:
    """Ping at a rate while an event loop ticks."""
    return uvloop.run(_paced(chosen))


async def _paced(chosen: argparse.Namespace) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    addresses = cycled(chosen.first, chosen.targets, chosen.count)
    with started(chosen, budgets=(PacketBudget(chosen.rate),)) as (engine, path):
        exchange = Exchange(engine, packed(addresses), path)
        over = loop.create_future()
        ticker = Ticker(loop)
        usage = Usage()
        loop.add_reader(engine.fileno(), lambda: _turn(exchange, over))
        exchange.offer()
        await over
        figures = usage.figures(exchange.count, exchange.answered)
        loop.remove_reader(engine.fileno())
        ticker.close()
    return figures | {"tick late p99": ticker.late_p99_us()}


def _turn(exchange: Exchange, over: "asyncio.Future[None]") -> None:
    exchange.collect()
    exchange.offer()
    if exchange.is_over and not over.done():
        over.set_result(None)


def round_trips(chosen: argparse.Namespace) -> dict[str, list[int | None]]:
    """Ping at a rate, every n-th time one of the sampled targets; return what those took."""
    addresses = cycled(chosen.first, chosen.targets, chosen.count)
    sampled = range(0, chosen.count, chosen.sample_every)
    for turn, number in enumerate(sampled):
        addresses[number] = chosen.sampled + turn % chosen.sampled_targets
    took: dict[int, int | None] = {}
    with started(chosen, exact=chosen.exact, budgets=(PacketBudget(chosen.rate),)) as (
        engine,
        path,
    ):
        exchange = Exchange(engine, packed(addresses), path)
        exchange.completions = []
        exchange.run()
    for token, rtt_ns, *_ in COMPLETION.iter_unpack(b"".join(exchange.completions)):
        took[token] = rtt_ns if rtt_ns >= 0 else None
    said: dict[str, list[int | None]] = defaultdict(list)
    for number in sampled:
        said[str(addresses[number])].append(took[number])
    return said


def footprint(chosen: argparse.Namespace) -> None:
    """Measure every target, evenly over as many seconds as each line of input says."""
    uvloop.run(_footprint(chosen))


async def _footprint(chosen: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    prober = PingProber(SystemClock(), TargetResolver(TargetPolicy.person()))
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await _period(prober, chosen, float(line))), flush=True)
    await prober.close()


async def _period(
    prober: PingProber, chosen: argparse.Namespace, seconds: float
) -> dict[str, float]:
    interval_ms = round(seconds * 1000 / chosen.count)
    specs = [
        PingSpec(host=str(chosen.first + n), count=chosen.count, interval_ms=interval_ms)
        for n in range(chosen.targets)
    ]
    records = [Recorder(SystemClock()) for _ in specs]
    async with asyncio.TaskGroup() as group:
        for spec, record in zip(specs, records, strict=True):
            group.create_task(measure(prober, spec, record))
    sizes = [
        len(encode_report_item(n, record.measurement())) for n, record in enumerate(records, 1)
    ]
    answered = sum(record.observed("ping_summary")["received"] for record in records)
    return {"answered": answered, "bytes": statistics.fmean(sizes)}


MODES: dict[str, Callable[[argparse.Namespace], object]] = {
    "sweep": sweep,
    "futures": futures,
    "paced": paced,
    "round-trips": round_trips,
    "footprint": footprint,
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="ping_ours", description=__doc__.partition("\n")[0])
    made.add_argument("mode", choices=MODES)
    made.add_argument("--backend", default="header")
    made.add_argument("--first", type=IPv4Address, required=True, help="first target")
    made.add_argument("--targets", type=int, required=True, help="how many from there on")
    made.add_argument("--count", type=int, required=True, help="probes")
    made.add_argument("--rate", type=int, default=50_000, help="probes a second")
    made.add_argument("--exact", action="store_true", help="have the kernel stamp every send")
    made.add_argument("--sampled", type=IPv4Address, help="first of the sampled targets")
    made.add_argument("--sampled-targets", type=int, default=8)
    made.add_argument("--sample-every", type=int, default=64)
    made.add_argument("--source", type=IPv4Address, help="own address, of the packet back end")
    made.add_argument("--ifindex", type=int, help="of the packet back end")
    made.add_argument("--gateway-link", help="link address, of the packet back end")
    return made


def main() -> None:
    """Run a mode and print what it says."""
    chosen = parser().parse_args()
    if (said := MODES[chosen.mode](chosen)) is not None:
        print(json.dumps(said))


if __name__ == "__main__":
    main()
