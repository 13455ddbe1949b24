"""Carries out what the control plane orders in its answers to heartbeats."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from netsonde.model import AgentCommand

WAITING_MAX = 100  # commands; a control plane has one open command of a type

Handler = Callable[[], Awaitable[None]]


class Orders:
    """Commands, each carried out once, one after another, in the order they came.

    `handlers` are by the commands' types; others are left alone and stay open. `done` are ids for
    the next heartbeat; `on_done` is called when there is another.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self.counters: Counter[str] = Counter()
        self.on_done: Callable[[], None] = lambda: None
        self._handlers = handlers
        self._waiting: deque[AgentCommand] = deque()
        self._taken: set[int] = set()  # of those that are listed: each is taken once
        self._done: dict[int, None] = {}
        self._changed = asyncio.Event()

    @property
    def done(self) -> tuple[int, ...]:
        """Ids of what was carried out and may not be known yet."""
        return tuple(self._done)

    def take(self, commands: Sequence[AgentCommand]) -> None:
        """Take what is open by an answer; what is not listed any more is known to be done."""
        listed = {command.id for command in commands}
        self._taken &= listed
        self._done = {one: None for one in self._done if one in listed}
        for command in commands:
            if command.id in self._taken or len(self._waiting) >= WAITING_MAX:
                continue
            self._taken.add(command.id)
            if command.type in self._handlers:
                self._waiting.append(command)
            else:
                self.counters["unknown"] += 1
        self._changed.set()

    async def run(self) -> None:
        """Carry out commands until cancelled."""
        while True:
            self._changed.clear()
            while self._waiting:
                command = self._waiting.popleft()
                if command.id not in self._taken:
                    self.counters["called_off"] += 1
                    continue
                await self._handlers[command.type]()
                self.counters[command.type] += 1
                self._done[command.id] = None
                self.on_done()
            await self._changed.wait()
