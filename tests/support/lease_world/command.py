"""`scripts/dev.py worlds`: play worlds of leases by their seeds, as many as there is time for."""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from support.lease_world.faults import Fault
from support.lease_world.oracle import WrongError
from support.lease_world.record import (
    Played,
    Record,
    failpoints_hit,
    faults_of,
    left_of,
    summary,
    within,
)
from support.lease_world.world import simulate

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "build" / "worlds.jsonl"
OK, BROKEN, INTERRUPTED = 0, 1, 130
FAILPOINTS_HIT = 0.9
JUDGED_SEEDS = 100  # with fewer, a kind of fault may be missing by chance
TOLD_EVERY_S = 30.0


def parser() -> argparse.ArgumentParser:
    """Make the parser; it ends wrong arguments with status 2."""
    made = argparse.ArgumentParser(prog="dev.py worlds", description=__doc__)
    made.add_argument("seeds", type=seeds_of, nargs="?", default="2000", metavar="N|A-B",
                      help="so many seeds, or from one to another (2000)")  # fmt: skip
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J",
                      help="processes that play (as many as there are processors)")  # fmt: skip
    made.add_argument("--again", action="store_true",
                      help="play seeds that the record has, too")  # fmt: skip
    made.add_argument("--record", type=Path, default=RECORD, metavar="FILE",
                      help=f"what was played so far ({RECORD.relative_to(ROOT)})")  # fmt: skip
    return made


def seeds_of(text: str) -> range:
    """Read which seeds are asked for: so many, or from one to another."""
    first, dash, last = text.rpartition("-")
    seeds = range(int(first) if dash else 1, int(last) + 1)
    if not seeds:
        raise ValueError(text)
    return seeds


def main(arguments: Sequence[str]) -> int:
    """Play what the record does not have; return the exit status."""
    chosen = parser().parse_args(arguments)
    record, wanted = Record(chosen.record), chosen.seeds
    runs = left_of(wanted, () if chosen.again else record.read())
    total = sum(map(len, runs))
    if total < len(wanted):
        print(f"worlds: the record has {len(wanted) - total} of these seeds", file=sys.stderr)
    status = OK
    try:
        for done, played in _play(runs, max(chosen.jobs, 1)):
            record.add(played)
            for failure in played.failures:
                print(f"worlds: {failure}", flush=True)
            _tell(done, total)
    except KeyboardInterrupt:
        print("\nworlds: interrupted; the same command goes on", file=sys.stderr)
        status = INTERRUPTED
    judged = within(wanted, record.read())
    faults = faults_of(judged)
    print(", ".join(f"{faults[each]} {each}" for each in Fault))
    print(summary(wanted, judged))
    return status or _verdict(judged, faults)


def _verdict(judged: Sequence[Played], faults: Counter[str]) -> int:
    if any(one.failures for one in judged):
        return BROKEN
    seeds = sum(one.seeds for one in judged)
    if seeds >= JUDGED_SEEDS and failpoints_hit(faults) < FAILPOINTS_HIT * len(Fault):
        print("worlds: too few kinds of fault happened", file=sys.stderr)
        return BROKEN
    return OK


def _play(runs: Sequence[range], jobs: int) -> Iterator[tuple[int, Played]]:
    """Play runs of seeds in processes; give each as it ends, and how many seeds that makes."""
    commit = _commit()
    done = 0
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        waiting: list[Future[Played]] = [pool.submit(play, run, commit) for run in runs]
        try:
            for ended in as_completed(waiting):
                played = ended.result()
                done += played.seeds
                yield done, played
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def play(seeds: range, commit: str) -> Played:
    """Play worlds one after another."""
    faults: Counter[Fault] = Counter()
    tasks = grants = 0
    failures: list[str] = []
    begun_s = time.process_time()
    for seed in seeds:
        try:
            world = simulate(seed)
        except WrongError as error:
            failures.append(str(error))
            continue
        tasks, grants = tasks + world.tasks, grants + world.grants
        faults += world.faults
    return Played(
        first=seeds.start,
        last=seeds.stop - 1,
        commit=commit,
        tasks=tasks,
        grants=grants,
        faults={each.value: count for each, count in faults.items()},
        cpu_s=time.process_time() - begun_s,
        failures=tuple(failures),
    )


def _commit() -> str:
    """Name the code that plays."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--"], check=False)
    name = head.stdout.strip() or "unknown"
    return f"{name}+changes" if changed.returncode else name


class _Told:
    """When progress was last told."""

    at_s = 0.0


def _tell(done: int, total: int) -> None:
    """Show progress: in place on a terminal, else now and then."""
    if sys.stderr.isatty():
        print(f"\rworlds: {done} of {total}", end="\n" if done == total else "", file=sys.stderr)
    elif time.monotonic() - _Told.at_s >= TOLD_EVERY_S:
        _Told.at_s = time.monotonic()
        print(f"worlds: {done} of {total}", file=sys.stderr, flush=True)
