"""Extension structures as routers append them to what they quote: RFC 4884 7, RFC 4950."""

import struct

from support.netsim.routes import Extension, Label
from support.packets import checksum

MPLS_STACK = (1, 1)  # class and type of a label stack, RFC 4950 3
HEADER_BYTES = OBJECT_HEADER_BYTES = 4
CHECKSUM_FAULT = 0x0101


def extension_bytes(extension: Extension, labels: tuple[Label, ...]) -> bytes:
    """Return the structure with its faults; nothing when there is nothing to say."""
    objects = [(*MPLS_STACK, label_stack(labels))] if labels else []
    objects += [(each.class_, each.type, bytes.fromhex(each.data)) for each in extension.objects]
    if not objects:
        return b""
    body = b"".join(
        _object(*each, extension.object_length if index == 0 else "right")
        for index, each in enumerate(objects)
    )
    header = struct.pack("!BBH", extension.version << 4, 0, 0)
    total = checksum(header + body)
    if extension.checksum == "wrong":
        total ^= CHECKSUM_FAULT
    elif extension.checksum == "none":
        total = 0
    return header[:2] + total.to_bytes(2) + body


def label_stack(labels: tuple[Label, ...]) -> bytes:
    """Return the entries of a stack; the last one has the bottom bit."""
    last = len(labels) - 1
    return b"".join(
        (each.label << 12 | each.tc << 9 | (index == last) << 8 | each.ttl).to_bytes(4)
        for index, each in enumerate(labels)
    )


def _object(class_: int, type_: int, data: bytes, length: str) -> bytes:
    right = OBJECT_HEADER_BYTES + len(data)
    said = {"right": right, "long": right + 64, "short": OBJECT_HEADER_BYTES - 1}[length]
    return struct.pack("!HBB", said, class_, type_) + data
