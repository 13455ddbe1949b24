"""A control plane on SQLite with a queue that is full; or its store alone, worked by nobody's HTTP.

usage: python -m benches.server_ours serve|store FOLDER --leases N

`serve` prints the addresses of agents and operators, and serves until its input ends. `store` takes
the leases itself, by the very statements that claims and reports run, and prints how fast that was.
"""

import argparse
import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path

import uvloop

from benches.server_load import AGENTS, BATCH, ITEM
from netsonde import wire
from netsonde.clock import NS_PER_S, SystemClock
from netsonde.collector import patient_collector
from netsonde.model import TaskKind
from netsonde.server import ServerConfig, serve
from netsonde.server.leasing import Finished
from netsonde.server.store import SqliteStore, Store, ThreadWriter
from netsonde.server.store.results import NewResult
from netsonde.server.store.tasks import ANY_QUEUE, Grant, NewTask

QUEUED_AT_ONCE = 5000
TARGETS = 1000  # a task's spec is one of so many
ITEMS_PER_COMMIT = wire.REPORT_ITEMS_MAX
TERM_NS = 20 * NS_PER_S


def spec(number: int) -> bytes:
    """Return the spec of a task."""
    return wire.encode({"kind": "tcp", "host": f"host-{number % TARGETS}.example.net", "port": 443})


def fill(database: Path, leases: int) -> None:
    """Queue so many tasks."""
    store = SqliteStore.open(database)
    for first in range(0, leases, QUEUED_AT_ONCE):
        tasks = [
            NewTask(kind=TaskKind.TCP, spec=spec(number), run_ns=0, max_attempts=3)
            for number in range(first, min(first + QUEUED_AT_ONCE, leases))
        ]
        store.begin()
        store.add_tasks(tasks)
        store.commit()
    store.close()


async def serve_until_told(database: Path) -> None:
    """Serve until the input ends."""
    config = ServerConfig(
        listen="127.0.0.1:0", operator_listen="127.0.0.1:0", database=database, quota_scale=1000
    )
    async with serve(config) as server:
        addresses = {"agents": server.agent_url, "operators": server.operator_url}
        print(json.dumps(addresses), flush=True)
        with patient_collector():
            await asyncio.to_thread(sys.stdin.read)


def report(agent_id: int, lease_ids: list[int], now_ns: int, store: Store) -> None:
    """Write results as a report does that nothing is wrong with."""
    held = store.by_lease(lease_ids)
    store.apply([Finished(task.task_id) for task in held.values()], now_ns)
    store.add_results(
        [
            NewResult(
                lease_id=lease_id,
                task_id=held[lease_id].task_id,
                agent_id=agent_id,
                kind=TaskKind.TCP,
                outcome="ok",
                attempt=1,
                received_ns=now_ns,
                is_final=True,
                spec_id=held[lease_id].spec_id,
                body=ITEM % lease_id,
            )
            for lease_id in lease_ids
        ]
    )


async def work_alone(database: Path, leases: int) -> float:
    """Take all leases without a request or a body; return leases a second."""
    store = SqliteStore.open(database)
    writer = ThreadWriter(store, store.reader, SystemClock())
    lease_ids = iter(range(1, sys.maxsize, BATCH))

    async def agent(agent_id: int) -> int:
        taken = 0
        while count := await batch(agent_id, next(lease_ids)):
            taken += count
        return taken

    async def batch(agent_id: int, first: int) -> int:
        now_ns = time.time_ns()
        grant = Grant(
            agent_id=agent_id, claim_key=0, first_lease_id=first, now_ns=now_ns,
            until_ns=now_ns + TERM_NS, due_ns=now_ns + 2 * TERM_NS,
        )  # fmt: skip

        def claim(store: Store) -> list[int]:
            granted = store.take(ANY_QUEUE, TaskKind.TCP, BATCH, grant)
            store.keep_clock(now_ns, first + len(granted))
            return [task.lease_id for task in granted]

        ids = await writer.write(claim, BATCH)
        for begin in range(0, len(ids), ITEMS_PER_COMMIT):
            part = ids[begin : begin + ITEMS_PER_COMMIT]
            await writer.write(partial(report, agent_id, part, now_ns), len(part))
        return len(ids)

    begun_ns = time.perf_counter_ns()
    taken = sum(await asyncio.gather(*map(agent, range(1, AGENTS + 1))))
    rate = taken / (time.perf_counter_ns() - begun_ns) * NS_PER_S
    if taken != leases:
        raise AssertionError(f"{taken} leases were there, not {leases}")
    await writer.close()
    return rate


def main() -> None:
    """Fill a queue and do what is asked."""
    parser = argparse.ArgumentParser(prog="server_ours", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("serve", "store"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--leases", type=int, required=True)
    chosen = parser.parse_args()
    database = chosen.folder / "server.db"
    fill(database, chosen.leases)
    if chosen.what == "serve":
        uvloop.run(serve_until_told(database))
    else:
        print(json.dumps({"rate": uvloop.run(work_alone(database, chosen.leases))}))


if __name__ == "__main__":
    main()
