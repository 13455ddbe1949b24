"""What every bench is made of: contestants, interleaved runs, budgets and the table of rows.

A bench is a file: a word in BENCHES, and a module whose `bench(scale)` returns a `Bench`. A
contestant is a callable that does the whole measured thing once and returns its figures by name;
ours is the one called OURS, or another that the budget names. Figures of different machines or
minutes are not compared: a budget is a ratio of two contestants of the same round, or an absolute
figure where there is no rival.
"""

import contextlib
import importlib
import math
import statistics
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Literal

BENCHES = {
    "bodies": ("bench_bodies",),
    "heap": ("bench_deadlines",),
    "leases": ("bench_deadlines", "bench_leases", "bench_pipeline"),
    "server": ("bench_server",),
    "ping": ("bench_ping", "bench_in_flight", "bench_footprint"),
    "trace": ("bench_trace",),
    "metrics": ("bench_metrics",),
}
OURS = "netsonde"


class Scale(Enum):
    """How long a bench takes: runs of each contestant, and what budgets are relaxed by."""

    ONCE = 1, math.inf  # small, and no noisy budget fails: shows that everything still runs
    QUICK = 3, 0.25
    FULL = 7, 0.0

    def __init__(self, runs: int, slack: float) -> None:
        self.runs = runs
        self.slack = slack


Contestant = Callable[[], Mapping[str, float]]
Figures = Mapping[str, Sequence[Mapping[str, float]]]  # contestant -> one mapping per run


class MissingRivalError(Exception):
    """A contestant cannot run on this host; the message says what it lacks."""


class UnableError(Exception):
    """A whole bench cannot run on this host; the message says what it needs."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One line that must hold: a figure of ours, alone or against a rival's.

    `ours` names the contestant of ours, where a bench has several.

    `quotient` says which way round the ratio is, so that `at_least` reads as written in the table
    of budgets: "15x faster" is rival/ours of a duration, "0.93 of the rate" is ours/rival. Figures
    that do not vary from run to run take no slack under --quick: noisy=False.
    """

    id: str
    figure: str
    unit: str
    ours: str = OURS
    rival: str | None = None
    quotient: Literal["ours/rival", "rival/ours"] = "ours/rival"
    at_least: float | None = None
    at_most: float | None = None
    noisy: bool = True


@dataclass(frozen=True)
class Bench:
    """Contestants by name, or why one cannot run, and the budgets between them.

    `runs` is for a bench whose number of rounds is not its scale's, `once` names contestants that
    run in the first one only. `resources` are what its contestants share; whoever loaded the bench
    closes them.
    """

    contestants: Mapping[str, Contestant | MissingRivalError]
    budgets: Sequence[Budget]
    runs: int | None = None
    once: Collection[str] = ()
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A budget and what was measured; a figure is None when its contestant is missing."""

    id: str
    figure: str
    unit: str
    contestant: str
    ours: float
    rival: str | None
    theirs: float | None
    ratio: float | None
    budget: str
    met: bool | None

    def as_dict(self) -> dict[str, object]:
        """Return the row for JSON."""
        return asdict(self)


def load(module: str, scale: Scale) -> Bench:
    """Prepare the bench of this module.

    Raises:
        UnableError: this host does not let it run.
    """
    made: Bench = importlib.import_module(f"benches.{module}").bench(scale)
    return made


def say(text: str) -> None:
    """Report progress, away from the table."""
    print(text, file=sys.stderr, flush=True)


def interleave(
    contestants: Mapping[str, Contestant], runs: int, once: Collection[str] = ()
) -> Figures:
    """Run every contestant once a round, beginning each round with another one.

    once: those that run in the first round only.
    """
    figures: dict[str, list[Mapping[str, float]]] = {name: [] for name in contestants}
    names = list(contestants)
    for run in range(runs):
        shift = run % len(names)
        for name in names[shift:] + names[:shift]:
            if run and name in once:
                continue
            say(f"  run {run + 1}/{runs}: {name}")
            figures[name].append(contestants[name]())
    return figures


def steadily(contestant: Contestant, times: int = 3) -> Contestant:
    """Make every run of a short contestant the median of several, so that no moment decides."""

    def run() -> Mapping[str, float]:
        runs = [contestant() for _ in range(times)]
        return {name: statistics.median(one[name] for one in runs) for name in runs[0]}

    return run


def judge(bench: Bench, figures: Figures, slack: float) -> list[Row]:
    """Hold the medians against the budgets."""
    return [judge_one(budget, figures, slack if budget.noisy else 0.0) for budget in bench.budgets]


def judge_one(budget: Budget, figures: Figures, slack: float) -> Row:
    """Make a row of a budget. Its ratio is the median of the rounds' ratios."""
    ours = [run[budget.figure] for run in figures[budget.ours]]
    theirs = None
    measured: float | None = statistics.median(ours)
    if budget.rival is not None:
        theirs = [run[budget.figure] for run in figures.get(budget.rival, ())]
        pairs = list(zip(ours, theirs, strict=False))
        if budget.quotient == "rival/ours":
            pairs = [(other, mine) for mine, other in pairs]
        ratios = [dividend / divisor for dividend, divisor in pairs]
        measured = statistics.median(ratios) if ratios else None
    least = None if budget.at_least is None else budget.at_least * (1 - slack)
    most = None if budget.at_most is None else budget.at_most * (1 + slack)
    bounds = [f"≥ {least:g}"] if least is not None else []
    bounds += [f"≤ {most:g}"] if most is not None else []
    met = None
    if measured is not None:
        met = (least is None or measured >= least) and (most is None or measured <= most)
    return Row(
        id=budget.id,
        figure=budget.figure,
        unit=budget.unit,
        contestant=budget.ours,
        ours=statistics.median(ours),
        rival=budget.rival,
        theirs=statistics.median(theirs) if theirs else None,
        ratio=measured if budget.rival else None,
        budget=", ".join(bounds),
        met=met,
    )


def table(rows: Sequence[Row]) -> str:
    """Lay rows out for people."""
    verdicts = {True: "met", False: "MISSED", None: "no rival"}
    head = ("id", "figure", "contestant", "ours", "rival", "theirs", "ratio", "budget", "")
    lines = [head] + [
        (
            row.id,
            f"{row.figure} [{row.unit}]",
            row.contestant,
            amount(row.ours),
            row.rival or "",
            amount(row.theirs),
            amount(row.ratio),
            row.budget,
            verdicts[row.met],
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def amount(value: float | None) -> str:
    """Format a figure with three significant digits or as a whole number."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
