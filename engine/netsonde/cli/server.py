"""`netsonde server run`: the control plane."""

import asyncio
from pathlib import Path

import click

from netsonde.cli.exits import Exit
from netsonde.cli.logs import log_options
from netsonde.cli.loop import draining, run
from netsonde.cli.options import read_token
from netsonde.cli.output import warn
from netsonde.cli.state import DATABASE, default_state_dir, usable_dir
from netsonde.server import ServerConfig, serve


@click.group()
def server() -> None:
    """Run a control plane: it keeps checks and results, and hands work to agents."""


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
    help="Token that agents present; needed off loopback.",
)
@click.option(
    "--operator-token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Token that operators present; needed off loopback.",
)
@log_options()
def run_server(
    listen: str,
    operator_listen: str,
    state_dir: Path | None,
    memory: bool,
    enrolment_token_file: Path | None,
    operator_token_file: Path | None,
) -> int:
    """Run the control plane until SIGTERM or Ctrl-C."""
    database = None if memory else usable_dir(state_dir or default_state_dir()) / DATABASE
    config = ServerConfig(
        listen=listen,
        operator_listen=operator_listen,
        database=database,
        enrolment_token=read_token(enrolment_token_file),
        operator_token_file=operator_token_file,
    )
    run(_serve_until_stopped(config))
    return Exit.OK


async def _serve_until_stopped(config: ServerConfig) -> None:
    stopped = asyncio.Event()
    with draining(stopped.set):
        async with serve(config) as running:
            warn(f"agents reach this control plane at {running.agent_url}")
            warn(f"operators reach it at {running.operator_url} (netsonde agents --server URL)")
            await stopped.wait()
