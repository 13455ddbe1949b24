"""Budget A1: leases from claim to report over HTTP, a thousand at a time.

The agent's own parts against a plain asyncio program that keeps nothing, and against a client that
carries the same bytes and does no work: the limit. Between the two is what cannot be left out:
leases validated, results encoded, kept on the disk and reported, and nothing known of a lease
meanwhile. All talk to the same control plane, a process of its own that costs next to nothing and
counts what was reported. What counts is leases a second of processor time, threads included: how
long a commit takes is the disk's affair.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from benches.harness import OURS, Bench, Budget, Contestant, MissingRivalError, Scale

NAIVE, LIMIT = "task per lease, dicts, no spool", "the same bytes, no work"
PARTS = "validated, encoded, kept: no scheduling"
AGENTS = {OURS: "netsonde", NAIVE: "naive", PARTS: "parts", LIMIT: "wire"}
BATCH = 1000
CLAIMS = {Scale.ONCE: 3, Scale.QUICK: 60, Scale.FULL: 90}  # all of it fits the lease table
ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def plane() -> Iterator[str]:
    """Run the control plane; yield its address."""
    command = [sys.executable, "-m", "benches.pipeline_plane"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.communicate()


def agent(name: str, url: str, claims: int) -> Mapping[str, float]:
    """Let one agent work in a process of its own, its spool on a real disk."""
    urllib.request.urlopen(f"{url}/limit?claims={claims}", data=b"").close()
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        command = [
            sys.executable, "-m", "benches.pipeline_agents", name, url, "--claims", str(claims),
            "--folder", folder,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    with urllib.request.urlopen(f"{url}/tally") as answer:
        tally = json.load(answer)
    wanted = {"items": claims * BATCH, "leases": BATCH if name == "wire" else claims * BATCH}
    if tally != wanted:
        raise AssertionError(f"{name} reported {tally}, not {wanted}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def bench(scale: Scale) -> Bench:
    """Make the contestants."""
    resources = contextlib.ExitStack()
    url = resources.enter_context(plane())
    contestants: dict[str, Contestant | MissingRivalError] = {
        name: partial(agent, word, url, CLAIMS[scale]) for name, word in AGENTS.items()
    }
    return Bench(contestants, budgets(), resources=resources)


def budgets() -> list[Budget]:
    """A1 of docs/performance.md; two rows without a budget are for comparison.

    One is the rate by the clock, disk and all; the other says what scheduling costs.
    """
    per_core = partial(Budget, id="A1", figure="rate per core", unit="leases/s")
    return [
        per_core(rival=NAIVE, at_least=2),
        per_core(rival=LIMIT, at_least=0.22),
        per_core(rival=PARTS),
        Budget(id="A1", figure="rate", unit="leases/s", rival=NAIVE),
    ]
