from typing import NamedTuple, final

IDENT: int  # of every ICMP probe
PORTS: int  # the first source port of TCP probes

class Sent(NamedTuple):
    token: int
    ttl: int
    attempt: int
    packet: bytes

class Hop(NamedTuple):
    token: int
    ttl: int
    attempt: int
    kind: int
    icmp_type: int
    icmp_code: int
    flags: int
    responder: bytes
    sent_ns: int
    rtt_ns: int

class Ended(NamedTuple):
    token: int
    number: int

@final
class TraceCore:
    def __init__(
        self, family: int, *, datagram: bool = ..., slots: int = ..., secret: int = ...
    ) -> None: ...
    def submit(
        self,
        token: int,
        destination: bytes,
        *,
        method: str = ...,
        port: int = ...,
        flow: int = ...,
        first_ttl: int = ...,
        last_ttl: int = ...,
        attempts: int = ...,
        gap_limit: int = ...,
        timeout_ns: int = ...,
        interval_ns: int = ...,
        size: int = ...,
        tos: int = ...,
        flags: int = ...,
        source: bytes | None = ...,
        error: int = ...,
    ) -> tuple[int, int, int]: ...
    def cancel(self, token: int) -> None: ...
    def turn(self, now_ns: int, *, refused: int = ...) -> list[Sent]: ...
    def next_turn_ns(self, now_ns: int) -> int: ...
    def expire(self, now_ns: int) -> None: ...
    def arrive(
        self,
        packet: bytes,
        stamp_ns: int,
        user_ns: int,
        *,
        source: bytes | None = ...,
        hops: int = ...,
        tcp: bool = ...,
    ) -> None: ...
    def report(
        self,
        message: bytes,
        stamp_ns: int,
        user_ns: int,
        *,
        type_: int,
        code: int,
        destination: bytes,
        offender: bytes,
    ) -> None: ...
    def sample_clocks(self, low_ns: int, high_ns: int) -> None: ...
    def note_step(self) -> None: ...
    def overflow(self, packets: int) -> None: ...
    def events(self) -> list[Hop | Ended]: ...
    def take(self, number: int) -> tuple[bytes, bytes, bytes]: ...
    def waiting(self) -> dict[tuple[int, int], int]: ...
    @property
    def running(self) -> int: ...
    @property
    def scheduled(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
