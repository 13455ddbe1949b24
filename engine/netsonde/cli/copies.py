"""`netsonde server backup` and `netsonde server restore`."""

from pathlib import Path
from typing import Any

import click

from netsonde.cli.exits import Exit
from netsonde.cli.options import json_options
from netsonde.cli.output import Progress, printable, write_text, write_value
from netsonde.cli.state import DATABASE, default_state_dir
from netsonde.clock import SystemClock, rfc3339
from netsonde.server.store.copies import Copy, Watch, back_up, restore

STATE_DIR = click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    envvar="NETSONDE_SERVER_STATE_DIR",
    show_envvar=True,
    help="Where the database is kept.",
)


@click.command("backup")
@click.argument("target", type=click.Path(path_type=Path))
@STATE_DIR
@click.option("--force", is_flag=True, help="Replace TARGET if it exists.")
@json_options
def backup_server(target: Path, state_dir: Path | None, force: bool, as_json: bool) -> int:
    """Copy the database to the file TARGET, while the control plane runs.

    Every result that was acknowledged before is in the copy, which is verified.
    """
    database = (state_dir or default_state_dir()) / DATABASE
    with _Shown("copied") as watch:
        copy = back_up(database, target, watch, may_replace=force)
    _write({"backup": str(target), **_facts(copy)}, as_json, f"backed up to {target}: ")
    return Exit.OK


@click.command("restore")
@click.argument("backup", type=click.Path(path_type=Path))
@STATE_DIR
@json_options
def restore_server(backup: Path, state_dir: Path | None, as_json: bool) -> int:
    """Put the copy BACKUP in the place of the database, while no control plane runs.

    The database that was there is kept beside it.
    """
    database = (state_dir or default_state_dir()) / DATABASE
    with _Shown("restored") as watch:
        done = restore(backup, database, SystemClock().realtime_ns(), watch)
    aside = None if done.aside is None else str(done.aside)
    answer = {"database": str(database), **_facts(done.copy), "aside": aside}
    _write(answer, as_json, f"restored {database}: ")
    if aside is not None and not as_json:
        write_text(printable(f"the database that was there is now {aside}"))
    return Exit.OK


def _facts(copy: Copy) -> dict[str, Any]:
    return {
        "bytes": copy.size_bytes,
        "last_result_id": copy.last_result_id,
        "clock_at": rfc3339(copy.clock_ns) if copy.clock_ns else None,
    }


def _write(answer: dict[str, Any], as_json: bool, sentence: str) -> None:
    if as_json:
        write_value(answer)
        return
    size = f"{answer['bytes'] / (1 << 20):.1f} MiB"
    clock = f", clock at {answer['clock_at']}" if answer["clock_at"] else ""
    write_text(printable(f"{sentence}{size}, result ids to {answer['last_result_id']}{clock}"))


class _Shown:
    """A line about how far a copy is, for as long as it takes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._progress = Progress()

    def __enter__(self) -> Watch:
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.clear()

    def _show(self, done: int, total: int) -> None:
        share = 100 * done // max(total, 1)
        self._progress.show(f"{self._what} {share} % of {total} pages")
