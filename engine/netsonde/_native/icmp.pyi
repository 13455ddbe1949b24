from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, final

REQUEST_FORMAT: Final[str]  # for struct: one record of `submit`
COMPLETION_FORMAT: Final[str]  # for struct: one record of `poll`
TRACE_FORMAT: Final[str]  # for struct: one record of `submit_traces`
SUMMARY_FORMAT: Final[str]  # for struct: what a summary of `take_trace` begins with
ANSWER_FORMAT: Final[str]  # for struct: one answer of `take_trace`
TRACE_REQUEST_BYTES: Final[int]

# Kinds of completion: exactly one of the first five per packet, then any number of LATE and
# DUPLICATE; one STOPPED per cancelled run.
REPLY: Final[int]
TIMEOUT: Final[int]
ERROR: Final[int]
TX_ERROR: Final[int]
RX_DROP: Final[int]
LATE: Final[int]
DUPLICATE: Final[int]
STOPPED: Final[int]
TRACED: Final[int]  # one per trace
HOP: Final[int]  # one per answer of a trace that is watched

STOPPED_COMPLETED: Final[int]  # why a trace ended
STOPPED_UNREACHABLE: Final[int]
STOPPED_LOOP: Final[int]
STOPPED_GAP_LIMIT: Final[int]
STOPPED_MAX_HOPS: Final[int]
STOPPED_TX_ERROR: Final[int]
STOPPED_CANCELLED: Final[int]

TRACE_ICMP: Final[int]  # methods of traces, as bits
TRACE_UDP: Final[int]
TRACE_TCP: Final[int]

TRACE_FORBID_FRAGMENTS: Final[int]  # bits of a trace's flags
TRACE_ALL_ATTEMPTS: Final[int]
TRACE_WATCHED: Final[int]

RX_KERNEL: Final[int]  # bits of a completion's clocks
TX_KERNEL: Final[int]

DF: Final[int]  # bit of a request's flags

BACKENDS: Final[dict[str, int]]

SIZE_MIN_BYTES: Final[int]
SIZE_MAX_BYTES: Final[int]
TIMEOUT_MAX_NS: Final[int]
INTERVAL_MAX_NS: Final[int]
CAPACITY: Final[int]  # probes
CAPACITY_MAX: Final[int]  # probes
LINGER_NS: Final[int]
LINGER_MAX_NS: Final[int]
RECEIVE_BUFFER_BYTES: Final[int]

_Backend: TypeAlias = Literal["raw", "header", "packet", "datagram"]

@final
class PacketBudget:
    def __new__(cls, rate_pps: float) -> Self: ...
    @property
    def rate_pps(self) -> float: ...

@final
class EchoEngine:
    def __new__(
        cls,
        family: Literal[4, 6],
        *,
        backend: _Backend = "raw",
        exact: bool = False,
        secret: bytes | None = None,  # 16 bytes
        ident: int | None = None,  # 0 to 65535
        capacity: int = ...,  # probes in flight and remembered
        linger_ns: int = ...,
        receive_buffer_bytes: int = ...,
        budgets: tuple[PacketBudget, ...] = (),
        prefix_pps: float = 0,
        target_pps: float = 0,
        largest_size: int = ...,  # bytes
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
    def start(self) -> None: ...
    def fileno(self) -> int: ...
    def add_path(
        self,
        *,
        source: bytes | None = None,  # 4 or 16 bytes
        interface: int = 0,  # index
        mark: int = 0,
        link_address: bytes | None = None,  # at most 8 bytes
    ) -> int: ...  # its number
    def submit(self, requests: bytes) -> int: ...  # records -> how many were taken
    def cancel(self, token: int) -> None: ...
    def poll(
        self, *, now_ns: int | None = None, limit: int = ...
    ) -> bytes: ...  # CLOCK_MONOTONIC -> records
    def open_traces(self, methods: int) -> None: ...
    def submit_traces(self, traces: bytes) -> int: ...  # records -> how many were taken
    def cancel_trace(self, token: int) -> None: ...
    # summary, answers, extensions
    def take_trace(self, number: int) -> tuple[bytes, bytes, bytes]: ...
    def note_clock_step(self) -> None: ...
    @property
    def family(self) -> Literal[4, 6]: ...
    @property
    def backend(self) -> _Backend: ...
    @property
    def access(self) -> Literal["raw", "datagram"]: ...
    @property
    def ident(self) -> int: ...
    @property
    def next_turn_ns(self) -> int | None: ...  # CLOCK_MONOTONIC
    @property
    def in_flight(self) -> int: ...  # probes
    @property
    def unread(self) -> int: ...  # completions
    @property
    def counters(self) -> dict[str, int]: ...

def pack_requests(
    family: Literal[4, 6],
    addresses: bytes,  # 4 or 16 bytes each
    *,
    token: int,
    timeout_ns: int,
    size: int = 56,  # bytes
    ttl: int = ...,
    tos: int = 0,
    path: int = 0,
    count: int = 1,
    interval_ns: int = 0,
    token_shift: int = 0,
    flags: int = 0,
) -> bytes: ...  # records
def pack_traces(
    family: Literal[4, 6],
    addresses: bytes,  # 4 or 16 bytes each
    source: bytes | None = None,  # 4 or 16 bytes
    *,
    token: int,
    timeout_ns: int,
    method: int = ...,
    port: int = 0,
    flow: int = 0,
    first_ttl: int = 1,
    last_ttl: int = 30,
    attempts: int = 3,
    gap_limit: int = 5,
    size: int = 20,  # bytes
    tos: int = 0,
    path: int = 0,
    interval_ns: int = 0,
    flags: int = 0,
    scope: int = 0,
) -> bytes: ...  # records
