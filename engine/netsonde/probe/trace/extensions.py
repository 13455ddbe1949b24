"""What routers attach to an ICMP error beside the quote: MPLS labels, interfaces (RFC 4884)."""

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import chain
from struct import iter_unpack
from typing import NamedTuple

_VERSION = 2
_HEADER_BYTES = 4
_MPLS_STACK = (1, 1)  # class and type, RFC 4950
_INTERFACE_CLASS = 2  # RFC 5837
_HAS_INDEX, _HAS_ADDRESS, _HAS_NAME, _HAS_MTU = 8, 4, 2, 1  # bits of its type
_ADDRESS_BYTES = {1: 4, 2: 16}  # by address family number
_ROLES = ("arrival", "sub_ip", "departure", "next_hop")


class Label(NamedTuple):
    """An entry of an MPLS label stack as the router received it (RFC 3032)."""

    label: int  # 20 bits
    traffic_class: int  # 3 bits, RFC 5462
    bottom: bool  # of the stack
    ttl: int


class ExtensionObject(NamedTuple):
    """An object as it came."""

    class_num: int
    c_type: int
    payload: bytes


class Interface(NamedTuple):
    """An interface of the router, or its next hop; None: not told (RFC 5837).

    role: "arrival" (the datagram came in there), "sub_ip" (the same, of a bundle), "departure" or
    "next_hop".
    """

    role: str
    if_index: int | None  # RFC 2863
    address: str | None
    name: str | None  # printable
    mtu: int | None  # bytes


class Extensions(NamedTuple):
    """An extension structure.

    is_trusted: version, checksum and lengths are right. Otherwise mpls and interfaces are empty,
    and objects are those in front of the first lie about a length, none of another version.
    """

    raw: bytes
    is_trusted: bool
    objects: tuple[ExtensionObject, ...]
    mpls: tuple[Label, ...]  # outermost first
    interfaces: tuple[Interface, ...]


def decode_extensions(raw: bytes) -> Extensions:
    """Read an RFC 4884 structure, header included; any bytes whatever. Never raises."""
    if len(raw) < _HEADER_BYTES or raw[0] >> 4 != _VERSION:
        return Extensions(raw, False, (), (), ())
    objects, is_whole = _walk(raw)
    if not is_whole or not objects or not _is_undamaged(raw):
        return Extensions(raw, False, objects, (), ())
    labels = chain.from_iterable(
        _labels(each.payload) for each in objects if (each.class_num, each.c_type) == _MPLS_STACK
    )
    interfaces = (_interface(each) for each in objects if each.class_num == _INTERFACE_CLASS)
    return Extensions(raw, True, objects, tuple(labels), tuple(filter(None, interfaces)))


def _walk(raw: bytes) -> tuple[tuple[ExtensionObject, ...], bool]:
    """Return the objects, and whether none of them lied about its length."""
    objects: list[ExtensionObject] = []
    at = _HEADER_BYTES
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 2], "big")
        if length < _HEADER_BYTES or length % 4 or length > len(raw) - at:
            return tuple(objects), False
        objects.append(ExtensionObject(raw[at + 2], raw[at + 3], raw[at + 4 : at + length]))
        at += length
    return tuple(objects), True


def _is_undamaged(raw: bytes) -> bool:
    """Whether the checksum is right (RFC 1071), or 0: there is none. raw: whole words."""
    total = sum(word for (word,) in iter_unpack("!H", raw))
    return raw[2:4] == b"\0\0" or total % 0xFFFF == 0


def _labels(stack: bytes) -> Iterator[Label]:
    for (entry,) in iter_unpack("!I", stack):
        yield Label(entry >> 12, entry >> 9 & 7, bool(entry >> 8 & 1), entry & 0xFF)


def _interface(each: ExtensionObject) -> Interface | None:
    """Read an interface information object; None when its payload is not what its type says."""
    fields = _Fields(each.payload)
    bits = each.c_type
    try:
        index = fields.number(4) if bits & _HAS_INDEX else None
        address = fields.address() if bits & _HAS_ADDRESS else None
        name = fields.name() if bits & _HAS_NAME else None
        mtu = fields.number(4) if bits & _HAS_MTU else None
    except ValueError:
        return None
    return None if fields.left else Interface(_ROLES[bits >> 6], index, address, name, mtu)


class _Fields:
    """The fields of an interface object in their order; ValueError when one is not there."""

    def __init__(self, payload: bytes) -> None:
        self.left = payload

    def take(self, count: int) -> bytes:
        if count > len(self.left):
            raise ValueError(f"{count} bytes asked for, {len(self.left)} there")
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def address(self) -> str:
        family = self.number(2)
        self.take(2)  # reserved
        if family not in _ADDRESS_BYTES:
            raise ValueError(f"no address family {family}")
        return str(ip_address(self.take(_ADDRESS_BYTES[family])))

    def name(self) -> str:
        """Return a name, whose length counts itself and its filling up with zeros."""
        length = self.number(1)
        if length == 0 or length % 4:
            raise ValueError(f"no name is {length} bytes long")
        text = self.take(length - 1).rstrip(b"\0").decode(errors="replace")
        return "".join(each if each.isprintable() else "?" for each in text)
