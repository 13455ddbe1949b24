"""The weather on one agent's way to the control plane; the rig makes it, the proxy obeys it."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from random import Random

from support.chaos.damage import storm
from support.chaos.faults import Fault, Planned
from support.chaos.framing import Head
from support.chaos.processes import now_ns

Struck = Callable[[Planned, int, int], None]


class Trap:
    """Holds the next report with items for good, before it is passed on or when it is answered.

    `caught` is done with the lease ids reported, once they are where the trap wants them.
    """

    def __init__(self, *, is_after: bool) -> None:
        self.is_after = is_after
        self.caught: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    async def spring(self, items: list[int]) -> None:
        """Tell what was caught and hold it until the agent has gone."""
        if not self.caught.done():
            self.caught.set_result(items)
        await asyncio.get_running_loop().create_future()


class Lane:
    """One agent's way: what strikes its next messages, and what lasts.

    `on_struck` is told of a message that was struck, and from when until when. One that is not
    `is_streaming` takes messages in one piece only, as some proxies do. `forges` is the call whose
    answers are forged, `imposed` what is put in the place of the next configurations.
    """

    def __init__(self, agent: int, *, is_streaming: bool = False) -> None:
        self.agent = agent
        self._is_streaming = is_streaming
        self.on_struck: Struck = lambda *_: None
        self.armed: deque[Planned] = deque()
        self.trap: Trap | None = None
        self.forges: str | None = None
        self.imposed: list[bytes] = []
        self.answered: set[int] = set()  # lease ids whose report the server answered
        self.heard = asyncio.Event()  # set with each of them
        self.served_ns = 0  # when a heartbeat was last answered
        self.applied = 0  # the revision that it said is in force, 0 for none
        self._is_spared = True
        self._storm: Planned | None = None
        self._delay_s = 0.0
        self._is_open = asyncio.Event()
        self._is_open.set()

    @property
    def carries_streams(self) -> bool:
        """Whether streams pass; one that forges wants messages whole."""
        return self._is_streaming and self.forges is None

    def take(self, verb: str) -> Planned | None:
        """Take the fault that strikes this message, if one does.

        Every second registration is spared: six that fail in a row keep an agent away for a minute,
        by the contract, and a run would wait for it.
        """
        if verb == "register":
            self._is_spared = not self._is_spared
            if self._is_spared:
                return None
        return self.armed.popleft() if self.armed else None

    def strike(self, planned: Planned, begun_ns: int) -> None:
        """Note that a message was struck."""
        self.on_struck(planned, begun_ns, now_ns())

    async def passable(self) -> None:
        """Wait for the end of a partition, and for what every message waits."""
        await self._is_open.wait()
        if self._delay_s:
            await asyncio.sleep(self._delay_s)

    def hear(self, lease_ids: Iterable[int]) -> None:
        """Note lease ids that the server answered for."""
        self.answered.update(lease_ids)
        self.heard.set()

    def storm(self) -> tuple[Head, bytes] | None:
        """Return what everything is answered at this moment, None when it is passed on."""
        if self._storm is None:
            return None
        return storm(self._storm.fault, Random(self._storm.salt))

    def set_weather(self, planned: Planned) -> None:
        """Begin what lasts."""
        match planned.fault:
            case Fault.PARTITION:
                self._is_open.clear()
            case Fault.DELAY:
                self._delay_s = Random(planned.salt).uniform(0.02, 1.0)
            case _:
                self._storm = planned

    def clear(self) -> None:
        """End what lasts."""
        self._storm = None
        self._delay_s = 0.0
        self._is_open.set()
