"""What people write into specs, and what they are told when it is wrong."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import RequestError
from netsonde.model import DnsSpec, HttpSpec, PingSpec, TaskKind, TaskSpec, TcpSpec, TraceSpec
from netsonde.wire import build_spec


@pytest.mark.parametrize(
    ("kind", "target", "options", "spec"),
    [
        ("ping", "127.0.0.1", {}, PingSpec(host="127.0.0.1")),
        ("ping", "::1", {"count": 5}, PingSpec(host="::1", count=5)),
        ("ping", "[::1]", {}, PingSpec(host="::1")),
        ("ping", "fe80::1%eth0", {}, PingSpec(host="fe80::1%eth0")),
        ("ping", "example.net.", {"count": None}, PingSpec(host="example.net.")),
        ("trace", "example.net", {"max_hops": 255}, TraceSpec(host="example.net", max_hops=255)),
        ("tcp", "example.net:443", {}, TcpSpec(host="example.net", port=443)),
        ("tcp", "[::1]:1", {}, TcpSpec(host="::1", port=1)),
        ("tcp", "::1", {"port": 65535}, TcpSpec(host="::1", port=65535)),
        ("http", "http://[::1]:8080/x?y", {}, HttpSpec(url="http://[::1]:8080/x?y")),
        (
            "dns",
            "_dmarc.example.net",
            {"qtype": "TXT"},
            DnsSpec(query="_dmarc.example.net", qtype="TXT"),
        ),
        ("dns", "A example.net", {}, DnsSpec(query="A example.net")),
        ("dns", ".", {"qtype": 2}, DnsSpec(query=".", qtype=2)),
    ],
)
def test_good_targets(kind: str, target: str, options: dict[str, Any], spec: TaskSpec) -> None:
    assert build_spec(TaskKind(kind), target, options) == spec


@pytest.mark.parametrize(
    ("kind", "target", "options", "told"),
    [
        ("ping", "h", {"count": 0}, "count must be a whole number from 1 to 100000, not 0"),
        ("ping", "h", {"size": 8}, "size must be a whole number from 16 to 65507, not 8"),
        ("ping", "h", {"family": 5}, "family must be one of 4, 6, any, not 5"),
        ("ping", "h", {"colour": 1}, "ping has no option colour"),
        ("ping", "a b", {}, "host must be an address or a host name, not 'a b'"),
        ("ping", "", {}, "host must be"),
        ("ping", "1.2.3", {}, "host must be"),
        ("ping", "x" * 300, {}, "host must be"),
        ("trace", "h", {"max_hops": 300}, "max_hops must be a whole number from 1 to 255"),
        ("trace", "h", {"first_hop": 9, "max_hops": 8}, "first_hop must be a whole number from 1"),
        ("tcp", "h", {}, "port from 1 to 65535"),
        ("tcp", "h:", {}, "port must be a whole number from 1 to 65535"),
        ("tcp", "h:0", {}, "port must be a whole number from 1 to 65535, not 0"),
        ("tcp", "h:70000", {}, "port must be a whole number from 1 to 65535, not 70000"),
        ("tcp", "h:²", {}, "port must be"),
        ("http", "example.net", {}, "url must be http://"),
        ("http", "ftp://example.net/", {}, "url must be http://"),
        ("http", "http://", {}, "url must be http://"),
        ("http", "http://h:99999/", {}, "url must be http://"),
        ("http", "http://h/\r\nX: y", {}, "url must be http://"),
        ("http", "http://h/", {"method": "get"}, "method must be text that matches"),
        ("dns", "a..b", {}, "query must be a DNS name"),
        ("dns", "a" * 64 + ".net", {}, "query must be a DNS name"),
    ],
)
def test_bad_input_names_field_and_range(
    kind: str, target: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(RequestError) as caught:
        build_spec(TaskKind(kind), target, options)

    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.sampled_from(TaskKind), st.text())
def test_any_text_is_a_spec_or_a_refusal(kind: TaskKind, target: str) -> None:
    with contextlib.suppress(RequestError):
        assert build_spec(kind, target, {}).__struct_config__.tag == kind
