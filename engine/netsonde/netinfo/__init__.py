"""What the kernel knows of this host's network: links, addresses, routes, neighbours.

Every question opens its sockets in the network namespace that the calling thread is in, and blocks
for microseconds; `link_address` alone may have to wait for a neighbour's answer.
"""

from netsonde.netinfo.links import interface_index, interfaces, local_addresses
from netsonde.netinfo.monitor import Change, LinkChange, LinkMonitor
from netsonde.netinfo.neighbours import link_address
from netsonde.netinfo.routes import Route, parted_prefixes, route_to

__all__ = [
    "Change",
    "LinkChange",
    "LinkMonitor",
    "Route",
    "interface_index",
    "interfaces",
    "link_address",
    "local_addresses",
    "parted_prefixes",
    "route_to",
]
