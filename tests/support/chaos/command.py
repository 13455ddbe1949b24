"""`scripts/dev.py chaos`: run, take up again, judge."""

import argparse
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

import uvloop

from support.chaos.checker import judge, summary
from support.chaos.evidence import Session, load, read_events
from support.chaos.kills import Kills, judge_kills
from support.chaos.processes import TESTS, now_ns
from support.chaos.rig import Rig
from support.chaos.settings import Settings
from support.chaos.stage import DATABASE, StageError, boot_id

RUNS = TESTS.parent / "build" / "chaos"
FULL = {"leases": 1_000_000, "faults": 10_000, "agents": 6, "epoch_faults": 250}
QUICK = {"leases": 30_000, "faults": 300, "seed": 20, "agents": 4, "epoch_faults": 100}
PLANTS = (
    "forged-acknowledgement",
    "row-removed",
    "row-doubled",
    "forged-metrics",
    "stranger-trusted",
)
OK, BROKEN, INTERRUPTED = 0, 1, 130


def parser() -> argparse.ArgumentParser:
    """Make the parser; it ends wrong arguments with status 2."""
    made = argparse.ArgumentParser(prog="dev.py chaos", description=__doc__)
    made.add_argument("scene", nargs="?", choices=("storm", "kills"), default="storm",
                      help="every fault (storm), or kills of agents that report")  # fmt: skip
    for name, check, letter, what in (
        ("leases", _positive, "N", "results to reach"),
        ("faults", _whole, "M", "faults to reach"),
        ("seed", _whole, "S", "what draws faults and service times; without one, the clock"),
        ("agents", _positive, "A", "how many agents"),
        ("epoch-faults", _positive, "F", "faults between two calms"),
    ):
        told = f"{what} ({FULL[name.replace('-', '_')]})" if name != "seed" else what
        made.add_argument(f"--{name}", type=check, metavar=letter, help=told)
    made.add_argument("--quick", action="store_true", help="two minutes with a fixed seed")
    made.add_argument("--resume", type=Path, metavar="DIR", help="take up an interrupted run")
    made.add_argument("--directory", type=Path, metavar="DIR", help="where logs and state go")
    made.add_argument("--times", type=_positive, default=1000, metavar="N",
                      help="kills, with `kills` (1000)")  # fmt: skip
    made.add_argument("--plant", choices=PLANTS, help="a bug that the checker must find")
    return made


def _whole(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 1_000_000_000:
        raise ValueError(text)
    return value


def _positive(text: str) -> int:
    value = _whole(text)
    if value == 0:
        raise ValueError(text)
    return value


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments ask; return the exit status."""
    chosen = parser().parse_args(arguments)
    directory, settings = _prepared(chosen)
    print(f"chaos: seed {settings.seed}, in {directory}", file=sys.stderr, flush=True)
    is_kills = settings.times > 0
    rig = Kills(settings, directory) if is_kills else Rig(settings, directory)
    try:
        bad = uvloop.run(rig.run())
        _doctor(directory / DATABASE, settings.plant)
        return _judged_kills(directory, bad) if is_kills else _judged(settings, directory, bad)
    except KeyboardInterrupt:
        way_on = "" if is_kills else f"; --resume {directory} goes on"
        print(f"chaos: interrupted{way_on}", file=sys.stderr)
        return INTERRUPTED
    except StageError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return BROKEN


def _prepared(chosen: argparse.Namespace) -> tuple[Path, Settings]:
    """Find the run to take up, or begin one."""
    named = chosen.resume or chosen.directory or RUNS / f"{datetime.now():%Y%m%d-%H%M%S}"
    directory: Path = named.resolve()
    known = Settings.load(directory)
    if known is not None:
        _check_resumable(directory, known, chosen)
        return directory, known
    if chosen.resume is not None:
        parser().error(f"{directory} holds no run to resume")
    directory.mkdir(parents=True, exist_ok=True)
    asked = {"seed": now_ns() % 1_000_000, **(QUICK if chosen.quick else FULL)}
    given = {name: getattr(chosen, name) for name in asked}
    asked |= {name: value for name, value in given.items() if value is not None}
    times = chosen.times if chosen.scene == "kills" else 0
    settings = Settings.new(**asked, times=times, plant=chosen.plant)
    settings.save(directory)
    return directory, settings


def _check_resumable(directory: Path, known: Settings, chosen: argparse.Namespace) -> None:
    """End with status 2 where a run cannot be taken up."""
    if known.times or chosen.scene == "kills":
        parser().error(f"{directory} holds a run already, and kills begin from nothing")
    sessions = [one for one in read_events(directory) if isinstance(one, Session)]
    if any(one.boot_id != boot_id() for one in sessions):
        parser().error(f"{directory} is of an earlier boot of this machine: instants differ")


def _doctor(database: Path, plant: str | None) -> None:
    """Plant a bug in the database that the server left."""
    statements = {
        "row-removed": "DELETE FROM result WHERE result_id = (SELECT min(result_id) FROM result)",
        "row-doubled": "INSERT INTO result SELECT NULL, 1, task_id, agent_id, check_id, kind,"
        " outcome, attempt, is_final, received_ns, scheduled_ns, spec_id, body FROM result LIMIT 1",
    }
    if plant in statements:
        with closing(sqlite3.connect(database)) as connection:
            connection.execute(statements[plant])
            connection.commit()


def _judged(settings: Settings, directory: Path, bad: Sequence[str]) -> int:
    """Judge a run that has ended, say so, and return the exit status."""
    print("chaos: judging", file=sys.stderr, flush=True)
    verdict = judge(load(directory, directory / DATABASE))
    sessions = [one for one in read_events(directory) if isinstance(one, Session)]
    missing = verdict.missing(settings.leases, settings.faults)
    for line in (*verdict.report(), *bad, *missing):
        print(f"chaos: {line}", file=sys.stderr)
    seconds = (now_ns() - sessions[0].at) / 1e9
    tested = sessions[-1].commit
    print(summary(verdict, seed=settings.seed, seconds=seconds, commit=tested), flush=True)
    return OK if verdict.holds and not bad and not missing else BROKEN


def _judged_kills(directory: Path, bad: Sequence[str]) -> int:
    """Judge kills by what they are for, and by every invariant beside."""
    evidence = load(directory, directory / DATABASE)
    killed, verdict = judge_kills(evidence), judge(evidence)
    for line in (*verdict.report(), *bad):
        print(f"chaos kills: {line}", file=sys.stderr)
    begun = next(one for one in evidence.events if isinstance(one, Session))
    print(killed.summary((now_ns() - begun.at) / 1e9, begun.commit), flush=True)
    return OK if killed.holds and verdict.holds and not bad else BROKEN
