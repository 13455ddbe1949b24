"""`netsonde results`: what was measured, now or as it comes."""

from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

import click

from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import Listing, examples, json_options, operator_options
from netsonde.cli.output import printable, warn, write_text, write_value
from netsonde.cli.render import headline_text
from netsonde.clock import SystemClock
from netsonde.control_plane.following import Outage, Resumed
from netsonde.control_plane.operator import OperatorClient
from netsonde.model import Outcome, TaskKind

PAGE_MAX = 1000  # the server's own limit

EPILOG = examples(
    "netsonde results",
    "netsonde results --check 7 --outcome target_error --limit 20",
    "netsonde results --agent ams1 --from 2026-01-31T00:00:00Z --json",
    "netsonde results --follow --json | loader",
)


@click.command(cls=Listing, epilog=EPILOG)
@click.option("--follow", "-f", is_flag=True, help="Go on with results as they come.")
@click.option("--check", "check_id", type=click.IntRange(min=1), help="Only this check's.")
@click.option("--task", "task_id", type=click.IntRange(min=1), help="Only this one-off task's.")
@click.option("--agent", metavar="ID|HOSTNAME", help="Only this agent's.")
@click.option(
    "--kind", type=click.Choice([kind.value for kind in TaskKind]), help="Only this kind."
)
@click.option(
    "--outcome",
    type=click.Choice([outcome.value for outcome in Outcome]),
    help="Only this outcome.",
)
@click.option("--from", "from_", metavar="RFC3339", help="Accepted at or after this instant.")
@click.option("--to", metavar="RFC3339", help="Accepted before this instant.")
@click.option(
    "--limit",
    "-n",
    type=click.IntRange(1, PAGE_MAX),
    default=100,
    show_default=True,
    help="The newest so many.",
)
@operator_options
@json_options
def results(
    follow: bool,
    limit: int,
    server_url: str,
    token_file: Path | None,
    as_json: bool,
    **filters: Any,
) -> int:
    """Show the newest results, oldest first; Ctrl-C ends --follow."""
    query = {name.removesuffix("_"): value for name, value in filters.items()}

    async def work(client: OperatorClient) -> None:
        newest = await client.results({**query, "order": "desc", "limit": limit})
        if follow:
            # The cursor stands at the oldest of these; from there on nothing is missed.
            for result in newest.items[-1:]:
                write_result(result, as_json)
            await _follow(client, {**query, "cursor": newest.cursor}, as_json)
        for result in reversed(newest.items):
            write_result(result, as_json)

    operate(server_url, token_file, work)
    return Exit.OK


async def _follow(client: OperatorClient, query: Mapping[str, Any], as_json: bool) -> None:
    rng = Random()  # noqa: S311 (jitter)
    async with aclosing(client.follow(query, clock=SystemClock(), rng=rng)) as items:
        async for item in items:
            if isinstance(item, dict):
                write_result(item, as_json)
            else:
                tell_outage(item)


def tell_outage(event: Outage | Resumed) -> None:
    """Say on standard error that results stay away, or come again."""
    if isinstance(event, Outage):
        warn(f"{event.error}; trying again")
        return
    again = f"results go on after {event.after_ms / 1000:.1f} s"
    if event.is_anew:
        warn(f"{again}, from the earliest that are kept: some may be missing, or come twice")
    else:
        warn(f"{again}; none was missed")


def write_result(result: Mapping[str, Any], as_json: bool) -> None:
    """Write one result as its JSON or as a line for people."""
    if as_json:
        write_value(result)
        return
    when = printable(result.get("started_at") or "-")[:19].replace("T", " ")
    agent = printable(result.get("agent_id") or "-")
    write_text(f"{when}  agent {agent:<3}  {headline_text(result)}")
