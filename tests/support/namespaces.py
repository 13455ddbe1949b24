"""Networks of real kernels: namespaces joined by veth pairs, held by descriptors, no files.

A namespace is made by a thread that unshares and ends; its descriptor keeps it alive. So nothing is
mounted, no name is taken, and what a test leaves behind ends with its process. Needs CAP_SYS_ADMIN,
as root or as root of a user namespace (scripts/test).

pyroute2 runs its own event loop and one socket per thread: build networks in plain fixtures, not
inside a coroutine, and on one thread.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

from pyroute2 import IPRoute

CLONE_NEWNET = 0x40000000  # linux/sched.h
IFA_F_NODAD = 0x02  # linux/if_addr.h: usable at once, no duplicate address detection
LIMITED_TYPES = 1 << 3 | 1 << 11 | 1 << 12  # unreachable, time exceeded, parameter problem
ELEVEN_DAYS_MS = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)

P = ParamSpec("P")
R = TypeVar("R")


def _check(status: int, operation: str) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{operation}: {os.strerror(code)}")


def _namespace_of_thread() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _new_namespace() -> int:
    """Return a descriptor of a namespace nobody is in."""
    made: list[int | OSError] = []

    def unshare() -> None:
        try:
            _check(_libc.unshare(CLONE_NEWNET), "unshare network namespace")
            made.append(_namespace_of_thread())
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=unshare)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


class Namespace:
    """One host or router: a network namespace with a netlink socket inside.

    Sockets made by `call` or within `entered` belong to it for ever, whoever uses them later.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._fd = _new_namespace()
        with self.entered():
            self._route = IPRoute()
        self._owner = threading.get_ident()
        self.up("lo")
        # A tentative link-local address (1 s) would keep neighbours from being found.
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)

    @property
    def fd(self) -> int:
        """The namespace's descriptor."""
        return self._fd

    @property
    def route(self) -> IPRoute:
        """The netlink socket inside; another thread would get one outside."""
        if threading.get_ident() != self._owner:
            raise RuntimeError(f"{self.name} was built by another thread")
        return self._route

    @contextlib.contextmanager
    def entered(self) -> Iterator[Self]:
        """Move this thread into the namespace for the block."""
        home = _namespace_of_thread()
        try:
            _check(_libc.setns(self._fd, CLONE_NEWNET), f"enter {self.name}")
            try:
                yield self
            finally:
                _check(_libc.setns(home, CLONE_NEWNET), "return from namespace")
        finally:
            os.close(home)

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call function inside the namespace."""
        with self.entered():
            return function(*args, **kwargs)

    def sysctl(self, key: str, value: int) -> None:
        """Set a network parameter such as `net.ipv4.ip_forward`."""
        with self.entered():
            (Path("/proc/sys") / key.replace(".", "/")).write_text(str(value))

    def index(self, interface: str) -> int:
        """Return an interface's index."""
        found: list[int] = self.route.link_lookup(ifname=interface)
        return found[0]

    def up(self, interface: str) -> None:
        """Bring an interface up."""
        self.route.link("set", index=self.index(interface), state="up")

    def address(self, interface: str, address: str, prefix_bits: int) -> None:
        """Give an interface an address, usable at once."""
        self.route.addr(
            "add",
            index=self.index(interface),
            address=address,
            prefixlen=prefix_bits,
            flags=IFA_F_NODAD if ":" in address else 0,
        )

    def route_to(self, prefix: str, gateway: str) -> None:
        """Route a prefix through a gateway; replaces an older route."""
        self.route.route("replace", dst=prefix, gateway=gateway)

    def refuse(self, prefix: str, kind: str = "unreachable") -> None:
        """Answer for a prefix with an ICMP error (unreachable, prohibit) or not (blackhole)."""
        self.route.route("replace", dst=prefix, type=kind)

    def answer_for(self, prefix: str) -> None:
        """Make every address of a prefix this node's own."""
        self.route.route(
            "replace", dst=prefix, type="local", table=255, scope=254, oif=self.index("lo")
        )

    def limit_queue(self, interface: str, rate: int, burst: int, limit: int) -> None:
        """Let an interface send `rate` bytes a second and queue `limit` bytes; more is dropped."""
        self.route.tc(
            "add",
            "tbf",
            self.index(interface),
            0x10000,
            rate=str(rate),
            burst=burst,
            limit=limit,
        )

    def make_silent(self) -> None:
        """Let this router send no ICMP errors; what it forwards goes on.

        A receiver starts with a minute's worth of tokens and one error costs this many, so that
        even the first is refused (inet_peer_xrlim_allow, net/ipv4/inetpeer.c).
        """
        self.sysctl("net.ipv4.icmp_ratemask", LIMITED_TYPES)
        self.sysctl("net.ipv4.icmp_ratelimit", ELEVEN_DAYS_MS)
        self.sysctl("net.ipv6.icmp.ratelimit", ELEVEN_DAYS_MS)

    def make_router(self) -> None:
        """Forward both families and never limit ICMP errors."""
        self.sysctl("net.ipv4.ip_forward", 1)
        self.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.unlimit_icmp()

    def unlimit_icmp(self) -> None:
        """Lift the kernel's limits: by default 6 errors at once, then one a second per receiver.

        IPv4 by the mask and not by a limit of 0, which would empty the bucket that refusals are
        paid from (ip_error, net/ipv4/route.c): those stay at 5 at once, then one a second.
        """
        self.sysctl("net.ipv4.icmp_ratemask", 0)
        self.sysctl("net.ipv6.icmp.ratelimit", 0)

    def allow_icmp_datagrams(self) -> None:
        """Let this process's group open ICMP datagram sockets; a new namespace lets nobody."""
        group = os.getgid()  # a user namespace may map no other
        with self.entered():
            Path("/proc/sys/net/ipv4/ping_group_range").write_text(f"{group} {group}")

    def close(self) -> None:
        """Let go; the kernel removes the namespace with its last socket."""
        self._route.close()
        os.close(self._fd)
        self._fd = -1  # or a late call might enter whatever has the number by then


