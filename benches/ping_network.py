"""The network of the ping benches: two namespaces on a veth pair, and programs run in the first.

The far end answers for every target from its kernel, on the processor of whoever sends: each
contestant pays for its replies. Programs get CAP_NET_RAW and nothing else, as a deployed agent has
it; so `net.core.rmem_max`, which belongs to the host, limits their receive buffers.
"""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import IO, Any

from benches.harness import MissingRivalError
from support.namespaces import Namespace, connect

ROOT = Path(__file__).resolve().parent.parent
NEAR, FAR, LINK_BITS = "172.31.77.1", "172.31.77.2", 30
NEAR_INTERFACE, FAR_INTERFACE = "near", "far"
ANSWERED = IPv4Network("10.0.0.0/8")
TARGETS = IPv4Network("10.64.0.0/16")
SAMPLED = IPv4Network("10.128.0.0/16")  # what a capture watches
TARGET_COUNT = 60_000

CAP_NET_RAW = 13  # linux/capability.h
ONLY_NET_RAW = ("--bounding-set=-all,+net_raw", "--inh-caps=-all", "--no-new-privs")
NUD_PERMANENT = 0x80  # linux/neighbour.h
CPU_CLOCK = 2  # CPUCLOCK_SCHED, linux/posix-timers.h: what clock_getcpuclockid(3) makes of a pid
KIB = 1024
WATCH_S = 0.1
STOP_S = 10


class ProgramError(Exception):
    """A program ended badly; the message has its words."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a program said and what it cost."""

    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int  # resident, as last seen while it ran

    def json(self) -> dict[str, Any]:
        """Return the object it printed."""
        printed: dict[str, Any] = json.loads(self.stdout)
        return printed


@dataclass(frozen=True, kw_only=True)
class Link:
    """How packets leave the host, for those who write their link headers themselves."""

    interface: str
    index: int
    source: str  # link address
    gateway: str  # link address


class PingNetwork:
    """The host in which contestants run, and the link to all targets."""

    def __init__(self, host: Namespace, link: Link) -> None:
        self.host = host
        self.link = link
        self._as_agent = (_setpriv(), *ONLY_NET_RAW, "--")
        self._verify_privilege()

    def start(
        self,
        command: Sequence[str | Path],
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[str] = subprocess.PIPE,
        stderr: int | IO[str] | None = None,
    ) -> "subprocess.Popen[str]":
        """Start a program on the host, where it has CAP_NET_RAW alone."""
        with self.host.entered():
            return subprocess.Popen(
                [*self._as_agent, *command],
                cwd=ROOT, stdin=stdin, stdout=stdout, stderr=stderr, text=True,
            )  # fmt: skip

    def run(self, command: Sequence[str | Path], *, timeout_s: float = 120) -> Outcome:
        """Run a program on the host to its end.

        Raises:
            ProgramError: it failed, or did not end in time and was killed.
        """
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            begun = time.perf_counter()
            process = self.start(command, stdout=stdout, stderr=stderr)
            peak_bytes = _watch(process.pid, timeout_s)
            seconds = time.perf_counter() - begun
            if peak_bytes is None:
                process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            said = [_whole(stream) for stream in (stdout, stderr)]
        if peak_bytes is None or process.returncode:
            end = "was killed" if peak_bytes is None else f"ended with {process.returncode}"
            raise ProgramError(f"{' '.join(map(str, command))} {end}:\n{said[1][-4000:]}")
        return Outcome(
            stdout=said[0],
            stderr=said[1],
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_bytes=peak_bytes,
        )

    def _verify_privilege(self) -> None:
        """Read what programs are given from inside."""
        status = self.run(("cat", "/proc/self/status")).stdout
        held = {
            name: int(value, 16)
            for name, _, value in (line.partition(":") for line in status.splitlines())
            if name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")
        }
        allowed = dict.fromkeys(("CapEff", "CapPrm", "CapBnd"), 1 << CAP_NET_RAW)
        if held != allowed | {"CapInh": 0, "CapAmb": 0}:
            raise ProgramError(f"programs would not have CAP_NET_RAW alone but {held}")


def targets(count: int, network: IPv4Network = TARGETS) -> list[IPv4Address]:
    """Return the first targets of a prefix."""
    return [network[number] for number in range(1, count + 1)]


def stop(process: "subprocess.Popen[str]") -> None:
    """End a program that would run on, and wait for it."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a running program has used, all its threads together."""
    return time.clock_gettime(~pid << 3 | CPU_CLOCK)


def resident_bytes(pid: int) -> Mapping[str, int]:
    """Return a running program's resident set: VmRSS now, VmHWM at its peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    words = (line.split() for line in lines)
    return {word[0][:-1]: int(word[1]) * KIB for word in words if word[0] in ("VmRSS:", "VmHWM:")}


@contextlib.contextmanager
def ping_network() -> Iterator[PingNetwork]:
    """Build the network for the block. Build it on one thread, as every one of namespaces."""
    with contextlib.ExitStack() as stack:
        host, far = Namespace("pinging host"), Namespace("answering host")
        for node in (host, far):
            stack.callback(node.close)
            node.unlimit_icmp()
        connect(host, far, NEAR_INTERFACE, FAR_INTERFACE)
        host.address(NEAR_INTERFACE, NEAR, LINK_BITS)
        far.address(FAR_INTERFACE, FAR, LINK_BITS)
        near_link, far_link = _address(host, NEAR_INTERFACE), _address(far, FAR_INTERFACE)
        _know(host, NEAR_INTERFACE, FAR, far_link)
        _know(far, FAR_INTERFACE, NEAR, near_link)
        host.route_to(str(ANSWERED), FAR)
        far.answer_for(str(ANSWERED))
        link = Link(
            interface=NEAR_INTERFACE,
            index=host.index(NEAR_INTERFACE),
            source=near_link,
            gateway=far_link,
        )
        yield PingNetwork(host, link)


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module of the benches."""
    return (sys.executable, "-m", f"benches.{name}", *arguments)


def _address(node: Namespace, interface: str) -> str:
    (found,) = node.route.get_links(node.index(interface))
    address: str = found.get_attr("IFLA_ADDRESS")
    return address


def _know(node: Namespace, interface: str, neighbour: str, address: str) -> None:
    """Spare the kernel from asking, now and when an entry grows old in the middle of a run."""
    node.route.neigh(
        "replace",
        dst=neighbour,
        lladdr=address,
        ifindex=node.index(interface),
        state=NUD_PERMANENT,
    )


def _setpriv() -> str:
    if (found := shutil.which("setpriv")) is None:
        raise MissingRivalError("no setpriv: install util-linux")
    return found


def _watch(pid: int, timeout_s: float) -> int | None:
    """Wait for a program's end; return its peak resident set, or None when it is not over in time.

    wait4's ru_maxrss would say the peak of this process if that is higher: it counts what was
    there between fork and exec.
    """
    deadline = time.monotonic() + timeout_s
    peak_bytes = 0
    descriptor = os.pidfd_open(pid)
    try:
        while time.monotonic() < deadline:
            if select.select([descriptor], [], [], WATCH_S)[0]:
                return peak_bytes
            peak_bytes = resident_bytes(pid).get("VmHWM", peak_bytes)
    finally:
        os.close(descriptor)
    return None


def _whole(stream: IO[str]) -> str:
    stream.seek(0)
    return stream.read()
