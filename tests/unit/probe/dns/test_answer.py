import struct
import subprocess
import sys
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.clock import ManualClock
from netsonde.model import Observation
from netsonde.probe.base import Recorder
from netsonde.probe.dns.answer import (
    answers_to,
    failure_of,
    observe_records,
    response_value,
    status_of,
)
from netsonde.probe.dns.exchange import TYPES_MAX, Exchange, Reader
from netsonde.probe.dns.question import Server
from netsonde.wire import ITEM_MAX_BYTES, encode

A, AAAA, ANY, TXT = (dns.rdatatype.from_text(each) for each in ("A", "AAAA", "ANY", "TXT"))


def response(
    qname: str, *records: str, qtype: str = "A", authority: str | None = None
) -> dns.message.Message:
    message = dns.message.make_response(dns.message.make_query(qname, qtype))
    for line in records:
        name, rdtype, data = line.split(maxsplit=2)
        message.answer.append(dns.rrset.from_text(name, 60, "IN", rdtype, data))
    if authority is not None:
        name, rdtype, data = authority.split(maxsplit=2)
        message.authority.append(dns.rrset.from_text(name, 60, "IN", rdtype, data))
    return dns.message.from_wire(message.to_wire(max_size=65_535))


def exchange(message: dns.message.Message | None) -> Exchange:
    return Exchange(Server("192.0.2.53", 53), "udp", 1, message=message)


def observed(message: dns.message.Message, rdtype: Any) -> tuple[Observation, ...]:
    record = Recorder(ManualClock())
    observe_records(exchange(message), rdtype, record)
    return record.measurement().observations


SOA = "example.net. SOA ns. host. 1 2 3 4 5"


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (response("a.net", "a.net. A 192.0.2.1"), "answer"),
        (response("a.net", "a.net. CNAME b.net.", "b.net. A 192.0.2.1"), "answer"),
        (response("a.net", "a.net. CNAME b.net."), "nodata"),
        (response("a.net"), "nodata"),
        (response("a.net", authority=SOA), "nodata"),
        (response("a.net", authority="net. NS ns.example."), "referral"),
        (response("a.net", "other.net. A 192.0.2.1"), "nodata"),
    ],
)
def test_an_answer_has_a_status(message: dns.message.Message, status: str) -> None:
    assert status_of(message, A) == status


def test_an_authoritative_answer_is_no_referral() -> None:
    message = response("a.net", authority="net. NS ns.example.")
    message.flags |= dns.flags.AA

    assert status_of(message, A) == "nodata"


def test_any_takes_every_type() -> None:
    message = response("a.net", "a.net. A 192.0.2.1", "a.net. MX 1 m.", qtype="ANY")

    assert len(list(answers_to(message, ANY))) == 2


def test_aliases_are_followed_in_whatever_order_they_come() -> None:
    message = response("a.net", "c.net. A 192.0.2.3", "b.net. CNAME c.net.", "A.NET. CNAME b.net.")

    assert [rdata.to_text() for rdata, _ in answers_to(message, A)] == ["192.0.2.3"]


def test_an_alias_loop_ends() -> None:
    message = response("a.net", "a.net. CNAME b.net.", "b.net. CNAME a.net.")

    assert list(answers_to(message, A)) == []


def test_only_noerror_and_nxdomain_are_answers() -> None:
    for rcode in range(24):
        message = response("a.net")
        message.set_rcode(dns.rcode.Rcode.make(rcode))
        failure = failure_of(exchange(message), A)
        assert (failure is None) == (rcode in (0, 3)), rcode


def test_every_rcode_keeps_its_own_name() -> None:
    names = set()
    for rcode in range(24):
        message = response("a.net")
        message.set_rcode(dns.rcode.Rcode.make(rcode))
        names.add(status_of(message, A))
    assert len(names) == 24


def test_an_exchange_without_an_answer_is_a_failure() -> None:
    failure = failure_of(exchange(None), A)

    assert failure is not None
    assert failure.reason == "cancelled"


def test_text_cannot_outgrow_a_result() -> None:
    strings = " ".join(['"' + "x" * 255 + '"'] * 100)
    message = response("a.net", f"a.net. TXT {strings}", qtype="TXT")

    value = response_value(exchange(message), TXT)

    assert observed(message, TXT) == ()
    assert (value["answers"], value["answers_cut"]) == ([], True)
    assert value["counts"]["answer"] == 1


NAMES_MAX = [
    r"\001" * 63 + "." + r"\001" * 63 + "." + r"\001" * 60 + f".x{n:03}." for n in range(200)
]


