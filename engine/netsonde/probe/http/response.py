"""What an HTTP check receives: bytes in, one response out, with every size bounded."""

import hashlib
from typing import Any

import httptools

HEAD_BYTES_MAX = 65_536  # status line and headers; browsers stop between 64 and 256 KiB
HEADERS_MAX = 256
FRAMING_BYTES_MAX = 2 * HEAD_BYTES_MAX  # in a row; the parser keeps a trailer until it ends
INFORMATIONAL_MAX = 16  # 1xx answers before the real one
VALUE_MAX = 256  # characters of a header value that a result keeps
LOCATION_MAX = 1024

# The headers worth keeping in a result: what identifies, dates, caches and redirects.
KEPT_HEADERS = (
    "content-type",
    "content-length",
    "content-encoding",
    "server",
    "date",
    "last-modified",
    "etag",
    "cache-control",
    "age",
    "via",
    "retry-after",
    "location",
    "strict-transport-security",
    "alt-svc",
)


class ProtocolFault(Exception):
    """The peer's bytes are no HTTP response, or exceed a limit; the message says which."""


class ResponseReader:
    """Reads one response from bytes, as far as max_body; a client's half of RFC 9112 6.3.

    Feed it until `done`. `size` counts body bytes after transfer coding is removed and before
    content coding is; bytes beyond max_body are neither counted nor hashed.
    """

    def __init__(self, method: str, max_body: int) -> None:
        self._method = method
        self._max_body = max_body
        self._parser = httptools.HttpResponseParser(self)
        self._digest = hashlib.sha256()
        self._head_bytes = 0
        self._framing_bytes = 0  # since the last byte of the body
        self._in_body = False
        self._complete = False
        self.status = 0
        self.reason_phrase = ""
        self.http_version = ""
        self.headers: list[tuple[str, str]] = []
        self.informational = 0
        self.size = 0
        self.truncated = False

    @property
    def done(self) -> bool:
        """Whether nothing more needs to be read."""
        return self._complete or self.truncated

    @property
    def started(self) -> bool:
        """Whether the final response's head is complete."""
        return self._in_body

    @property
    def sha256(self) -> str:
        """The digest of the body bytes counted in `size`."""
        return self._digest.hexdigest()

    def header(self, name: str) -> str | None:
        """Return the first header of that lower-case name."""
        return next((value for each, value in self.headers if each == name), None)

    def kept_headers(self) -> dict[str, str]:
        """Return the headers a result keeps, cut to a bounded length."""
        found = ((name, self.header(name)) for name in KEPT_HEADERS)
        return {
            name: value[: LOCATION_MAX if name == "location" else VALUE_MAX]
            for name, value in found
            if value is not None
        }

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection.

        Raises:
            ProtocolFault: they are not HTTP or exceed a limit.
        """
        if not self._in_body:
            self._head_bytes += len(data)
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._complete = True  # what follows is no HTTP any more
        except httptools.HttpParserError as error:
            if not self.done:
                raise ProtocolFault(f"the answer is not HTTP: {error}") from None
        if not self._in_body and self._head_bytes > HEAD_BYTES_MAX:
            raise ProtocolFault(f"the headers exceed {HEAD_BYTES_MAX} bytes")
        if len(self.headers) > HEADERS_MAX:
            raise ProtocolFault(f"the answer has more than {HEADERS_MAX} headers")
        if self.informational > INFORMATIONAL_MAX:
            raise ProtocolFault(f"more than {INFORMATIONAL_MAX} informational answers")
        if self._framing_bytes > FRAMING_BYTES_MAX and not self.done:
            raise ProtocolFault(f"{FRAMING_BYTES_MAX} bytes came without a byte of the body")

    def finish(self) -> None:
        """Take the end of the connection, which ends a body of unknown length.

        Raises:
            ProtocolFault: the response is incomplete.
        """
        if self.done:
            return
        if not self._in_body:
            seen = "before any answer" if not self._head_bytes else "within the headers"
            raise ProtocolFault(f"the server closed the connection {seen}")
        if self._is_chunked() or self.header("content-length") is not None:
            wanted = self.header("content-length") or "a chunked body"
            raise ProtocolFault(
                f"the server closed the connection after {self.size} body bytes of {wanted[:32]}"
            )
        self._complete = True

    def _is_chunked(self) -> bool:
        codings = self.header("transfer-encoding") or ""
        return codings.rpartition(",")[2].strip().lower() == "chunked"

    # The names below are httptools'.

    def on_message_begin(self) -> None:
        """Forget what an informational answer left behind."""
        if not self._complete:
            self.headers, self.reason_phrase = [], ""

    def on_status(self, phrase: bytes) -> None:
        """Collect the reason phrase."""
        if not self._complete and len(self.reason_phrase) < VALUE_MAX:
            self.reason_phrase += phrase.decode("latin-1")[:VALUE_MAX]

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header, as far as one more than is allowed; trailers are passed over."""
        if not self._in_body and not self._complete and len(self.headers) <= HEADERS_MAX:
            self.headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """Note the head; some answers have no body whatever their headers say."""
        status = self._parser.get_status_code()
        if self._complete:
            return
        if status < 200 and status != 101:
            self.informational += 1
            return
        self.status, self._in_body = status, True
        self.http_version = self._parser.get_http_version()
        if self._method == "HEAD" or status in (101, 204, 304):
            self._complete = True

    def on_body(self, body: bytes) -> None:
        """Count and hash body bytes up to the limit."""
        self._framing_bytes = 0
        if self.done:
            return
        counted = body[: self._max_body - self.size]
        self.size += len(counted)
        self._digest.update(counted)
        self.truncated = len(counted) < len(body)

    def on_message_complete(self) -> None:
        """Note the end of a framed body."""
        if self._in_body:
            self._complete = True

    def value(self) -> dict[str, Any]:
        """Return what a result says about the response."""
        return {
            "status": self.status,
            "reason_phrase": self.reason_phrase,
            "http_version": self.http_version,
            "headers": self.kept_headers(),
            "body": {"size": self.size, "sha256": self.sha256, "truncated": self.truncated},
        }
