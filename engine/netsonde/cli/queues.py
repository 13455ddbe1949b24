"""`netsonde queues`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import Listing, examples, json_options, operator_options
from netsonde.cli.output import printable, write_table, write_value

EPILOG = examples(
    "netsonde queues",
    "netsonde queues --json",
)


@click.command(cls=Listing, epilog=EPILOG)
@operator_options
@json_options
def queues(server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Show how much work waits, and what became of the work that nobody did."""
    answer = operate(server_url, token_file, lambda client: client.queues())
    if as_json:
        write_value(answer)
        return Exit.OK
    rows = [_row(queue, queue.get("queue")) for queue in answer.get("queues") or ()]
    totals = [total for total in answer.get("totals") or () if total.get("queues", 0) > 1]
    rows += [_row(total, "all") for total in totals]
    write_table(("QUEUE", "KIND", "READY", "DELAYED", "LEASED", "OLDEST"), rows)
    counters = dict(answer.get("counters") or {})
    if answer.get("dead_letters"):
        counters["dead letters now"] = answer["dead_letters"]
    if counters:
        write_table(
            ("COUNTER", "VALUE"),
            [(printable(name), str(value)) for name, value in counters.items()],
        )
    return Exit.OK


def _row(queue: Mapping[str, Any], name: Any) -> list[str]:
    oldest_ms = queue.get("oldest_ms")
    counts = [str(queue.get(field, 0)) for field in ("ready", "delayed", "leased")]
    oldest = "-" if oldest_ms is None else f"{oldest_ms / 1000:g} s"
    return [printable(name), printable(queue.get("kind")), *counts, oldest]
