"""Print how many requests a second the simulator answers: `python -m support.netsim.rate`.

Run with PYTHONPATH=tests, as root. A C load (blaster/) keeps a window of requests unanswered and
counts the replies; a run with a dropped frame or a lost reply is an error. With --hops each target
is the end of a path of so many hops, and the TTLs come in turn. Where load and simulator share
cores with others the best run is nearest to the truth; replies per CPU second of the simulator say
what one whole core would do.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from support.netsim.network import SimulatedNetwork, simulated
from support.netsim.program import HERE, compile_program
from support.netsim.scenario import Scenario, make_scenario
from support.netsim.topologies import chain_destination, trace_chain

FIRST_TARGET = {4: "10.0.0.0", 6: "fd00::"}
CHAIN_TARGETS = 4096


def blaster_program() -> Path:
    """Return the path of the compiled load."""
    sources = [HERE / "blaster" / "blaster.c", HERE / "link.c", HERE / "packet.c"]
    return compile_program("blaster", sources)


def plain(record: str, delay_ms: float) -> Scenario:
    """Return a scenario in which everything is answered after delay_ms."""
    behaviour = {"delay": {"distribution": "constant", "ms": delay_ms}}
    hosts = [{"prefixes": ["10.0.0.0/8", "fd00::/16"], "behaviour": "plain"}]
    return make_scenario({"record": record, "hosts": hosts, "behaviour": {"plain": behaviour}})


def cpu_seconds(pid: int) -> float:
    """Return the user and system time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def blast(network: SimulatedNetwork, family: int, options: argparse.Namespace) -> tuple[int, int]:
    """Run the load once; returns replies and nanoseconds."""
    command = [
        blaster_program(), network.interface, network.host_mac, network.simulator_mac,
        network.address(family), chain_destination(family, 0) if options.hops else
        FIRST_TARGET[family], CHAIN_TARGETS if options.hops else options.targets, options.window,
        options.rate, options.seconds, options.hops,
    ]  # fmt: skip

    def start() -> str:
        return subprocess.run(
            [str(part) for part in command], check=True, capture_output=True, text=True
        ).stdout

    sent, received, ns = map(int, network.host.call(start).split())
    if sent != received:
        raise SystemExit(f"{sent - received} of {sent} requests unanswered")
    return received, ns


def run(family: int, options: argparse.Namespace) -> tuple[float, float]:
    """Return replies a second, and replies per CPU second of the simulator, of one run."""
    scenario = (
        trace_chain(rtt_ms=options.delay_ms, hops=options.hops, record=options.record)
        if options.hops
        else plain(options.record, options.delay_ms)
    )
    with simulated(scenario, punctual=options.punctual) as network:
        replies, ns = blast(network, family, options)
        spent = cpu_seconds(network.process.pid)
        totals = network.stop().totals
        assert totals.replied + totals.expired == replies
        assert totals.unsent == 0
    return replies * 1e9 / ns, replies / spent


def main(arguments: list[str]) -> None:
    """Print a line for each run and the median of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--targets", type=int, default=10_000)
    parser.add_argument("--hops", type=int, default=0)
    parser.add_argument("--window", type=int, default=4096)
    parser.add_argument("--rate", type=float, default=1e9, help="requests a second at most")
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--punctual", action="store_true", help="before every other process")
    parser.add_argument("--family", type=int, choices=(4, 6), default=4)
    parser.add_argument("--record", choices=("targets", "probes"), default="targets")
    options = parser.parse_args(arguments)
    rates, per_cpu = zip(*(run(options.family, options) for _ in range(options.runs)), strict=True)
    for number, (rate, each) in enumerate(zip(rates, per_cpu, strict=True), 1):
        print(f"run {number}: {rate:9,.0f} replies/s, {each:9,.0f} per CPU second, 0 drops")  # noqa: T201
    print(  # noqa: T201
        f"median {statistics.median(rates):,.0f} replies/s, best {max(rates):,.0f}; per CPU second"
        f" median {statistics.median(per_cpu):,.0f}, best {max(per_cpu):,.0f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
