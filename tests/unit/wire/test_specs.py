"""What people write into specs, and what they are told when it is wrong."""

import contextlib
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import RequestError
from netsonde.model import (
    DnsSpec,
    HttpSpec,
    PingExpect,
    PingSpec,
    TaskKind,
    TaskSpec,
    TcpSpec,
    TraceSpec,
)
from netsonde.wire import build_spec, host_specs, specs


@pytest.mark.parametrize(
    ("kind", "target", "options", "spec"),
    [
        ("ping", "127.0.0.1", {}, PingSpec(host="127.0.0.1")),
        ("ping", "::1", {"count": 5}, PingSpec(host="::1", count=5)),
        ("ping", "[::1]", {}, PingSpec(host="::1")),
        ("ping", "fe80::1%eth0", {}, PingSpec(host="fe80::1%eth0")),
        ("ping", "example.net.", {"count": None}, PingSpec(host="example.net.")),
        (
            "ping",
            "192.0.2.1",
            {"method": "tcp", "port": 443, "source": "192.0.2.9", "family": 4},
            PingSpec(host="192.0.2.1", method="tcp", port=443, source="192.0.2.9", family=4),
        ),
        (
            "ping",
            "h",
            {"expect": {"loss_pct_max": 1, "avg_ms_max": None}, "source": "fe80::1%eth0"},
            PingSpec(host="h", expect=PingExpect(loss_pct_max=1), source="fe80::1%eth0"),
        ),
        (
            "ping",
            "h",
            {"method": "udp", "port": 53, "size": 16},
            PingSpec(host="h", method="udp", port=53, size=16),
        ),
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
        ("ping", "h", {"port": 80}, "port 80 is for method tcp or udp, not icmp: leave it out"),
        ("ping", "h", {"method": "tcp"}, "port must be a whole number from 1 to 65535 with method"),
        ("ping", "h", {"method": "udp"}, "port must be a whole number from 1 to 65535 with method"),
        ("ping", "h", {"method": "tcp", "port": 0}, "port must be a whole number from 1 to 65535"),
        ("ping", "h", {"method": "ping"}, "method must be one of icmp, tcp, udp, not 'ping'"),
        ("ping", "h", {"method": "tcp", "port": 1, "size": 99}, "size is for method icmp or udp"),
        ("ping", "h", {"interface": "lo\0"}, "interface must be the name of an interface, not"),
        ("ping", "h", {"interface": "a/b"}, "interface must be the name of an interface, not"),
        ("ping", "h", {"interface": "a b"}, "interface must be the name of an interface, not"),
        ("ping", "h", {"source": "eth0"}, "source must be an IP address of this host, not 'eth0'"),
        (
            "ping",
            "h",
            {"source": "192.0.2.1", "family": 6},
            "source must be an IPv6 address, as family says, not '192.0.2.1'",
        ),
        ("ping", "h", {"expect": {"loss": 1}}, "expect has no field loss; it has avg_ms_max, jit"),
        ("ping", "h", {"addresses": "some"}, "addresses must be one of all, first, not 'some'"),
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
        ("http", "http://h/", {"method": "get"}, "method must be 1 to 20 capital letters"),
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


octets = st.one_of(st.integers(0, 300).map(str), st.sampled_from(["", "00", "01", "1 ", "\u0663"]))
hosts = st.one_of(
    st.lists(octets, min_size=3, max_size=5).map(".".join),
    st.ip_addresses().map(str),
    st.text(alphabet="0123456789.:a-[]%\n\0 ", max_size=20),
    st.sampled_from(["example.net", "a" * 254, "fe80::1%" + "z" * 300]),
)


@given(hosts)
def test_a_host_at_a_time_is_as_each_by_itself(host: str) -> None:
    options = {"count": 1, "size": None, "expect": {"loss_pct_max": 5}}
    assert said_of(lambda: host_specs(TaskKind.PING, options)(host)) == said_of(
        lambda: build_spec(TaskKind.PING, host, options)
    )


def said_of(make: Callable[[], TaskSpec]) -> TaskSpec | str:
    try:
        return make()
    except RequestError as refusal:
        return str(refusal)


def is_dotted(text: str) -> bool:
    try:
        return ip_address(text).version == 4
    except ValueError:
        return False


@given(hosts)
def test_ipv4_addresses_are_those_of_the_standard_library(host: str) -> None:
    assert bool(specs._DOTTED.match(host)) == is_dotted(host)


def test_options_are_checked_before_any_host() -> None:
    with pytest.raises(RequestError, match="loss_pct_max must be a number from 0 to 100, not 101"):
        host_specs(TaskKind.PING, {"expect": {"loss_pct_max": 101}})
    with pytest.raises(RequestError, match="avg_ms_max must be a number above 0, at most 60000"):
        host_specs(TaskKind.PING, {"expect": {"avg_ms_max": "fast"}})
