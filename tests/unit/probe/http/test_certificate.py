import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.probe.http.certificate import certificate_facts

SEQUENCE, SET, INTEGER, OBJECT_ID, UTF8 = 0x30, 0x31, 0x02, 0x06, 0x0C
UTC_TIME, GENERALIZED_TIME, VERSION = 0x17, 0x18, 0xA0


def der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    width = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | width]) + length.to_bytes(width) + content


def name(**parts: str) -> bytes:
    kinds = {"CN": b"\x55\x04\x03", "O": b"\x55\x04\x0a", "C": b"\x55\x04\x06"}
    attributes = (
        der(SET, der(SEQUENCE, der(OBJECT_ID, kinds[kind]), der(UTF8, text.encode())))
        for kind, text in parts.items()
    )
    return der(SEQUENCE, *attributes)


def certificate(
    *, not_after: bytes = der(UTC_TIME, b"270101000000Z"), version: bytes | None = None
) -> bytes:
    fields = (
        der(INTEGER, b"\x01\x02\xff"),
        der(SEQUENCE, der(OBJECT_ID, b"\x2a")),
        name(C="NL", O="Example CA", CN="Root"),
        der(SEQUENCE, der(UTC_TIME, b"251231235959Z"), not_after),
        name(CN="example.net"),
        der(SEQUENCE, b"a public key would be here"),
    )
    head = der(VERSION, der(INTEGER, b"\x02")) if version is None else version
    return der(SEQUENCE, der(SEQUENCE, head, *fields), der(SEQUENCE), der(0x03, b"\0sig"))


def test_a_certificate_has_names_serial_and_validity() -> None:
    data = certificate()

    assert certificate_facts(data) == {
        "sha256": hashlib.sha256(data).hexdigest(),
        "subject": "CN=example.net",
        "issuer": "C=NL, O=Example CA, CN=Root",
        "serial": "0102ff",
        "not_before": "2025-12-31T23:59:59Z",
        "not_after": "2027-01-01T00:00:00Z",
    }


def test_a_version_1_certificate_has_no_version_field() -> None:
    assert certificate_facts(certificate(version=b""))["subject"] == "CN=example.net"


@pytest.mark.parametrize(
    ("time", "instant"),
    [
        (der(UTC_TIME, b"491231235959Z"), "2049-12-31T23:59:59Z"),
        (der(UTC_TIME, b"500101000000Z"), "1950-01-01T00:00:00Z"),
        (der(GENERALIZED_TIME, b"99991231235959Z"), "9999-12-31T23:59:59Z"),
    ],
)
def test_both_kinds_of_time_are_read(time: bytes, instant: str) -> None:
    assert certificate_facts(certificate(not_after=time))["not_after"] == instant


@pytest.mark.parametrize("time", [der(UTC_TIME, b"tomorrow"), der(INTEGER, b"\1")])
def test_a_strange_time_is_said_so(time: bytes) -> None:
    facts = certificate_facts(certificate(not_after=time))

    assert "unreadable certificate" in facts["error"]
    assert len(facts["sha256"]) == 64


@given(st.binary(max_size=200))
def test_any_bytes_give_facts(data: bytes) -> None:
    assert len(certificate_facts(data)["sha256"]) == 64


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_certificate_gives_facts(at: int, value: int) -> None:
    data = bytearray(certificate())
    data[at % len(data)] = value

    facts = certificate_facts(bytes(data))

    assert "error" in facts or "not_after" in facts


def test_names_cannot_smuggle_control_characters() -> None:
    subject = name(CN="evil\r\n\x1b[31m")
    data = certificate().replace(name(CN="example.net"), subject)
    facts = certificate_facts(data)

    assert all(each.isprintable() for each in facts.get("subject", ""))
