"""TLS on both sides: contexts made of files, what is wrong with those, and what a peer refused.

Nothing here turns verification off, and no setting does.
"""

import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from netsonde.errors import ConfigError

FILE_MAX_BYTES = 4 << 20  # a bundle of every public authority has a quarter of that
CLIENT_AUTH = ("required", "optional")

_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----", re.ASCII
)
_REASON = re.compile(r"\[SSL: (\w+)\]")
# X509_V_ERR_… of <openssl/x509_vfy.h>
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
# Alerts with which a server refuses who calls (RFC 8446 6.2), by OpenSSL's names.
_REFUSALS = {
    "TLSV1_ALERT_UNKNOWN_CA": "its authority is not one that the server trusts",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it was revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is malformed or its signature is wrong",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is not made for clients",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the server does not accept it",
    "TLSV1_ALERT_ACCESS_DENIED": "the server lets others in only",
    "TLSV1_ALERT_DECRYPT_ERROR": "its signature does not fit",
}
_NAME_CLIENT = "client_cert_file and client_key_file, or --client-cert and --client-key"
_NOT_TLS = "it does not speak TLS there: write http://, or the port where it does"
_TOO_OLD = "it has no TLS 1.2 or newer"
_FAILURES = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        f"the server wants a client certificate: name one ({_NAME_CLIENT})"
    ),
    "SSLV3_ALERT_HANDSHAKE_FAILURE": (
        "the server refused the handshake: it may want a client certificate"
        f" ({_NAME_CLIENT}), or no cipher suits both"
    ),
    "WRONG_VERSION_NUMBER": _NOT_TLS,
    "HTTP_REQUEST": _NOT_TLS,
    "RECORD_LAYER_FAILURE": _NOT_TLS,
    "PACKET_LENGTH_TOO_LONG": _NOT_TLS,
    "UNSUPPORTED_PROTOCOL": _TOO_OLD,
    "TLSV1_ALERT_PROTOCOL_VERSION": _TOO_OLD,
    "NO_PROTOCOLS_AVAILABLE": _TOO_OLD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """The files of a listener that speaks TLS.

    With `client_ca` a client shows a certificate that one of its authorities signed: always when
    `client_auth` is `required`, and when it has one where it is `optional`.

    Raises:
        ConfigError: client_auth is neither.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    client_auth: str = "required"

    def __post_init__(self) -> None:
        """Check what is not a file."""
        if self.client_auth not in CLIENT_AUTH:
            raise ConfigError(f"client_auth must be required or optional, not {self.client_auth!r}")

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file."""
        return (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))

    def context(self) -> ssl.SSLContext:
        """Read the files.

        Raises:
            ConfigError: naming the file and what is wrong with it.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        _load_identity(context, self.certificate, self.key)
        if self.client_ca is not None:
            context.load_verify_locations(cadata=_authorities(self.client_ca))
            is_required = self.client_auth == "required"
            context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """The files of a client: whom it trusts instead of the system's authorities, who it is.

    Raises:
        ConfigError: a certificate has no key, or the other way round.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        """Check that certificate and key come together."""
        if (self.certificate is None) != (self.key is None):
            raise ConfigError(
                "a client certificate and its key belong together: name both files or neither"
                f" ({_NAME_CLIENT})"
            )

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file."""
        return tuple(path for path in (self.ca, self.certificate, self.key) if path is not None)

    def context(self) -> ssl.SSLContext:
        """Read the files.

        Raises:
            ConfigError: naming the file and what is wrong with it.
        """
        if self.ca is None:
            context = ssl.create_default_context()
        else:
            context = ssl.create_default_context(cadata=_authorities(self.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None and self.key is not None:
            _load_identity(context, self.certificate, self.key)
        return context


def client_tls(url: str, ca: Path | None, certificate: Path | None, key: Path | None) -> ClientTls:
    """Return the TLS files for calls to url.

    Raises:
        ConfigError: files are named although url is plain HTTP, or half of a pair is missing.
    """
    files = ClientTls(ca=ca, certificate=certificate, key=key)
    if files.files and not url.lower().startswith("https://"):
        raise ConfigError(
            f"{files.files[0]} is for TLS, but {url} is not an https:// address: write https://,"
            " or leave the file out"
        )
    return files


class RenewableContext:
    """A TLS context that is made anew when its files change; the old one serves until then.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """

    def __init__(self, files: Sequence[Path], make: Callable[[], ssl.SSLContext]) -> None:
        self._files = tuple(files)
        self._make = make
        self._seen = self._signature()
        self.context = make()

    def renew(self, *, at_once: bool = False) -> bool:
        """Read the files again if they have changed, or anyway; say whether that was done.

        Files that cannot be used are reported once, and tried again when they change again.

        Raises:
            ConfigError: naming the file and what is wrong with it; the old context stays.
        """
        seen = self._signature()
        if seen == self._seen and not at_once:
            return False
        self._seen = seen
        self.context = self._make()
        return True

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state_of(path) for path in self._files)


def distrust(error: ssl.SSLCertVerificationError) -> str:
    """Say what is wrong with a server's certificate, and what to do about it."""
    code = error.verify_code
    if code == _EXPIRED:
        return "has expired: renew it there, or see to the clock of this host"
    if code == _NOT_YET_VALID:
        return "is not valid yet: see to the clocks of both hosts"
    if code in {_OTHER_NAME, _OTHER_ADDRESS}:
        said = error.verify_message.rstrip(".")
        return f"is for another host ({said}): reach it by a name that its certificate has"
    if code in _UNKNOWN_AUTHORITY:
        return (
            f"is signed by an authority unknown here ({error.verify_message}): name the file of"
            " that authority's certificate (ca_file, or --ca)"
        )
    return f"is not valid: {error.verify_message}"


