"""Fuzz the native cores under AddressSanitizer and UBSan, with libFuzzer.

Exit status 1 on a finding, a planted bug that is missed, or cores that are covered too little.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fuzz import corpus, coverage
from fuzz.targets import PLANTS, TARGETS, Plant, Target
from fuzz.toolchain import BUILD, Toolchain, compile_harness, find_toolchain

QUICK_SECONDS = 3  # of each target
EXECUTED = re.compile(rb"stat::number_of_executed_units:\s*(\d+)")
REASON = re.compile(rb"^(broken invariant: .*|.*runtime error: .*|SUMMARY: .*)$", re.MULTILINE)
# A small quarantine: harnesses allocate little and often.
SANITIZERS = "quarantine_size_mb=4:malloc_context_size=3:detect_leaks=1"


@dataclass(frozen=True)
class Outcome:
    """What one run of libFuzzer came to."""

    inputs: int
    seconds: float
    finding: str | None


def fuzz(program: Path, target: Target, inputs: Path, *options: str) -> Outcome:
    """Run a harness on a directory of inputs, which grows."""
    inputs.mkdir(parents=True, exist_ok=True)
    findings = BUILD / "findings"
    findings.mkdir(exist_ok=True)
    begun = time.monotonic()
    done = subprocess.run(
        [program, f"-max_len={target.max_bytes}", "-seed=1", "-timeout=20", "-print_final_stats=1",
         f"-artifact_prefix={findings / target.name}-", *options, inputs],
        check=False, capture_output=True, env={**os.environ, "ASAN_OPTIONS": SANITIZERS},
    )  # fmt: skip
    seconds = time.monotonic() - begun
    executed = EXECUTED.search(done.stderr)
    finding = None
    if done.returncode:
        reason = REASON.search(done.stderr)
        finding = (reason[0] if reason else done.stderr[-500:]).decode(errors="replace")
        (findings / f"{target.name}.log").write_bytes(done.stderr)
    return Outcome(int(executed[1]) if executed else 0, seconds, finding)


def fuzz_targets(tools: Toolchain, targets: list[Target], arguments: argparse.Namespace) -> bool:
    """Fuzz each target for its share of the inputs; whether nothing was found."""
    programs = compile_all(tools, [(target.name, None) for target in targets])
    shares = sum(target.share for target in targets)
    print(f"{'target':12} {'inputs':>10} {'per second':>11}  findings")
    total, clean = 0, True
    for target, program in zip(targets, programs, strict=True):
        inputs = corpus.unpack(target.name, BUILD / "inputs" / target.name)
        limit = f"-runs={-(-arguments.runs * target.share // shares)}"
        if arguments.quick:
            limit = f"-max_total_time={QUICK_SECONDS}"
        outcome = fuzz(program, target, inputs, limit)
        rate = outcome.inputs / outcome.seconds
        finding = outcome.finding or "none"
        print(f"{target.name:12} {outcome.inputs:10} {rate:11.0f}  {finding}", flush=True)
        total += outcome.inputs
        clean = clean and outcome.finding is None
        if arguments.keep:
            print(f"{'':12} kept {corpus.keep(target.name, program, inputs)} inputs")
    print(f"{'all':12} {total:10}")
    return clean


def compile_all(tools: Toolchain, wanted: list[tuple[str, Plant | None]]) -> list[Path]:
    """Compile harnesses, as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda w: compile_harness(tools, w[0], plant=w[1]), wanted))


def find_plants(tools: Toolchain, targets: list[Target], *, quick: bool) -> bool:
    """Look for each planted bug; whether all were found. Only the quick run has the kept inputs."""
    by_name = {target.name: target for target in targets}
    plants = [plant for plant in PLANTS if plant.target in by_name]
    programs = compile_all(tools, [(plant.target, plant) for plant in plants])
    print(f"\n{'planted bug':40} {'target':12} {'inputs':>10}  found as")
    all_found = True
    for plant, program in zip(plants, programs, strict=True):
        directory = BUILD / "planted" / program.parent.name
        inputs = corpus.unpack(plant.target, directory) if quick else corpus.empty(directory)
        outcome = fuzz(program, by_name[plant.target], inputs, f"-runs={plant.bound}")
        found = outcome.finding or "NOT FOUND"
        print(f"{plant.name:40} {plant.target:12} {outcome.inputs:10}  {found}", flush=True)
        all_found = all_found and outcome.finding is not None
    return all_found


def report_coverage(tools: Toolchain, *, missed: bool) -> bool:
    """Print what the kept inputs of all targets cover; whether that is enough."""
    print(f"\n{'core':12} {'branches':>10} {'covered':>9}")
    enough = True
    for core in coverage.measure(tools, [target.name for target in TARGETS]):
        print(f"{core.core:12} {core.total:10} {core.percent:8.1f}%")
        enough = enough and core.percent >= coverage.LEAST_PERCENT
        for line in core.missed if missed else ():
            print(f"    {line}")
    return enough


def parse_arguments() -> argparse.Namespace:
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="scripts/dev.py fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}")
    parser.add_argument("--runs", type=int, default=1_000_000, metavar="N", help="inputs in all")
    parser.add_argument("--coverage", action="store_true", help="measure the kept inputs too")
    parser.add_argument("--missed", action="store_true", help="and list the branches not reached")
    parser.add_argument("--planted", action="store_true", help="look for planted bugs too")
    parser.add_argument("--keep", action="store_true", help="keep inputs that reach more")
    parser.add_argument(
        "--quick", action="store_true", help="CI's: seconds of each, and all of the above"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(names):
        parser.error(f"no target {', '.join(sorted(unknown))}: choose from {', '.join(names)}")
    return arguments


def main() -> None:
    """Do what the command line says."""
    arguments = parse_arguments()
    tools = find_toolchain()
    targets = [t for t in TARGETS if t.name in arguments.targets or not arguments.targets]
    good = fuzz_targets(tools, targets, arguments)
    if arguments.planted or arguments.quick:
        good = find_plants(tools, targets, quick=arguments.quick) and good
    if arguments.coverage or arguments.missed or arguments.quick:
        good = report_coverage(tools, missed=arguments.missed) and good
    sys.exit(not good)


if __name__ == "__main__":
    main()
