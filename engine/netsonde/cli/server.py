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
from netsonde.cli.options import DURATION, SIZE, read_token, split_pair
from netsonde.cli.output import warn
from netsonde.cli.state import DATABASE, default_state_dir, usable_dir
from netsonde.cli.tls import read_tls, tls_options
from netsonde.errors import ConfigError
from netsonde.listening.door import DESCRIPTORS_SPARE
from netsonde.model import TaskKind
from netsonde.server import ServerConfig, serve
from netsonde.server.config import DEFAULT_TERMS_MS, TERM_MAX_MS, TERM_MIN_MS


@click.group()
def server() -> None:
    """Run a control plane: it keeps checks and results, and hands work to agents."""


server.add_command(backup_server)
server.add_command(restore_server)


@server.command("run")
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
@click.option(
    "--connections-max",
    type=click.IntRange(1, 1_000_000),
    default=ServerConfig.connections_max,
    show_default=True,
    help="How many connections each listener takes.",
)
@click.option(
    "--term",
    "terms",
    multiple=True,
    metavar="KIND=DURATION",
    help="How long a lease of a kind lasts unless it is extended, as in ping=45s; repeatable.",
)
@click.option(
    "--standing-term",
    "standing_term_ms",
    type=DURATION,
    default="1h",
    show_default=True,
    help="How long the lease of a check that repeats lasts unless it is extended.",
)
@click.option(
    "--offline",
    "offline_ms",
    type=DURATION,
    default="24h",
    show_default=True,
    help="How long past that an agent goes on that cannot reach this control plane.",
)
@click.option(
    "--keep-audit",
    "audit_ms",
    type=DURATION,
    default="366d",
    show_default=True,
    help="How long the log of operators' calls is kept.",
)
@click.option(
    "--retain-results",
    "retain_results_ms",
    type=DURATION,
    default="30d",
    show_default=True,
    help="How long results are kept; 0 keeps them for ever.",
)
@click.option(
    "--retain-dead-letters",
    "retain_dead_letters_ms",
    type=DURATION,
    default="30d",
    show_default=True,
    help="How long tasks that were given up are kept; 0 keeps them for ever.",
)
@click.option(
    "--max-database",
    "max_database_bytes",
    type=SIZE,
    default="0",
    show_default="no bound",
    help="How much the database may hold, as in 20GiB: beyond that the oldest results go.",
)
@click.option(
    "--storage-reserve",
    "storage_reserve_bytes",
    type=SIZE,
    default="64MiB",
    show_default=True,
    help="Free space below which no new work is given out, so that results find room.",
)
@log_options()
def run_server(
    state_dir: Path | None,
    memory: bool,
    enrolment_token_file: Path | None,
    terms: tuple[str, ...],
    **settings: Any,
) -> int:
    """Run the control plane until SIGTERM or Ctrl-C; SIGHUP reads renewed certificates at once."""
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
        max_lease_ms=max(ServerConfig.max_lease_ms, *terms_ms.values()),
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
            await stopped.wait()
