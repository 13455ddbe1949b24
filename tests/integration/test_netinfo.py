"""This host's own addresses, from the kernel."""

import asyncio
import ipaddress

import pytest

from netsonde import netinfo
from netsonde.errors import NetsondeError
from support.namespaces import Namespace


def test_every_address_of_a_host_is_its_own() -> None:
    addresses = netinfo.local_addresses()

    assert "127.0.0.1" in addresses
    assert all(ipaddress.ip_address(address) for address in addresses)


async def test_it_can_be_asked_beside_a_running_loop() -> None:
    assert "127.0.0.1" in await asyncio.to_thread(netinfo.local_addresses)


@pytest.mark.netns
def test_the_near_end_of_a_link_counts_and_the_far_end_does_not() -> None:
    space = Namespace("own")
    try:
        space.address("lo", "192.0.2.77", 32)
        space.address("lo", "2001:db8::77", 128)
        space.route.addr(
            "add",
            index=space.index("lo"),
            local="192.0.2.1",
            address="192.0.2.2",
            prefixlen=32,
        )
        addresses = space.call(netinfo.local_addresses)
    finally:
        space.close()

    assert addresses == {"127.0.0.1", "::1", "192.0.2.77", "2001:db8::77", "192.0.2.1"}


def test_a_kernel_that_does_not_answer_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(netinfo, "IPRoute", refuse)
    with pytest.raises(NetsondeError, match=r"cannot list .* addresses: .*Too many"):
        netinfo.local_addresses()
