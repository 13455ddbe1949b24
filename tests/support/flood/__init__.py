"""A flood of ICMP that means nothing or nearly something, at a rate, from a host's first router.

What it consists of: garbage; echo replies and errors about probes of other hosts; and what the host
asks for right now, quoted by errors and echo replies in which something is wrong that nobody who
measures may overlook. `flood.c` sends it, quoting the probes that it sees.
"""

import contextlib
import random
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from support import packets
from support.namespaces import Chain, left_address
from support.netsim.program import compile_program
from support.router_chain import link_addresses
from support.trace_packets import IP_BYTES, PROTOCOL, TIME_EXCEEDED, error, extended, structure

RECIPE = struct.Struct("=6HI6H512s")  # as flood.c has it
FLIPS = 3
ETHERNET_BYTES = 14
ETHERTYPE = {4: 0x0800, 6: 0x86DD}
METHODS: tuple[Literal["icmp", "udp", "tcp"], ...] = ("icmp", "udp", "tcp")
STRANGER = {4: ("10.77.0.1", "203.0.113.9"), 6: ("fd77:0:0:1::1", "2001:db8::9")}
TRANSPORT_BYTES = {"icmp": 28, "udp": 28, "tcp": 24}  # of a probe of the usual size

Flip = tuple[int, int]  # which byte of the quote, and which bits of it

BITS = 0x41
IDENT, COOKIE = 4, 16  # of an echo request, behind its IP header
SOURCE_PORT, UDP_COOKIE, SEQUENCE_END = 1, 16, 6
IP_IDENT, IP_LENGTH, IP_DESTINATION_END = 4, {4: 3, 6: 5}, {4: 19, 6: 39}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An ICMP message, and where it quotes a probe; flips: what is wrong there."""

    message: bytes
    method: str | None = None  # of the probe
    at: int = 8  # in the message
    first: int = 0  # byte of the probe, from its IP header on
    quoted: int = 0
    flips: tuple[Flip, ...] = ()
    is_broken: bool = False  # its checksum is


class Flood:
    """Floods the host of a path. Make it on the thread that built that. responder: the sender."""

    def __init__(self, path: Chain, version: int, rate_pps: float, responder: str) -> None:
        self._router = path.nodes[1]
        self._rate_pps = rate_pps
        self._recipes = _pack(path, version, responder)
        self._program = compile_program("flood", [Path(__file__).with_name("flood.c")])

    @contextlib.contextmanager
    def rising(self) -> Iterator[None]:
        """Flood for the block."""
        with tempfile.TemporaryDirectory(prefix="flood-") as directory:
            file = Path(directory) / "recipes"
            file.write_bytes(self._recipes)
            with self._router.entered():
                process = subprocess.Popen(
                    [self._program, "left", str(self._rate_pps), file], stdin=subprocess.PIPE
                )
            try:
                yield
                assert process.poll() is None, "the flood has dried up"
            finally:
                process.communicate()  # it ends with its standard input


def _pack(path: Chain, version: int, responder: str) -> bytes:
    host, router = (bytes.fromhex(each.replace(":", "")) for each in link_addresses(path, 0))
    link = host + router + struct.pack("!H", ETHERTYPE[version])
    recipes = recipes_of(version)
    random.Random(1).shuffle(recipes)
    return b"".join(_pack_one(each, version, link, responder) for each in recipes)


def _pack_one(recipe: Recipe, version: int, link: bytes, responder: str) -> bytes:
    host = left_address(0, version)
    pseudo = b""
    if version == 6:
        pseudo = ip_address(responder).packed + ip_address(host).packed
        pseudo += struct.pack("!II", len(recipe.message), PROTOCOL[6, "icmp"])
    total = packets.checksum(pseudo + recipe.message) ^ recipe.is_broken
    message = recipe.message[:2] + struct.pack("!H", total) + recipe.message[4:]
    wrap = packets.ipv4 if version == 4 else packets.ipv6
    frame = link + wrap(responder, host, message)
    begin = len(frame) - len(message)
    flips = (*recipe.flips, *[(0, 0)] * (FLIPS - len(recipe.flips)))
    return RECIPE.pack(
        len(frame), begin, begin + recipe.at if recipe.method else 0, recipe.first, recipe.quoted,
        PROTOCOL[version, recipe.method] if recipe.method else 0,
        sum(word for (word,) in struct.iter_unpack("!H", pseudo)),
        *(number for flip in flips for number in flip), frame,
    )  # fmt: skip


def recipes_of(version: int) -> list[Recipe]:
    """Return what a flood consists of; each has the same share of it."""
    return [
        *_garbage(version),
        *_foreign(version),
        *_near_replies(version),
        *(each for method in METHODS for each in _near_errors(version, method)),
    ]


def _garbage(version: int) -> Iterator[Recipe]:
    noise = random.Random(2).randbytes(64)
    expired = TIME_EXCEEDED[version]
    yield Recipe(message=bytes([200, 0, 0, 0]) + noise)
    yield Recipe(message=bytes([expired, 0, 0, 0]) + noise)
    yield Recipe(message=bytes([packets.ECHO_REPLY[version], 0, 0, 0]) + noise)
    yield Recipe(message=error(version, b""))
    yield Recipe(message=bytes([packets.ECHO_REPLY[version], 0, 0, 0]))  # and there it ends
    yield Recipe(message=error(version, noise), is_broken=True)


def _foreign(version: int) -> Iterator[Recipe]:
    """Yield what is about somebody else's probes."""
    for number in range(2):
        yield Recipe(message=packets.echo(version, "reply", 7 + number, number, bytes(56)))
    source, destination = STRANGER[version]
    bodies = {
        "icmp": packets.echo(version, "request", 7, 1, bytes(20)),
        "udp": struct.pack("!4H", 40_000, 33_434, 28, 0x1234) + bytes(20),
        "tcp": struct.pack("!HHIIBBHHH", 40_000, 80, 0x01020304, 0, 5 << 4, 2, 1000, 0x1234, 0),
    }
    for method, body in bodies.items():
        protocol = PROTOCOL[version, method]
        if version == 4:
            quote = packets.ipv4(source, destination, body, protocol=protocol, ttl=1)
        else:
            quote = packets.ipv6(source, destination, body, next_header=protocol, hops=1)
        yield Recipe(message=error(version, quote))


