"""Which way packets leave: source, interface and mark, and the next hop where frames are ours."""

import asyncio
import contextlib
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from netsonde import netinfo
from netsonde.errors import RouteError, SendError
from netsonde.probe.ping.driver import EchoEngine

WAYS_MAX = 65_536  # destinations whose way is remembered

_PREFIX_BITS = {4: 24, 6: 64}  # the routing table is not expected to part what these hold


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

    def forget(self) -> None:
        """Forget what the routing table said: it has changed."""
        self._epoch += 1
        self._known.clear()
        self._mtus.clear()

    def known(self, address: str, wanted: Wanted) -> int | None:
        """Return the path of a packet where that takes no question that could wait.

        Raises:
            ConfigError: no such interface.
            SendError: as `find`.
        """
        if self._has_frames:
            path = self._known.get((address, wanted))
            return self._known.get((_prefix(address), wanted)) if path is None else path
        if wanted.is_any:
            return 0
        if wanted.source is not None and wanted.source not in self._sources:
            return None
        return self._add(wanted, wanted.source, _index(wanted), None)

    async def find(self, address: str, wanted: Wanted) -> int:
        """Return the path of a packet to address.

        Raises:
            ConfigError: no such interface, or the source is not this host's.
            RouteError: frames are ours and there is no way there, or nobody answers for the next
                hop.
            SendError: too many different ways.
        """
        if self._has_frames:
            return await self._find_for_frames(address, wanted)
        with contextlib.suppress(RouteError):  # the packets will tell
            await asyncio.to_thread(_ask, address, wanted)
        if wanted.source is not None:
            self._sources.add(wanted.source)
        return self._add(wanted, wanted.source, _index(wanted), None)

    async def mtu(self, address: str, wanted: Wanted) -> int:
        """Return the largest packet in bytes that leaves for address unfragmented.

        Raises:
            ConfigError: no such interface, or the source is not this host's.
            RouteError: there is no way there.
        """
        key = (address, wanted)
        mtu = self._mtus.get(key) if self._has_frames else None
        if mtu is None:
            epoch = self._epoch
            mtu = (await asyncio.to_thread(_ask, address, wanted)).mtu
            self._remember(self._mtus, key, mtu, epoch)
        return mtu

    async def _find_for_frames(self, address: str, wanted: Wanted) -> int:
        epoch = self._epoch
        route, link_address = await asyncio.to_thread(_ask_for_frames, address, wanted)
        path = self._add(wanted, route.source, route.interface_index, link_address)
        # Neighbours have a link address each; only what lies behind a gateway shares one.
        key = address if route.gateway is None else _prefix(address)
        self._remember(self._known, (key, wanted), path, epoch)
        return path

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
                raise SendError("choose a way", 0, str(error)) from error
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
