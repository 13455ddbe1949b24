"""The echo engine and its driver by access: raw or datagram sockets, with and without privilege."""

import struct
import subprocess
import sys

import pytest

from netsonde._native.icmp import ERROR, REPLY, RX_KERNEL, EchoEngine
from support import packets
from support.icmp_peer import (
    TARGET,
    Family,
    Peer,
    gather,
    poll,
    reply_to,
    request,
    send_one,
)
from support.icmp_wire import BACKENDS, Backend
from support.namespaces import Namespace, chain

pytestmark = [pytest.mark.raw, pytest.mark.netns]


def test_datagram_sockets_measure_the_same(quiet: Namespace, peer: Peer) -> None:
    quiet.allow_icmp_datagrams()
    with quiet.call(EchoEngine, peer.family, backend="datagram") as engine:
        message = send_one(engine, peer, token=4)
        assert struct.unpack("!H", message[4:6]) == (engine.ident,)
        forged = bytearray(reply_to(message, peer.family))
        forged[30] ^= 1
        peer.send(packets.with_checksum(bytes(forged)))
        peer.send(reply_to(message, peer.family))
        (done,) = poll(engine)
        assert (done.token, done.kind, done.ttl, done.size) == (4, REPLY, 61, 56)
        assert done.clocks & RX_KERNEL
        assert done.address(peer.family) == TARGET[peer.family]
        assert engine.counters["forged"] == 1


@pytest.mark.parametrize(("family", "backend"), [each for each in BACKENDS if each[1] != "packet"])
def test_errors_come_back_through_routers(family: Family, backend: Backend) -> None:
    with chain(2) as net:
        net.host.allow_icmp_datagrams()
        gone = "10.99.0.0/24" if family == 4 else "fd99::/64"
        net.host.route_to(gone, net.hops(family)[0])
        net.nodes[1].refuse(gone)
        with net.host.call(EchoEngine, family, backend=backend) as engine:
            victim = "10.99.0.7" if family == 4 else "fd99::7"
            engine.submit(request(1, victim) + request(2, net.target_address(family), ttl=1))
            refused, expired = sorted(gather(engine, 2))
            assert (refused.token, refused.kind) == (1, ERROR)
            assert (refused.icmp_type, refused.code) == ((3, 1) if family == 4 else (1, 0))
            assert refused.address(family) == net.hops(family)[0]
            assert (expired.token, expired.kind) == (2, ERROR)
            assert expired.icmp_type == (11 if family == 4 else 3)
            assert refused.rtt_ns >= 0


UNPRIVILEGED = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.setns(int(sys.argv[1]), 0x40000000) == 0, os.strerror(ctypes.get_errno())
assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
from netsonde.errors import PrivilegeError
from netsonde.probe.ping.engines import open_engine
from netsonde.probe.privilege import capabilities, icmp_access
print(icmp_access(4), icmp_access(6), capabilities()["raw_icmp"])
try:
    for family in (4, 6):
        engine = open_engine(family)
        print(engine.access)
        engine.close()
except PrivilegeError as error:
    print(error)
"""


@pytest.mark.parametrize("allowed", [True, False])
def test_without_privilege_it_falls_back_or_says_what_to_do(
    quiet: Namespace, allowed: bool
) -> None:
    if allowed:
        quiet.allow_icmp_datagrams()
    output = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(quiet.fd)],
        pass_fds=[quiet.fd], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert output.returncode == 0, output.stderr
    if allowed:
        assert output.stdout.split() == ["datagram", "datagram", "False", "datagram", "datagram"]
    else:
        assert output.stdout.startswith("None None False\nthis process may not send ICMPv4")
        assert "AmbientCapabilities=CAP_NET_RAW" in output.stdout
