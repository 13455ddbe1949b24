"""TTL-stepped ICMP echo probes: many traces on one pair of raw sockets per family."""

from types import TracebackType
from typing import Self, final

DUPLICATE: int  # flag: the probe had been answered before
USER_CLOCK: int  # flag: rx_ns is when the receive call returned, not the kernel's stamp
TRANSLATED: int  # flag: the quoted source or destination is not what was sent

FORGED: int  # TraceTable.match: names a probe, but checksum, cookie or destination do not fit
FOREIGN: int  # TraceTable.match: no probe of this table
MALFORMED: int  # TraceTable.match: no whole ICMP message

# trace, ttl, attempt, icmp_type, icmp_code, responder, tx_ns, rx_ns,
# reply_ttl, quoted_ttl, quoted_tos, flags
_Answer = tuple[int, int, int, int, int, bytes, int, int, int, int, int, int]
# trace, ttl, attempt, errno
_Refusal = tuple[int, int, int, int]

@final
class TraceSocket:
    """The sockets of one address family and every trace on them; one event loop owns it."""

    def __new__(
        cls,
        family: int,
        *,
        traces_max: int = 4096,
        queue_max: int = 65536,
        receive_buffer_bytes: int = 4194304,
    ) -> Self: ...
    def fileno(self) -> int: ...  # readable: pump has answers
    def send_fileno(self) -> int: ...  # writable: pump can send what is queued
    @property
    def closed(self) -> bool: ...
    @property
    def traces_max(self) -> int: ...
    @property
    def traces(self) -> int: ...  # live ones
    @property
    def queued(self) -> int: ...  # probes the kernel has not been given yet
    def begin(
        self,
        destination: bytes,  # 4 or 16 bytes, network order
        *,
        scope_id: int = 0,
        first_ttl: int = 1,
        last_ttl: int = 30,
        attempts: int = 3,
    ) -> int | None: ...  # None: traces_max are live
    def end(self, trace: int) -> None: ...
    def flow(self, trace: int) -> tuple[bytes, int, int]: ...  # source, checksum, flow label
    def progress(self, trace: int) -> tuple[int, int]: ...  # probes queued, last_sent_ns
    def submit(self, trace: int, attempt: int, ttls: bytes) -> int: ...  # how many fitted
    def pump(self, limit: int = 4096) -> tuple[list[_Answer], list[_Refusal]]: ...
    def counters(self) -> dict[str, int]: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class TraceTable:
    """The identity of probes without a socket: what TraceSocket sends and believes."""

    def __new__(
        cls, version: int, secret: bytes, *, traces_max: int = 4096, ident_base: int = 0
    ) -> Self: ...
    def begin(
        self,
        source: bytes,
        destination: bytes,
        *,
        first_ttl: int = 1,
        last_ttl: int = 30,
        attempts: int = 3,
    ) -> int | None: ...
    def end(self, trace: int) -> None: ...
    def packet(self, trace: int, ttl: int, attempt: int) -> bytes: ...  # marks it sent
    # version 4: an IPv4 packet; 6: an ICMPv6 message. A code, or trace, ttl, attempt, translated.
    def match(self, packet: bytes) -> int | tuple[int, int, int, bool]: ...

# Why packet is no answer (below 0), or: type, code, reply_ttl, ident, sequence, checksum,
# quoted_ttl, quoted_tos, source, destination, cookie; the last three empty when not quoted.
def parse(
    version: int, packet: bytes
) -> int | tuple[int, int, int, int, int, int, int, int, bytes, bytes, bytes]: ...

# When an answer came (CLOCK_MONOTONIC) and whether the kernel's stamp was believed.
def settle(stamp_ns: int, offset_ns: int, tx_ns: int, rx_user_ns: int) -> tuple[int, bool]: ...