@pytest.mark.parametrize("qtype", ["MX", "NS", "A"])
def test_names_cannot_outgrow_a_result(qtype: str) -> None:
    query = dns.message.make_query("a.net", qtype)
    message = dns.message.make_response(query)
    for name in NAMES_MAX:
        owner, data = {
            "A": (name, "192.0.2.1"),
            "NS": ("a.net.", name),
            "MX": ("a.net.", f"1 {name}"),
        }[qtype]
        message.answer.append(dns.rrset.from_text(owner, 60, "IN", qtype, data))
    message = dns.message.from_wire(message.to_wire(max_size=65_535))
    rdtype = dns.rdatatype.from_text(qtype)
    record = Recorder(ManualClock())

    record.observe("dns_response", response_value(exchange(message), rdtype))
    observe_records(exchange(message), rdtype, record)

    encoded = encode([each.value for each in record.measurement().observations])
    assert len(encoded) < ITEM_MAX_BYTES // 2  # a result may hold two types


@pytest.mark.parametrize(("rdtype", "rdclass"), [(AAAA, 255), (TXT, 65_500), (A, 65_500)])
def test_a_record_of_another_class_is_no_answer(rdtype: Any, rdclass: int) -> None:
    query = dns.message.make_query("a.net", rdtype)
    wire_form = bytearray(dns.message.make_response(query).to_wire())
    wire_form[7] = 1
    wire_form += b"\xc0\x0c" + struct.pack("!HHIH4s", rdtype, rdclass, 60, 4, b"\3abc")
    reader = Reader(query)

    assert reader.accept(bytes(wire_form))
    assert reader.message is not None
    assert observed(reader.message, rdtype) == ()
    assert response_value(exchange(reader.message), rdtype)["status"] == "nodata"


def test_text_is_printable() -> None:
    message = response("a.net", r'a.net. TXT "a\000b\255c\010d"', qtype="TXT")

    (record,) = observed(message, TXT)
    assert record.value["data"] == [r"a\x00b\xffc\x0ad"]


def test_a_type_without_its_own_record_is_in_the_response() -> None:
    message = response("a.net", 'a.net. CAA 0 issue "ca.example"', qtype="CAA")
    caa = dns.rdatatype.from_text("CAA")

    assert observed(message, caa) == ()
    value = response_value(exchange(message), caa)
    assert value["answers"][0]["data"] == '0 issue "ca.example"'


FOREIGN_CLASS_FIRST = """
import struct
import dns.message
from netsonde.probe.dns.exchange import Reader

query = dns.message.make_query("a.net", "A")
head = query.to_wire()[:2] + bytes.fromhex("8180 0001 0001 0000 0000") + query.to_wire()[12:23]
for rdclass in (255, 1):
    reader = Reader(query)
    answer = b"\\xc0\\x0c" + struct.pack("!HHIH4s", 1, rdclass, 60, 4, bytes([192, 0, 2, 1]))
    assert reader.accept(head + answer), reader.malformed
print(reader.message.answer[0][0].to_text())
"""


def test_a_record_of_another_class_leaves_later_answers_readable() -> None:
    """What dnspython learns of types it keeps for the process, so this needs one of its own."""
    told = subprocess.run(
        [sys.executable, "-c", FOREIGN_CLASS_FIRST], capture_output=True, text=True, check=True
    )
    assert told.stdout == "192.0.2.1\n"


def test_types_that_nobody_knows_are_not_kept_for_ever() -> None:
    """dnspython keeps one entry for each class and type that was ever seen."""
    query = dns.message.make_query("a.net", "A")
    head = query.to_wire()[:2] + bytes.fromhex("8180 0001 1388 0000 0000") + query.to_wire()[12:23]
    for batch in range(4):
        records = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", 20_000 + batch, rdclass, 60, 0)
            for rdclass in range(10_000, 15_000)
        )
        assert Reader(query).accept(head + records)
    assert len(dns.rdata._rdata_classes) < 2 * TYPES_MAX
    assert (dns.rdataclass.IN, A) in dns.rdata._rdata_classes


QUERY = dns.message.make_query("example.net", "A")


@given(st.binary(max_size=200))
def test_any_datagram_is_an_answer_or_none(data: bytes) -> None:
    for wire in (data, QUERY.to_wire()[:2] + data, QUERY.to_wire()[:2] + b"\x80" + data):
        reader = Reader(QUERY)
        accepted = reader.accept(wire)
        assert accepted == (reader.message is not None)


@given(st.data())
def test_a_damaged_answer_is_an_answer_or_none(data: st.DataObject) -> None:
    message = dns.message.make_response(QUERY)
    message.answer.append(
        dns.rrset.from_text("example.net.", 60, "IN", "MX", "1 mail.example.net.")
    )
    message.answer.append(dns.rrset.from_text("example.net.", 60, "IN", "TXT", '"x"'))
    wire = bytearray(message.to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(2, len(wire) - 1))] = data.draw(st.integers(0, 255))
    reader = Reader(QUERY)

    if reader.accept(bytes(wire)) and reader.message is not None:
        assert response_value(exchange(reader.message), A)["rcode"]
        observed(reader.message, A)


def test_the_query_itself_is_no_answer() -> None:
    assert not Reader(QUERY).accept(QUERY.to_wire())