def refusal(error: BaseException) -> str | None:
    """Say why TLS failed other than by the server's certificate; None when it was not TLS."""
    found = _REASON.search(str(error))
    if found is None:
        return None
    reason = found[1]
    if reason in _REFUSALS:
        return (
            f"the server refused this client's certificate: {_REFUSALS[reason]}; name another"
            f" ({_NAME_CLIENT})"
        )
    return _FAILURES.get(reason, reason.replace("_", " ").lower())


def _load_identity(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def passphrase() -> str:
        raise ConfigError(f"the key file {key} has a passphrase: give one without")

    read_certificates(certificate)
    if "PRIVATE KEY-----" not in _read("key", key):
        raise ConfigError(f"the key file {key} holds no private key in PEM form")
    try:
        context.load_cert_chain(certificate, key, password=passphrase)
    except ssl.SSLError as error:
        raise ConfigError(_unusable(error, certificate, key)) from None
    except OSError as error:
        raise ConfigError(f"{certificate} or {key} cannot be read: {error.strerror}") from error


def _unusable(error: ssl.SSLError, certificate: Path, key: Path) -> str:
    if error.reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}:
        return f"the key in {key} does not match the certificate in {certificate}"
    reason = (error.reason or "unreadable").replace("_", " ").lower()
    return f"the certificate {certificate} with the key {key} cannot be used: {reason}"


def _authorities(path: Path) -> str:
    text = read_certificates(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except ssl.SSLError as error:
        reason = (error.reason or "unreadable").replace("_", " ").lower()
        raise ConfigError(f"the certificate file {path} cannot be used: {reason}") from None
    return text


def read_certificates(path: Path) -> str:
    """Return the certificates of a file, without the remarks that may stand between them."""
    found = _CERTIFICATE.findall(_read("certificate", path))
    if not found:
        raise ConfigError(f"the certificate file {path} holds no certificate in PEM form")
    return "\n".join(found)


def _read(what: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the {what} file {path} cannot be read: {error.strerror}") from error
    if len(content) > FILE_MAX_BYTES:
        raise ConfigError(f"the {what} file {path} has more than {FILE_MAX_BYTES} bytes")
    return content.decode("ascii", "replace")


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with a file's content: a rename over it, a write, a link moved."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
