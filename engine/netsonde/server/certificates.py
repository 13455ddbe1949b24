"""The certificates of the listeners: read at the start, read again when they were renewed."""

import asyncio
import logging
import ssl
from pathlib import Path

from netsonde.clock import NS_PER_S, Clock, instant_ns, rfc3339
from netsonde.errors import ConfigError
from netsonde.listening.door import TlsNow
from netsonde.probe.http.certificate import certificate_facts
from netsonde.server.config import ServerConfig
from netsonde.tls import RenewableContext, ServerTls, read_certificates

LOOK_EVERY_NS = 10 * NS_PER_S
EXPIRES_SOON_NS = 7 * 86_400 * NS_PER_S  # what is renewed by itself was renewed long before
END = "-----END CERTIFICATE-----"

_log = logging.getLogger("netsonde.server")


class Certificates:
    """The TLS of both listeners. Connections that are open keep the certificate they began with.

    Raises:
        ConfigError: a file cannot be used.
    """

    def __init__(self, config: ServerConfig, clock: Clock) -> None:
        self.clock = clock
        self.asked = asyncio.Event()
        settings = {"listen": config.tls, "operator_listen": config.operator_tls}
        self._listeners = {
            name: _Listener(name, tls, clock) for name, tls in settings.items() if tls is not None
        }
        for listener in self._listeners.values():
            listener.look_at_expiry()

    @property
    def agents(self) -> TlsNow | None:
        """What gives the TLS context of the agents' listener; None when it is plain HTTP."""
        return self._of("listen")

    @property
    def operators(self) -> TlsNow | None:
        """What gives the TLS context of the operators' listener; None when it is plain HTTP."""
        return self._of("operator_listen")

    def reload(self) -> None:
        """Read every file again now, whether or not it looks changed."""
        self.asked.set()

    async def look(self, *, at_once: bool) -> None:
        """Read what was renewed; what cannot be used is reported and the old stays."""
        for listener in self._listeners.values():
            await asyncio.to_thread(listener.look, at_once=at_once)

    def _of(self, name: str) -> TlsNow | None:
        listener = self._listeners.get(name)
        return None if listener is None else lambda: listener.tls.context


def valid_until_ns(path: Path) -> int | None:
    """Return when a file's first certificate expires; None when it does not tell.

    Raises:
        ConfigError: the file cannot be read or holds no certificate.
    """
    first, end, _ = read_certificates(path).partition(END)
    try:
        return instant_ns(certificate_facts(ssl.PEM_cert_to_DER_cert(first + end))["not_after"])
    except (KeyError, ValueError):
        return None


class _Listener:
    """The certificate of one listener."""

    def __init__(self, name: str, files: ServerTls, clock: Clock) -> None:
        self.tls = RenewableContext(files.files, files.context)
        self._name = name
        self._certificate: Path = files.certificate
        self._clock = clock
        self._until_ns = valid_until_ns(files.certificate)
        self._warned = ""

    def look(self, *, at_once: bool) -> None:
        try:
            if self.tls.renew(at_once=at_once):
                self._until_ns = valid_until_ns(self._certificate)
                self._warned = ""
                _log.info(
                    "%s serves the certificate in %s, valid until %s",
                    self._name,
                    self._certificate,
                    _date(self._until_ns),
                    extra={"action": "tls_reloaded"},
                )
        except ConfigError as error:
            _log.error(
                "%s goes on with the certificate it had: %s",
                self._name,
                error,
                extra={"action": "tls_reload_failed"},
            )
        self.look_at_expiry()

    def look_at_expiry(self) -> None:
        """Warn of a certificate that has expired, or soon will: once of each."""
        if self._until_ns is None:
            return
        left_ns = self._until_ns - self._clock.realtime_ns()
        if left_ns > EXPIRES_SOON_NS:
            return
        state = "expired at" if left_ns <= 0 else "expires at"
        if state == self._warned:
            return
        self._warned = state
        _log.warning(
            "the certificate of %s in %s %s %s: renew it; the new one is read by itself",
            self._name,
            self._certificate,
            state,
            _date(self._until_ns),
            extra={"action": "certificate_expired" if left_ns <= 0 else "certificate_expires"},
        )


def _date(until_ns: int | None) -> str:
    return "an unknown date" if until_ns is None else f"{rfc3339(until_ns)[:19]}Z"


async def watch_forever(certificates: Certificates) -> None:
    """Look every few seconds, and whenever it is asked for."""
    while True:
        is_asked = await certificates.clock.wait(certificates.asked, LOOK_EVERY_NS)
        certificates.asked.clear()
        await certificates.look(at_once=is_asked)
