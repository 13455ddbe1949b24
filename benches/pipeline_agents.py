"""Agents that take leases from claim to report over HTTP as fast as they can, measuring nothing.

usage: python -m benches.pipeline_agents AGENT URL --claims N --folder PATH

AGENT is `netsonde`: the agent's own parts, joined as the agent joins them but without the gaps that
quotas ask for, its spool in the folder; `naive`: a task for each lease, dicts and orjson, and
nothing kept; `parts`: leases validated, results encoded and kept, and no scheduling; or `wire`: the
same bytes both ways and no work. Prints one JSON object.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import orjson
import uvloop

from benches.lease_codec import BEGUN_NS, ENV, observations
from netsonde import wire
from netsonde.agent.bounds import target_pacer
from netsonde.agent.dispatcher import Dispatcher
from netsonde.agent.lease_extender import LeaseExtender
from netsonde.agent.reporter import Reporter
from netsonde.agent.worker import Worker
from netsonde.clock import NS_PER_MS, NS_PER_S, Clock, SystemClock
from netsonde.collector import quiet_collector
from netsonde.control_plane import ControlPlaneClient, HttpControlPlaneTransport
from netsonde.leases import Ended, LeaseState, LeaseTable
from netsonde.model import (
    Observation,
    Outcome,
    Reason,
    RegisterResponse,
    ReportResponse,
    TaskKind,
)
from netsonde.probe.base import Moment, Recorder
from netsonde.spool import GROUP_ROWS_MAX, Spool

BATCH = 1000
SLOTS = 4000  # of each kind: enough that a claim is never for fewer than it may bring
STARTS_PER_S = 1e6  # nothing is measured: no target needs protection
SEEN = {"rtt_ms": 12.25, "address": "192.0.2.1"}
CLAIM = orjson.dumps({"agent_id": 1, "capacities": {kind.value: SLOTS for kind in TaskKind}})


class NoProber:
    """Says at once that all is well."""

    def __init__(self, kind: TaskKind, clock: Clock) -> None:
        self.kind = kind
        self._clock = clock

    async def run(self, spec: Any, record: Recorder) -> None:
        record.observe("tcp_connected", SEEN)
        record.ok()

    def measure_many(
        self, specs: Sequence[Any], began: Moment, env: dict[str, Any]
    ) -> wire.ResultColumns:
        count = len(specs)
        return wire.ResultColumns(
            outcomes=[Outcome.OK] * count,
            started_at_ns=[began.realtime_ns] * count,
            durations_ns=[self._clock.monotonic_ns() - began.monotonic_ns] * count,
            observations=[wire.encode_observations([Observation("tcp_connected", SEEN)])] * count,
            env=env,
        )

    async def close(self) -> None:
        """Nothing is open."""


async def netsonde(url: str, claims: int, folder: Path) -> None:
    """Work as the agent does."""
    clock = SystemClock()
    client = ControlPlaneClient(HttpControlPlaneTransport(url), clock, Random(1))
    client.adopt(
        RegisterResponse(
            agent_id=1,
            lease_duration_ms=45_000,
            heartbeat_timeout_ms=0,
            auth_token="t",
        ),
        is_legacy=False,
    )
    leases = LeaseTable(Random(1))
    spool = await Spool.open(folder / "spool.db")
    probers = {kind: NoProber(kind, clock) for kind in TaskKind}
    capacities = dict.fromkeys(TaskKind, SLOTS)
    worker = Worker(clock, leases, spool, probers, capacities, target_pacer(STARTS_PER_S))
    dispatcher = Dispatcher(clock, leases, spool, client, worker)
    reporter = Reporter(clock, spool, leases, client, 0)
    is_done = asyncio.Event()

    def on_ended(ended: Ended, reason: Reason) -> None:
        if ended.state is not LeaseState.FINISHED:
            worker.cancel(ended.lease_id, reason)

    def on_room() -> None:
        dispatcher.wake()
        if reporter.counters["status_accepted"] >= claims * BATCH:
            is_done.set()

    extender = LeaseExtender(clock, leases, client, on_ended)
    worker.on_free, worker.on_kept = dispatcher.wake, reporter.wake
    dispatcher.on_granted, reporter.on_room = extender.wake, on_room
    async with asyncio.TaskGroup() as group:
        parts = (worker, extender, reporter, dispatcher)
        tasks = [group.create_task(part.run()) for part in parts]
        await is_done.wait()
        for task in tasks:
            task.cancel()
    if len(leases) or spool.rows or not worker.idle.is_set():
        raise AssertionError(f"{len(leases)} leases and {spool.rows} results are left behind")
    await spool.close()
    await client.close()


async def naive(url: str, claims: int, _: Path) -> None:
    """Work as a plain asyncio program does; reports go while the next claim is on its way."""

    async def measure(lease: Mapping[str, Any]) -> dict[str, Any]:
        started_ns, begun_ns = time.time_ns(), time.monotonic_ns()
        seen = observations(12.25)
        return {
            "lease_id": lease["lease_id"],
            "outcome": "ok",
            "started_at": datetime.fromtimestamp(started_ns / NS_PER_S, UTC),
            "duration_ms": (time.monotonic_ns() - begun_ns) / NS_PER_MS,
            "observations": seen,
            "env": ENV,
        }

    async with aiohttp.ClientSession(url) as session, asyncio.TaskGroup() as group:

        async def report(results: Sequence[Mapping[str, Any]]) -> None:
            whole = {"agent_id": 1, "completed": results, "cancelled": []}
            body = orjson.dumps(whole, option=orjson.OPT_UTC_Z)
            async with session.post("/v1/agents/report", data=body) as response:
                answer = orjson.loads(await response.read())
            if any(result["status"] != "accepted" for result in answer["results"]):
                raise AssertionError("a result was not taken")

        for _claim in range(claims):
            async with session.post("/v1/agents/claim", data=CLAIM) as response:
                granted = orjson.loads(await response.read())["leases"]
            tasks = [group.create_task(measure(lease)) for lease in granted]
            group.create_task(report(await asyncio.gather(*tasks)))


async def parts_only(url: str, claims: int, folder: Path) -> None:
    """Do what cannot be left out, once per claim: validate, encode, keep durably, report.

    Nothing is known of a lease afterwards: it has no deadline, no extension, no turn, no limit.
    """
    spool = await Spool.open(folder / "spool.db")
    async with aiohttp.ClientSession(url) as session, asyncio.TaskGroup() as group:

        async def report(body: bytes, seqs: Sequence[int]) -> None:
            async with session.post("/v1/agents/report", data=body) as response:
                answer = wire.decode_answer(ReportResponse, await response.read())
            if any(result.status != "accepted" for result in answer.results):
                raise AssertionError("a result was not taken")
            spool.acknowledge(seqs)

        last_seq = 0
        for _claim in range(claims):
            async with session.post("/v1/agents/claim", data=CLAIM) as response:
                leases = wire.decode_claim(await response.read()).leases
            seen = [wire.encode_observations([Observation("tcp_connected", SEEN)])] * len(leases)
            columns = wire.ResultColumns(
                outcomes=[Outcome.OK] * len(leases),
                started_at_ns=[time.time_ns()] * len(leases),
                durations_ns=[time.monotonic_ns() % NS_PER_MS] * len(leases),
                observations=seen,
                env=ENV,
            )
            lease_ids = [lease.lease_id for lease in leases]
            items = wire.encode_columns(lease_ids, columns)
            for begin in range(0, len(items), GROUP_ROWS_MAX):
                end = begin + GROUP_ROWS_MAX
                part = items[begin:end]
                await spool.append_many(lease_ids[begin:end], part, [False] * len(part))
                # What is on its way waits in the spool still.
                kept = await spool.pending(len(part), 1 << 30, after_seq=last_seq)
                last_seq = kept.seqs[-1]
                group.create_task(report(wire.encode_report(1, kept.bodies, ()), kept.seqs))
    await spool.close()


async def wire_only(url: str, claims: int, _: Path) -> None:
    """Carry the bytes of claims and reports and look at none of them."""
    columns = wire.ResultColumns(
        outcomes=[Outcome.OK] * BATCH,
        started_at_ns=[BEGUN_NS] * BATCH,
        durations_ns=[12_250_000] * BATCH,
        observations=[wire.encode_observations([Observation("tcp_connected", SEEN)])] * BATCH,
        env=ENV,
    )
    items = wire.encode_columns([*range(10**15, 10**15 + BATCH)], columns)
    body = wire.encode_report(1, items, ())
    async with aiohttp.ClientSession(url) as session, asyncio.TaskGroup() as group:

        async def post(verb: str, data: bytes) -> None:
            async with session.post(f"/v1/agents/{verb}", data=data) as response:
                await response.read()

        for _claim in range(claims):
            await post("claim", CLAIM)
            group.create_task(post("report", body))


AGENTS: Mapping[str, Callable[[str, int, Path], Awaitable[None]]] = {
    "netsonde": netsonde,
    "naive": naive,
    "parts": parts_only,
    "wire": wire_only,
}


async def run(chosen: argparse.Namespace) -> dict[str, float]:
    """Take the leases of so many claims, and say how fast that was."""
    with quiet_collector():
        begun_ns, busy_ns = time.perf_counter_ns(), time.process_time_ns()
        await AGENTS[chosen.agent](chosen.url, chosen.claims, chosen.folder)
    leases = chosen.claims * BATCH
    return {
        "rate": leases / (time.perf_counter_ns() - begun_ns) * 1e9,
        "rate per core": leases / (time.process_time_ns() - busy_ns) * 1e9,
    }


def main() -> None:
    """Print what a run measured."""
    parser = argparse.ArgumentParser(prog="pipeline_agents", description=__doc__.partition("\n")[0])
    parser.add_argument("agent", choices=AGENTS)
    parser.add_argument("url")
    parser.add_argument("--claims", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where a spool may lie")
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
