"""The rivals of the ping benches: fping, zmap, icmplib and blackbox_exporter.

`scripts/rivals` installs them. Run as a program, this is icmplib's part, in a process of its own.
"""

import argparse
import contextlib
import http.client
import importlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from benches.harness import MissingRivalError
from benches.ping_capture import RoundTripsNs
from benches.ping_network import (
    NEAR,
    PingNetwork,
    ProgramError,
    cpu_seconds,
    module,
    resident_bytes,
    stop,
)
from support import rivals

EXPORTER_PORT = 9115
EXPORTER_CONFIG = """\
modules:
  icmp:
    prober: icmp
    timeout: 5s
    icmp:
      preferred_ip_protocol: ip4
"""
READY_S = 10
TIMEOUT_S = 0.2
INTERVAL_S = 0.01  # between two requests to a target
MS_NS = 1_000_000


def find(*names: str) -> Path:
    """Return the path of a rival's program by any of its names.

    Raises:
        MissingRivalError: it is not installed.
    """
    if (found := rivals.find(*names)) is None:
        raise MissingRivalError(f"no {names[0]}: {rivals.INSTALL}")
    return found


@contextlib.contextmanager
def _listed(lines: Sequence[object]) -> Iterator[Path]:
    """Keep lines in a file for the block."""
    with tempfile.TemporaryDirectory(prefix="ping-bench-") as directory:
        path = Path(directory) / "list"
        path.write_text("".join(f"{line}\n" for line in lines))
        yield path


