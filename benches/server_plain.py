"""The control plane of a plain program: one table, a row per task, a commit per request.

usage: python -m benches.server_plain FOLDER --leases N

A row has all that is known of a task, its spec and at last its result; a claim and a report change
their rows one after another, on the loop, and commit before they answer. JSON is orjson's, ids are
checked, and a result is taken from the agent that holds the lease only. Prints its address, and
serves until its input ends.
"""

import argparse
import asyncio
import json
import sqlite3
import sys
import time
from pathlib import Path

import orjson
import uvloop
from aiohttp import web

from benches.server_load import BATCH
from benches.server_ours import spec
from netsonde.clock import NS_PER_S

TERM_NS = 20 * NS_PER_S
BODY_MAX = 8 << 20
SCHEMA = """
CREATE TABLE task (
  task_id INTEGER PRIMARY KEY, kind TEXT NOT NULL, spec TEXT NOT NULL, state TEXT NOT NULL,
  run_ns INTEGER NOT NULL, attempt INTEGER NOT NULL, max_attempts INTEGER NOT NULL,
  lease_id INTEGER, agent_id INTEGER, until_ns INTEGER, outcome TEXT, received_ns INTEGER,
  result TEXT
);
CREATE INDEX task_state ON task (state, kind, run_ns);
CREATE UNIQUE INDEX task_lease ON task (lease_id);
CREATE INDEX task_agent ON task (agent_id);
"""


class Plane:
    """The whole of it."""

    def __init__(self, database: Path, leases: int) -> None:
        self._database = sqlite3.connect(database, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(SCHEMA)
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO task (task_id, kind, spec, state, run_ns, attempt, max_attempts)"
            " VALUES (?, 'tcp', ?, 'ready', 0, 0, 3)",
            ((number, spec(number).decode()) for number in range(1, leases + 1)),
        )
        self._database.execute("COMMIT")
        self._last_lease_id = 10**15
        self._last_agent_id = 0

    async def register(self, _: web.Request) -> web.Response:
        """Let anybody in."""
        self._last_agent_id += 1
        return _json({"agent_id": self._last_agent_id, "auth_token": "t"})

    async def claim(self, request: web.Request) -> web.Response:
        """Lease what is ready."""
        wanted = orjson.loads(await request.read())
        agent_id, limit = int(wanted["agent_id"]), min(int(wanted["capacities"]["tcp"]), BATCH)
        now_ns = time.time_ns()
        leases = []
        self._database.execute("BEGIN IMMEDIATE")
        rows = self._database.execute(
            "SELECT task_id, spec, attempt, max_attempts FROM task WHERE state = 'ready'"
            " AND kind = 'tcp' AND run_ns <= ? ORDER BY run_ns LIMIT ?",
            (now_ns, limit),
        ).fetchall()
        for task_id, text, attempt, max_attempts in rows:
            self._last_lease_id += 1
            self._database.execute(
                "UPDATE task SET state = 'leased', lease_id = ?, agent_id = ?, attempt = ?,"
                " until_ns = ? WHERE task_id = ?",
                (self._last_lease_id, agent_id, attempt + 1, now_ns + TERM_NS, task_id),
            )
            leases.append(
                {
                    "lease_id": self._last_lease_id,
                    "task_id": task_id,
                    "kind": "tcp",
                    "lease_until_ms": 20_000,
                    "spec": orjson.loads(text),
                    "attempt": attempt + 1,
                    "max_attempts": max_attempts,
                }
            )
        self._database.execute("COMMIT")
        return _json({"leases": leases})

    async def report(self, request: web.Request) -> web.Response:
        """Take results."""
        body = orjson.loads(await request.read())
        now_ns, results = time.time_ns(), []
        self._database.execute("BEGIN IMMEDIATE")
        for item in body["completed"]:
            changed = self._database.execute(
                "UPDATE task SET state = 'done', outcome = ?, received_ns = ?, result = ?"
                " WHERE lease_id = ? AND agent_id = ? AND state = 'leased'",
                (
                    str(item["outcome"]), now_ns, orjson.dumps(item).decode(),
                    int(item["lease_id"]), int(body["agent_id"]),
                ),
            ).rowcount  # fmt: skip
            status = "accepted" if changed else "fenced"
            results.append({"lease_id": item["lease_id"], "status": status})
        self._database.execute("COMMIT")
        return _json({"acknowledged": len(results), "results": results})


def _json(answer: object) -> web.Response:
    return web.Response(body=orjson.dumps(answer), content_type="application/json")


async def serve(plane: Plane) -> None:
    """Serve until the input ends."""
    app = web.Application(client_max_size=BODY_MAX)
    for verb in (plane.register, plane.claim, plane.report):
        app.router.add_post(f"/v1/agents/{verb.__name__}", verb)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(json.dumps({"agents": f"http://{host}:{port}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


def main() -> None:
    """Fill the table and serve."""
    parser = argparse.ArgumentParser(prog="server_plain", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--leases", type=int, required=True)
    chosen = parser.parse_args()
    uvloop.run(serve(Plane(chosen.folder / "server.db", chosen.leases)))


if __name__ == "__main__":
    main()
