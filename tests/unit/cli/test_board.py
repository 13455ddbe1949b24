"""The live table's counting."""

from typing import Any

from rich.console import Console

from netsonde.cli.board import ROWS_MAX, Board


def result(outcome: str, host: str = "127.0.0.1", rtt_ms: float | None = 0.5) -> dict[str, Any]:
    return {
        "kind": "ping",
        "spec": {"kind": "ping", "host": host},
        "outcome": outcome,
        "observations": [
            {
                "name": "ping_summary",
                "value": {"sent": 4, "received": 4, "loss_pct": 0, "avg_rtt_ms": rtt_ms},
            }
        ],
    }


def test_a_row_counts_its_results_and_shows_the_last() -> None:
    board = Board()
    for outcome, rtt_ms in (("ok", 1.0), ("target_error", None), ("ok", 3.0)):
        board.add(result(outcome, rtt_ms=rtt_ms))
    board.add(result("ok", host="::1"))
    first, second = board.rows
    assert (first.count, first.failed, first.outcome, first.latency_ms) == (3, 1, "ok", 3.0)
    assert (second.target, second.count) == ("::1", 1)


def test_rows_are_bounded() -> None:
    board = Board()
    for number in range(ROWS_MAX + 10):
        board.add(result("ok", host=f"host{number}"))
    assert len(board.rows) == ROWS_MAX


def test_the_table_takes_text_literally() -> None:
    board = Board()
    board.add(result("ok", host="[bold]x[/bold]"))
    plain = Console(width=120, no_color=True)
    with plain.capture() as seen:
        plain.print(board.table())
    assert "[bold]x[/bold]" in seen.get()


def test_a_narrow_terminal_still_shows_the_counts() -> None:
    board = Board()
    board.add(result("target_error", host="a-rather-long-name." * 5))
    console = Console(width=80, no_color=True)
    with console.capture() as seen:
        console.print(board.table())
    heading, row = seen.get().splitlines()
    assert heading.split() == ["KIND", "TARGET", "LAST", "RTT", "COUNT", "FAILED", "SEEN"]
    assert row.startswith("ping")
    assert "target_error" in row
    assert "0.500 ms" in row