def _near_replies(version: int) -> Iterator[Recipe]:
    """Yield replies to echo requests of the host, cookie or identifier wrong."""
    header = IP_BYTES[version]
    quoted = TRANSPORT_BYTES["icmp"] - IDENT
    message = bytes([packets.ECHO_REPLY[version], 0, 0, 0]) + bytes(quoted)
    for wrong in (COOKIE, IDENT):
        yield Recipe(
            message=message, method="icmp", at=4, first=header + IDENT, quoted=quoted,
            flips=((wrong - IDENT, BITS),),
        )  # fmt: skip


def _near_errors(version: int, method: str) -> Iterator[Recipe]:
    """Yield errors about probes of the host, in which one thing is wrong."""
    header = IP_BYTES[version]
    whole = header + TRANSPORT_BYTES[method]
    wrong = _wrong(version, method)

    def near(message: bytes, quoted: int, *flips: Flip) -> Recipe:
        return Recipe(message=message, method=method, quoted=quoted, flips=flips)

    for flip in _wrong_briefly(version, method):
        yield near(error(version, bytes(header + 8)), header + 8, *flip)
    yield near(error(version, bytes(header + 4)), header + 4)
    yield near(error(version, bytes(whole)), whole, *wrong)
    lying = bytes([0, 255, 0, 0]) if version == 4 else bytes([255, 0, 0, 0])
    yield near(error(version, bytes(whole), rest=lying), whole, *wrong)
    yield near(error(version, bytes(whole)), whole, (IP_LENGTH[version], 0xFF), *wrong)
    for total in (None, 0xBAD0):
        yield near(extended(version, b"", structure(total=total)), whole, *wrong)


def _wrong(version: int, method: str) -> Sequence[Flip]:
    """Return what makes a whole probe somebody else's.

    A cookie that ends in 0 may be padding, and the probe is told by what else is its own.
    """
    header = IP_BYTES[version]
    if method == "icmp":
        cookie = (header + COOKIE, BITS)
        return [cookie, (IP_IDENT, BITS)] if version == 4 else [cookie]
    if method == "udp":
        return [(header + UDP_COOKIE, BITS), (header + SOURCE_PORT, BITS)]
    return [(header + SEQUENCE_END, BITS)]


def _wrong_briefly(version: int, method: str) -> Iterator[Sequence[Flip]]:
    """Yield what makes the first 8 bytes of a probe nobody's; over IPv6 they are that, of some."""
    header = IP_BYTES[version]
    if version == 6 and method != "tcp":
        yield []
        return
    yield [(IP_DESTINATION_END[version], BITS)]
    yield [(header + {"icmp": IDENT, "udp": SOURCE_PORT, "tcp": SEQUENCE_END}[method], BITS)]
    if method == "icmp":
        yield [(IP_IDENT, BITS)]
