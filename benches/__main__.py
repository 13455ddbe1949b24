"""Run benches by name and hold them against their budgets.

usage: python -m benches [NAME …] [--quick] [--strict] [--json]

A name stands for several benches or is the module of one.

The table goes to standard output, progress to standard error. The exit status is 1 when a budget
is missed and, with --strict, when a rival is missing.
"""

import argparse
import gc
import json
import sys
import time

from benches.harness import (
    BENCHES,
    MissingRivalError,
    Row,
    Scale,
    UnableError,
    interleave,
    judge,
    load,
    say,
    table,
)


def run(name: str, scale: Scale) -> list[Row]:
    """Run one bench and return its rows."""
    begun = time.monotonic()
    say(f"{name}: preparing")
    bench = load(name, scale)
    able = {}
    for contestant, thing in bench.contestants.items():
        if isinstance(thing, MissingRivalError):
            say(f"{name}: no {contestant}: {thing}")
        else:
            able[contestant] = thing
    gc.collect()
    gc.disable()  # a collection in the middle of a rival's run would flatter us
    try:
        with bench.resources:
            figures = interleave(able, bench.runs or scale.runs, bench.once)
    finally:
        gc.enable()
    say(f"{name}: {time.monotonic() - begun:.0f} s")
    return judge(bench, figures, scale.slack)


def main() -> int:
    """Run the benches named, or all of them."""
    parser = argparse.ArgumentParser(prog="benches", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="fewer runs, 25 %% slack")
    parser.add_argument("--strict", action="store_true", help="a missing rival fails")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    chosen = parser.parse_args()
    modules = {module: (module,) for several in BENCHES.values() for module in several}
    if unknown := sorted(set(chosen.names) - set(BENCHES) - set(modules)):
        parser.error(f"no bench {', '.join(unknown)}: there are {', '.join(BENCHES)}")
    scale = Scale.QUICK if chosen.quick else Scale.FULL
    named = [(BENCHES | modules)[name] for name in chosen.names or BENCHES]
    wanted = dict.fromkeys(module for several in named for module in several)
    try:
        rows = [row for module in wanted for row in run(module, scale)]
    except UnableError as error:
        parser.exit(2, f"benches: {error}\n")
    print(json.dumps([row.as_dict() for row in rows], indent=1) if chosen.json else table(rows))
    if missed := [row for row in rows if row.met is False]:
        say(f"{len(missed)} of {len(rows)} budgets missed")
    return int(bool(missed) or (chosen.strict and any(row.met is None for row in rows)))


if __name__ == "__main__":
    sys.exit(main())
