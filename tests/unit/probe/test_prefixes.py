"""Prefixes as targets, against the standard library."""

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.errors import RequestError
from netsonde.probe.prefixes import ADDRESSES_MAX, host_count, hosts_of, is_prefix, prefix_of

LISTED_BITS = 8  # of a prefix that is listed in whole


def networks(bits_max: int) -> st.SearchStrategy[IPv4Network | IPv6Network]:
    return st.one_of(
        st.tuples(st.ip_addresses(v=4), st.integers(32 - bits_max, 32)),
        st.tuples(st.ip_addresses(v=6), st.integers(128 - bits_max, 128)),
    ).map(lambda pair: ip_network(pair, strict=False))


@given(networks(LISTED_BITS))
def test_every_host_once_and_in_order(network: IPv4Network | IPv6Network) -> None:
    hosts = list(hosts_of(prefix_of(str(network))))
    # hosts() leaves out the subnet-router anycast address of IPv6, which is a host.
    expected = network.hosts() if network.version == 4 else network
    assert hosts == [str(address) for address in expected]
    assert host_count(network) == len(hosts)


@given(networks(32))
def test_a_prefix_is_refused_by_its_size_only(network: IPv4Network | IPv6Network) -> None:
    if network.num_addresses > ADDRESSES_MAX:
        with pytest.raises(RequestError, match="too many addresses"):
            prefix_of(str(network))
    else:
        assert prefix_of(str(network)) == network
        assert next(hosts_of(network))


def test_bits_below_the_prefix_do_not_matter() -> None:
    assert list(hosts_of(prefix_of("192.0.2.7/30"))) == ["192.0.2.5", "192.0.2.6"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("192.0.2.0/33", "not a prefix such as"),
        ("example.net/24", "not a prefix such as"),
        ("/", "not a prefix such as"),
        ("192.0.2.1/", "not a prefix such as"),
        ("fe80::1%eth0/120", "zone"),
        ("10.0.0.0/7", "/8 or longer"),
        ("2001:db8::/103", "/104 or longer"),
    ],
)
def test_what_is_no_prefix(text: str, words: str) -> None:
    assert is_prefix(text)
    with pytest.raises(RequestError, match=words):
        prefix_of(text)
