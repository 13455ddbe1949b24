"""`netsonde agents` and `netsonde queues`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from netsonde.cli.exits import Exit
from netsonde.cli.operate import operate
from netsonde.cli.options import json_options, operator_options
from netsonde.cli.output import printable, write_table, write_table_or_json, write_value


@click.command()
@operator_options
@json_options
def agents(server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Show the agents: who they are, when they were last heard of, what they are doing."""
    found = operate(server_url, token_file, lambda client: client.agents())
    headings = ("ID", "HOSTNAME", "STATE", "LAST SEEN", "RUNNING", "VERSION", "LABELS")
    write_table_or_json(found, as_json, headings, [_agent_row(agent) for agent in found])
    return Exit.OK


@click.command()
@operator_options
@json_options
def queues(server_url: str, token_file: Path | None, as_json: bool) -> int:
    """Show how much work waits, and what became of the work that nobody did."""
    answer = operate(server_url, token_file, lambda client: client.queues())
    if as_json:
        write_value(answer)
        return Exit.OK
    headings = ("QUEUE", "KIND", "READY", "DELAYED", "LEASED", "OLDEST")
    write_table(headings, [_queue_row(queue) for queue in answer.get("queues") or ()])
    counters = answer.get("counters") or {}
    write_table(
        ("COUNTER", "VALUE"), [(printable(name), str(value)) for name, value in counters.items()]
    )
    return Exit.OK


def _agent_row(agent: Mapping[str, Any]) -> list[str]:
    state = "disabled" if agent.get("disabled") else "enabled"
    labels = agent.get("labels") or {}
    running = agent.get("in_flight") or {}
    return [
        str(agent.get("agent_id")),
        printable(agent.get("hostname") or "-"),
        state,
        printable(agent.get("last_seen_at") or "never"),
        " ".join(f"{printable(kind)}:{count}" for kind, count in running.items() if count) or "-",
        printable(agent.get("version") or ("original" if agent.get("legacy") else "-")),
        printable(" ".join(f"{name}={value}" for name, value in labels.items()) or "-"),
    ]


def _queue_row(queue: Mapping[str, Any]) -> list[str]:
    oldest_ms = queue.get("oldest_ms")
    counts = [str(queue.get(name, 0)) for name in ("ready", "delayed", "leased")]
    oldest = "-" if oldest_ms is None else f"{oldest_ms / 1000:g} s"
    return [printable(queue.get("queue")), printable(queue.get("kind")), *counts, oldest]
