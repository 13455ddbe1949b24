"""`netsonde ping`: one host or a million."""

from collections.abc import Sequence
from typing import Any

import click

from netsonde.cli.check_words import read_expectations
from netsonde.cli.loop import run
from netsonde.cli.options import (
    DURATION,
    NUMBER,
    RATE,
    Sectioned,
    family_options,
    json_options,
)
from netsonde.cli.ping_report import Chosen, Form, PingReport
from netsonde.cli.pinging import PingPlan, ping_for_person
from netsonde.cli.way_out import WAY_OUT, way_out_options
from netsonde.clock import SystemClock
from netsonde.errors import ConfigError
from netsonde.probe.ping.engines import (
    BACKENDS,
    DEFAULT_BACKENDS,
    Backend,
    EngineOptions,
    budgets,
)
from netsonde.probe.ping.verdicts import EXPECTATIONS

AUTO = "auto"

SECTIONS = {
    "Targets": ("lists", "family", "addresses"),
    "Packets": ("count", "interval_ms", "timeout_ms", "size", "ttl", "dscp", "df"),
    "Pace": ("rate_pps", "prefix_pps", "target_pps"),
    "Way out": (*WAY_OUT, "method", "port", "backends", "exact"),
    "Output": ("quiet", "alive", "unreachable", "expectations", "as_csv", "as_json"),
}

EPILOG = """\b
Examples:
  netsonde ping example.net
  netsonde ping -c 1 192.0.2.0/24 --alive
  netsonde ping -c 3 --rate 2000 --targets hosts.txt --csv > hosts.csv
  zcat hosts.gz | netsonde ping -c 1 -q --targets -
  netsonde ping gw1 gw2 --expect loss_pct_max=1 --expect avg_ms_max=20 -q

\b
Exit codes:
  0  every target was reached and is as expected
  1  some target was not reached, not resolved, denied, or not as expected
  2  what was asked for makes no sense
  3  could not measure: no privilege, for instance
  130 interrupted, 141 nobody reads standard output any more
"""


@click.command(cls=Sectioned, sections=SECTIONS, epilog=EPILOG)
@click.argument("targets", nargs=-1, metavar="[HOST|PREFIX]…")
@click.option(
    "--targets",
    "-f",
    "lists",
    multiple=True,
    metavar="FILE|-",
    help="More targets, one per line, # for comments; - reads standard input as it comes. May be"
    " repeated.",
)
@click.option("--all-addresses", "addresses", flag_value="all", help="Every address of a name.")
@click.option("--count", "-c", type=NUMBER, help="Packets to each target, 1 to 100000 (4).")
@click.option("--interval", "-i", "interval_ms", type=DURATION, help="Between them (100ms).")
@click.option(
    "--timeout", "-W", "timeout_ms", type=DURATION, help="Longest wait for each reply (1s)."
)
@click.option("--size", "-s", type=NUMBER, help="ICMP payload in bytes, 16 to 65507 (56).")
@click.option("--ttl", type=NUMBER, help="IP time-to-live, 1 to 255 (64).")
@click.option("--dscp", type=NUMBER, help="Differentiated services code point, 0 to 63 (0).")
@click.option("--df", is_flag=True, default=None, help="Forbid fragments.")
@click.option("--rate", "rate_pps", type=RATE, help="All packets a second (as fast as it goes).")
@click.option("--rate-per-prefix", "prefix_pps", type=RATE, help="To each /24 or /48 (no limit).")
@click.option("--rate-per-target", "target_pps", type=RATE, help="To each address (no limit).")
@way_out_options
@click.option("--method", metavar="icmp|tcp|udp", help="What to send (icmp); never replaced.")
@click.option("--port", type=NUMBER, help="Port for tcp and udp, 1 to 65535.")
@click.option(
    "--backend",
    "backends",
    metavar="NAME,…",
    default=AUTO,
    help="How packets leave: of header, raw, packet and datagram the first that is permitted"
    f" ({AUTO}: {','.join(DEFAULT_BACKENDS)}).",
)
@click.option("--exact", is_flag=True, help="Let the kernel time what is sent, too.")
@click.option("--quiet", "-q", is_flag=True, help="Print the summary only.")
@click.option("--alive", "-a", is_flag=True, help="Print only the names of targets that answer.")
@click.option(
    "--unreachable", "-u", is_flag=True, help="Print only the names of targets that do not."
)
@click.option(
    "--expect",
    "expectations",
    multiple=True,
    metavar="NAME=MAX",
    help=f"Fail targets above it: {', '.join(EXPECTATIONS)}. May be repeated.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print one row per target, with a heading.")
@family_options
@json_options
def ping(targets: tuple[str, ...], **options: Any) -> int:
    """Ping hosts, and every host of a prefix such as 192.0.2.0/24.

    Any number of targets is pinged at once; each is printed as it ends, and with several a summary
    at the end.
    """
    plan, report = read_plan(targets, options)
    try:
        run(ping_for_person(SystemClock(), plan, report))
    finally:
        report.end()
    return report.code


def read_plan(targets: Sequence[str], options: dict[str, Any]) -> tuple[PingPlan, PingReport]:
    """Turn what was typed into what to do and how to print it.

    Raises:
        ConfigError: it makes no sense.
    """
    lists = options.pop("lists")
    if not targets and not lists:
        raise ConfigError("name a host or a prefix, or a file of them with --targets")
    report = _report(options)
    engine = _engine(options)
    options["expect"] = read_expectations(options.pop("expectations"))
    return PingPlan(targets, lists, options, engine), report


def _report(options: dict[str, Any]) -> PingReport:
    quiet, as_csv, as_json = (options.pop(name) for name in ("quiet", "as_csv", "as_json"))
    alive, unreachable = options.pop("alive"), options.pop("unreachable")
    _at_most_one({"--quiet": quiet, "--csv": as_csv, "--json": as_json})
    _at_most_one({"--quiet": quiet, "--alive": alive, "--unreachable": unreachable})
    chosen = Chosen.ALIVE if alive else Chosen.UNREACHABLE if unreachable else Chosen.ALL
    form = Form.TEXT if chosen is Chosen.ALL else Form.NAMES
    for is_wanted, wanted in ((quiet, Form.NOTHING), (as_csv, Form.CSV), (as_json, Form.JSON)):
        form = wanted if is_wanted else form
    return PingReport(SystemClock(), form, chosen)


def _engine(options: dict[str, Any]) -> EngineOptions:
    return EngineOptions(
        backends=_backends(options.pop("backends")),
        exact=options.pop("exact"),
        budgets=budgets(options.pop("rate_pps") or 0),
        prefix_pps=options.pop("prefix_pps") or 0,
        target_pps=options.pop("target_pps") or 0,
    )


def _backends(text: str) -> tuple[Backend, ...]:
    if text == AUTO:
        return DEFAULT_BACKENDS
    known = {str(backend): backend for backend in BACKENDS}
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"--backend takes {AUTO} or some of {', '.join(known)}, not {name!r}")
    return tuple(known[name] for name in dict.fromkeys(names))


def _at_most_one(given: dict[str, bool]) -> None:
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} exclude each other")
