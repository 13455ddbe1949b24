"""Questions to the kernel and its announcements, over sockets of our own: rtnetlink(7).

pyroute2 packs and parses the messages. Its sockets are not used: each runs an event loop of its
own, and a question that takes two system calls may have to be asked beside a running one.
"""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pyroute2.netlink import NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR
from pyroute2.netlink.rtnl import (
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
STATUS = struct.Struct("=i")  # of NLMSG_ERROR and NLMSG_DONE: a negated errno, or 0
WAY = struct.Struct("=BB10x")  # rtmsg and fib_rule_hdr begin so: family, length of the destination
ATTRIBUTE = struct.Struct("=HH")  # rtattr: length with this header, type
DESTINATION = 1  # RTA_DST and FRA_DST
DATAGRAM_BYTES_MAX = 1 << 16  # the kernel fills at most 32 KiB of it
DUMPS_MAX = 8  # a list that changed while it was read is asked for again

CLASSES = {
    RTM_NEWLINK: ifinfmsg,
    RTM_NEWADDR: ifaddrmsg,
    RTM_NEWROUTE: rtmsg,
    RTM_NEWNEIGH: ndmsg,
}

T = TypeVar("T")

Attributes = Sequence[tuple[str, Any]]


class Message(Protocol):
    """A parsed message: its header's fields by C name without prefix, attributes by name."""

    def __getitem__(self, field: str) -> Any: ...

    def get_attr(self, name: str) -> Any:
        """Return an attribute's value, or None when the message has none of that name."""
        ...


def ask(kind: int, fields: Mapping[str, Any], attributes: Attributes = ()) -> Message:
    """Return the answer to a question for one thing, such as RTM_GETROUTE.

    Raises:
        OSError: the kernel refused; its errno.
    """
    with _open() as channel:
        channel.send(pack(kind, NLM_F_REQUEST, fields, attributes))
        return next(parse(channel.recv(DATAGRAM_BYTES_MAX)))


def ask_for_all(kind: int, fields: Mapping[str, Any]) -> list[Message]:
    """Return everything of a kind, as of one instant.

    Raises:
        OSError: the kernel refused, or it changed whenever it was read (EAGAIN).
    """
    return _dump(pack(kind, NLM_F_REQUEST | NLM_F_DUMP, fields, ()), parse)


def ask_for_destinations(kind: int, family: int, longer_than: int) -> list[bytes]:
    """Return the `destinations` of all routes (RTM_GETROUTE) or rules (RTM_GETRULE).

    Raises:
        OSError: as `ask_for_all`.
    """
    size = HEADER.size + WAY.size
    request = HEADER.pack(size, kind, NLM_F_REQUEST | NLM_F_DUMP, 0, 0) + WAY.pack(family, 0)
    return _dump(request, lambda datagram: destinations(datagram, longer_than))


def subscribe(groups: int) -> socket.socket:
    """Open a non-blocking socket that hears the announcements of groups (RTMGRP_* bits)."""
    return _open(groups, socket.SOCK_NONBLOCK)


def pack(kind: int, flags: int, fields: Mapping[str, Any], attributes: Attributes) -> bytes:
    """Build one message."""
    message = _class_of(kind)()
    message["header"]["type"] = kind
    message["header"]["flags"] = flags
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data)


def parse(datagram: bytes) -> Iterator[Message]:
    """Yield a datagram's messages; types that nobody here asks about are passed over.

    Raises:
        OSError: one of them is an error; its errno.
    """
    for kind, piece in _checked(datagram):
        if (message_class := _class_of(kind)) is not None:
            message = message_class(piece)
            message.decode()
            yield message


def destinations(datagram: bytes, longer_than: int) -> Iterator[bytes]:
    """Yield the addresses of the prefixes with more than so many bits that ways lead to.

    Without pyroute2, for which a full table of a million routes would take minutes.

    Raises:
        OSError: as `parse`.
    """
    for kind, piece in _checked(datagram):
        if kind not in (RTM_NEWROUTE, RTM_NEWRULE):
            continue
        _, bits = WAY.unpack_from(piece, HEADER.size)
        offset = HEADER.size + WAY.size
        while bits > longer_than and offset + ATTRIBUTE.size <= len(piece):
            length, name = ATTRIBUTE.unpack_from(piece, offset)
            if name == DESTINATION:
                yield piece[offset + ATTRIBUTE.size : offset + length]
            offset += max(length + 3 & ~3, ATTRIBUTE.size)


def _checked(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield a datagram's messages, and raise the errors among them."""
    for kind, piece in _split(datagram):
        if kind in (NLMSG_ERROR, NLMSG_DONE):
            (status,) = STATUS.unpack_from(piece, HEADER.size)
            if status < 0:
                raise OSError(-status, os.strerror(-status))
        else:
            yield kind, piece


def _class_of(kind: int) -> Any:
    """Return the class of RTM_NEW, DEL, GET and SET of one sort of thing: they differ by 0 to 3."""
    return CLASSES.get(kind & ~3)


def _open(groups: int = 0, flags: int = 0) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | flags
    opened = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    try:
        opened.bind((0, groups))
    except OSError:
        opened.close()
        raise
    return opened


def _dump(request: bytes, read: Callable[[bytes], Iterable[T]]) -> list[T]:
    """Return what read makes of the datagrams that answer a request for a list."""
    for _ in range(DUMPS_MAX):
        found: list[T] = []
        is_done = has_changed = False
        with _open() as channel:
            channel.send(request)
            while not is_done:
                datagram = channel.recv(DATAGRAM_BYTES_MAX)
                found += read(datagram)
                pieces = list(_split(datagram))
                is_done = any(kind == NLMSG_DONE for kind, _ in pieces)
                flags = (HEADER.unpack_from(piece)[2] for _, piece in pieces)
                has_changed |= any(each & NLM_F_DUMP_INTR for each in flags)
        if not has_changed:
            return found
    raise OSError(errno.EAGAIN, "the kernel's list changes faster than it can be read")


def _split(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length, kind, *_ = HEADER.unpack_from(datagram, offset)
        if not HEADER.size <= length <= len(datagram) - offset:
            return
        yield kind, datagram[offset : offset + length]
        offset += (length + 3) & ~3
