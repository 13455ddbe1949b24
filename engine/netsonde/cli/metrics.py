"""`netsonde metrics`: what agents measured of themselves last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import examples, json_options, operator_options
from netsonde.cli.output import printable, write_table_or_json

EPILOG = examples(
    "netsonde metrics",
    "netsonde metrics netsonde_agent_spool_results",
    "netsonde metrics --agent ams1 --json",
)


@click.command(epilog=EPILOG)
@click.argument("name", required=False)
@click.option("--agent", metavar="ID|HOSTNAME", help="Of this agent only.")
@operator_options
@json_options
def metrics(
    name: str | None, agent: str | None, server_url: str, token_file: Path | None, as_json: bool
) -> int:
    """Show what agents counted of themselves last; NAME is one metric.

    Histograms are shown as how many values there were, and their mean.
    """
    found = operate(server_url, token_file, lambda client: client.metrics(name, agent))
    headings = ("AGENT", "NAME", "LABELS", "VALUE", "UNIT", "AT")
    write_table_or_json(found, as_json, headings, [_row(series) for series in found])
    return Exit.OK


def _row(series: Mapping[str, Any]) -> list[str]:
    labels = series.get("labels") or {}
    return [
        str(series.get("agent_id")),
        printable(series.get("name") or "-"),
        " ".join(f"{printable(key)}={printable(value)}" for key, value in labels.items()) or "-",
        _value(series),
        printable(series.get("unit") or "-"),
        printable(series.get("at") or "-"),
    ]


def _value(series: Mapping[str, Any]) -> str:
    value, count, total = (series.get(name) for name in ("value", "count", "sum"))
    if isinstance(value, int | float):
        return f"{value:.15g}"
    if isinstance(count, int) and isinstance(total, int | float):
        return f"{count}, mean {total / count:.3g}" if count else "0"
    return "-"
