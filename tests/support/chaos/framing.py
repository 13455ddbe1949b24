"""As much of HTTP/1.1 as passes between agent and control plane: heads, and bodies of two kinds."""

from asyncio import StreamReader
from collections.abc import AsyncIterator

from msgspec import Struct

HEAD_MAX_BYTES = 32_768
BODY_MAX_BYTES = 32 << 20
FRAMING = frozenset({b"content-length", b"transfer-encoding"})
LAST_CHUNK = b"0\r\n\r\n"


class FramingError(ValueError):
    """These bytes are no message that the proxy can pass on."""


class Head(Struct, frozen=True):
    """A start line and its header fields, as they came."""

    start: bytes
    fields: list[tuple[bytes, bytes]]

    def get(self, name: bytes) -> bytes | None:
        """Return a field's value; names are compared without case."""
        for key, value in self.fields:
            if key.lower() == name:
                return value
        return None

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks, so that its length is not known before its end."""
        return (self.get(b"transfer-encoding") or b"").lower() == b"chunked"

    @property
    def body_bytes(self) -> int:
        """How long the body is.

        Raises:
            FramingError: it is chunked, or its length is no number that we take.
        """
        if self.get(b"transfer-encoding") is not None:
            raise FramingError("a chunked body")
        text = self.get(b"content-length") or b"0"
        if not text.isdigit() or int(text) > BODY_MAX_BYTES:
            raise FramingError(f"Content-Length {text!r}")
        return int(text)

    @property
    def verb(self) -> str:
        """The last part of a request's path."""
        parts = self.start.split(b" ")
        if len(parts) != 3:
            raise FramingError(f"the request line {self.start[:80]!r}")
        return parts[1].partition(b"?")[0].rpartition(b"/")[2].decode("ascii", "replace")

    @property
    def status(self) -> int:
        """The status of an answer."""
        parts = self.start.split(b" ", 2)
        if len(parts) < 2 or not parts[1].isdigit():
            raise FramingError(f"the status line {self.start[:80]!r}")
        return int(parts[1])

    @property
    def is_last(self) -> bool:
        """Whether the sender closes the connection behind this message."""
        return (self.get(b"connection") or b"").lower() == b"close"

    def replaced(self, name: bytes, value: bytes) -> "Head":
        """Return this head with another value for a field; one that lacks the field gets none."""
        fields = [(key, value if key.lower() == name else old) for key, old in self.fields]
        return Head(self.start, fields)

    def has(self, name: bytes, part: bytes) -> bool:
        """Whether a field's value contains a part."""
        return part in (self.get(name) or b"").lower()

    def encode(self, body_bytes: int | None) -> bytes:
        """Return the head's bytes, for a body of this length or, None, one that comes in chunks."""
        kept = [(key, value) for key, value in self.fields if key.lower() not in FRAMING]
        lines = [self.start, *(key + b": " + value for key, value in kept)]
        if body_bytes is None:
            lines.append(b"Transfer-Encoding: chunked")
        else:
            lines.append(b"Content-Length: %d" % body_bytes)
        return b"\r\n".join(lines) + b"\r\n\r\n"


def parse_head(data: bytes) -> Head:
    """Read a head that ends with an empty line.

    Raises:
        FramingError: it is none.
    """
    if not data.endswith(b"\r\n\r\n"):
        raise FramingError("a head without an end")
    start, *lines = data[:-4].split(b"\r\n")
    fields = []
    for line in lines:
        key, colon, value = line.partition(b":")
        if not colon or not key:
            raise FramingError(f"the header line {line[:80]!r}")
        fields.append((key, value.strip()))
    return Head(start, fields)


def chunk(data: bytes) -> bytes:
    """Frame a piece of a body; it is not empty, which would be the end."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def read_chunks(reader: StreamReader) -> AsyncIterator[bytes]:
    """Yield the pieces of a chunked body until its end.

    Raises:
        EOFError: it broke off.
        FramingError: these are no chunks.
    """
    while True:
        size = (await reader.readuntil(b"\r\n")).partition(b";")[0].strip()
        try:
            length = int(size, 16)
        except ValueError as error:
            raise FramingError(f"the chunk size {size[:80]!r}") from error
        if not 0 <= length <= BODY_MAX_BYTES:
            raise FramingError(f"a chunk of {length} bytes")
        data = await reader.readexactly(length)
        if await reader.readexactly(2) != b"\r\n":
            raise FramingError("a chunk without an end")
        if not data:
            return
        yield data
