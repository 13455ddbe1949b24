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
from support.chaos.stage import DATABASE, boot_id

RUNS = TESTS.parent / "build" / "chaos"
QUICK = {"leases": 30_000, "faults": 300, "seed": 20, "agents": 4, "epoch_faults": 100}
PLANTS = ("forged-acknowledgement", "row-removed", "row-doubled")
OK, BROKEN, INTERRUPTED = 0, 1, 130


def parser() -> argparse.ArgumentParser:
    """Make the parser; it ends wrong arguments with status 2."""
    made = argparse.ArgumentParser(prog="dev.py chaos", description=__doc__)
    made.add_argument("scene", nargs="?", choices=("storm", "kills"), default="storm",
                      help="every fault (storm), or kills of agents that report")  # fmt: skip
    made.add_argument("--leases", type=_positive, default=1_000_000, metavar="N")
    made.add_argument("--faults", type=_whole, default=10_000, metavar="M")
    made.add_argument("--seed", type=int, default=None, metavar="S")
    made.add_argument("--agents", type=_positive, default=6, metavar="A")
    made.add_argument("--epoch-faults", type=_positive, default=250, metavar="F",
                      help="faults between two calms (250)")  # fmt: skip
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
    is_kills = chosen.scene == "kills"
    rig = Kills(settings, directory, chosen.times) if is_kills else Rig(settings, directory)
    try:
        bad = uvloop.run(rig.run())
    except KeyboardInterrupt:
        print(f"chaos: interrupted; --resume {directory} goes on", file=sys.stderr)
        return INTERRUPTED
    _doctor(directory / DATABASE, settings.plant)
    return _judged_kills(directory, bad) if is_kills else _judged(settings, directory, bad)


def _prepared(chosen: argparse.Namespace) -> tuple[Path, Settings]:
    """Find the run to take up, or begin one."""
    directory = chosen.resume or chosen.directory or RUNS / f"{datetime.now():%Y%m%d-%H%M%S}"
    known = Settings.load(directory)
    if known is not None:
        sessions = [one for one in read_events(directory) if isinstance(one, Session)]
        if any(one.boot_id != boot_id() for one in sessions):
            parser().error(f"{directory} is of an earlier boot of this machine: instants differ")
        return directory, known
    if chosen.resume is not None:
        parser().error(f"{directory} holds no run to resume")
    directory.mkdir(parents=True, exist_ok=True)
    asked = {
        "leases": chosen.leases,
        "faults": chosen.faults,
        "seed": now_ns() % 1_000_000 if chosen.seed is None else chosen.seed,
        "agents": chosen.agents,
        "epoch_faults": chosen.epoch_faults,
    }
    settings = Settings.new(**(QUICK if chosen.quick else asked), plant=chosen.plant)
    settings.save(directory)
    return directory, settings


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
