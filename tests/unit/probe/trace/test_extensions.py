"""What routers attach to ICMP errors: read right, believed when it can be, never a crash."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native import quote_core
from netsonde.probe.trace.extensions import (
    ExtensionObject,
    Extensions,
    Interface,
    Label,
    decode_extensions,
)
from support.packets import checksum

LABELS = (Label(100, 5, False, 254), Label(0xFFFFF, 0, True, 1))
ADDRESS = struct.pack("!HH", 1, 0) + bytes([192, 0, 2, 1])


def extension_object(class_num: int, c_type: int, payload: bytes) -> bytes:
    return struct.pack("!HBB", 4 + len(payload), class_num, c_type) + payload


def structure(*objects: bytes, version: int = 2, total: int | None = None) -> bytes:
    """An extension structure; total: a checksum instead of the right one."""
    bare = bytes([version << 4, 0, 0, 0]) + b"".join(objects)
    right = checksum(bare) if total is None else total
    return bare[:2] + struct.pack("!H", right) + bare[4:]


def stack(*labels: Label) -> bytes:
    words = (
        each.label << 12 | each.traffic_class << 9 | each.bottom << 8 | each.ttl for each in labels
    )
    return extension_object(1, 1, b"".join(struct.pack("!I", word) for word in words))


# ── labels ───────────────────────────────────────────────────────────────────────────────────────


def test_a_label_stack_is_read_from_the_outside_in() -> None:
    raw = structure(stack(*LABELS))
    (each,) = quote_core.walk(raw)[0]
    assert decode_extensions(raw) == Extensions(raw, True, (ExtensionObject(*each),), LABELS, ())


def test_labels_of_several_objects_follow_each_other() -> None:
    raw = structure(stack(LABELS[0]), extension_object(3, 1, b"next"), stack(LABELS[1]), stack())
    decoded = decode_extensions(raw)
    assert decoded.mpls == LABELS
    assert len(decoded.objects) == 4


@given(st.lists(st.builds(Label, st.integers(0, 0xFFFFF), st.integers(0, 7), st.booleans(),
                          st.integers(0, 255))))  # fmt: skip
def test_any_stack_comes_back(labels: list[Label]) -> None:
    assert decode_extensions(structure(stack(*labels))).mpls == tuple(labels)


def test_a_checksum_is_not_needed() -> None:
    assert decode_extensions(structure(stack(*LABELS), total=0)).mpls == LABELS


def test_unknown_objects_stay_raw() -> None:
    raw = structure(extension_object(1, 2, b"spam"), extension_object(247, 1, b"eggs"))
    decoded = decode_extensions(raw)
    assert decoded.objects == (ExtensionObject(1, 2, b"spam"), ExtensionObject(247, 1, b"eggs"))
    assert (decoded.is_trusted, decoded.mpls, decoded.interfaces) == (True, (), ())


# ── what cannot be believed ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("raw", "walked"),
    [
        (structure(stack(*LABELS), total=1), 1),
        (structure(stack(*LABELS), stack(*LABELS))[:-4], 1),
        (structure(stack(*LABELS), b"\0\4"), 1),
        (structure(stack(*LABELS), b"\0\0\1\1"), 1),
        (structure(stack(*LABELS), b"\0\6\1\1\0\0\0\0"), 1),
        (structure(stack(*LABELS), version=1), 0),
        (structure(stack(*LABELS), version=3), 0),
        (structure(), 0),
        (structure()[:3], 0),
        (b"", 0),
    ],
)
def test_a_structure_that_is_wrong_is_kept_but_not_read(raw: bytes, walked: int) -> None:
    decoded = decode_extensions(raw)
    assert (decoded.raw, decoded.is_trusted) == (raw, False)
    assert (decoded.mpls, decoded.interfaces) == ((), ())
    assert len(decoded.objects) == walked


# ── interfaces ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("c_type", "payload", "interface"),
    [
        (0x00, b"", Interface("arrival", None, None, None, None)),
        (0x48, struct.pack("!I", 7), Interface("sub_ip", 7, None, None, None)),
        (0x84, ADDRESS, Interface("departure", None, "192.0.2.1", None, None)),
        (
            0xC4,
            struct.pack("!HH", 2, 0) + bytes.fromhex("20010db8000000000000000000000001"),
            Interface("next_hop", None, "2001:db8::1", None, None),
        ),
        (
            0x0F,
            struct.pack("!I", 7) + ADDRESS + b"\x08ge-0/0\0" + struct.pack("!I", 9000),
            Interface("arrival", 7, "192.0.2.1", "ge-0/0", 9000),
        ),
        (0x02, b"\x08\xffa\x1b[0m\0", Interface("arrival", None, None, "\ufffda?[0m", None)),
    ],
)
def test_an_interface_is_read(c_type: int, payload: bytes, interface: Interface) -> None:
    decoded = decode_extensions(structure(extension_object(2, c_type, payload)))
    assert decoded.interfaces == (interface,)


@pytest.mark.parametrize(
    ("c_type", "payload"),
    [
        (0x08, b""),
        (0x00, bytes(4)),
        (0x04, struct.pack("!HH", 2, 0) + bytes(4)),
        (0x04, struct.pack("!HH", 3, 0) + bytes(4)),
        (0x02, b"\0abc"),
        (0x02, b"\x03abc"),
        (0x02, b"\x08abc"),
        (0x01, b""),
    ],
)
def test_an_interface_that_does_not_add_up_stays_raw(c_type: int, payload: bytes) -> None:
    decoded = decode_extensions(structure(extension_object(2, c_type, payload), stack(*LABELS)))
    assert decoded.objects[0] == ExtensionObject(2, c_type, payload)
    assert (decoded.is_trusted, decoded.interfaces, decoded.mpls) == (True, (), LABELS)


# ── the native core ──────────────────────────────────────────────────────────────────────────────

objects = st.builds(
    extension_object, st.integers(0, 3), st.integers(0, 255),
    st.binary(max_size=24).map(lambda payload: payload[: len(payload) // 4 * 4]),
)  # fmt: skip


@st.composite
def structures(draw: st.DrawFn) -> bytes:
    """Structures, of them some cut, damaged or of another version."""
    total = draw(st.sampled_from([None, None, 0, 1]))
    version = draw(st.sampled_from([2, 2, 2, 1]))
    raw = bytearray(structure(*draw(st.lists(objects, max_size=5)), version=version, total=total))
    if draw(st.booleans()):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        raw[2:4] = bytes(2)  # damage that no checksum shows
    return bytes(raw[: draw(st.just(len(raw)) | st.integers(0, len(raw)))])


@given(structures() | st.binary(max_size=64))
def test_the_native_core_says_the_same(raw: bytes) -> None:
    decoded = decode_extensions(raw)
    verdict = quote_core.check(raw)
    assert decoded.is_trusted == (verdict == quote_core.TRUSTED)
    walked, is_whole = quote_core.walk(raw)
    if len(raw) < 4 or verdict == quote_core.BAD_VERSION:
        walked = []
    assert decoded.objects == tuple(ExtensionObject(*each) for each in walked)
    assert is_whole or not decoded.is_trusted
