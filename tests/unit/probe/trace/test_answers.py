"""What `take_trace` returns, read."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde._native import icmp
from netsonde.probe.trace.answers import Answer, Flag, Kind, Stop, Traced
from support.trace_endings import CHECKSUM, FLOW_LABEL, SOURCE_PORT, Ending, answer, echo

UNREACHABLE_PORT = {"192.0.2.1": (3, 3), "2001:db8::1": (1, 4)}

BYTE = st.integers(0, 255)
ANSWERS = st.builds(
    Answer,
    ttl=st.integers(1, 30),
    attempt=BYTE,
    kind=st.sampled_from(Kind),
    responder=st.binary(min_size=4, max_size=4),
    icmp_type=BYTE,
    icmp_code=BYTE,
    sent_ns=st.integers(0, 2**63 - 1),
    rtt_ns=st.integers(-1, 2**63 - 1),
    reply_ttl=BYTE,
    quoted_ttl=BYTE,
    quoted_tos=BYTE,
    flags=st.integers(0, 63),
    mtu=st.integers(0, 2**32 - 1),
    extension=st.binary(max_size=64),
)


@given(st.lists(ANSWERS, max_size=20))
def test_every_answer_is_read_as_it_was_written(answers: list[Answer]) -> None:
    traced = Ending(answers=answers).traced()
    assert traced.answers == tuple(answers)


@pytest.mark.parametrize(("family", "source"), [(4, "c0000263"), (6, "20010db8" + "0" * 22 + "99")])
def test_the_summary_is_told_in_full(family: int, source: str) -> None:
    ending = Ending(
        stop=icmp.STOPPED_TX_ERROR, end_ttl=9, attempts=b"\2\1\3", tx_errors=4, rx_drops=5,
        errno=105, missed=6,
    )  # fmt: skip
    traced = Traced.unpack(ending.taken(7, family, 2), family)
    label = FLOW_LABEL if family == 6 else 0
    assert traced == Traced(
        7, Stop.TX_ERROR, 9, 6, 4, 0, 0, 5, 105, 6, bytes.fromhex(source), CHECKSUM, SOURCE_PORT,
        label, 2, b"\2\1\3", (),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("code", "stop"),
    [
        (icmp.STOPPED_COMPLETED, "completed"),
        (icmp.STOPPED_UNREACHABLE, "unreachable"),
        (icmp.STOPPED_LOOP, "loop"),
        (icmp.STOPPED_GAP_LIMIT, "gap_limit"),
        (icmp.STOPPED_MAX_HOPS, "max_hops"),
        (icmp.STOPPED_TX_ERROR, "tx_error"),
        (icmp.STOPPED_CANCELLED, "cancelled"),
    ],
)
def test_every_stop_has_its_name(code: int, stop: str) -> None:
    assert Ending(stop=code).traced().stop == stop


def test_an_extension_is_the_slice_of_its_answer() -> None:
    answers = [answer(1, extension=b"first"), answer(2), answer(3, extension=b"third")]
    traced = Ending(answers=answers).traced()
    assert [each.extension for each in traced.answers] == [b"first", b"", b"third"]


@pytest.mark.parametrize(("address", "version"), [("192.0.2.1", 4), ("2001:db8::1", 6)])
def test_a_responder_has_the_width_of_its_family(address: str, version: int) -> None:
    (found,) = Ending(answers=[answer(1, address)]).traced(version).answers
    assert (found.address, found.version) == (address, version)


def test_every_ttl_that_was_tried_is_a_hop() -> None:
    answers = [echo(4), answer(2, flags=Flag.LATE), answer(2, attempt=1)]
    hops = Ending(answers=answers, attempts=b"\2\3\1").traced(first_ttl=2).hops
    assert [(hop.ttl, hop.attempts) for hop in hops] == [(2, 2), (3, 3), (4, 1)]
    assert [len(hop.answers) for hop in hops] == [2, 0, 1]
    assert [hop.answer for hop in hops] == [answers[2], None, answers[0]]


@pytest.mark.parametrize(
    ("fields", "is_counted"),
    [
        ({}, True),
        ({"flags": Flag.TRANSLATED | Flag.USER_CLOCK}, True),
        ({"flags": Flag.LATE}, False),
        ({"flags": Flag.DUPLICATE}, False),
        ({"kind": Kind.REFUSED}, False),
    ],
)
def test_the_first_answer_in_time_counts(fields: dict[str, Any], is_counted: bool) -> None:
    assert answer(1, **fields).is_counted is is_counted


@pytest.mark.parametrize("method", ["icmp", "udp", "tcp"])
@pytest.mark.parametrize("address", UNREACHABLE_PORT)
def test_the_end_is_what_the_destination_says(address: str, method: str) -> None:
    for kind in (Kind.ECHO, Kind.SYN_ACK, Kind.RST):
        assert answer(1, address, kind=kind).is_end(method)
    assert not answer(1, address, kind=Kind.REFUSED).is_end(method)
    assert not answer(1, address).is_end(method)
    port, code = UNREACHABLE_PORT[address]
    refusal = answer(1, address, icmp_type=port, icmp_code=code)
    assert refusal.is_end(method) is (method == "udp")
    assert not answer(1, address, icmp_type=port, icmp_code=0).is_end(method)


@pytest.mark.parametrize("address", UNREACHABLE_PORT)
def test_an_expiry_is_a_routers_time_exceeded(address: str) -> None:
    assert answer(1, address).is_expiry
    assert not answer(1, address, kind=Kind.ECHO).is_expiry
    assert not answer(1, address, icmp_type=UNREACHABLE_PORT[address][0]).is_expiry
