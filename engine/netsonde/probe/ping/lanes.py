"""The echo engines of a process: one per family, for pings and traces alike."""

from collections.abc import Iterator

from netsonde import netinfo
from netsonde.clock import Clock
from netsonde.probe.ping.engines import OpenEngine, open_engine
from netsonde.probe.ping.lane import Lane, OpenMonitor
from netsonde.probe.ping.ways import Wanted, WaysFullError


class Lanes:
    """The lane of each family, opened when it is first asked for."""

    def __init__(
        self,
        clock: Clock,
        engine: OpenEngine = open_engine,
        monitor: OpenMonitor = netinfo.LinkMonitor,
    ) -> None:
        self._clock = clock
        self._open_engine = engine
        self._open_monitor = monitor
        self._lanes: dict[int, Lane] = {}
        self._retired: set[Lane] = set()  # that know too many ways, and still have runs

    def __iter__(self) -> Iterator[Lane]:
        """Yield every lane that has been opened and may still have runs."""
        return iter((*self._lanes.values(), *self._retired))

    def get(self, family: int) -> Lane:
        """Return the lane of a family.

        Raises:
            PrivilegeError, SendError: its engine cannot be opened.
        """
        lane = self._lanes.get(family)
        if lane is None:
            engine = self._open_engine(family)
            try:
                lane = self._lanes[family] = Lane(self._clock, family, engine, self._open_monitor)
            except BaseException:
                engine.close()
                raise
        return lane

    async def way(self, family: int, address: str, wanted: Wanted) -> tuple[Lane, int]:
        """Find a way, on a new engine when the one there is can name no more of them.

        Raises:
            ConfigError, NetsondeError, PrivilegeError, RouteError, SendError: there is none.
        """
        while True:
            lane = self.get(family)
            try:
                path = await lane.path(address, wanted)
            except WaysFullError:
                self._retire(family, lane)
                continue
            if not lane.is_retired:  # by somebody else meanwhile
                return lane, path

    def close(self) -> None:
        """Close the engines; what is running fails. Idempotent."""
        lanes = [*self]
        self._lanes.clear()
        self._retired.clear()
        for lane in lanes:
            lane.close()

    def _retire(self, family: int, lane: Lane) -> None:
        """Let another engine take the place of a lane."""
        if self._lanes.get(family) is lane:
            del self._lanes[family]
            self._retired = {each for each in self._retired if not each.is_closed} | {lane}
            lane.retire()
