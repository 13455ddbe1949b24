"""A loop under leases: how late it is for a tick a millisecond while 10 000 a second come and go.

usage: python -m benches.lease_ticks COLLECTOR --live N --rate N --seconds N

COLLECTOR is `quiet`, as the agent runs, or `default`. So many leases are live all the time; at the
rate they come as claims' bodies, begin, end, are encoded as report items and acknowledged. Prints
one JSON object.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import time
from collections import deque
from collections.abc import Sequence
from random import Random

import uvloop

from benches.lease_codec import claim_body
from benches.ticker import Ticker
from netsonde import wire
from netsonde.agent.telemetry import COLLECT_NS, YOUNG
from netsonde.agent.worker import TASKS_PER_TURN
from netsonde.clock import NS_PER_S
from netsonde.collector import quiet_collector
from netsonde.control_plane import TransportResponse
from netsonde.control_plane.exchange import Answer
from netsonde.control_plane.grants import read_claim
from netsonde.leases import Grant, LeaseTable
from netsonde.model import Lease, Measurement, Observation, Outcome

BATCH = 100  # leases of a claim
TERM_MS = 45_000
RATE_SLACK = 0.97  # of the rate that is asked for
LASTING_S = 1  # what a measurement takes
STANDING_NS = 3600 * NS_PER_S  # what lives all the time ends later


class Work:
    """Claims that come in, and what becomes of their leases."""

    def __init__(self, live: int, coming: int, lasting: int) -> None:
        self.taken = self.done = 0
        self._lasting = lasting
        self._running: deque[Sequence[Lease]] = deque()
        self._table = LeaseTable(Random(1), capacity=live + 100_000)
        for first_id in range(1, live, BATCH):
            now_ns = time.monotonic_ns()
            leases = wire.decode_claim(claim_body(first_id, BATCH)).leases
            self._table.grant_many(leases, [now_ns + STANDING_NS] * len(leases), now_ns)
        self._bodies = [claim_body(live + first_id, BATCH) for first_id in range(1, coming, BATCH)]

    @property
    def is_over(self) -> bool:
        """Whether all claims have come."""
        return not self._bodies

    async def turn(self) -> None:
        """Take one claim's leases through their lives, a slice in each turn of the loop."""
        sent_ns = time.monotonic_ns()
        answer = Answer(TransportResponse(200, {}, self._bodies.pop()), sent_ns, sent_ns)
        granted = read_claim(answer, TERM_MS)
        for start in range(0, len(granted.leases), TASKS_PER_TURN):
            part = granted.part(start, start + TASKS_PER_TURN)
            now_ns = time.monotonic_ns()
            answers = self._table.grant_many(part.leases, part.deadlines_ns, now_ns)
            if answers.count(Grant.GRANTED) != len(part.leases):
                raise AssertionError("the table refused a lease")
            for lease in part.leases:
                self._table.start(lease.lease_id, now_ns)
            self._running.append(part.leases)
            self.taken += len(part.leases)
            if self.taken - self.done > self._lasting:
                self._end(self._running.popleft())
            await asyncio.sleep(0)

    def _end(self, part: Sequence[Lease]) -> None:
        """Report leases, and have them acknowledged."""
        for lease in part:
            self._report(lease)
            self._table.finish(lease.lease_id)
        self.done += self._table.release_many(lease.lease_id for lease in part)

    @staticmethod
    def _report(lease: Lease) -> bytes:
        seen = Observation("tcp_connected", {"rtt_ms": 12.25, "address": "192.0.2.1"})
        return wire.encode_report_item(
            lease.lease_id,
            Measurement(
                outcome=Outcome.OK,
                started_at_ns=time.time_ns(),
                duration_ns=12_250_000,
                observations=(seen,),
            ),
        )


async def run(chosen: argparse.Namespace) -> dict[str, float]:
    """Tick and work for a while."""
    loop = asyncio.get_running_loop()
    work = Work(chosen.live, chosen.rate * chosen.seconds, chosen.rate * LASTING_S)
    is_quiet = chosen.collector == "quiet"
    with quiet_collector() if is_quiet else contextlib.nullcontext():
        ticker = Ticker(loop)
        begun_ns = collected_ns = time.monotonic_ns()
        while not work.is_over:
            due_ns = begun_ns + work.taken * NS_PER_S // chosen.rate
            await asyncio.sleep(max(due_ns - time.monotonic_ns(), 0) / NS_PER_S)
            await work.turn()
            if is_quiet and time.monotonic_ns() > collected_ns + COLLECT_NS:
                gc.collect(YOUNG)  # as `Telemetry` does
                collected_ns = time.monotonic_ns()
        seconds = (time.monotonic_ns() - begun_ns) / NS_PER_S
        ticker.close()
    if work.taken < chosen.rate * seconds * RATE_SLACK:
        raise AssertionError(f"{work.taken} leases in {seconds:.1f} s are too few")
    return {
        "tick late p99": ticker.late_p99_us() / 1000,
        "tick late at most": max(ticker.late_ns) / 1_000_000,
        "rate": work.taken / seconds,
    }


def main() -> None:
    """Print what a run measured."""
    parser = argparse.ArgumentParser(prog="lease_ticks", description=__doc__.partition("\n")[0])
    parser.add_argument("collector", choices=("quiet", "default"))
    parser.add_argument("--live", type=int, required=True, help="leases held all the time")
    parser.add_argument("--rate", type=int, required=True, help="leases a second that come and go")
    parser.add_argument("--seconds", type=int, required=True)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
