from collections.abc import Iterable
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, final

REQUEST_FORMAT: Final[str]  # for struct: one record of `submit`
COMPLETION_FORMAT: Final[str]  # for struct: one record of `poll`

# Kinds of completion: exactly one of the first five per request, then any number of the others.
REPLY: Final[int]
TIMEOUT: Final[int]
ERROR: Final[int]
TX_ERROR: Final[int]
RX_DROP: Final[int]
LATE: Final[int]
DUPLICATE: Final[int]

RX_KERNEL: Final[int]  # bit of a completion's clocks

SIZE_MIN_BYTES: Final[int]
SIZE_MAX_BYTES: Final[int]
TIMEOUT_MAX_NS: Final[int]
CAPACITY: Final[int]  # probes
CAPACITY_MAX: Final[int]  # probes
LINGER_NS: Final[int]
LINGER_MAX_NS: Final[int]
RECEIVE_BUFFER_BYTES: Final[int]

# protocol, tos, ttl, source, destination, body
_Ip: TypeAlias = tuple[int, int, int, bytes, bytes, bytes]

@final
class EchoEngine:
    def __new__(
        cls,
        family: Literal[4, 6],
        *,
        access: Literal["raw", "datagram"] = "raw",
        secret: bytes | None = None,  # 16 bytes
        ident: int | None = None,  # 0 to 65535
        capacity: int = ...,  # probes in flight and remembered
        linger_ns: int = ...,
        receive_buffer_bytes: int = ...,
    ) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...
    def submit(self, requests: bytes) -> int: ...  # records -> how many were taken
    def poll(self, *, now_ns: int, limit: int = ...) -> bytes: ...  # CLOCK_MONOTONIC -> records
    def note_clock_step(self) -> None: ...
    @property
    def next_deadline_ns(self) -> int | None: ...  # CLOCK_MONOTONIC
    @property
    def family(self) -> Literal[4, 6]: ...
    @property
    def access(self) -> Literal["raw", "datagram"]: ...
    @property
    def ident(self) -> int: ...
    @property
    def in_flight(self) -> int: ...  # probes
    @property
    def unread(self) -> int: ...  # completions
    @property
    def counters(self) -> dict[str, int]: ...

def checksum(data: bytes) -> int: ...
def count_steps(samples: Iterable[tuple[int, int]]) -> int: ...  # ns
def siphash24(key: bytes, data: bytes) -> int: ...
def parse_ip(version: Literal[4, 6], data: bytes, *, quoted: bool = False) -> _Ip | str: ...
def parse_message(
    version: Literal[4, 6], data: bytes
) -> tuple[int, int, int, int, int, bytes, _Ip | str | None] | str: ...
