"""`netsonde audit`: who changed what."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import Listing, examples, json_options, operator_options
from netsonde.cli.output import printable, write_table_or_json

PAGE_MAX = 1000  # the server's own limit

EPILOG = examples(
    "netsonde audit",
    "netsonde audit --token ci --from 2026-01-31T00:00:00Z --limit 500",
)


@click.command(cls=Listing, epilog=EPILOG)
@click.option("--token", metavar="NAME", help="Only what this token did.")
@click.option("--from", "from_", metavar="RFC3339", help="At or after this instant.")
@click.option("--to", metavar="RFC3339", help="Before this instant.")
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
def audit(
    limit: int, server_url: str, token_file: Path | None, as_json: bool, **filters: Any
) -> int:
    """Show the operators' calls that changed something, or were refused; oldest first."""
    query = {name.removesuffix("_"): value for name, value in filters.items()}
    page = operate(server_url, token_file, lambda client: client.audit({**query, "limit": limit}))
    calls = list(reversed(page.items))
    headings = ("AT", "TOKEN", "FROM", "CALL", "OBJECT", "OUTCOME")
    write_table_or_json(calls, as_json, headings, [_row(call) for call in calls])
    return Exit.OK


def _row(call: Mapping[str, Any]) -> list[str]:
    token_id = call.get("token_id")
    return [
        f"{printable(call.get('at'))[:19].replace('T', ' ')}Z",
        printable(call.get("token")) + (f" ({token_id})" if token_id is not None else ""),
        printable(call.get("remote") or "-"),
        printable(call.get("call")),
        printable(call.get("object")),
        printable(call.get("error") or call.get("status")),
    ]
