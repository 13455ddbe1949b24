"""The options that name certificates and keys: of a server's listeners, and of a client."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from netsonde.errors import ConfigError
from netsonde.tls import CLIENT_AUTH, ClientTls, ServerTls, client_tls

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, dir_okay=False)
CLIENT_FILES = {
    "ca_file": "Authorities to trust instead of the system's.",
    "client_cert_file": "Certificate to show where one is asked for.",
    "client_key_file": "The key of that certificate.",
}
_KEPT = "netsonde.tls."


def tls_options(prefix: str, listener: str) -> Callable[[F], F]:
    """Add the TLS options of one listener, for `read_tls`."""

    def decorate(command: F) -> F:
        for name, kind, text in (
            ("client-auth", click.Choice(CLIENT_AUTH), "Whether clients must show one (required)."),
            ("client-ca", FILE, "Authorities of client certificates, then asked for."),
            ("key", FILE, "The key of that certificate."),
            ("cert", FILE, f"Certificate chain of {listener}, which then speaks HTTPS."),
        ):
            command = click.option(f"--{prefix}tls-{name}", type=kind, help=text)(command)
        return command

    return decorate


def read_tls(prefix: str, settings: dict[str, Any]) -> ServerTls | None:
    """Take the TLS options of one listener out of settings; None: it is plain HTTP.

    Raises:
        ConfigError: some of them make no sense without the others.
    """
    name = prefix.replace("-", "_")
    certificate, key, client_ca, client_auth = (
        settings.pop(f"{name}tls_{part}") for part in ("cert", "key", "client_ca", "client_auth")
    )
    option = f"--{prefix}tls-"
    if certificate is None and key is None:
        if client_ca is not None or client_auth is not None:
            raise ConfigError(f"client certificates need TLS: give {option}cert and {option}key")
        return None
    if certificate is None or key is None:
        raise ConfigError(f"{option}cert and {option}key belong together: give both or neither")
    if client_auth is not None and client_ca is None:
        raise ConfigError(f"{option}client-auth needs {option}client-ca: who signs the clients'")
    return ServerTls(
        certificate=certificate,
        key=key,
        client_ca=client_ca,
        client_auth=client_auth or CLIENT_AUTH[0],
    )


def client_options(command: F) -> F:
    """Add the certificate files of a client as parameters."""
    return _client_options(command, lambda name: {})


def operator_tls_options(command: F) -> F:
    """Add the certificate files of a client of the operator API, for `operator_tls`.

    They are no parameters, so that no command has to hand them on.
    """
    return _client_options(
        command,
        lambda name: {
            "envvar": f"NETSONDE_OPERATOR_{name.upper()}",
            "show_envvar": True,
            "expose_value": False,
            "callback": _keep,
        },
    )


def operator_tls(server_url: str) -> ClientTls:
    """Return the certificate files that the running command was given for calls to server_url.

    Raises:
        ConfigError: they make no sense without each other, or with a plain http:// address.
    """
    context = click.get_current_context(silent=True)
    given = {} if context is None else context.meta
    return client_tls(server_url, *(given.get(f"{_KEPT}{name}") for name in CLIENT_FILES))


def _client_options(command: F, more: Callable[[str], dict[str, Any]]) -> F:
    for name, text in reversed(CLIENT_FILES.items()):
        option = f"--{name.removesuffix('_file').replace('_', '-')}"
        command = click.option(option, name, type=FILE, help=text, **more(name))(command)
    return command


def _keep(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    context.meta[f"{_KEPT}{parameter.name}"] = value
