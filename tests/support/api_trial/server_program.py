"""The control plane of a trial as a process: it says where it listens, and stops with its stdin."""

import asyncio
import json
import sys
from pathlib import Path

import uvloop

from netsonde.server import ServerConfig, serve

QUOTA_SCALE = 1_000


async def run(directory: Path) -> None:
    """Serve until stdin ends."""
    config = ServerConfig(
        listen="127.0.0.1:0",
        operator_listen="127.0.0.1:0",
        database=directory / "server.db",
        operator_token_file=directory / "token",
        claim_wait_ms=0,
        legacy_hold_ms=0,
        quota_scale=QUOTA_SCALE,
        shutdown_timeout_s=2.0,
    )
    async with serve(config) as server:
        print(json.dumps({"agent": server.agent_url, "operator": server.operator_url}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(run(Path(sys.argv[1])))
