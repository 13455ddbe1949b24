"""How a check is written on the command line: what, when, and who measures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from netsonde import wire
from netsonde.cli.options import DURATION, split_pair
from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from netsonde.probe.ping.verdicts import EXPECTATIONS

F = TypeVar("F", bound=Callable[..., Any])

# What a check has under the same name as the options that set it.
PLAIN = ("every_ms", "jitter_ms", "stale_after_ms", "name", "priority", "max_attempts")


def check_options(command: F) -> F:
    """Add what a check can say beside its kind and its targets."""
    for option in reversed(
        (
            click.option(
                "--every", "every_ms", type=DURATION, help="Repeat; without it a check runs once."
            ),
            click.option(
                "--jitter", "jitter_ms", type=DURATION, help="Spread each run by up to this."
            ),
            click.option(
                "--stale-after",
                "stale_after_ms",
                type=DURATION,
                help="Leave a run out that nobody has begun by then.",
            ),
            click.option("--name", help="What to call it."),
            click.option(
                "--option",
                "-o",
                "options",
                multiple=True,
                metavar="NAME=VALUE",
                help="Option of the kind, such as count=10 or qtype=MX.",
            ),
            click.option(
                "--expect",
                "expectations",
                multiple=True,
                metavar="NAME=MAX",
                help=f"Of ping: a target above it fails: {', '.join(EXPECTATIONS)}.",
            ),
            click.option(
                "--label",
                "labels",
                multiple=True,
                metavar="NAME=VALUE",
                help="Only agents that carry this label.",
            ),
            click.option(
                "--agent", "agents", multiple=True, metavar="ID|HOSTNAME", help="This agent."
            ),
            click.option(
                "--all", "everywhere", is_flag=True, help="Every agent with the labels, not one."
            ),
            click.option(
                "--count", type=click.IntRange(min=1), help="So many of the agents with the labels."
            ),
            click.option(
                "--priority",
                type=click.IntRange(-100, 100),
                help="-100 (first) to 100 (last), 0 without it.",
            ),
            click.option(
                "--attempts",
                "max_attempts",
                type=click.IntRange(1, 100),
                help="How often a run is tried; as the control plane is set without it.",
            ),
        )
    ):
        command = option(command)
    return command


def read_fields(more: Mapping[str, Any]) -> dict[str, Any]:
    """Build what options say of a check, its spec aside: when, what it is called, who measures.

    Raises:
        ConfigError: some of them exclude each other.
    """
    labels = dict(split_pair("--label", text) for text in more["labels"])
    agents = [int(one) if one.isdecimal() else one for one in more["agents"]]
    count, everywhere = more["count"], more["everywhere"]
    if agents and (labels or everywhere or count):
        raise ConfigError("--agent names the agents: give it without --label, --all and --count")
    if everywhere and count:
        raise ConfigError("--all is every agent, --count some: give one of them")
    fields = {name: more[name] for name in PLAIN if more[name] is not None}
    if agents:
        fields["select"] = {"agents": agents}
    elif labels or everywhere or count:
        many = {"all": True} if everywhere else {"count": count} if count else {}
        fields["select"] = {"labels": labels} | many
    return fields


def read_spec(options: Sequence[str], expectations: Sequence[str]) -> dict[str, Any]:
    """Build what options say of a check's spec.

    Raises:
        ConfigError: one has no value, or is no expectation.
    """
    spec = dict(spec_option(text) for text in options)
    expect = read_expectations(expectations)
    return spec | ({"expect": expect} if expect else {})


def parse_check(
    words: Sequence[str], options: Sequence[str] = (), expectations: Sequence[str] = ()
) -> dict[str, Any]:
    """Turn `ping example.net`, in one word or several, into a check; its targets are checked here.

    Raises:
        ConfigError: the kind or a target is missing, or an option has no value.
        RequestError: the kind, a target or an option is wrong.
    """
    parts = words[0].split() if len(words) == 1 else list(words)
    allowed = ", ".join(TaskKind)
    if len(parts) < 2:
        raise ConfigError(
            f"a check is a kind and its targets, such as 'ping example.net', "
            f"not {' '.join(words)!r}; kinds are {allowed}"
        )
    if parts[0] not in list(TaskKind):
        raise ConfigError(f"kind must be one of {allowed}, not {parts[0]!r}")
    kind, targets = TaskKind(parts[0]), parts[1:]
    spec = read_spec(options, expectations)
    for target in targets:
        wire.build_spec(kind, target, spec)
    return {"kind": kind.value, "targets": targets} | ({"spec": spec} if spec else {})


def spec_option(text: str) -> tuple[str, Any]:
    """Read a spec option: numbers and booleans as such, the rest as text."""
    name, value = split_pair("--option", text)
    if value.isascii() and value.removeprefix("-").isdecimal() and len(value) <= 18:
        return name, int(value)
    return name, {"true": True, "false": False}.get(value, value)


def read_expectations(texts: Sequence[str]) -> dict[str, Any] | None:
    """Read `NAME=MAX` texts; numbers as such, the rest for the spec's own check to refuse.

    Raises:
        ConfigError: a text has another name, or is none of that form.
    """
    expect: dict[str, Any] = {}
    for text in texts:
        name, value = split_pair("--expect", text)
        if name not in EXPECTATIONS:
            raise ConfigError(f"--expect takes {', '.join(EXPECTATIONS)}, not {name!r}")
        try:
            expect[name] = float(value)
        except ValueError:
            expect[name] = value
    return expect or None
