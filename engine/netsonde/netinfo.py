"""What the kernel's routing tables say about this host: the adapter to netlink."""

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from netsonde.errors import NetsondeError

ADDRESS_ATTRIBUTES = ("IFA_LOCAL", "IFA_ADDRESS")  # of a point-to-point link the second is the peer


def local_addresses() -> frozenset[str]:
    """Return every IP address of this host's interfaces, the loopback's included. Blocks.

    Raises:
        NetsondeError: the kernel did not answer.
    """
    try:
        with IPRoute() as route:
            return frozenset(_own(message) for message in route.get_addr())
    except (OSError, NetlinkError) as error:
        raise NetsondeError(f"cannot list this host's own addresses: {error}") from error


def _own(message: dict[str, object]) -> str:
    attributes = dict(message["attrs"])  # type: ignore[call-overload]
    return str(next(attributes[name] for name in ADDRESS_ATTRIBUTES if name in attributes))
