"""What an interface's flags mean for a sender."""

import pytest

from netsonde.netinfo.links import (
    IFF_LOOPBACK,
    IFF_NOARP,
    IFF_POINTOPOINT,
    IFF_RUNNING,
    IFF_UP,
    Link,
)


@pytest.mark.parametrize(
    ("flags", "has_neighbours"),
    [
        (IFF_UP | IFF_RUNNING, True),
        (IFF_UP | IFF_LOOPBACK, False),
        (IFF_UP | IFF_NOARP, False),
        (IFF_UP | IFF_POINTOPOINT, False),
    ],
)
def test_frames_are_addressed_where_there_are_several_hosts(
    flags: int, has_neighbours: bool
) -> None:
    link = Link(index=2, name="eth0", flags=flags, mtu=1500, mtu6=1500)

    assert link.has_neighbours == has_neighbours
