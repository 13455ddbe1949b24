"""The settings of `netsonde server run`: from a TOML file, the environment and its options.

Every option is a setting: its name without dashes in the file, as NETSONDE_SERVER_<NAME> in the
environment.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from netsonde import settings_file
from netsonde.cli.options import Bounded, Count, Duration, Sectioned, Size
from netsonde.errors import ConfigError
from netsonde.server import ServerConfig
from netsonde.server.config import BOUNDS, SHUTDOWN_MAX_S, UNBOUNDED_AT_0

F = TypeVar("F", bound=Callable[..., Any])

PREFIX = "NETSONDE_SERVER_"
PLACES = "netsonde.settings"  # in a context's meta: where the file has each parameter
CONFIG = "config_file"
SECTIONS: Mapping[str, Sequence[str]] = {
    "Where it is reached": (
        "listen", "operator_listen", "connections_max",
        *(f"{listener}tls_{part}" for listener in ("", "operator_")
          for part in ("cert", "key", "client_ca", "client_auth")),
    ),
    "Who is let in": ("enrolment_token_file", "operator_token_file", "quota_scale"),
    "What is kept": (
        "state_dir", "memory", "retain_results_ms", "retain_dead_letters_ms", "audit_ms",
        "max_database_bytes", "storage_reserve_bytes",
    ),
    "Leases": (
        "terms", "max_lease_ms", "grace_ms", "max_attempts", "requeue_base_ms", "requeue_cap_ms",
        "standing_term_ms", "offline_ms",
    ),
    "What agents are told": ("heartbeat_interval_ms", "claim_wait_ms", "legacy_hold_ms"),
}  # fmt: skip


class SettingsCommand(Sectioned):
    """A command whose options can be written in a file and in the environment, too."""

    def __init__(self, *args: Any, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        for option in self.params:
            if isinstance(option, click.Option):
                option.envvar = PREFIX + _name(option).upper()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; what is wrong elsewhere is said with the place where it is written."""
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            place = _place(ctx, error.param)
            if place is None:
                raise
            raise ConfigError(f"{place}: {error.message}") from error


def config_option(command: F) -> F:
    """Add --config, whose file has what neither options nor the environment say."""
    return click.option(
        "--config",
        CONFIG,
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_read_file,
        help='TOML file with settings: the names of these options, as in standing_term = "1h".',
    )(command)


def bounds(name: str) -> Bounded:
    """Return the type of a setting of ServerConfig, with its bounds and its unit."""
    low, high = BOUNDS[name]
    made = Duration if name.endswith("_ms") else Size if name.endswith("_bytes") else Count
    return made(low, high, is_boundless_at_0=name in UNBOUNDED_AT_0)


def bounded_option(
    option: str, name: str, help_text: str, *, default: str | None = ""
) -> Callable[[F], F]:
    """Add an option for a setting of ServerConfig; its default is that one's own."""
    kind = bounds(name)
    shown = kind.text(getattr(ServerConfig, name)) if default == "" else default
    return click.option(
        option,
        name,
        type=kind,
        default=None if default is None else shown,
        show_default=True,
        help=f"{help_text} [{kind.range}]",
    )


def lease_options(command: F) -> F:
    """Add how long leases last, and how often work is tried."""
    return _all(
        command,
        bounded_option(
            "--max-lease",
            "max_lease_ms",
            "How long a lease may last with all its extensions; 10m, or the longest --term.",
            default=None,
        ),
        bounded_option(
            "--grace",
            "grace_ms",
            "How long past its end a lease is waited for before its task goes to another agent;"
            " 5 % of its term where that is more.",
        ),
        bounded_option(
            "--attempts", "max_attempts", "How often a task is tried before it is given up."
        ),
        bounded_option(
            "--retry-base",
            "requeue_base_ms",
            "The longest wait before a second attempt is twice this, and doubles with each.",
        ),
        bounded_option("--retry-cap", "requeue_cap_ms", "The longest wait before any attempt."),
    )


def agent_options(command: F) -> F:
    """Add what agents are told, and how often they may call."""
    return _all(
        command,
        bounded_option(
            "--heartbeat-interval",
            "heartbeat_interval_ms",
            "How often agents say that they are there; after three times this one is silent.",
        ),
        bounded_option(
            "--claim-wait", "claim_wait_ms", "How long agents let a claim without work wait."
        ),
        bounded_option(
            "--legacy-hold", "legacy_hold_ms", "How long an original agent's claim waits."
        ),
        bounded_option(
            "--quota-scale",
            "quota_scale",
            "How many times the contract's number of calls a minute one agent may make.",
        ),
    )


def shutdown_option(command: F) -> F:
    """Add how long the end may take."""
    kind = Duration(0, round(SHUTDOWN_MAX_S * 1000))
    return click.option(
        "--shutdown-timeout",
        "shutdown_timeout_ms",
        type=kind,
        default=kind.text(round(ServerConfig.shutdown_timeout_s * 1000)),
        show_default=True,
        help=f"How long calls under way are waited for at the end. [{kind.range}]",
    )(command)


def _all(command: F, *options: Callable[[F], F]) -> F:
    return reduce(lambda made, option: option(made), reversed(options), command)


def _name(option: click.Parameter) -> str:
    """Return an option's name as a setting."""
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def _place(ctx: click.Context, param: click.Parameter | None) -> str | None:
    """Say where a parameter's value was written; None: on the command line."""
    if param is None or param.name is None:
        return None
    source = ctx.get_parameter_source(param.name)
    if source is ParameterSource.ENVIRONMENT:
        return str(param.envvar)
    if source is ParameterSource.DEFAULT_MAP:
        where: str = ctx.meta[PLACES][param.name]
        return f"{where}: {_name(param)}"
    return None


def _read_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    options = {
        _name(param): param
        for param in ctx.command.params
        if isinstance(param, click.Option) and param.name not in {CONFIG, "help"}
    }
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for name, where, value in settings_file.read(path, options):
        option = options[name]
        values[str(option.name)] = _value(option, f"{where}: {name}", value)
        places[str(option.name)] = where
    ctx.default_map = values
    ctx.meta[PLACES] = places


def _value(option: click.Option, where: str, value: Any) -> Any:
    """Turn what TOML has into what the option's type reads.

    Raises:
        ConfigError: it is of another kind.
    """
    if option.is_flag:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false, not {value!r}")
        return value
    if option.multiple:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a table, as in [{_name(option)}], not {value!r}")
        return [f"{key}={_text(f'{where}.{key}', one)}" for key, one in value.items()]
    return _text(where, value)


def _text(where: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{where} must be a text or a number, not {value!r}")
    return str(value)
