"""netsonde's part in budget P5: a program that keeps a million probes in flight.

usage: python -m benches.ping_in_flight --seconds N --source ADDRESS --ifindex N
--gateway-link ADDRESS

Prints one JSON object. `lost` is what got no reply, for whatever reason; `misattributed` what got
somebody else's, or a second one.
"""

import argparse
import json
import select
import struct
from ipaddress import IPv4Address
from typing import Any

from netsonde._native.icmp import (
    COMPLETION_FORMAT,
    REPLY,
    REQUEST_FORMAT,
    EchoEngine,
    PacketBudget,
    pack_requests,
)

FIRST = int(IPv4Address("10.64.0.0"))
TARGETS = 1 << 16
RATE_PPS = 100_000
TIMEOUT_NS = 20_000_000_000
CAPACITY = 1 << 20
BATCH = 4096  # requests made at once
WAIT_S = 30
COMPLETION = struct.Struct(COMPLETION_FORMAT)
REQUEST_BYTES = struct.calcsize(REQUEST_FORMAT)


class Flight:
    """Probes on their way and what came back. Probe n goes to target n modulo their number."""

    def __init__(self, engine: EchoEngine, path: int, count: int) -> None:
        self._engine = engine
        self._count = count
        self._path = path
        self._offered = 0
        self._made = b""
        self._ended = bytearray(count)
        self.answered = 0
        self.misattributed = 0
        self.in_flight_max = 0
        self._left = count
        self._first_ns, self._last_ns = 1 << 63, 0

    @property
    def rate_pps(self) -> float:
        """The rate that was really sent."""
        return self._count * 1e9 / (self._last_ns - self._first_ns)

    def run(self) -> None:
        """Exchange all.

        Raises:
            TimeoutError: the engine had nothing to say for 30 s.
        """
        poller = select.poll()
        poller.register(self._engine.fileno(), select.POLLIN)
        while self._left:
            self._offer()
            if not poller.poll(WAIT_S * 1000):
                raise TimeoutError("the engine has nothing to say")
            for completion in COMPLETION.iter_unpack(self._engine.poll()):
                self._take(completion)
            self.in_flight_max = max(self.in_flight_max, self._engine.in_flight)

    def _offer(self) -> None:
        while self._offered < self._count:
            if not self._made:
                numbers = range(self._offered, min(self._offered + BATCH, self._count))
                addresses = b"".join(_target(number) for number in numbers)
                self._made = pack_requests(
                    4, addresses, token=self._offered, timeout_ns=TIMEOUT_NS, path=self._path
                )
            taken = self._engine.submit(self._made)
            self._offered += taken
            self._made = self._made[taken * REQUEST_BYTES :]
            if self._made:
                return

    def _take(self, completion: tuple[Any, ...]) -> None:
        token, _, sent_ns, responder, kind, *_ = completion
        if self._ended[token]:
            self.misattributed += 1
            return
        self._ended[token] = 1
        self._left -= 1
        self._first_ns = min(self._first_ns, sent_ns)
        self._last_ns = max(self._last_ns, sent_ns)
        if kind == REPLY:
            self.answered += 1
            self.misattributed += responder[:4] != _target(token)


def _target(number: int) -> bytes:
    return (FIRST + number % TARGETS).to_bytes(4, "big")


def fly(chosen: argparse.Namespace) -> dict[str, float]:
    """Send for as long as asked, and wait for all that is in flight then."""
    count = chosen.seconds * RATE_PPS
    with EchoEngine(
        4, backend="packet", capacity=CAPACITY, budgets=(PacketBudget(RATE_PPS),)
    ) as engine:
        path = engine.add_path(
            source=chosen.source.packed,
            interface=chosen.ifindex,
            link_address=bytes.fromhex(chosen.gateway_link.replace(":", "")),
        )
        engine.start()
        flight = Flight(engine, path, count)
        flight.run()
    return {
        "rate": flight.rate_pps,
        "in flight": flight.in_flight_max,
        "lost": count - flight.answered,
        "misattributed": flight.misattributed,
    }


def main() -> None:
    """Run on the simulated host and print the figures."""
    parser = argparse.ArgumentParser(prog="ping_in_flight", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--source", type=IPv4Address, required=True)
    parser.add_argument("--ifindex", type=int, required=True)
    parser.add_argument("--gateway-link", required=True)
    print(json.dumps(fly(parser.parse_args())))


if __name__ == "__main__":
    main()
