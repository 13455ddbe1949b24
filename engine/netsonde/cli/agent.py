"""`netsonde agent run`: the measuring agent."""

from pathlib import Path
from typing import Any

import click

from netsonde.agent import Agent, AgentConfig
from netsonde.agent.settings import CHECKS, DEFAULT_CAPACITIES, LOG_LEVELS
from netsonde.cli.exits import Exit
from netsonde.cli.fleet import agents
from netsonde.cli.logs import configure
from netsonde.cli.loop import draining, run
from netsonde.cli.options import DURATION, NUMBER, split_pair
from netsonde.cli.state import AGENT_DIR, default_state_dir, usable_dir
from netsonde.cli.tls import client_options

EPILOG = """\b
Examples:
  netsonde agent run --control-plane https://control.example.net
  netsonde agent run --config /etc/netsonde/agent.toml --log-json
  netsonde agent list
  netsonde agent drain ams1
"""
CAPACITIES = ", ".join(f"{kind} {slots}" for kind, slots in DEFAULT_CAPACITIES.items())
OPTIONS = (
    "control_plane", "state_dir", "hostname", "labels", "capacities", "targets", "deny",
    "enrolment_token_file", "ca_file", "client_cert_file", "client_key_file", "drain_timeout_s",
    "metrics_listen", "log_level", "log_json",
)  # fmt: skip
RUN_EPILOG = f"""In the file and the environment only (docs/operations.md has units and defaults):
{", ".join(name for name in CHECKS if name not in OPTIONS)}.

\b
Exit codes:
  0    drained
  2    a setting is wrong
  3    the state directory or the spool is unusable, or another agent has it
  130  a second signal
"""


@click.group(epilog=EPILOG)
def agent() -> None:
    """Run a measuring agent; the other commands are those of `netsonde agents`.

    An agent asks a control plane for work, measures and reports. Who operates a control plane may
    list, show, drain and revoke its agents.
    """


for each in agents.commands.values():
    agent.add_command(each)


@agent.command("run", epilog=RUN_EPILOG)
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="TOML file with its settings."
)
@click.option("--control-plane", metavar="URL", help="Where the control plane is.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Credentials and spool: /var/lib/netsonde/agent, a user's own below $XDG_STATE_HOME.",
)
@click.option("--hostname", help="What to call this agent (as this host is).")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Label of this agent.")
@click.option(
    "--capacity",
    "capacities",
    multiple=True,
    metavar="KIND=N",
    help=f"How many of a kind at once, 0 to leave it to others ({CAPACITIES}); repeatable.",
)
@click.option(
    "--targets",
    multiple=True,
    metavar="public|private|PREFIX",
    help="What it may measure (public); repeatable.",
)
@click.option(
    "--deny", multiple=True, metavar="PREFIX", help="What it may not (nothing more); repeatable."
)
@click.option(
    "--enrolment-token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Token to enrol with, where the control plane is not on loopback; read when needed.",
)
@client_options
@click.option(
    "--drain-timeout",
    type=DURATION,
    help="How long running probes may take at the end, 0 to 1h (20s).",
)
@click.option(
    "--metrics-listen",
    metavar="HOST:PORT",
    help="Where Prometheus may scrape it; :PORT is loopback, nothing is off.",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="Log from this level on (info).")
@click.option("--log-json", is_flag=True, default=None, help="Log JSON lines instead of text.")
def run_agent(config_file: Path | None, **options: Any) -> int:
    """Run the agent until SIGTERM or Ctrl-C; then it finishes and reports what it measures.

    Settings come from the file, the environment (NETSONDE_<SETTING>) and these options; the
    later one wins.
    """
    config = AgentConfig.load(
        config_file,
        defaults={"state_dir": default_state_dir() / AGENT_DIR},
        **_overrides(options),
    )
    configure(config.log_level, config.log_json)
    usable_dir(config.state_dir)
    run(_run_until_stopped(config))
    return Exit.OK


async def _run_until_stopped(config: AgentConfig) -> None:
    made = Agent(config)
    with draining(made.drain):
        await made.run()


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Turn options into settings; None is what was not given."""
    labels = dict(split_pair("--label", text) for text in options.pop("labels"))
    pairs = dict(split_pair("--capacity", text) for text in options.pop("capacities"))
    capacities = {kind: NUMBER.convert(text, None, None) for kind, text in pairs.items()}
    drain_ms = options.pop("drain_timeout")
    return options | {
        "labels": labels or None,
        "capacities": capacities or None,
        "targets": options["targets"] or None,
        "deny": options["deny"] or None,
        "drain_timeout_s": None if drain_ms is None else drain_ms / 1000,
    }
