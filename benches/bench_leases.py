"""Budgets W1 and A2: claims become leases, results reports, and the loop between stays free.

W1 takes a claim's body of a thousand leases to leases with deadlines in the table's heap, against
orjson, a validator in Python, a dict and a heapq. Every tenth body has a bad lease, which costs
itself only. Its other half builds a report of a thousand results from columns, against a dict for
each and orjson; both get what was observed as JSON. A2 asks how late a loop is for a tick a
millisecond while 10 000 leases a second come and go beside half a million that live, with the
collector at its default as the rival.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol

import orjson

from benches.harness import OURS, Bench, Budget, Contestant, MissingRivalError, Scale, steadily
from benches.lease_codec import ENV, PlainTable, Seen, claim_body, observations, plain_report, seen
from netsonde import wire
from netsonde.collector import quiet_collector
from netsonde.control_plane import TransportResponse
from netsonde.control_plane.exchange import Answer
from netsonde.control_plane.grants import read_claim
from netsonde.leases import Grant, LeaseTable
from netsonde.model import Outcome

PLAIN, DICTS = "orjson + Python validator", "dicts + orjson"
DEFAULT = "collector at its default"
AGENT_ID = 1
BATCH = 1000
BATCHES = {Scale.ONCE: 10, Scale.QUICK: 100, Scale.FULL: 200}
LIVE = {Scale.ONCE: 2_000, Scale.QUICK: 500_000, Scale.FULL: 500_000}
SECONDS = {Scale.ONCE: 1, Scale.QUICK: 5, Scale.FULL: 12}
RATE = 10_000
SPOILED_EVERY = 10
TERM_MS = 45_000
HEADERS = {"Content-Type": "application/json", "Netsonde-Protocol": "1"}
ROOT = Path(__file__).resolve().parent.parent


class Table(Protocol):
    """What a contestant does with claims."""

    def take(self, body: bytes, sent_ns: int) -> int: ...


class OurTable:
    """netsonde's table, fed as its client feeds it."""

    def __init__(self) -> None:
        self._table = LeaseTable(Random(1), capacity=1_000_000)

    def take(self, body: bytes, sent_ns: int) -> int:
        """Take the leases of a claim's answer; return how many were good."""
        answer = Answer(TransportResponse(200, HEADERS, body), sent_ns, sent_ns)
        granted = read_claim(answer, TERM_MS)
        answers = self._table.grant_many(granted.leases, granted.deadlines_ns, sent_ns)
        return answers.count(Grant.GRANTED)


def claims(make: Callable[[], Table], batches: int) -> Mapping[str, float]:
    """Take claims, every tenth with a bad lease; return ns per lease."""
    table = make()
    spoiled = [number % SPOILED_EVERY == SPOILED_EVERY - 1 for number in range(batches)]
    bodies = [claim_body(1 + n * BATCH, BATCH, is_bad=bad) for n, bad in enumerate(spoiled)]
    with quiet_collector():  # what it costs is A2's question
        begun_ns = time.perf_counter_ns()
        for body, bad in zip(bodies, spoiled, strict=True):
            if table.take(body, begun_ns) != BATCH - bad:
                raise AssertionError("a good lease was lost, or a bad one taken")
        return {"claim": (time.perf_counter_ns() - begun_ns) / batches / BATCH}


def our_report(batch: Seen, observed: Sequence[bytes]) -> bytes:
    """Build a report from columns, as the worker and the client do together."""
    columns = wire.ResultColumns(
        outcomes=[Outcome.OK] * len(batch.lease_ids),
        started_at_ns=batch.started_at_ns,
        durations_ns=batch.durations_ns,
        observations=[*observed],
        env=ENV,
    )
    items = wire.encode_columns(batch.lease_ids, columns)
    return wire.encode_report(AGENT_ID, items, ())


def plain_report_of(batch: Seen, observed: Sequence[bytes]) -> bytes:
    """Build a report from dicts."""
    return plain_report(AGENT_ID, batch, [orjson.Fragment(one) for one in observed])


def reports(build: Callable[[Seen, Sequence[bytes]], bytes], batches: int) -> Mapping[str, float]:
    """Build reports; return ns per result."""
    batch = seen(2**52, BATCH)
    observed = [orjson.dumps(observations(rtt_ms)) for rtt_ms in batch.rtts_ms]
    with quiet_collector():
        begun_ns = time.perf_counter_ns()
        for _ in range(batches - 1):
            build(batch, observed)
        report = build(batch, observed)
        took_ns = time.perf_counter_ns() - begun_ns
    items = wire.decode_report(report).items
    if [item.lease_id for item in items] != batch.lease_ids or any(one.problem for one in items):
        raise AssertionError("the report is not one of these results")
    return {"report": took_ns / batches / BATCH}


def ticks(collector: str, scale: Scale) -> Mapping[str, float]:
    """Run a loop under leases in a process of its own."""
    command = [
        sys.executable, "-m", "benches.lease_ticks", collector, "--live", str(LIVE[scale]),
        "--rate", str(RATE), "--seconds", str(SECONDS[scale]),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def bench(scale: Scale) -> Bench:
    """Make the contestants."""
    batches = BATCHES[scale]

    def ours() -> Mapping[str, float]:
        return {
            **steadily(partial(claims, OurTable, batches))(),
            **steadily(partial(reports, our_report, batches))(),
            **ticks("quiet", scale),
        }

    contestants: dict[str, Contestant | MissingRivalError] = {
        OURS: ours,
        PLAIN: partial(claims, PlainTable, batches),
        DICTS: steadily(partial(reports, plain_report_of, batches)),
        DEFAULT: partial(ticks, "default", scale),
    }
    return Bench(contestants, budgets())


def budgets() -> list[Budget]:
    """W1 and A2 of docs/performance.md."""
    quicker = partial(Budget, id="W1", quotient="rival/ours")
    late = partial(Budget, id="A2", figure="tick late p99", unit="ms")
    return [
        quicker(figure="claim", unit="ns/lease", rival=PLAIN, at_least=2),
        quicker(figure="report", unit="ns/result", rival=DICTS, at_least=5),
        late(at_most=1),
        late(rival=DEFAULT),  # for comparison: most of what a table holds is nothing to collect
    ]
