"""The real `netsonde` as processes that tests start, watch and kill."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NETSONDE = (sys.executable, "-m", "netsonde")


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(what: str, is_true: Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Poll until is_true, or fail saying what did not happen."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.05)


class Program:
    """One netsonde process; its standard error goes to a file that failures can show."""

    def __init__(self, *arguments: str, log: Path, **environment: str) -> None:
        self._arguments = arguments
        self._log = log
        self._environment = {**os.environ, "NO_COLOR": "1", **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; nothing may be running of it."""
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*NETSONDE, *self._arguments],
                env=self._environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def kill(self) -> None:
        """Send SIGKILL and reap."""
        self.end(signal.SIGKILL)

    def end(self, signal_number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Send a signal and return the exit status."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(signal_number)
        try:
            return process.wait(timeout_s)
        finally:
            process.kill()

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        """Return what every run of it wrote."""
        return self._log.read_text() if self._log.exists() else ""


@contextmanager
def running(*programs: Program) -> Iterator[None]:
    """End whatever still runs of programs, however the block ends."""
    try:
        yield
    finally:
        for program in programs:
            if program.is_running:
                program.kill()


def call(url: str, body: Any = None, **headers: str) -> Any:
    """Make one JSON request; return the decoded answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        url, data=data, headers={"Content-Type": "application/json", **headers}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def answers(url: str) -> bool:
    """Whether an HTTP server answers at url, with whatever status."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
