"""Which worlds were played, and what they were like: a file that many runs add to.

A line is what one run of seeds in a row gave. A line that was cut off by the end of its run is
worth nothing and is passed over; its seeds are played again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from support.lease_world.faults import Fault

SEEDS_PER_LINE = 20


@dataclass(frozen=True, slots=True)
class Played:
    """Worlds of the seeds from `first` to `last`, both among them."""

    first: int
    last: int
    commit: str
    tasks: int = 0
    grants: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    cpu_s: float = 0.0
    failures: tuple[str, ...] = ()

    @property
    def seeds(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


class Record:
    """The file at a path; it need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Played]:
        """Return what was played, in the order of playing."""
        found: list[Played] = []
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            try:
                fields = json.loads(line)
            except json.JSONDecodeError:
                continue
            found.append(Played(**fields | {"failures": tuple(fields["failures"])}))
        return found

    def add(self, played: Played) -> None:
        """Write a line."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(played)) + "\n")


def left_of(wanted: range, played: Iterable[Played]) -> list[range]:
    """Return the seeds that are wanted and not played, cut into runs of SEEDS_PER_LINE."""
    done = {seed for one in played for seed in range(one.first, one.last + 1)}
    runs: list[range] = []
    for seed in wanted:
        if seed in done:
            continue
        if runs and runs[-1].stop == seed and len(runs[-1]) < SEEDS_PER_LINE:
            runs[-1] = range(runs[-1].start, seed + 1)
        else:
            runs.append(range(seed, seed + 1))
    return runs


def within(wanted: range, played: Iterable[Played]) -> list[Played]:
    """Return the lines of which every seed is wanted, each seed once: the latest line counts."""
    latest: dict[int, Played] = {}
    for one in played:
        if one.first in wanted and one.last in wanted:
            latest |= dict.fromkeys(range(one.first, one.last + 1), one)
    return list({id(one): one for one in latest.values()}.values())


def summary(wanted: range, played: Sequence[Played]) -> str:
    """Say in one line what all of it was."""
    faults = faults_of(played)
    seeds = sum(one.seeds for one in played)
    commits = sorted({one.commit for one in played})
    failures = sum(len(one.failures) for one in played)
    cpu_s = sum(one.cpu_s for one in played) / max(seeds, 1)
    return (
        f"worlds: {seeds} of seeds {wanted.start}-{wanted.stop - 1},"
        f" {sum(one.tasks for one in played)} tasks, {sum(one.grants for one in played)} leases,"
        f" {faults.total()} faults, {failpoints_hit(faults)} of {len(Fault)} failpoints,"
        f" {failures} failures, {cpu_s:.2f} s of processor time each,"
        f" commit {', '.join(commits) or 'none'}"
    )


def faults_of(played: Iterable[Played]) -> Counter[str]:
    """Count faults by name."""
    faults: Counter[str] = Counter()
    for one in played:
        faults.update(one.faults)
    return faults


def failpoints_hit(faults: Counter[str]) -> int:
    """Return how many kinds of fault happened at all."""
    return sum(faults[each] > 0 for each in Fault)
