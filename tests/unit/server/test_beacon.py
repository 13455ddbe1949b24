import struct

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.server.beacon import NAME, answer


def ask(name: str, type_name: str = "A", *, is_tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, type_name)
    wire = answer(query.to_wire(), is_tcp=is_tcp)
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    return response


@pytest.mark.parametrize(
    ("type_name", "expected"),
    [("A", "127.0.0.1"), ("AAAA", "::1"), ("TXT", '"netsonde beacon"')],
)
@pytest.mark.parametrize("name", [NAME, "UP.NetSonde.test."])
def test_what_it_knows(name: str, type_name: str, expected: str) -> None:
    response = ask(name, type_name)
    assert response.rcode() == dns.rcode.NOERROR
    assert response.flags & dns.flags.AA
    assert [item.to_text() for rrset in response.answer for item in rrset] == [expected]


def test_no_data_no_name_not_ours() -> None:
    nodata = ask(NAME, "MX")
    assert (nodata.rcode(), nodata.answer) == (dns.rcode.NOERROR, [])
    assert nodata.authority[0].rdtype == dns.rdatatype.SOA
    missing = ask("gone.netsonde.test")
    assert missing.rcode() == dns.rcode.NXDOMAIN
    assert missing.authority[0].rdtype == dns.rdatatype.SOA
    assert ask("example.com").rcode() == dns.rcode.REFUSED
    assert ask("xnetsonde.test").rcode() == dns.rcode.REFUSED
    assert not ask("example.com").flags & dns.flags.AA


def test_other_opcodes_are_not_implemented() -> None:
    query = dns.message.make_query(NAME, "A")
    query.set_opcode(dns.opcode.NOTIFY)
    wire = answer(query.to_wire(), is_tcp=False)
    assert wire is not None
    assert wire[3] & 0x0F == dns.rcode.NOTIMP


def test_answers_and_scraps_are_dropped() -> None:
    query = dns.message.make_query(NAME, "A")
    assert answer(dns.message.make_response(query).to_wire(), is_tcp=False) is None
    assert answer(b"\x00" * 11, is_tcp=False) is None
    assert answer(b"", is_tcp=True) is None


def test_a_broken_question_is_a_format_error() -> None:
    broken = struct.pack("!HHHHHH", 77, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c\x00\x01"
    wire = answer(broken, is_tcp=False)
    assert wire is not None
    assert struct.unpack("!HH", wire[:4]) == (77, 0x8101)


def test_edns_is_kept_within_its_size() -> None:
    query = dns.message.make_query(NAME, "TXT", use_edns=0, payload=512)
    wire = answer(query.to_wire(), is_tcp=False)
    assert wire is not None
    assert len(wire) <= 512


@given(st.binary(max_size=200), st.booleans())
def test_garbage_never_raises(query: bytes, is_tcp: bool) -> None:
    response = answer(query, is_tcp=is_tcp)
    assert response is None or response[:2] == query[:2]


@given(st.binary(max_size=60))
def test_garbage_behind_a_good_header_never_raises(tail: bytes) -> None:
    header = struct.pack("!HHHHHH", 5, 0x0100, 1, 0, 0, 1)
    response = answer(header + tail, is_tcp=False)
    assert response is not None
