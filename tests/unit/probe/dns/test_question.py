from pathlib import Path

import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import ResolveError
from netsonde.model import DnsSpec
from netsonde.probe.dns.question import (
    BadQuestion,
    Server,
    parse_server,
    question_of,
    system_servers,
)


@pytest.mark.parametrize(
    ("query", "qtype", "name", "types"),
    [
        ("example.net", None, "example.net", ["A", "AAAA"]),
        ("example.net.", "MX", "example.net", ["MX"]),
        ("A example.net", None, "example.net", ["A"]),
        ("TYPE64 example.net", None, "example.net", ["SVCB"]),
        ("A example.net", "MX", "example.net", ["MX"]),
        ("example.net", 28, "example.net", ["AAAA"]),
        ("example.net", "28", "example.net", ["AAAA"]),
        ("example.net", 65280, "example.net", ["TYPE65280"]),
        ("example.net", "any", "example.net", ["ANY"]),
        ("a", None, "a", ["A", "AAAA"]),
        (".", "NS", ".", ["NS"]),
        ("192.0.2.1", "PTR", "1.2.0.192.in-addr.arpa", ["PTR"]),
        ("bücher.example", "A", "xn--bcher-kva.example", ["A"]),
        (r"with\032space.example", "A", r"with\032space.example", ["A"]),
    ],
)
def test_a_spec_becomes_a_name_and_types(
    query: str, qtype: str | int | None, name: str, types: list[str]
) -> None:
    found, rdtypes = question_of(DnsSpec(query=query, qtype=qtype))

    assert found.to_text(omit_final_dot=True) == name
    assert [dns.rdatatype.to_text(each) for each in rdtypes] == types


@pytest.mark.parametrize(
    ("query", "qtype", "words"),
    [
        ("", None, "must be one DNS name"),
        ("  ", None, "must be one DNS name"),
        ("BOGUS example.net", None, "must be one DNS name"),
        ("A example.net now", None, "must be one DNS name"),
        ("a..b", None, "is not a DNS name"),
        (".a", None, "is not a DNS name"),
        ("x" * 64 + ".net", None, "is not a DNS name"),
        ("a." * 128, None, "is not a DNS name"),
        ("\\300.net", None, "is not a DNS name"),
        ("example.net", "BOGUS", "qtype"),
        ("example.net", "", "qtype"),
        ("example.net", 0, "qtype"),
        ("example.net", 65_536, "qtype"),
        ("example.net", -1, "qtype"),
        ("example.net", "99999", "qtype"),
        ("example.net", "AXFR", "no transfer or pseudo type"),
        ("example.net", "OPT", "no transfer or pseudo type"),
    ],
)
def test_a_bad_question_is_a_sentence(query: str, qtype: str | int | None, words: str) -> None:
    with pytest.raises(BadQuestion) as caught:
        question_of(DnsSpec(query=query, qtype=qtype))

    assert words in str(caught.value)


@given(st.text(max_size=80), st.none() | st.text(max_size=8) | st.integers())
def test_any_words_are_a_question_or_a_sentence(query: str, qtype: str | int | None) -> None:
    try:
        name, types = question_of(DnsSpec(query=query, qtype=qtype))
    except BadQuestion:
        return
    assert name.is_absolute()
    assert all(1 <= each <= 65_535 for each in types)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", Server("192.0.2.1", 53)),
        ("192.0.2.1:5353", Server("192.0.2.1", 5353)),
        ("2001:db8::1", Server("2001:db8::1", 53)),
        ("[2001:db8::1]", Server("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", Server("2001:db8::1", 5353)),
        ("fe80::1%eth0", Server("fe80::1%eth0", 53)),
    ],
)
def test_servers_are_addresses_with_an_optional_port(text: str, server: Server) -> None:
    assert parse_server(text) == server


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "ns1.example.net", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:-1",
        "192.0.2.1:53:53", "[192.0.2.1]:53", "[2001:db8::1", "[2001:db8::1]:x", "192.0.2.1:\u0665",
        "127.1", "[]", "[]:53", "192.0.2.1:" + "9" * 5000,
    ],
)  # fmt: skip
def test_a_bad_server_is_a_sentence(text: str) -> None:
    with pytest.raises(BadQuestion, match="must be an IP address with an optional port"):
        parse_server(text)


@given(st.text(max_size=40))
def test_any_text_is_a_server_or_a_sentence(text: str) -> None:
    try:
        server = parse_server(text)
    except BadQuestion:
        return
    assert 1 <= server.port <= 65_535


def test_the_systems_servers_come_from_resolv_conf(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "search example.net\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n"
        "nameserver 192.0.2.2\nnameserver 192.0.2.3\n"
    )

    assert [str(each) for each in system_servers(path)] == [
        "192.0.2.1:53",
        "[2001:db8::1]:53",
        "192.0.2.2:53",
    ]


@pytest.mark.parametrize("content", [None, "", "search example.net\n", "nameserver banana\n"])
def test_no_server_is_a_sentence_that_says_what_helps(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "resolv.conf"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ResolveError) as caught:
        system_servers(path)

    assert str(path) in str(caught.value)
    assert "name one with `server`" in str(caught.value)
