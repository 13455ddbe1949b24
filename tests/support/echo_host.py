"""A host around the echo engine's core: its clocks are the test's, its network is plain Python."""

from collections.abc import Sequence
from ipaddress import ip_address

from native.echo_core import Completion, EchoCore
from support import quotes

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
NS_PER_HOUR = 3600 * NS_PER_S
EPOCH_NS = 1_790_000_000 * NS_PER_S  # REALTIME - MONOTONIC of a host that has just started
READING_NS = 400  # a sample of the clocks is uncertain by this much either way

TARGET = {4: ip_address("198.51.100.7").packed, 6: ip_address("2001:db8::7").packed}
RESPONDER = {4: ip_address("192.0.2.1").packed, 6: ip_address("2001:db8::1").packed}


class EchoHost:
    """Sends probes and receives answers at its own `now_ns`, CLOCK_MONOTONIC.

    `offset_ns` is where CLOCK_REALTIME is; the core learns it by `sample`, as by a turn.
    """

    def __init__(self, family: int, core: EchoCore | None = None) -> None:
        self.family = family
        self.core = EchoCore(family) if core is None else core
        self.now_ns = 100 * NS_PER_S
        self.offset_ns = EPOCH_NS
        self.sample()

    def sample(self, early_ns: int = READING_NS, late_ns: int = READING_NS) -> None:
        """Compare the clocks; REALTIME was read between two readings of MONOTONIC."""
        self.core.sample_clocks(self.offset_ns - early_ns, self.offset_ns + late_ns)

    def step_wall_clock(self, by_ns: int) -> None:
        self.offset_ns += by_ns

    def send(self, token: int, *, timeout_ns: int = NS_PER_S, size: int = 56) -> bytes:
        """Send a probe to the one target there is; return its packet."""
        packet = self.core.send(
            token, TARGET[self.family], self.now_ns, timeout_ns=timeout_ns, size=size
        )
        assert packet is not None, "no slot is free"
        return packet

    def receive(
        self, message: bytes, *, stamp_ns: int | None = None, read_after_ns: int = 0
    ) -> Sequence[Completion]:
        """Receive a packet now; return what it completed.

        stamp_ns: by default what the wall clock shows. read_after_ns: the reader is late.
        """
        stamp = self.now_ns + self.offset_ns if stamp_ns is None else stamp_ns
        self.core.arrive(
            message, stamp, self.now_ns + read_after_ns, source=RESPONDER[self.family], hops=60
        )
        return self.core.completions()

    def reply_to(self, packet: bytes) -> bytes:
        return quotes.echo_reply(self.family, packet)
