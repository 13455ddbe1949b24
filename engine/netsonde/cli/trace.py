"""`netsonde trace`: the routers on the way to any number of targets."""

from collections.abc import Sequence
from typing import Any

import click

from netsonde.cli.loop import run
from netsonde.cli.options import (
    DURATION,
    NUMBER,
    RATE,
    REAL,
    Sectioned,
    family_options,
    json_options,
)
from netsonde.cli.screen import Screen
from netsonde.cli.trace_report import TraceReport
from netsonde.cli.tracing import TracePlan, trace_for_person
from netsonde.cli.way_out import WAY_OUT, way_out_options
from netsonde.clock import SystemClock
from netsonde.errors import ConfigError
from netsonde.probe.ping.engines import EngineOptions, budgets

PARALLEL = 64  # traces at once: their first routers are the same, and answer only so often
PARALLEL_MAX = 65_536

SECTIONS = {
    "Targets": ("lists", "family"),
    "Path": ("first_hop", "max_hops", "gap_limit", "multipath", "confidence", "pmtud"),
    "Probes": (
        "method", "port", "probes_per_hop", "all_probes", "timeout_ms", "size", "dscp",
    ),
    "Pace": ("parallel", "interval_ms", "rate_pps"),
    "Way out": WAY_OUT,
    "Output": ("resolve", "as_json"),
}  # fmt: skip

EPILOG = """\b
Examples:
  netsonde trace example.net
  netsonde trace --method tcp --port 443 example.net --resolve
  netsonde trace --multipath --confidence 99 example.net
  netsonde trace -q 10 --all-probes --pmtud 192.0.2.1 2001:db8::1
  netsonde trace --targets hosts.txt --parallel 1000 --rate 5000 --json > traces.ndjson

\b
Notes beside a hop:
  !N !H !P  no route to the network, host or protocol unreachable
  !X        prohibited; !S source or scope, !V !C precedence
  !F-MTU    too big for the next link
  !<T-C>    any other ICMP error, by type and code
  *         no answer

\b
Exit codes:
  0  every target was reached
  1  some target was not reached, not resolved, or denied
  2  what was asked for makes no sense
  3  could not measure: no privilege, for instance
  130 interrupted, 141 nobody reads standard output any more
"""


@click.command(cls=Sectioned, sections=SECTIONS, epilog=EPILOG)
@click.argument("targets", nargs=-1, metavar="[HOST|PREFIX]…")
@click.option(
    "--targets",
    "lists",
    multiple=True,
    metavar="FILE|-",
    help="More targets, one per line, # for comments; - reads standard input as it comes. May be"
    " repeated.",
)
@click.option("--first-hop", "-f", type=NUMBER, help="First TTL to try, 1 to 255 (1).")
@click.option("--max-hops", "-m", type=NUMBER, help="Last TTL to try, 1 to 255 (30).")
@click.option("--gap-limit", type=NUMBER, help="Stop after so many silent hops, 1 to 255 (5).")
@click.option(
    "--multipath",
    is_flag=True,
    help="Find every path that routers balance flows over, and draw the graph.",
)
@click.option(
    "--confidence",
    type=REAL,
    help="Of having found all of them, in percent, 50 to 99.9 (95); for --multipath.",
)
@click.option("--pmtud", is_flag=True, default=None, help="Find the path MTU, and what narrows it.")
@click.option("--method", metavar="icmp|udp|tcp", help="What to send (icmp); never replaced.")
@click.option("--port", "-p", type=NUMBER, help="Destination port, for udp (33434) and tcp (80).")
@click.option(
    "--probes", "-q", "probes_per_hop", type=NUMBER, help="Probes to a silent TTL, 1 to 100 (3)."
)
@click.option(
    "--all-probes",
    is_flag=True,
    default=None,
    help="Send them to every TTL, answered or not, and tell each one's loss.",
)
@click.option(
    "--timeout", "-w", "timeout_ms", type=DURATION, help="Longest wait for each reply (1.5s)."
)
@click.option("--size", "-s", type=NUMBER, help="Payload in bytes, 18 to 65507 (20).")
@click.option("--dscp", type=NUMBER, help="Differentiated services code point, 0 to 63 (0).")
@click.option(
    "--parallel",
    type=NUMBER,
    default=PARALLEL,
    help=f"Traces at once, 1 to {PARALLEL_MAX} ({PARALLEL}).",
)
@click.option(
    "--interval",
    "-i",
    "interval_ms",
    type=DURATION,
    help="Between probes to a TTL with --all-probes (100ms).",
)
@click.option("--rate", "rate_pps", type=RATE, help="All packets a second (as fast as it goes).")
@click.option(
    "--resolve", is_flag=True, help="Show the names of addresses; asked for after the timing."
)
@way_out_options
@family_options
@json_options
def trace(targets: tuple[str, ...], **options: Any) -> int:
    """Find the routers on the way to hosts, and to every host of a prefix such as 192.0.2.0/28.

    All TTLs of a trace are asked at once, over one flow, so that routers which balance by flow keep
    it on one path. Traces are printed as they end; on a terminal each fills as hops answer.
    """
    plan, report = read_plan(targets, options)
    try:
        run(trace_for_person(SystemClock(), plan, report))
    finally:
        report.end()
    return report.code


def read_plan(targets: Sequence[str], options: dict[str, Any]) -> tuple[TracePlan, TraceReport]:
    """Turn what was typed into what to do and how to print it.

    Raises:
        ConfigError: it makes no sense.
    """
    lists = options.pop("lists")
    if not targets and not lists:
        raise ConfigError("name a host or a prefix, or a file of them with --targets")
    as_json = options.pop("as_json")
    report = TraceReport(
        SystemClock(), as_json=as_json, screen=None if as_json else Screen.of_stdout()
    )
    engine = EngineOptions(budgets=budgets(options.pop("rate_pps") or 0))
    parallel, has_names = _parallel(options.pop("parallel")), options.pop("resolve")
    plan = TracePlan(targets, lists, _spec_options(options), engine, parallel, has_names)
    return plan, report


def _parallel(number: int | str) -> int:
    if isinstance(number, int) and 1 <= number <= PARALLEL_MAX:
        return number
    raise ConfigError(f"--parallel must be a whole number from 1 to {PARALLEL_MAX}, not {number!r}")


def _spec_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the spec that were given.

    Raises:
        ConfigError: they make no sense together.
    """
    if options.pop("multipath"):
        options["multipath"] = "mda"
    elif options["confidence"] is not None:
        raise ConfigError("--confidence is for --multipath: leave it out")
    return {name: value for name, value in options.items() if value is not None}
