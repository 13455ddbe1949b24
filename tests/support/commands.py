"""The real command line as subprocesses."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

COMMAND = (sys.executable, "-m", "netsonde")
TIMEOUT_S = 60.0


def netsonde(
    *args: str, env: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *args],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        timeout=timeout_s,
    )


def json_lines(text: str) -> list[dict[str, Any]]:
    """Decode one object per line; anything else on standard output is a failure."""
    return [json.loads(line) for line in text.splitlines()]


class Running:
    """A command that has not ended yet."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._seen: dict[str, bytes] = {"stdout": b"", "stderr": b""}

    def line(self, stream: str, marker: str) -> str:
        """Return the next line of a stream that holds marker."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            while b"\n" in self._seen[stream]:
                raw, _, self._seen[stream] = self._seen[stream].partition(b"\n")
                if marker in (text := raw.decode()):
                    return text
            self._read(stream, deadline - time.monotonic())
        raise AssertionError(f"no {marker!r} on {stream} within {TIMEOUT_S:g} s")

    def stop(self, number: signal.Signals) -> tuple[int, str, str]:
        """Send a signal and return exit code, rest of standard output, standard error."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        seen = self._seen
        return (
            self.process.returncode,
            (seen["stdout"] + out).decode(),
            (seen["stderr"] + err).decode(),
        )

    def _read(self, stream: str, timeout_s: float) -> None:
        pipe = self.process.stdout if stream == "stdout" else self.process.stderr
        assert pipe is not None
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                return
        data = os.read(pipe.fileno(), 65_536)
        if not data:
            raise AssertionError(f"the command ended: {self._seen['stderr'].decode()}")
        self._seen[stream] += data


@contextmanager
def running(*args: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run a command for the duration of the block."""
    with subprocess.Popen(
        [*COMMAND, *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
    ) as process:
        try:
            yield Running(process)
        finally:
            if process.poll() is None:
                process.kill()
