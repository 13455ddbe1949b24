"""Messages to and from the kernel."""

import errno
import struct

import pytest
from pyroute2.netlink import NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP
from pyroute2.netlink.rtnl import RTM_GETROUTE, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE

from netsonde.netinfo.netlink import destinations, pack, parse


def bare(kind: int, payload: bytes = b"") -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, 0, 0, 0) + payload


def address(text: str) -> bytes:
    return pack(RTM_NEWADDR, 0, {"family": 2, "index": 3}, (("IFA_LOCAL", text),))


def test_a_question_is_what_rtnetlink_asks_for() -> None:
    fields = {"family": 2, "dst_len": 32}
    message = pack(RTM_GETROUTE, NLM_F_REQUEST, fields, (("RTA_DST", "192.0.2.1"),))

    header = struct.pack("=IHHII", 36, 26, 1, 0, 0)
    rtmsg = struct.pack("=8BI", 2, 32, 0, 0, 0, 0, 0, 0, 0)
    assert message == header + rtmsg + struct.pack("=HH4B", 8, 1, 192, 0, 2, 1)


def test_several_messages_come_in_one_datagram() -> None:
    datagram = bare(NLMSG_NOOP) + address("192.0.2.1") + address("192.0.2.2") + bare(0x7F)

    messages = list(parse(datagram))

    assert [message.get_attr("IFA_LOCAL") for message in messages] == ["192.0.2.1", "192.0.2.2"]
    assert messages[0]["index"] == 3
    assert messages[0].get_attr("IFA_LABEL") is None


@pytest.mark.parametrize("kind", [NLMSG_ERROR, NLMSG_DONE])
def test_an_error_is_its_errno(kind: int) -> None:
    with pytest.raises(OSError, match="Network is unreachable") as caught:
        list(parse(bare(kind, struct.pack("=i", -errno.ENETUNREACH))))

    assert caught.value.errno == errno.ENETUNREACH


@pytest.mark.parametrize("kind", [NLMSG_ERROR, NLMSG_DONE])
def test_an_acknowledgement_and_an_end_are_no_messages(kind: int) -> None:
    datagram = address("192.0.2.1") + bare(kind, struct.pack("=i", 0))

    assert len(list(parse(datagram))) == 1


@pytest.mark.parametrize("length", [0, 15, 17, 1 << 31])
def test_a_datagram_that_lies_about_its_length_is_the_end(length: int) -> None:
    broken = struct.pack("=IHHII", length, RTM_NEWROUTE, 0, 0, 0)

    assert len(list(parse(address("192.0.2.1") + broken))) == 1
    assert list(parse(broken[:7])) == []


def test_destinations_of_longer_routes_and_rules_are_read() -> None:
    def way(kind: int, bits: int, *attributes: tuple[int, bytes]) -> bytes:
        packed = b"".join(
            struct.pack("=HH", 4 + len(value), name) + value.ljust(-(-len(value) // 4) * 4, b"\0")
            for name, value in attributes
        )
        return bare(kind, struct.pack("=8BI", 2, bits, 0, 0, 0, 0, 0, 0, 0) + packed)

    to = (1, bytes([10, 0, 0, 128]))
    datagram = (
        way(RTM_NEWROUTE, 25, (15, b"\0\0\0\0\0"), to)
        + way(RTM_NEWRULE, 32, (1, bytes([10, 0, 1, 1])))
        + way(RTM_NEWROUTE, 24, (1, bytes([10, 0, 2, 0])))
        + way(RTM_NEWROUTE, 32)
        + way(RTM_NEWROUTE, 32, (15, b""))
        + address("192.0.2.1")
        + bare(NLMSG_DONE, struct.pack("=i", 0))
    )

    assert list(destinations(datagram, 24)) == [bytes([10, 0, 0, 128]), bytes([10, 0, 1, 1])]
    with pytest.raises(OSError, match="not supported"):
        list(destinations(bare(NLMSG_ERROR, struct.pack("=i", -errno.EOPNOTSUPP)), 24))
