"""The echo engine against a model of it: any order of sends, answers, errors, forgeries, timeouts.

The host's kernel answers nothing; the machine answers what it likes, and knows what the engine must
make of it. Loopback delivers within the send call, so the order of things is the machine's.
"""

import select
import struct
import time
from collections import deque
from dataclasses import dataclass, field
from typing import get_args

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from netsonde._native.icmp import (
    COMPLETION_FORMAT,
    DUPLICATE,
    ERROR,
    LATE,
    REPLY,
    STOPPED,
    TIMEOUT,
    TX_ERROR,
    EchoEngine,
)
from support import packets
from support.icmp_peer import (
    SECOND_NS,
    TARGET,
    Family,
    Peer,
    poll,
    quiet_host,
    reply_to,
    request,
    unreachable,
)
from support.icmp_wire import Backend
from support.namespaces import Namespace

pytestmark = [pytest.mark.raw, pytest.mark.netns]

TIMEOUT_NS = 60 * SECOND_NS  # nothing ends by itself while a machine runs
STEP_S = 3.0  # far beyond what a step takes
CAPACITY = 6  # so that requests wait and slots are used again
NOWHERE = {4: "198.51.100.1", 6: "2001:db8::1"}

Completion = tuple[int, int]  # token, kind
ANY = st.integers(0, 1000)


@dataclass
class Model:
    """What the engine must do: probes in flight, those remembered, runs that wait their turn."""

    waiting: dict[int, deque[int]] = field(default_factory=dict)  # size -> the run's tokens to send
    in_flight: set[int] = field(default_factory=set)
    settled: dict[int, int] = field(default_factory=dict)  # token -> REPLY or TIMEOUT, oldest first
    messages: dict[int, bytes] = field(default_factory=dict)

    def answer(self, token: int) -> list[Completion]:
        """A reply to this packet arrives."""
        if token in self.in_flight:
            self.in_flight.remove(token)
            self.settled[token] = REPLY
            return [(token, REPLY)]
        if token in self.settled:
            kind = DUPLICATE if self.settled[token] == REPLY else LATE
            self.settled[token] = REPLY
            return [(token, kind)]
        return []  # forgotten: stale

    def fail(self, token: int) -> list[Completion]:
        """An error about this packet arrives."""
        if token in self.in_flight:
            self.in_flight.remove(token)
            self.settled[token] = ERROR
            return [(token, ERROR)]
        return []

    def expire(self, ended: list[int]) -> None:
        """All that is in flight times out; within a millisecond the engine chooses the order."""
        assert sorted(ended) == sorted(self.in_flight), (ended, list(self.in_flight))
        self.settled.update(dict.fromkeys(ended, TIMEOUT))
        self.in_flight.clear()

    def sends(self) -> int:
        """How many packets get a slot now; whose is the engine's choice."""
        return min(sum(map(len, self.waiting.values())), CAPACITY - len(self.in_flight))

    def takes_slot(self) -> None:
        """The probe settled the longest is forgotten where there is no other slot."""
        if len(self.in_flight) + len(self.settled) == CAPACITY:
            del self.settled[next(iter(self.settled))]

    def was_sent(self, message: bytes) -> None:
        """A packet is on the wire; its run is known by its size."""
        token = self.waiting[len(message) - 8].popleft()
        self.takes_slot()
        self.in_flight.add(token)
        self.messages[token] = message


