"""As much of HTTP/1.1 as passes between agent and control plane: heads, and bodies by length."""

from msgspec import Struct

HEAD_MAX_BYTES = 32_768
BODY_MAX_BYTES = 32 << 20
FRAMING = frozenset({b"content-length", b"transfer-encoding"})


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

    def encode(self, body_bytes: int) -> bytes:
        """Return the head's bytes, for a body of this length."""
        kept = [(key, value) for key, value in self.fields if key.lower() not in FRAMING]
        lines = [self.start, *(key + b": " + value for key, value in kept)]
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
