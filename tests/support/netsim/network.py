"""A simulated network: a host, a veth pair, and the simulator that plays all beyond it.

Whatever the host sends goes to the simulator, which plays the addresses of the scenario; packets
go nowhere else. Works as root and as root of a user namespace.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from support.namespaces import Namespace, connect
from support.netsim.program import netsim_program
from support.netsim.scenario import (
    GATEWAY_ADDRESS,
    HOST_ADDRESS,
    LINK,
    SIMULATOR_MAC,
    Scenario,
)
from support.netsim.settings import scenario_text
from support.netsim.truth import Truth

INTERFACE = "sonde0"  # the host's end
FAR_INTERFACE = "far0"  # the simulator's end
READY_S = 30
STOP_S = 60
NUD_PERMANENT = 0x80  # linux/neighbour.h
SIOCETHTOOL = 0x8946  # linux/sockios.h
ETHTOOL_STXCSUM = 0x17  # linux/ethtool.h

# static: the gateway's MAC is known. resolved: the host asks for it. connected: every address is on
# the link, and the host asks for each.
Neighbours = Literal["static", "resolved", "connected"]


class SimulatorError(Exception):
    """The simulator did not start or ended badly; the message has its words."""


class SimulatedNetwork:
    """A running simulator and the host in front of it."""

    interface = INTERFACE
    simulator_mac = SIMULATOR_MAC

    def __init__(
        self,
        scenario: Scenario,
        host: Namespace,
        process: "subprocess.Popen[str]",
        directory: Path,
    ) -> None:
        self.scenario = scenario
        self.host = host
        self.process = process
        self.interface_index = host.index(INTERFACE)
        (link,) = host.route.get_links(self.interface_index)
        self.host_mac: str = link.get_attr("IFLA_ADDRESS")
        self._directory = directory
        self._truth: Truth | None = None

    def address(self, family: int) -> str:
        """Return the host's address; family 4 or 6."""
        return HOST_ADDRESS[family]

    def gateway(self, family: int) -> str:
        """Return the address of the next hop to everywhere; family 4 or 6."""
        return GATEWAY_ADDRESS[family]

    def stop(self) -> Truth:
        """End the simulator and return what it did; TruthHoleError when it lost something."""
        if self._truth is None:
            _stdin(self.process).close()
            try:
                status = self.process.wait(STOP_S)
            except subprocess.TimeoutExpired as error:
                raise SimulatorError(f"did not end within {STOP_S} s") from error
            if status != 0:
                raise SimulatorError(f"ended with status {status}: {_last_words(self.process)}")
            dropped = self.host.call(_dropped_by, INTERFACE)
            self._truth = Truth(self._directory, dropped, self.scenario)
        return self._truth


@contextlib.contextmanager
def simulated(
    scenario: Scenario, *, neighbours: Neighbours = "static", punctual: bool = False
) -> Iterator[SimulatedNetwork]:
    """Play a scenario for the block. Build it on one thread, as every network of namespaces.

    punctual: packets leave on time even where the processors are shared, and at a high rate one
    of them is taken; PermissionError where this may not be asked for, as in a user namespace.
    """
    with contextlib.ExitStack() as stack:
        host = _namespace(stack, "simulated network's host")
        far = _namespace(stack, "simulator")
        _silence(far)
        connect(host, far, INTERFACE, FAR_INTERFACE)
        host.call(_sum_in_software, INTERFACE)
        _address(host, neighbours)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="netsim-")))
        process = far.call(_start, directory)
        stack.callback(_end, process)
        if punctual:
            os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(1))
        _tell(process, scenario)
        yield SimulatedNetwork(scenario, host, process, directory)


def _dropped_by(interface: str) -> int:
    """Return how many packets an interface of this thread's namespace could not send."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == interface:
            return int(counts.split()[11])
    raise SimulatorError(f"{interface} is gone")


def _namespace(stack: contextlib.ExitStack, name: str) -> Namespace:
    made = Namespace(name)
    stack.callback(made.close)
    return made


def _silence(far: Namespace) -> None:
    """Let the kernel at the far end say nothing of its own."""
    far.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    far.sysctl("net.ipv6.conf.default.disable_ipv6", 1)


def _sum_in_software(interface: str) -> None:
    """Let UDP and TCP leave with their checksums, as on a wire."""
    command = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STXCSUM, 0))
    request = struct.pack("@16sP16x", interface.encode(), ctypes.addressof(command))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, SIOCETHTOOL, request)


def _address(host: Namespace, neighbours: Neighbours) -> None:
    host.unlimit_icmp()
    for key in ("all", INTERFACE):
        host.sysctl(f"net.ipv4.conf.{key}.rp_filter", 0)  # errors come from any router's address
    host.sysctl(f"net.ipv6.conf.{INTERFACE}.accept_ra", 0)
    index = host.index(INTERFACE)
    for family in (4, 6):
        host.address(INTERFACE, HOST_ADDRESS[family], int(LINK[family].split("/")[1]))
        if neighbours == "static":
            host.route.neigh(
                "replace", dst=GATEWAY_ADDRESS[family], lladdr=SIMULATOR_MAC, ifindex=index,
                state=NUD_PERMANENT,
            )  # fmt: skip
        everywhere = {4: "0.0.0.0/0", 6: "::/0"}[family]
        if neighbours == "connected":
            host.route.route("replace", dst=everywhere, oif=index, scope=253)
        else:
            host.route_to(everywhere, GATEWAY_ADDRESS[family])


def _start(directory: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [netsim_program(), FAR_INTERFACE, directory],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _tell(process: "subprocess.Popen[str]", scenario: Scenario) -> None:
    """Hand over the scenario and wait until packets are received."""
    with contextlib.suppress(BrokenPipeError):  # it ended already, and said why
        _stdin(process).write(scenario_text(scenario))
        _stdin(process).flush()
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], READY_S)
    if not readable or process.stdout.readline() != "ready\n":
        raise SimulatorError(f"did not start: {_last_words(process)}")


def _stdin(process: "subprocess.Popen[str]") -> IO[str]:
    assert process.stdin is not None
    return process.stdin


def _last_words(process: "subprocess.Popen[str]") -> str:
    process.kill()
    assert process.stderr is not None
    return process.stderr.read().strip()


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
