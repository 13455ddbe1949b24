"""`scripts/dev.py api`: put every call of docs/openapi.json to a control plane, right and wrong.

The two listeners' halves run beside each other, each with a control plane of its own. Quotas are a
thousand times what they are, and streams are left to tests of their own.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path

from support.api_trial.exceptions import EXCEPTIONS
from support.api_trial.half import LISTENERS, Half, TrialError

FULL_REQUESTS = 20_000
QUICK_SEED = 20
OK, FOUND, FAILED, STOPPED = 0, 1, 2, 130
TOLD_EVERY_S = 30.0
SHOWN_EVERY_S = 0.5


def parser() -> argparse.ArgumentParser:
    """Make the parser; it ends wrong arguments with status 2."""
    made = argparse.ArgumentParser(
        prog="dev.py api",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--requests", type=_positive, default=FULL_REQUESTS, metavar="N",
                      help=f"how many requests, at least ({FULL_REQUESTS})")  # fmt: skip
    made.add_argument("--quick", action="store_true",
                      help="examples, edges and little more, with a fixed seed")  # fmt: skip
    made.add_argument("--seed", type=_positive, metavar="S", help="what draws the requests")
    made.add_argument("--only", choices=LISTENERS, help="one of the two APIs")
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise ValueError(text)
    return value


def main(arguments: Sequence[str]) -> int:
    """Run the trial; return 1 when it found something, 2 when there was none."""
    chosen = parser().parse_args(arguments)
    seed = chosen.seed or (QUICK_SEED if chosen.quick else time.time_ns() % 2**31)
    listeners = [chosen.only] if chosen.only else [*LISTENERS]
    wanted = 1 if chosen.quick else -(-chosen.requests // len(listeners))
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        halves = []
        for listener in listeners:
            (own := Path(directory) / listener).mkdir()
            halves.append(Half(listener, own, seed, is_quick=chosen.quick))
        try:
            _run(halves, wanted)
        except TrialError as error:
            print(f"dev.py api: {error}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            return STOPPED
        return told(halves, seed, time.monotonic() - started_s)


def _run(halves: Sequence[Half], wanted: int) -> None:
    """Run the halves beside each other, and show how far they are."""
    with ThreadPoolExecutor(len(halves)) as pool:
        running = {pool.submit(half.run, wanted) for half in halves}
        told: set[str] = set()
        told_s = time.monotonic()
        waiting: set[Future[None]] = running
        while waiting:
            _, waiting = wait_for(waiting, SHOWN_EVERY_S)
            for half in halves:
                _tell_findings(half, told)
            if sys.stderr.isatty():
                print(f"\r{_counts(halves)}", end="" if waiting else "\n", file=sys.stderr)
            elif time.monotonic() - told_s >= TOLD_EVERY_S:
                told_s = time.monotonic()
                print(_counts(halves), file=sys.stderr, flush=True)
        for one in running:
            one.result()


def _tell_findings(half: Half, told: set[str]) -> None:
    """Print what is new of a half's findings."""
    for finding in half.findings:
        if finding not in told:
            told.add(finding)
            print(f"\n== {half.listener}\n{finding}", flush=True)


def _counts(halves: Sequence[Half]) -> str:
    counts = (f"{half.listener} {half.requests} requests" for half in halves)
    return f"api: {', '.join(counts)}"


def told(halves: Sequence[Half], seed: int, took_s: float) -> int:
    """Say what was asked, what was excepted and what was found."""
    operations = {operation for half in halves for operation in half.operations()}
    print("excepted, beside streams and quotas:")
    for one in EXCEPTIONS:
        if operations.intersection(one.operations):
            print(f"  {one}")
    for half in halves:
        count, rounds = len(half.operations()), half.rounds
        print(f"{half.listener}: {half.requests} requests of {count} calls in {rounds} rounds")
    made = sum(half.requests for half in halves)
    is_found = any(half.findings for half in halves)
    verdict = "findings: see above" if is_found else "no finding"
    print(f"api: {made} requests in {took_s:.0f} s, seed {seed}: {verdict}")
    return FOUND if is_found else OK
