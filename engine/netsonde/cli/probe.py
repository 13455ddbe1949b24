"""The one-shots: `netsonde dns|http|tcp TARGET…`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from netsonde import wire
from netsonde.cli.exits import Exit
from netsonde.cli.loop import run
from netsonde.cli.measuring import build_specs, exit_of, measure_for_person
from netsonde.cli.options import (
    DURATION,
    NUMBER,
    family_options,
    json_options,
    split_pair,
)
from netsonde.cli.output import Progress, explain, write_line, write_text
from netsonde.cli.render import details, headline_text, target_of
from netsonde.model import Measurement, TaskKind, TaskSpec

F = TypeVar("F", bound=Callable[..., Any])


def _targets(metavar: str) -> Callable[[F], F]:
    return click.argument("targets", nargs=-1, required=True, metavar=f"{metavar}…")


def _timeout(text: str) -> Callable[[F], F]:
    return click.option("--timeout", "timeout_ms", type=DURATION, help=text)


@click.command()
@_targets("NAME")
@click.option("--type", "-t", "qtype", type=NUMBER, help="Type to ask for, name or number.")
@click.option("--server", "-s", metavar="ADDRESS[:PORT]", help="Server to ask (the system's).")
@click.option("--transport", metavar="udp|tcp", help="How to ask (udp).")
@_timeout("Longest wait for each answer (2.5s).")
@click.option("--retries", type=NUMBER, help="How often to ask again, 0 to 10 (1).")
@json_options
def dns(targets: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Ask a DNS server for each NAME; without --type for its A and AAAA records."""
    return _one_shot(TaskKind.DNS, targets, options, as_json)


@click.command()
@_targets("URL")
@click.option("--method", "-X", metavar="METHOD", help="Request method (GET).")
@click.option("--header", "-H", "headers", multiple=True, metavar="NAME:VALUE")
@_timeout("Longest the whole request may take (10s).")
@click.option("--no-verify", is_flag=True, help="Accept any certificate.")
@click.option("--redirects", type=NUMBER, help="Redirects to follow, 0 to 20 (5).")
@click.option("--max-body", type=NUMBER, help="Bytes of the body to read, 0 to 67108864 (1048576).")
@family_options
@json_options
def http(
    targets: tuple[str, ...],
    headers: tuple[str, ...],
    no_verify: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Make one HTTP request to each URL and time its phases."""
    if headers:
        options["headers"] = dict(split_pair("--header", text, ":") for text in headers)
    if no_verify:
        options["verify"] = False
    return _one_shot(TaskKind.HTTP, targets, options, as_json)


@click.command()
@_targets("HOST:PORT")
@_timeout("Longest wait for the connection (5s).")
@family_options
@json_options
def tcp(targets: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Open one TCP connection to each HOST:PORT; write IPv6 addresses as [ADDRESS]:PORT."""
    return _one_shot(TaskKind.TCP, targets, options, as_json)


def _one_shot(
    kind: TaskKind, targets: Sequence[str], options: Mapping[str, Any], as_json: bool
) -> int:
    """Measure, print and tell the worst outcome as an exit code."""
    specs = build_specs(kind, targets, options)
    codes: list[Exit] = []
    progress = Progress()

    def emit(spec: TaskSpec, measurement: Measurement) -> None:
        codes.append(_code(measurement))
        progress.clear()
        _print(kind, spec, measurement, as_json)
        if len(codes) < len(specs):
            progress.show(f"measuring, {len(codes)} of {len(specs)} done")

    progress.show("measuring")
    try:
        run(measure_for_person(kind, specs, emit))
    finally:
        progress.clear()
    return max(codes)


def _print(kind: TaskKind, spec: TaskSpec, measurement: Measurement, as_json: bool) -> None:
    body = wire.encode_result(kind, spec, measurement)
    if as_json:
        write_line(body)
    result = wire.parse(body)
    if measurement.error is not None and _code(measurement) > Exit.TARGET_FAILED:
        explain(f"{kind} {target_of(result)}: {measurement.error.message}")
    if not as_json:
        write_text("\n".join([headline_text(result), *details(result)]))


def _code(measurement: Measurement) -> Exit:
    source = None if measurement.error is None else measurement.error.failure_source
    return exit_of(measurement.outcome, source)
