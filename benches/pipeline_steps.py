"""What each step of a lease's way through the agent costs, claimed a thousand at a time.

usage: python -m benches.pipeline_steps [--claims N]

The agent of budget A1 with a clock in the steps that work on a whole batch: processor time of their
thread, each without the steps that it calls. What is left is the loop, the requests' own code, and
the freeing of values. The clock is read some hundred times per claim, which is part of the figures.
"""

import argparse
import functools
import importlib
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop

from benches.bench_pipeline import BATCH, ROOT, plane
from benches.pipeline_agents import netsonde
from netsonde.collector import quiet_collector

AGENT, CONTROL_PLANE = "netsonde.agent", "netsonde.control_plane"
WRITE = "the spool's thread: commit"
# A step by its functions, module:qualified name. What they call belongs to them, or is listed too.
STEPS: Mapping[str, Sequence[str]] = {
    "claim: decode": ["netsonde.wire.claims:decode_answer"],
    "claim: check ids and kinds": ["netsonde.wire.claims:as_claimed"],
    "claim: deadlines": [f"{CONTROL_PLANE}.grants:granted"],
    "dispatch: what to claim": [f"{AGENT}.dispatcher:Dispatcher._wanted"],
    "dispatch: what is new": [f"{AGENT}.dispatcher:_Claim.new_of"],
    "dispatch: take": [f"{AGENT}.dispatcher:Dispatcher._take"],
    "table: grant": ["netsonde.leases:LeaseTable.grant_many"],
    "table: start and finish": ["netsonde.leases:LeaseTable.pass_many"],
    "table: let go": ["netsonde.leases:LeaseTable.release_many"],
    "worker: slots and order": [
        f"{AGENT}.worker:Worker._measure_at_once",
        f"{AGENT}.worker:Worker._keep_columns",
        f"{AGENT}.worker:Worker._free",
    ],
    "worker: turns at targets": [f"{AGENT}.bounds:Bounds.take_each"],
    "worker: measure nothing": [f"{AGENT}.at_once:AtOnce.measure"],
    "results: encode": [f"{AGENT}.keeper:Keeper.add_columns"],
    "spool: hand over": [
        "netsonde.spool.queue:Spool._write",
        "netsonde.spool.queue:Spool._written",
    ],
    "spool: acknowledge": ["netsonde.spool.queue:Spool.acknowledge"],
    "report: write": [
        f"{CONTROL_PLANE}.reporting:Batch.within_limits",
        f"{CONTROL_PLANE}.reporting:Batch.encode",
    ],
    "report: read the answer": [f"{CONTROL_PLANE}.calls:read_report"],
    "report: settle": [f"{AGENT}.reporter:Reporter._settle"],
    "sockets": [
        "aiohttp.client_proto:ResponseHandler.data_received",
        "aiohttp.http_writer:StreamWriter._writelines",
    ],
}


class StepClock:
    """Adds up what steps take, those within others apart. Of one thread."""

    def __init__(self) -> None:
        self.taken_ns: Counter[str] = Counter()
        self._inner_ns: list[int] = []

    def watch(self, step: str, place: str) -> None:
        """Put the clock into the function at module:name."""
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        setattr(owner, name, self._timed(step, getattr(owner, name)))

    def _timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner_ns.append(0)
            begun_ns = time.thread_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                took_ns = time.thread_time_ns() - begun_ns
                self.taken_ns[step] += took_ns - self._inner_ns.pop()
                if self._inner_ns:
                    self._inner_ns[-1] += took_ns

        return timed


async def measure(url: str, claims: int, folder: Path) -> Mapping[str, float]:
    """Let the agent work; return the steps' ns per lease, the whole last."""
    loop_clock, spool_clock = StepClock(), StepClock()
    for step, places in STEPS.items():
        for place in places:
            loop_clock.watch(step, place)
    spool_clock.watch(WRITE, "netsonde.spool.file:SpoolFile.write")
    with quiet_collector():
        loop_ns, all_ns = time.thread_time_ns(), time.process_time_ns()
        await netsonde(url, claims, folder)
        loop_ns, all_ns = time.thread_time_ns() - loop_ns, time.process_time_ns() - all_ns
    known_ns = loop_clock.taken_ns.total()
    written_ns = spool_clock.taken_ns.total()
    taken_ns = {step: loop_clock.taken_ns[step] for step in STEPS} | {
        "the loop, requests, freeing": loop_ns - known_ns,
        WRITE: written_ns,
        "the spool's thread: the rest": all_ns - loop_ns - written_ns,
        "all": all_ns,
    }
    return {step: ns / claims / BATCH for step, ns in taken_ns.items()}


def main() -> None:
    """Print a row per step."""
    parser = argparse.ArgumentParser(prog="pipeline_steps", description=__doc__.partition("\n")[0])
    parser.add_argument("--claims", type=int, default=60)
    claims: int = parser.parse_args().claims
    (ROOT / "build").mkdir(exist_ok=True)
    with plane() as url, tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        urllib.request.urlopen(f"{url}/limit?claims={claims}", data=b"").close()
        rows = uvloop.run(measure(url, claims, Path(folder)))
    for step, ns in rows.items():
        print(f"{step:32} {ns:7.0f} ns/lease {ns / rows['all']:6.1%}")


if __name__ == "__main__":
    main()
