"""The live table of `netsonde up`: one row per check and target, redrawn as results come."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from netsonde.cli.output import COLOURS
from netsonde.cli.render import headline, latency_ms, milliseconds

ROWS_MAX = 200  # more never fits a screen; the newest targets are left out

Result = Mapping[str, Any]


@dataclass(slots=True)
class Row:
    """What is known of one kind and target so far."""

    kind: str
    target: str
    outcome: str = "-"
    latency_ms: float | None = None
    count: int = 0
    failed: int = 0
    text: str = ""


class Board:
    """Counts results per kind and target."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}

    @property
    def rows(self) -> Sequence[Row]:
        """The rows, in the order their first results came; another thread may ask."""
        return tuple(self._rows.values())

    def add(self, result: Result) -> None:
        """Count a result; it becomes its row's last one."""
        line = headline(result)
        key = (line.kind, line.target)
        if key not in self._rows and len(self._rows) >= ROWS_MAX:
            return
        row = self._rows.setdefault(key, Row(line.kind, line.target))
        row.outcome, row.text = line.outcome, line.text
        row.latency_ms = latency_ms(result)
        row.count += 1
        row.failed += line.outcome != "ok"

    def table(self) -> Table:
        """Draw the rows."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("KIND", no_wrap=True)
        table.add_column("TARGET")  # gives way, with SEEN, where the terminal is narrow
        table.add_column("LAST", no_wrap=True)
        for heading in ("RTT", "COUNT", "FAILED"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("SEEN")
        for row in self.rows:
            table.add_row(
                row.kind,
                _one_line(row.target),
                Text(row.outcome, style=COLOURS.get(row.outcome, "")),
                milliseconds(row.latency_ms),
                str(row.count),
                str(row.failed),
                _one_line(row.text),
            )
        return table


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")
