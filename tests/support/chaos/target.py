"""The target: a process of its own that answers HTTP and writes down every measurement it sees.

Started by the rig, which reads its port from standard output and ends it by closing standard input.
"""

import argparse
import asyncio
import sys
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import cast

import uvloop

from netsonde.clock import NS_PER_S
from support.chaos.bodies import read_path
from support.chaos.evidence import Execution
from support.chaos.faults import service_ns
from support.chaos.journal import Journal

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
REQUEST_MAX_BYTES = 8_192
BACKLOG = 4_096


class Measured(asyncio.Protocol):
    """One connection: it begins when it was accepted, and ends with the answer or before."""

    def __init__(self, journal: Journal, seed: int, loop: asyncio.AbstractEventLoop) -> None:
        self._journal = journal
        self._seed = seed
        self._loop = loop
        self._begun_ns = 0
        self._data = b""
        self._of: tuple[int, int, int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._begun_ns = clock_gettime_ns(CLOCK_BOOTTIME)
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if self._of is not None or b"\r\n\r\n" not in self._data:
            assert len(self._data) < REQUEST_MAX_BYTES
            return
        self._of = read_path(self._data.split(b" ", 2)[1])
        wait_ns = service_ns(self._seed, self._of[0])
        if wait_ns:
            self._timer = self._loop.call_later(wait_ns / NS_PER_S, self._answer)
        else:
            self._answer()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._timer is not None:
            self._timer.cancel()
        self._note(is_whole=False)

    def _answer(self) -> None:
        """Note the end first: the agent may begin the next one as soon as it has the answer."""
        self._note(is_whole=True)
        assert self._transport is not None
        self._transport.write(ANSWER)
        self._transport.close()

    def _note(self, *, is_whole: bool) -> None:
        if self._of is None:
            return  # it said nothing, or its end is noted
        task, agent, lease_id = self._of
        self._of = None
        self._timer = None
        self._journal.write(
            Execution(
                agent=agent,
                lease_id=lease_id,
                task=task,
                begun=self._begun_ns,
                ended=clock_gettime_ns(CLOCK_BOOTTIME),
                is_whole=is_whole,
            )
        )


async def serve(log: Path, seed: int, port: int) -> None:
    """Answer until standard input ends."""
    loop = asyncio.get_running_loop()
    journal = Journal(log)
    server = await loop.create_server(
        lambda: Measured(journal, seed, loop), "127.0.0.1", port, backlog=BACKLOG
    )
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await loop.run_in_executor(None, sys.stdin.read)
    journal.close()


def main() -> None:
    """Read what the rig wants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.log, chosen.seed, chosen.port))


if __name__ == "__main__":
    main()
