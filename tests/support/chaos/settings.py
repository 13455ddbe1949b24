"""What a run is asked for, and what one that is taken up again must not change."""

import socket
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from support.chaos.server_program import TERM_MS

STATE = "run.json"
SLOTS = 48  # of each agent
RECOVERY_NS = (2 * TERM_MS + 30_000) * 1_000_000  # promised: two terms and half a minute


class Settings(Struct, frozen=True, kw_only=True):
    """One run. Ports are chosen when it begins: tasks name the target's, agents the server's."""

    leases: int
    faults: int
    seed: int
    agents: int
    epoch_faults: int
    target_port: int
    server_port: int
    operator_port: int
    times: int = 0  # kills, in a run of those
    plant: str | None = None

    @classmethod
    def new(cls, **asked: int | str | None) -> Self:
        """Choose the ports of a new run."""
        ports = free_ports(3)
        return msgspec.convert(
            {
                **asked,
                "target_port": ports[0],
                "server_port": ports[1],
                "operator_port": ports[2],
            },
            cls,
        )

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """Read those of the run that a directory holds."""
        path = directory / STATE
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.exists() else None

    def save(self, directory: Path) -> None:
        """Keep them for a later session."""
        (directory / STATE).write_bytes(msgspec.json.encode(self))


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nobody listens on at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
