"""What an HTTP check sends: URLs, headers and redirects, checked before a byte leaves.

Nothing here can be made to write a line of its own into a request: every part is matched against
its grammar (RFC 3986, RFC 9110), and what does not match is refused with a sentence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self
from urllib.parse import quote, unquote, urljoin, urlsplit

from netsonde import __version__
from netsonde.errors import ResolveError
from netsonde.model import HttpSpec
from netsonde.probe.targets import ascii_host, literal

URL_MAX = 8192  # what the spec allows; a Location may not be longer either
HEADERS_MAX = 64
HEADER_BYTES_MAX = 16_384  # common servers refuse more with 431
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
DEFAULT_PORTS = {"http": 80, "https": 443}

_METHOD = re.compile(r"[A-Z]{1,20}")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 5.5
_URL_BLANKS = re.compile(r"[\x00-\x20\x7f]")
_SAFE = "!$%&'()*+,/:;=?@[]~"  # kept as they are when a path or query is encoded
# The body, and so its framing, is ours; a second opinion about it is request smuggling.
_OWN_HEADERS = frozenset({"content-length", "transfer-encoding", "connection", "upgrade", "te"})
# Secrets and names meant for one origin only.
_ORIGIN_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "host"})


class BadRequest(ValueError):
    """The request cannot be made; the message names the field and what is allowed."""


class Url(NamedTuple):
    """A checked absolute URL; `target` is the path and query, encoded."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        bare = self.host.partition("%")[0]
        host = f"[{bare}]" if ":" in bare else bare
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """What secrets may travel within (RFC 6454)."""
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str) -> Url:
    """Read an absolute http or https URL; its fragment is dropped.

    Raises:
        BadRequest: it is none, or carries a user name or password.
    """
    if len(text) > URL_MAX:
        raise BadRequest(f"url: {len(text)} characters, at most {URL_MAX} are allowed")
    _refuse_blanks(text)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadRequest(f"url: {text!r} is not a URL: {error}") from None
    if parts.scheme not in DEFAULT_PORTS or not host:
        raise BadRequest(f"url: {text!r} must begin with http:// or https:// and a host")
    if "@" in parts.netloc:
        raise BadRequest("url: a user name or password belongs into an Authorization header")
    if port == 0:
        raise BadRequest("url: the port must be 1 to 65535")
    try:
        target = quote(parts.path or "/", safe=_SAFE)
        if parts.query:
            target += "?" + quote(parts.query, safe=_SAFE)
    except UnicodeEncodeError:  # a command line's bytes that are not UTF-8 come as surrogates
        raise BadRequest(f"url: {text!r} has what is no character of UTF-8") from None
    return Url(parts.scheme, _host(host), port or DEFAULT_PORTS[parts.scheme], target)


def _refuse_blanks(url: str) -> None:
    if _URL_BLANKS.search(url):
        raise BadRequest(f"url: {url[:200]!r} has blanks or control characters in it")


def _host(host: str) -> str:
    try:
        if ":" in host:  # in a URL a zone is written %25eth0 (RFC 6874)
            bare = unquote(host)
            if not literal(bare):
                raise BadRequest(f"url: {bare!r} is not an IPv6 address")
            return bare
        name = ascii_host(host)
    except ResolveError as error:
        raise BadRequest(f"url: {error}") from None
    if not re.fullmatch(r"[0-9a-z._-]+", name.lower()):
        raise BadRequest(f"url: {host!r} is not a host name")
    return name


def check_headers(headers: Mapping[str, str]) -> None:
    """Pass when headers may be sent.

    Raises:
        BadRequest: one is malformed, or is one that the prober itself decides.
    """
    if len(headers) > HEADERS_MAX:
        raise BadRequest(f"headers: {len(headers)} headers, at most {HEADERS_MAX} are allowed")
    if sum(len(name) + len(value) for name, value in headers.items()) > HEADER_BYTES_MAX:
        raise BadRequest(f"headers: together at most {HEADER_BYTES_MAX} bytes are allowed")
    seen: set[str] = set()
    for name, value in headers.items():
        if name.lower() in seen:
            raise BadRequest(f"headers: {name} is given twice")
        seen.add(name.lower())
        if not _TOKEN.fullmatch(name):
            raise BadRequest(f"headers: {name!r} is not a header name")
        if not _FIELD_VALUE.fullmatch(value):
            raise BadRequest(f"headers: the value of {name} has control characters in it")
        if name.lower() in _OWN_HEADERS:
            raise BadRequest(f"headers: {name} is decided by the check itself")


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a chain of redirects."""

    url: Url
    method: str
    headers: Mapping[str, str]

    @classmethod
    def first(cls, spec: HttpSpec) -> Self:
        """Return the request that spec describes.

        Raises:
            BadRequest: url, method or headers are not sendable.
        """
        if not _METHOD.fullmatch(spec.method):
            raise BadRequest(f"method: {spec.method!r} must be 1 to 20 capital letters")
        if spec.method == "CONNECT":
            raise BadRequest("method: CONNECT opens a tunnel and is not a check")
        check_headers(spec.headers)
        return cls(parse_url(spec.url), spec.method, dict(spec.headers))

    def redirected(self, status: int, location: str) -> "Request":
        """Return the request that follows a redirect (RFC 9110 15.4).

        Credentials and Host stay behind when the origin changes.

        Raises:
            BadRequest: the location is not a URL.
        """
        reference = location.strip(" \t")
        _refuse_blanks(reference)  # urljoin would drop some of them without a word
        try:
            joined = urljoin(str(self.url), reference)
        except ValueError as error:
            raise BadRequest(f"url: {location[:200]!r} is not a URL: {error}") from None
        url = parse_url(joined)
        if not urlsplit(reference).netloc:
            url = url._replace(host=self.url.host)  # a zone is not part of the joined URL
        becomes_get = (status == 303 and self.method != "HEAD") or (
            status in (301, 302) and self.method == "POST"
        )
        headers = self.headers
        if url.origin != self.url.origin:
            headers = {k: v for k, v in headers.items() if k.lower() not in _ORIGIN_HEADERS}
        method = "GET" if becomes_get else self.method
        return replace(self, url=url, method=method, headers=headers)

    def encode(self) -> bytes:
        """Return the request's bytes; it has no body and asks for one answer only."""
        fields = {
            "Host": self.url.authority,
            "User-Agent": f"netsonde/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
        }
        if self.method in ("POST", "PUT", "PATCH"):
            fields["Content-Length"] = "0"
        given = {name.lower() for name in self.headers}
        fields = {name: value for name, value in fields.items() if name.lower() not in given}
        fields |= self.headers
        fields["Connection"] = "close"
        lines = [f"{self.method} {self.url.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
