"""Which way packets leave: source, interface and mark, and the next hop where frames are ours."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TypeVar

from netsonde import netinfo
from netsonde.errors import NetsondeError, RouteError, SendError
from netsonde.probe.asides import Asides
from netsonde.probe.ping.driver import EchoEngine

T = TypeVar("T")

WAYS_MAX = 65_536  # destinations whose way is remembered

QUESTIONS_MAX = 64  # at once; a neighbour that is not there takes 4 s

_PREFIX_BITS = {4: 24, 6: 64}  # what these hold has one way, unless the routing table parts it


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for; None leaves it to the routing table."""

    source: str | None = None
    interface: str | None = None
    mark: int | None = None

    @property
    def is_any(self) -> bool:
        """Whether nothing was asked for."""
        return self == ANY


ANY = Wanted()

_Key = tuple[str, Wanted]  # a destination or a prefix of them


class WaysFullError(SendError):
    """The engine can name no more ways."""


class Ways:
    """The paths of one engine, found once and used by every packet that goes the same way.

    Frames of our own (back end packet) follow the routing table as it was when an address was first
    used; `forget` makes them look again. Otherwise the kernel routes, and all that is looked at is
    whether what was asked for exists.
    """

    def __init__(self, engine: EchoEngine) -> None:
        self.is_forgetful = False  # ask the kernel each time
        self._engine = engine
        self._has_frames = engine.backend == "packet"
        self._paths: dict[tuple[bytes | None, int, int, bytes | None], int] = {}
        self._known: dict[_Key, int] = {}
        self._mtus: dict[_Key, int] = {}
        self._sources: set[str] = set()
        self._epoch = 0
        self._parted: frozenset[str] | None = None  # prefixes, once they have been asked for
        self._parting = asyncio.Lock()
        self._asides = Asides("netsonde-ways", QUESTIONS_MAX)

    def forget(self) -> None:
        """Forget what the routing table said: it has changed."""
        self._epoch += 1
        self._known.clear()
        self._mtus.clear()
        self._parted = None

    def known(self, address: str, wanted: Wanted) -> int | None:
        """Return the path of a packet where that takes no question that could wait.

        Raises:
            ConfigError: no such interface.
        """
        if self._has_frames:
            path = self._known.get((address, wanted))
            return self._known.get((_prefix(address), wanted)) if path is None else path
        if wanted.is_any:
            return 0
        if wanted.source is not None and wanted.source not in self._sources:
            return None
        with contextlib.suppress(WaysFullError):
            return self._add(wanted, wanted.source, _index(wanted), None)
        return None

    async def find(self, address: str, wanted: Wanted) -> int:
        """Return the path of a packet to address.

        Raises:
            ConfigError: no such interface, or the source is not this host's.
            RouteError: frames are ours and there is no way there, or nobody answers for the next
                hop.
            WaysFullError: there are too many different ways.
            NetsondeError: the question cannot be asked.
        """
        if self._has_frames:
            return await self._find_for_frames(address, wanted)
        if wanted.source is not None and wanted.source not in self._sources:
            with contextlib.suppress(RouteError):  # the packets will tell
                await self._call(partial(_ask, address, wanted))
            self._sources.add(wanted.source)
        return self._add(wanted, wanted.source, _index(wanted), None)

    async def mtu(self, address: str, wanted: Wanted) -> int:
        """Return the largest packet in bytes that leaves for address unfragmented.

        Raises:
            ConfigError: no such interface, or the source is not this host's.
            RouteError: there is no way there.
            NetsondeError: the question cannot be asked.
        """
        key = (address, wanted)
        mtu = self._mtus.get(key) if self._has_frames else None
        if mtu is None:
            epoch = self._epoch
            mtu = (await self._call(partial(_ask, address, wanted))).mtu
            self._remember(self._mtus, key, mtu, epoch)
        return mtu

    async def _find_for_frames(self, address: str, wanted: Wanted) -> int:
        epoch = self._epoch
        route, link_address = await self._call(partial(_ask_for_frames, address, wanted))
        path = self._add(wanted, route.source, route.interface_index, link_address)
        # Neighbours have a link address each; only what lies behind a gateway shares one.
        is_shared = route.gateway is not None and not await self._is_parted(_prefix(address))
        key = _prefix(address) if is_shared else address
        self._remember(self._known, (key, wanted), path, epoch)
        return path

    async def _is_parted(self, prefix: str) -> bool:
        """Whether the routing table may send what a prefix holds different ways."""
        async with self._parting:
            epoch, parted = self._epoch, self._parted
            if parted is None:
                version = ip_network(prefix).version
                ask = partial(netinfo.parted_prefixes, version, _PREFIX_BITS[version])
                try:
                    parted = await self._call(ask)
                except NetsondeError:
                    return True
                if epoch == self._epoch:
                    self._parted = parted
        return prefix in parted

    async def _call(self, ask: Callable[[], T]) -> T:
        try:
            return await self._asides.call(ask)
        except NetsondeError:  # some are OSErrors, too
            raise
        except OSError as error:
            raise NetsondeError(f"cannot ask for the way: {error}") from error

    def _remember(self, known: dict[_Key, int], key: _Key, value: int, epoch: int) -> None:
        if epoch != self._epoch or self.is_forgetful:
            return  # it has changed while it was asked for
        if len(known) >= WAYS_MAX:
            known.clear()
        known[key] = value

    def _add(self, wanted: Wanted, source: str | None, interface: int, link: bytes | None) -> int:
        packed = None if source is None else ip_address(source).packed
        key = (packed, interface, wanted.mark or 0, link)
        path = self._paths.get(key)
        if path is None:
            try:
                path = self._engine.add_path(
                    source=packed, interface=interface, mark=wanted.mark or 0, link_address=link
                )
            except ValueError as error:
                kind = WaysFullError if self._paths else SendError
                raise kind("choose a way", 0, str(error)) from error
            self._paths[key] = path
        return path


def _prefix(address: str) -> str:
    bare = ip_address(address)
    return str(ip_network((bare.packed, _PREFIX_BITS[bare.version]), strict=False))


def _index(wanted: Wanted) -> int:
    """Return the index that the interface has now: it may have been made anew since."""
    return 0 if wanted.interface is None else netinfo.interface_index(wanted.interface)


def _ask(address: str, wanted: Wanted) -> netinfo.Route:
    return netinfo.route_to(
        address, source=wanted.source, interface=wanted.interface, mark=wanted.mark
    )


def _ask_for_frames(address: str, wanted: Wanted) -> tuple[netinfo.Route, bytes]:
    route = _ask(address, wanted)
    if route.is_local:
        raise RouteError(
            f"{address} is this host itself, which frames (back end packet) do not reach:"
            " use another back end"
        )
    return route, netinfo.link_address(route, address)