class Fping:
    """fping as packaged by the distribution."""

    def __init__(self, network: PingNetwork) -> None:
        self._network = network
        self._program = find("fping")

    def sweep(self, targets: Sequence[IPv4Address]) -> Mapping[str, float]:
        """Ping every target once, in fping's fastest way: -c would print a line for each."""
        with _listed(targets) as path:
            flags = ("-q", "-s", "-i0", "-r0", "-t500", "-f", path)
            outcome = self._network.run((self._program, *flags))
        answered = _counted(outcome.stderr, r"(\d+) alive")
        sent = _counted(outcome.stderr, r"(\d+) ICMP Echos sent")
        return {
            "rate": answered / outcome.seconds,
            "cpu": outcome.cpu_seconds / answered * 1e6,
            "lost": sent - answered,
        }

    def round_trips(self, targets: Sequence[IPv4Address], seconds: float) -> RoundTripsNs:
        """Ping targets in turn for as long; return what fping says each request took."""
        options = {
            "vcount": round(seconds / INTERVAL_S),
            "period": round(INTERVAL_S * 1000),
            "interval": 1,
            "timeout": round(TIMEOUT_S * 1000),
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        outcome = self._network.run((self._program, "-q", *flags, *map(str, targets)))
        lines = (line.split(" : ") for line in outcome.stderr.splitlines() if " : " in line)
        return {
            target.strip(): [
                None if word == "-" else round(float(word) * MS_NS) for word in words.split()
            ]
            for target, words in lines
        }


class Zmap:
    """zmap's ICMP echo scan: sender and receiver in threads, packets through AF_PACKET."""

    def __init__(self, network: PingNetwork) -> None:
        self._network = network
        self._program = find("zmap")

    def sweep(self, prefix: IPv4Network) -> Mapping[str, float]:
        """Scan a prefix once, as fast as it sends.

        Its rate is that of sending and its work that per packet sent, although its capture drops
        replies when the receiving thread is late: all doubt is in its favour.
        """
        with _listed(()) as nothing, _listed(()) as found:
            outcome = self._network.run((*self._command(nothing, found), str(prefix)))
            answered = len(found.read_text().splitlines())
        seconds = _between(outcome.stderr, "send thread started", "send: thread 0 finished")
        return {
            "rate": prefix.num_addresses / seconds,
            "cpu": outcome.cpu_seconds / prefix.num_addresses * 1e6,
            "lost": prefix.num_addresses - answered,
        }

    def _command(self, blocked: Path, found: Path) -> tuple[str | Path, ...]:
        link = self._network.link
        options = {
            "probe-module": "icmp_echoscan",
            "interface": link.interface,
            "source-ip": NEAR,
            "source-mac": link.source,
            "gateway-mac": link.gateway,
            "config": "/dev/null",  # the packaged one blocks private addresses
            "blacklist-file": blocked,
            "rate": 0,
            "cooldown-time": 1,
            "verbosity": 5,  # says when sending began and ended
            "output-file": found,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        return (self._program, "--quiet", "--disable-syslog", *flags)


class Icmplib:
    """icmplib, one request at a time."""

    def __init__(self, network: PingNetwork) -> None:
        self._network = network
        if importlib.util.find_spec("icmplib") is None:
            raise MissingRivalError(f"no icmplib: {rivals.INSTALL}")

    def round_trips(self, targets: Sequence[IPv4Address], seconds: float) -> RoundTripsNs:
        """Ping targets in turn for as long; return what icmplib says each request took."""
        command = module("ping_rivals", str(seconds), *map(str, targets))
        said = self._network.run(command).json()
        return {target: [_ns(seconds) for seconds in took] for target, took in said.items()}


class BlackboxExporter:
    """A running blackbox_exporter, scraped on a connection that is kept, as Prometheus does."""

    def __init__(self, network: PingNetwork) -> None:
        program = find("prometheus-blackbox-exporter", "blackbox_exporter")
        self._network = network
        with _listed([EXPORTER_CONFIG]) as config:
            self._process = network.start(
                (
                    program,
                    f"--config.file={config}",
                    f"--web.listen-address=127.0.0.1:{EXPORTER_PORT}",
                    "--log.level=error",
                ),
                stdout=subprocess.DEVNULL,
            )
            try:
                self._connection = self._connect()
            except BaseException:
                stop(self._process)
                raise

    def probe(self, target: IPv4Address) -> bool:
        """Have it send its one packet to a target; whether a reply came."""
        self._connection.request("GET", f"/probe?module=icmp&target={target}")
        metrics = self._connection.getresponse().read().decode()
        return "\nprobe_success 1\n" in metrics

    @property
    def cpu_seconds(self) -> float:
        """The processor time it has used."""
        return cpu_seconds(self._process.pid)

    @property
    def resident_bytes(self) -> int:
        """Its resident set at its peak."""
        return resident_bytes(self._process.pid)["VmHWM"]

    def close(self) -> None:
        """End it."""
        self._connection.close()
        stop(self._process)

    def _connect(self) -> http.client.HTTPConnection:
        """Connect from inside the host, where the exporter listens, once it does."""
        connection = http.client.HTTPConnection("127.0.0.1", EXPORTER_PORT, timeout=READY_S)
        deadline = time.monotonic() + READY_S
        while True:
            try:
                with self._network.host.entered():
                    connection.connect()
            except ConnectionRefusedError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise ProgramError("blackbox_exporter did not start") from None
                time.sleep(0.05)
            else:
                return connection


def _counted(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ProgramError(f"no {pattern} in: {text[-1000:]}")
    return int(found[1])


def _between(log: str, begin: str, end: str) -> float:
    """Return the seconds between two lines of zmap's log, which are stamped with milliseconds."""
    return (_stamp(log, end) - _stamp(log, begin)) / timedelta(seconds=1)


def _stamp(log: str, text: str) -> datetime:
    found = re.search(rf"^\w+ \d+ (\d+:\d+:\d+\.\d+) .*{re.escape(text)}", log, re.MULTILINE)
    if found is None:
        raise ProgramError(f"zmap's log does not say {text!r}: {log[-1000:]}")
    return datetime.strptime(found[1], "%H:%M:%S.%f")


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)


def ping_with_icmplib(targets: Sequence[str], seconds: float) -> dict[str, list[float | None]]:
    """Ping targets in turn; return the seconds that each request took, None without a reply."""
    icmplib: Any = importlib.import_module("icmplib")
    took: dict[str, list[float | None]] = {target: [] for target in targets}
    turns = enumerate(itertools.cycle(targets))
    deadline = time.monotonic() + seconds
    with icmplib.ICMPv4Socket() as socket:
        while time.monotonic() < deadline:
            number, target = next(turns)
            request = icmplib.ICMPRequest(target, os.getpid() & 0xFFFF, number & 0xFFFF)
            socket.send(request)
            try:
                took[target].append(socket.receive(request, TIMEOUT_S).time - request.time)
            except icmplib.TimeoutExceeded:
                took[target].append(None)
            time.sleep(INTERVAL_S / len(targets))
    return took


def main() -> None:
    """Ping with icmplib and print what it says."""
    parser = argparse.ArgumentParser(prog="ping_rivals")
    parser.add_argument("seconds", type=float)
    parser.add_argument("targets", nargs="+")
    chosen = parser.parse_args()
    print(json.dumps(ping_with_icmplib(chosen.targets, chosen.seconds)))


if __name__ == "__main__":
    main()
