"""Budget S1: what a control plane on SQLite takes in and hands out, and how long its calls take.

Four agents claim and report a thousand leases at a time, from a process of their own. Against the
plain program (one fat table, a commit per request), and against the same statements without HTTP
or JSON. Every commit is durable, on a real disk. Then half of that load, evenly, and every call of
agents and operators beside it: milliseconds, the median and the 95th percentile.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from benches.harness import OURS, Bench, Budget, Contestant, MissingRivalError, Scale

PLAIN, STORE = "fat rows, a commit per request", "the same SQL, no HTTP"
LEASES = {Scale.ONCE: 8_000, Scale.QUICK: 120_000, Scale.FULL: 200_000}
CALLS = (
    "claim", "report", "extend", "heartbeat", "config", "results", "queues", "agents", "checks",
    "new check", "delete check", "new task",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """Make a folder on a real disk."""
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as path:
        yield path


@contextlib.contextmanager
def serving(module: str, *arguments: str) -> Iterator[Mapping[str, str]]:
    """Run a control plane; yield its addresses."""
    command = [sys.executable, "-m", f"benches.{module}", *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.communicate()


def told_by(module: str, *arguments: str) -> Mapping[str, object]:
    """Run a program and read what it prints."""
    command = [sys.executable, "-m", f"benches.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    told: Mapping[str, object] = json.loads(done.stdout)
    return told


def load(url: str, leases: int, *arguments: str) -> dict[str, float]:
    """Let four agents take all leases; return leases a second and milliseconds by call."""
    told = told_by("server_load", url, "--leases", str(leases), *arguments)
    figures = {"rate": float(str(told["rate"]))}
    calls = told["calls"]
    assert isinstance(calls, dict)
    for name, (median_ms, most_ms) in calls.items():
        figures |= {f"{name} p50": median_ms, f"{name} p95": most_ms}
    return figures


def ours(leases: int) -> Mapping[str, float]:
    """Measure the control plane at full load, then another one at half of that."""
    count = str(leases)
    with folder() as path, serving("server_ours", "serve", path, "--leases", count) as at:
        rate = load(at["agents"], leases)["rate"]
    with folder() as path, serving("server_ours", "serve", path, "--leases", count) as at:
        half = f"{rate / 2:.0f}"
        calls = load(at["agents"], leases, "--rate", half, "--operators", at["operators"])
    return calls | {"rate": rate}


def plain(leases: int) -> Mapping[str, float]:
    """Measure the plain program."""
    with folder() as path, serving("server_plain", path, "--leases", str(leases)) as at:
        return load(at["agents"], leases)


def store_alone(leases: int) -> Mapping[str, float]:
    """Measure the store."""
    with folder() as path:
        told = told_by("server_ours", "store", path, "--leases", str(leases))
    return {"rate": float(str(told["rate"]))}


def bench(scale: Scale) -> Bench:
    """Make the contestants."""
    leases = LEASES[scale]
    contestants: dict[str, Contestant | MissingRivalError] = {
        OURS: partial(ours, leases),
        PLAIN: partial(plain, leases),
        STORE: partial(store_alone, leases),
    }
    return Bench(contestants, budgets())


def budgets() -> list[Budget]:
    """S1 of docs/performance.md; the rows of calls at half load have no budget."""
    rate = partial(Budget, id="S1", figure="rate", unit="leases/s")
    return [
        rate(rival=PLAIN, at_least=5),
        rate(rival=STORE, at_least=0.6),
        *(
            Budget(id="S1", figure=f"{name} {quantile}", unit="ms")
            for name in CALLS
            for quantile in ("p50", "p95")
        ),
    ]
