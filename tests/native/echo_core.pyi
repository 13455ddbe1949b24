from typing import NamedTuple, final

IDENT: int

class Completion(NamedTuple):
    token: int
    kind: int
    rtt_ns: int
    sent_ns: int
    responder: bytes
    icmp_type: int
    icmp_code: int
    ttl: int
    size: int
    clocks: str

@final
class EchoCore:
    def __init__(
        self,
        family: int,
        *,
        datagram: bool = ...,
        exact: bool = ...,
        capacity: int = ...,
        linger_ns: int = ...,
        secret: int = ...,
    ) -> None: ...
    def send(
        self, token: int, address: bytes, now_ns: int, *, timeout_ns: int = ..., size: int = ...
    ) -> bytes | None: ...
    def arrive(
        self,
        packet: bytes,
        stamp_ns: int,
        user_ns: int,
        *,
        source: bytes | None = ...,
        hops: int = ...,
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
    def stamp(self, number: int, stamp_ns: int, user_ns: int) -> None: ...
    def lose_stamps(self, now_ns: int) -> None: ...
    def resume_stamps(self, now_ns: int) -> None: ...
    def sample_clocks(self, low_ns: int, high_ns: int) -> None: ...
    def note_step(self) -> None: ...
    def overflow(self, packets: int) -> None: ...
    def age_overflow(self, by_ns: int) -> None: ...
    def can_receive(self, size: int) -> bool: ...
    def expire(self, now_ns: int) -> None: ...
    def hold_slot(self) -> bool: ...
    def completions(self) -> list[Completion]: ...
    @property
    def asks(self) -> bool: ...
    @property
    def buffer_bytes(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def settled(self) -> int: ...
    @property
    def counters(self) -> dict[str, int]: ...
