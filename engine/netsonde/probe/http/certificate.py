"""The facts of a certificate, read from its DER bytes (RFC 5280 4.1, X.690).

The standard library decodes only certificates that it has verified; a check wants the expiry of
the others too.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any, NamedTuple

_SEQUENCE = 0x30
_INTEGER = 0x02
_OBJECT_ID = 0x06
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18
_EXPLICIT_VERSION = 0xA0
_NAMES = {b"\x55\x04\x03": "CN", b"\x55\x04\x0a": "O", b"\x55\x04\x06": "C"}
_NAME_MAX = 256  # characters of a name that a result keeps
_ATTRIBUTES_MAX = 32
_ELEMENTS_MAX = 64


class _Element(NamedTuple):
    tag: int
    content: bytes


def certificate_facts(der: bytes) -> dict[str, Any]:
    """Return digest, names, serial and validity; an `error` instead when der is unreadable.

    Instants are RFC 3339 UTC.
    """
    facts: dict[str, Any] = {"sha256": hashlib.sha256(der).hexdigest()}
    try:
        return facts | _fields(der)
    except (ValueError, IndexError, OverflowError) as error:
        return facts | {"error": f"unreadable certificate: {error}"}


def _fields(der: bytes) -> dict[str, Any]:
    certificate = _elements(der)[0]
    to_be_signed = _elements(certificate.content)[0]
    if (certificate.tag, to_be_signed.tag) != (_SEQUENCE, _SEQUENCE):
        raise ValueError("not a certificate")
    fields = _elements(to_be_signed.content)
    if fields[0].tag == _EXPLICIT_VERSION:
        fields = fields[1:]
    serial, _, issuer, validity, subject = fields[:5]
    if serial.tag != _INTEGER:
        raise ValueError("no serial number")
    not_before, not_after = _elements(validity.content)[:2]
    return {
        "subject": _name(subject.content),
        "issuer": _name(issuer.content),
        "serial": serial.content[:32].hex(),
        "not_before": _instant(not_before),
        "not_after": _instant(not_after),
    }


def _elements(data: bytes) -> list[_Element]:
    """Return the DER elements that data is a row of, the first ones of a long row."""
    elements: list[_Element] = []
    at = 0
    while at < len(data) and len(elements) < _ELEMENTS_MAX:
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            width = length & 0x7F
            if not 1 <= width <= 4:
                raise ValueError("a length that DER does not have")
            length = int.from_bytes(data[at : at + width])
            at += width
        if at + length > len(data):
            raise ValueError("an element that is longer than its container")
        elements.append(_Element(tag, data[at : at + length]))
        at += length
    return elements


def _name(content: bytes) -> str:
    parts: list[str] = []
    for relative in _elements(content):
        for attribute in _elements(relative.content):
            kind, value = _elements(attribute.content)[:2]
            label = _NAMES.get(kind.content) if kind.tag == _OBJECT_ID else None
            if label is not None and len(parts) < _ATTRIBUTES_MAX:
                text = value.content.decode("utf-8", "backslashreplace")
                parts.append(f"{label}={text}")
    joined = ", ".join(parts)[:_NAME_MAX]
    return "".join(each if each.isprintable() else "?" for each in joined)


def _instant(element: _Element) -> str:
    text = element.content.decode("ascii")
    if element.tag == _UTC_TIME:
        # RFC 5280 4.1.2.5.1: two-digit years below 50 are this century's.
        text = ("20" if text[:2] < "50" else "19") + text
    elif element.tag != _GENERALIZED_TIME:
        raise ValueError("a validity that is not a time")
    moment = datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
