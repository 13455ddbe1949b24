"""The way out of this host, for commands that let one choose it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import click

from netsonde import netinfo
from netsonde.cli.options import NUMBER
from netsonde.errors import ConfigError, RouteError
from netsonde.model import PingSpec, TraceSpec
from netsonde.probe.ping.driver import EchoEngine
from netsonde.probe.ping.engines import EngineOptions, able, open_engine

F = TypeVar("F", bound=Callable[..., Any])

WAY_OUT = ("source", "interface", "mark")  # the names of these options


def way_out_options(command: F) -> F:
    """Add --source, --interface and --mark."""
    for option in (
        click.option("--mark", type=NUMBER, help="Firewall mark, for policy routing."),
        click.option("--interface", "-I", metavar="NAME", help="Send through this interface."),
        click.option(
            "--source", "-S", metavar="ADDRESS", help="Send from this address of this host."
        ),
    ):
        command = option(command)
    return command


def check_way_out(spec: PingSpec | TraceSpec) -> None:
    """See whether this host has the interface and the source, whatever the destination.

    Raises:
        ConfigError: it has not.
    """
    try:
        if spec.interface is not None:
            netinfo.interface_index(spec.interface)
        if spec.source is not None:
            with suppress(RouteError):  # a virtual router's (VRF) own address
                netinfo.route_to(spec.source, source=spec.source)
    except ConfigError as error:
        raise ConfigError(str(error)) from None  # a wrong name, whatever the kernel said of it


def open_preferred(family: int, options: EngineOptions, warn: Callable[[str], None]) -> EchoEngine:
    """Open an engine; say so when it is not by the back end that is preferred.

    Raises:
        PrivilegeError, SendError: none can be opened.
    """
    engine = open_engine(family, options)
    preferred: list[str] = list(able(family, options.backends))
    refused = preferred[: preferred.index(engine.backend)]
    if refused:
        warn(f"{', '.join(refused)}: not permitted here; using {engine.backend} instead")
    return engine
