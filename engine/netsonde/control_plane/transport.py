"""What carries requests to a control plane: the protocol and its values."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

ANSWER_MAX_BYTES = 16 << 20  # what a process can afford to hold of one mistaken answer


class Headers(Mapping[str, str]):
    """An answer's headers; names are looked up in any case (RFC 9110 5.1)."""

    def __init__(self, fields: Mapping[str, str]) -> None:
        self._fields = {name.lower(): value for name, value in fields.items()}

    def __getitem__(self, name: str) -> str:
        return self._fields[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportRequest:
    """One request. `path` is absolute and comes after the transport's base address.

    `timeout_s` bounds the whole exchange, the answer's last byte included; `idle_timeout_s`, of a
    stream, how long nothing may come. `is_held` says that the server may hold its answer, so that
    such requests do not take the others' connections.
    `operation` is what errors call it.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)
    timeout_s: float
    idle_timeout_s: float | None = None
    is_held: bool = False
    answer_max_bytes: int = ANSWER_MAX_BYTES
    operation: str = ""

    def __post_init__(self) -> None:
        if not self.operation:
            name = f"{self.method} {self.path.partition('?')[0]}"
            object.__setattr__(self, "operation", name)


@dataclass(frozen=True, slots=True)
class TransportResponse:
    """One answer, whatever its status; `body` is complete and not compressed."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def __post_init__(self) -> None:
        if not isinstance(self.headers, Headers):
            object.__setattr__(self, "headers", Headers(self.headers))


@dataclass(frozen=True, slots=True)
class TransportStream:
    """One answer that comes piece by piece. `chunks` raises TransportError when it breaks off."""

    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]

    async def response(self, max_bytes: int) -> TransportResponse:
        """Return what comes as one complete answer, cut off at max_bytes.

        Raises:
            TransportError: it broke off.
        """
        body = b""
        async for chunk in self.chunks:
            body += chunk
            if len(body) >= max_bytes:
                break
        return TransportResponse(self.status, self.headers, body[:max_bytes])


class ControlPlaneTransport(Protocol):
    """Carries one request to a control plane and brings its answer."""

    @property
    def base_url(self) -> str:
        """The control plane's address; what it gives an agent is for this address only."""
        ...

    async def call(self, request: TransportRequest) -> TransportResponse:
        """Send request and return the complete answer; nothing is retried.

        Raises:
            TransportError: no complete answer came; the message says why in words.
        """
        ...

    def stream(
        self, request: TransportRequest, lines: AsyncIterator[bytes] | None = None
    ) -> AbstractAsyncContextManager[TransportStream]:
        """Send request, its body from `lines` when given, and bring the answer piece by piece.

        The answer may begin before `lines` has ended. Leaving the block ends both.

        Raises:
            TransportError: no answer came; the message says why in words.
        """
        ...

    async def close(self) -> None:
        """Close every connection. Idempotent; later calls raise TransportError."""
        ...