def connect(left: Namespace, right: Namespace, left_end: str, right_end: str) -> None:
    """Join two namespaces with a veth pair and bring both ends up."""
    left.route.link(
        "add", ifname=left_end, kind="veth", peer={"ifname": right_end, "net_ns_fd": right.fd}
    )
    left.up(left_end)
    right.up(right_end)


@dataclass
class Chain:
    """A host, routers in a row, a target; link i joins node i to node i + 1.

    The right end of link i is 10.77.i.2 and fd77:0:0:(i + 1)::2; node n answers the host with the
    right end of link n - 1, which is hop n.
    """

    nodes: list[Namespace] = field(default_factory=list)

    def route_all_to(self, prefix: str) -> None:
        """Send a prefix that no link has towards the target's end."""
        family = 6 if ":" in prefix else 4
        for link, node in enumerate(self.nodes[:-1]):
            node.route_to(prefix, right_address(link, family))

    @property
    def host(self) -> Namespace:
        """Where the prober lives."""
        return self.nodes[0]

    @property
    def target(self) -> Namespace:
        """The far end."""
        return self.nodes[-1]

    def hops(self, family: int) -> list[str]:
        """Return the true path from host to target, target included; family 4 or 6."""
        return [right_address(link, family) for link in range(len(self.nodes) - 1)]

    def target_address(self, family: int) -> str:
        """Return the target's address; family 4 or 6."""
        return self.hops(family)[-1]

    def close(self) -> None:
        """Let every namespace go."""
        for node in self.nodes:
            node.close()


def left_address(link: int, family: int) -> str:
    """Return the address of a link's left end."""
    return f"10.77.{link}.1" if family == 4 else f"fd77:0:0:{link + 1:x}::1"


def right_address(link: int, family: int) -> str:
    """Return the address of a link's right end."""
    return f"10.77.{link}.2" if family == 4 else f"fd77:0:0:{link + 1:x}::2"


def _prefix(link: int, family: int) -> str:
    return f"10.77.{link}.0/30" if family == 4 else f"fd77:0:0:{link + 1:x}::/64"


def _connect_link(nodes: list[Namespace], link: int) -> None:
    left, right = nodes[link], nodes[link + 1]
    connect(left, right, "right", "left")
    for family, bits in ((4, 30), (6, 64)):
        left.address("right", left_address(link, family), bits)
        right.address("left", right_address(link, family), bits)


def _route(nodes: list[Namespace]) -> None:
    """Teach every node the way to every link it is not on."""
    links = range(len(nodes) - 1)
    for position, node in enumerate(nodes):
        for link in links:
            for family in (4, 6):
                if link > position:
                    node.route_to(_prefix(link, family), right_address(position, family))
                elif link < position - 1:
                    node.route_to(_prefix(link, family), left_address(position - 1, family))


@contextlib.contextmanager
def chain(routers: int, *, silent: Collection[int] = ()) -> Iterator[Chain]:
    """Build host, routers and target; the nodes whose numbers are in silent say nothing.

    Node 0 is the host, 1 to `routers` are routers, the next is the target.
    """
    with contextlib.ExitStack() as stack:
        built = Chain()
        for position in range(routers + 2):
            node = Namespace(f"node {position}")
            stack.callback(node.close)
            built.nodes.append(node)
            node.unlimit_icmp()
            if 0 < position <= routers:
                node.make_router()
        for link in range(routers + 1):
            _connect_link(built.nodes, link)
        _route(built.nodes)
        for position in silent:
            built.nodes[position].make_silent()
        yield built
