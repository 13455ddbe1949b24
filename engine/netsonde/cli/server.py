"""`netsonde server`: the control plane, and copies of its database."""

import asyncio
import resource
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from netsonde.cli.copies import backup_server, restore_server
from netsonde.cli.exits import Exit
from netsonde.cli.logs import log_options
from netsonde.cli.loop import draining, run
from netsonde.cli.options import DURATION, LISTED, read_token, split_pair
from netsonde.cli.output import warn
from netsonde.cli.server_settings import (
    SECTIONS,
    SettingsCommand,
    agent_options,
    bounded_option,
    config_option,
    lease_options,
    shutdown_option,
)
from netsonde.cli.state import DATABASE, default_state_dir, usable_dir
from netsonde.cli.tls import read_tls, tls_options
from netsonde.collector import patient_collector
from netsonde.errors import ConfigError
from netsonde.listening.door import DESCRIPTORS_SPARE
from netsonde.model import TaskKind
from netsonde.server import ServerConfig, serve
from netsonde.server.config import DEFAULT_TERMS_MS, TERM_MAX_MS, TERM_MIN_MS

EPILOG = (
    "Example: netsonde server run --listen 0.0.0.0:8080 --state-dir /srv/netsonde --term ping=2m"
)


@click.group()
def server() -> None:
    """Run a control plane: it keeps checks and results, and hands work to agents."""


server.add_command(backup_server)
server.add_command(restore_server)


@server.command("run", cls=SettingsCommand, sections=SECTIONS, epilog=EPILOG)
@config_option
@click.option(
    "--listen",
    default=ServerConfig.listen,
    show_default=True,
    metavar="HOST:PORT",
    help="Where agents reach it; port 0 lets the kernel choose.",
)
@click.option(
    "--operator-listen",
    default=ServerConfig.operator_listen,
    show_default=True,
    metavar="HOST:PORT",
    help="Where operators reach it.",
)
@click.option("--state-dir", type=click.Path(path_type=Path), help="Where the database is kept.")
@click.option("--memory", is_flag=True, help="Keep everything in memory instead.")
@click.option(
    "--enrolment-token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Token that any number of new agents may present; `netsonde token` makes better ones.",
)
@click.option(
    "--operator-token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Token that operators present; needed off loopback.",
)
@tls_options("", "--listen")
@tls_options("operator-", "--operator-listen")
@bounded_option("--connections-max", "connections_max", "Connections of each listener.")
@click.option(
    "--term",
    "terms",
    multiple=True,
    type=LISTED,
    metavar="KIND=DURATION",
    help="How long a lease of a kind lasts unless it is extended, as in ping=45s; repeatable.",
)
@lease_options
@bounded_option(
    "--standing-term",
    "standing_term_ms",
    "How long the lease of a check that repeats lasts unless it is extended.",
)
@bounded_option(
    "--offline",
    "offline_ms",
    "How long past that an agent goes on that cannot reach this control plane.",
)
@agent_options
@bounded_option("--keep-audit", "audit_ms", "How long the log of operators' calls is kept.")
@bounded_option("--retain-results", "retain_results_ms", "How long results are kept.")
@bounded_option(
    "--retain-dead-letters",
    "retain_dead_letters_ms",
    "How long tasks that were given up are kept.",
)
@bounded_option(
    "--max-database",
    "max_database_bytes",
    "How much the database may hold, as in 20GiB: beyond that the oldest results go.",
)
@bounded_option(
    "--storage-reserve",
    "storage_reserve_bytes",
    "Free space below which no new work is given out, so that results find room.",
)
@shutdown_option
@log_options()
def run_server(
    state_dir: Path | None,
    memory: bool,
    enrolment_token_file: Path | None,
    terms: tuple[str, ...],
    max_lease_ms: int | None,
    shutdown_timeout_ms: int,
    **settings: Any,
) -> int:
    """Run the control plane until SIGTERM or Ctrl-C; SIGHUP reads renewed certificates at once.

    Settings come from the file of --config, the environment (NETSONDE_SERVER_ and the option's
    name, as in NETSONDE_SERVER_STANDING_TERM=1h) and these options; the later one wins.
    """
    terms_ms = read_terms(terms)
    tls = read_tls("", settings)
    operator_tls = read_tls("operator-", settings)
    database = None if memory else usable_dir(state_dir or default_state_dir()) / DATABASE
    config = ServerConfig(
        **settings,
        database=database,
        enrolment_token=read_token(enrolment_token_file),
        terms_ms=terms_ms,
        tls=tls,
        operator_tls=operator_tls,
        max_lease_ms=lease_bound(max_lease_ms, terms_ms),
        shutdown_timeout_s=shutdown_timeout_ms / 1000,
    )
    run(_serve_until_stopped(config))
    return Exit.OK


def raise_descriptor_limit(connections_max: int) -> None:
    """Let this process open a file for every connection, as far as its hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * connections_max + DESCRIPTORS_SPARE
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def lease_bound(given_ms: int | None, terms_ms: Mapping[TaskKind, int]) -> int:
    """Return how long a lease may last, extensions included: never less than it lasts without.

    Raises:
        ConfigError: less was asked for.
    """
    longest_ms = max(terms_ms.values())
    if given_ms is not None and given_ms < longest_ms:
        raise ConfigError(
            f"--max-lease must be {DURATION.text(longest_ms)}, the longest --term, or more,"
            f" not {DURATION.text(given_ms)}"
        )
    return max(ServerConfig.max_lease_ms, longest_ms) if given_ms is None else given_ms


def read_terms(given: Sequence[str]) -> Mapping[TaskKind, int]:
    """Read `KIND=DURATION` texts into the milliseconds of every kind.

    Raises:
        ConfigError: naming what was given and what is allowed.
    """
    named: dict[TaskKind, int] = {}
    for text in given:
        name, duration = split_pair("--term", text)
        kind = next((one for one in TaskKind if one == name), None)
        if kind is None:
            raise ConfigError(f"--term takes one of {', '.join(TaskKind)}, not {name!r}")
        if kind in named:
            raise ConfigError(f"--term names {name} twice")
        try:
            named[kind] = DURATION.convert(duration, None, None)
        except click.UsageError as error:
            raise ConfigError(f"--term {name}: {error.message}") from error
        if not TERM_MIN_MS <= named[kind] <= TERM_MAX_MS:
            raise ConfigError(
                f"--term {name} must be from {TERM_MIN_MS}ms to {TERM_MAX_MS // 3_600_000}h, "
                f"not {duration}"
            )
    return {**DEFAULT_TERMS_MS, **named}


@asynccontextmanager
async def reloading(reload: Callable[[], None]) -> AsyncIterator[None]:
    """Call reload on every SIGHUP."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _serve_until_stopped(config: ServerConfig) -> None:
    raise_descriptor_limit(config.connections_max)
    stopped = asyncio.Event()
    with draining(stopped.set):
        async with serve(config) as running, reloading(running.certificates.reload):
            warn(f"agents reach this control plane at {running.agent_url}")
            warn(f"operators reach it at {running.operator_url} (netsonde agents --server URL)")
            with patient_collector():
                await stopped.wait()
