"""The control plane as a process, with settings that its command has no options for.

The rig asks for short terms and for quotas that let an agent register as often as it is killed.
"""

import argparse
import asyncio
import signal
from pathlib import Path

import uvloop

from netsonde.model import TaskKind
from netsonde.server import ServerConfig, serve

TERM_MS = 3_000
GRACE_MS = 1_000
QUOTA_SCALE = 1_000


async def run(directory: Path, port: int, operator_port: int) -> None:
    """Serve until SIGTERM."""
    config = ServerConfig(
        listen=f"127.0.0.1:{port}",
        operator_listen=f"127.0.0.1:{operator_port}",
        database=directory / "server.db",
        terms_ms=dict.fromkeys(TaskKind, TERM_MS),
        grace_ms=GRACE_MS,
        max_lease_ms=60_000,
        requeue_base_ms=200,
        requeue_cap_ms=5_000,
        heartbeat_interval_ms=2_000,
        claim_wait_ms=5_000,
        quota_scale=QUOTA_SCALE,
        shutdown_timeout_s=2.0,
    )
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with serve(config):
        await stopped.wait()


def main() -> None:
    """Read where to listen and what to keep where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--operator-port", type=int, required=True)
    chosen = parser.parse_args()
    uvloop.run(run(chosen.directory, chosen.port, chosen.operator_port))


if __name__ == "__main__":
    main()