class EngineMachine(RuleBasedStateMachine):
    """Does anything in any order; after each step the engine has done what the model says."""

    host: Namespace
    family: Family
    backend: Backend

    @initialize()
    def open(self) -> None:
        self.engine = self.host.call(
            EchoEngine, self.family, backend=self.backend, capacity=CAPACITY,
            linger_ns=600 * SECOND_NS,
        )  # fmt: skip
        self.peer = self.host.call(Peer, self.family)
        self.model = Model()
        self.tokens = 0
        self.first: dict[int, int] = {}  # size -> token of the run's first packet
        self.sent = 0
        self.seen: list[Completion] = []
        self.expected: list[Completion] = []

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
            self.peer.close()

    @rule(count=st.integers(1, 9))
    def submit(self, count: int) -> None:
        """A run; what finds no slot waits for one."""
        first, self.tokens = self.tokens, self.tokens + count
        size = 56 + len(self.model.waiting)
        record = request(first, TARGET[self.family], count=count, size=size, timeout_ns=TIMEOUT_NS)
        assert self.engine.submit(record) == 1
        self.first[size] = first
        self.model.waiting[size] = deque(range(first, self.tokens))

    @rule()
    def submit_to_nowhere(self) -> None:
        """The kernel refuses it at once; it needs a slot to be asked with."""
        if len(self.model.in_flight) == CAPACITY:
            return
        self.engine.submit(request(self.tokens, NOWHERE[self.family], timeout_ns=TIMEOUT_NS))
        self.expected.append((self.tokens, TX_ERROR))
        self.model.takes_slot()
        self.tokens += 1

    @rule(which=ANY, times=st.integers(1, 3))
    def answer(self, which: int, times: int) -> None:
        """Any packet ever sent is answered, once or more often."""
        token = self._sent(which)
        if token is None:
            return
        for _ in range(times):
            self.peer.send(reply_to(self.model.messages[token], self.family))
            self.expected += self.model.answer(token)

    @rule(which=ANY)
    def refuse(self, which: int) -> None:
        """A router says that a packet did not get through."""
        token = self._sent(which)
        if token is None:
            return
        if self.backend == "datagram" and token not in self.model.in_flight:
            return  # the kernel itself drops errors by identifier only; nothing to tell apart
        self.peer.send(unreachable(self.model.messages[token], self.family))
        self.expected += self.model.fail(token)
        self._settle()  # datagram sockets get errors by a queue of their own, read first

    @rule(which=ANY, at=st.integers(4, 63), bit=st.integers(0, 7))
    def forge(self, which: int, at: int, bit: int) -> None:
        """A reply with one bit changed is nobody's."""
        token = self._sent(which)
        if token is None or (self.backend == "datagram" and at < 6):
            return  # by the identifier the kernel finds the socket
        reply = bytearray(reply_to(self.model.messages[token], self.family))
        reply[at] ^= 1 << bit
        self.peer.send(packets.with_checksum(bytes(reply)))

    @rule(length=st.integers(0, 40), type_=st.sampled_from(["reply", "error"]))
    def disturb(self, length: int, type_: str) -> None:
        """Somebody else's packets are nobody's."""
        message = packets.echo(self.family, "reply", 7, 7, bytes(length))
        if type_ == "error":
            message = unreachable(
                packets.echo(self.family, "request", 7, 7, bytes(length)), self.family
            )
        self.peer.send(message)

    @rule()
    def cancel_nothing(self) -> None:
        """Nothing has this token."""
        self.engine.cancel(1 << 40)
        self.expected.append((1 << 40, STOPPED))

    @rule(which=ANY)
    def cancel(self, which: int) -> None:
        """What a run has not sent yet, it will not."""
        if not self.first:
            return
        size = sorted(self.first)[which % len(self.first)]
        self.engine.cancel(self.first[size])
        self.expected.append((self.first[size], STOPPED))
        self.model.waiting[size].clear()

    @rule()
    def expire(self) -> None:
        """A minute passes."""
        if not self.model.in_flight:
            return
        self._settle()
        now_ns = time.monotonic_ns() + TIMEOUT_NS + 5_000_000
        done = self.engine.poll(now_ns=now_ns)
        ended = [each[0] for each in struct.iter_unpack(COMPLETION_FORMAT, done)]
        self.model.expire(ended)

    @rule()
    def step_the_clock(self) -> None:
        """Stamps are worth less for a while, completions are not."""
        self.engine.note_clock_step()

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "engine"):
            self._settle()

    def _sent(self, which: int) -> int | None:
        """A packet that was sent not too long ago.

        Drawn by number: which runs send first is the engine's choice, and not the same each time.
        """
        recent = sorted(self.model.messages)[-20:]
        return recent[which % len(recent)] if recent else None

    def _settle(self) -> None:
        """Let the engine do what it can, and compare."""
        deadline = time.monotonic() + STEP_S
        while True:
            sends = self.model.sends()
            self.sent += sends
            while self.engine.counters["sent"] < self.sent or len(self.seen) < len(self.expected):
                self.seen += [(each.token, each.kind) for each in poll(self.engine)]
                assert time.monotonic() < deadline, (self.engine.counters, self.seen[-5:])
                if self.engine.counters["sent"] < self.sent:
                    select.select([self.engine], [], [], 0.001)
            messages = self.peer.requests()
            assert len(messages) == sends
            for message in messages:
                self.model.was_sent(message)
            if not sends:
                break
        self.seen += [(each.token, each.kind) for each in poll(self.engine)]
        assert self.seen == self.expected
        self.seen, self.expected = [], []
        assert self.engine.in_flight == len(self.model.in_flight)
        assert self.engine.counters["sent"] == self.sent


@pytest.mark.parametrize("backend", ["raw", "datagram"])
@pytest.mark.parametrize("family", get_args(Family))
def test_the_engine_does_what_the_model_says(family: Family, backend: Backend) -> None:
    host = quiet_host()
    host.allow_icmp_datagrams()

    class Machine(EngineMachine):
        pass

    Machine.host, Machine.family, Machine.backend = host, family, backend
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
            deadline=None,
        ),
    )
    host.close()
