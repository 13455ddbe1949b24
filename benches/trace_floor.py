"""The floor of the trace bench: `floor/trace.c`."""

from collections.abc import Mapping
from pathlib import Path

from benches.ping_floor import floor_program
from benches.trace_network import ATTEMPTS, TIMEOUT_MS, TraceNetwork


def trace_all(network: TraceNetwork, count: int) -> Mapping[str, float]:
    """Trace the first targets, as fast as answers come in."""
    said = network.run(trace_command(network, count=count)).json()
    return {
        "rate": said["traces"] / said["seconds"],
        "cpu": said["cpu_seconds"] / said["traces"] * 1e6,
        "hops": said["hops"] / (count * network.paths.hops) * 100,
    }


def trace_command(network: TraceNetwork, **options: object) -> list[str | Path]:
    """Return the command of `floor/trace.c` on this network; options as its usage names them."""
    given: dict[str, object] = {
        "first": network.paths.first,
        "source": network.paths.source,
        "burst": network.paths.hops,
        "attempts": ATTEMPTS,
        "timeout-ms": TIMEOUT_MS,
    } | {name.replace("_", "-"): value for name, value in options.items()}
    command: list[str | Path] = [floor_program("trace")]
    for name, value in given.items():
        command += [f"--{name}", str(value)]
    return command
