"""Scenarios of the network simulator: what is refused and where, and what the program is told."""

from pathlib import Path
from typing import Any

import pytest

from support.netsim import SCENARIOS, ScenarioError, load_scenario, make_scenario, parse_scenario
from support.netsim.settings import scenario_text

HOSTS = [{"prefixes": ["10.0.0.0/8", "fd00::/16"], "behaviour": "b"}]


def table(**behaviour: Any) -> dict[str, Any]:
    return {"hosts": HOSTS, "behaviour": {"b": behaviour}}


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path: Path) -> None:
    text = scenario_text(load_scenario(path))
    assert text.startswith("netsim 1\nseed ")
    assert text.endswith("\nend\n")


def test_there_are_the_examples_that_are_promised() -> None:
    names = {path.name for path in SCENARIOS.iterdir()}
    assert names >= {"clean.toml", "lossy_hostile.toml", "long_delay.toml", "trace_chain.toml"}


@pytest.mark.parametrize(
    ("behaviour", "complaint"),
    [
        ({"loss": 1.5}, "behaviour.b.loss: Expected `float` <= 1.0"),
        ({"loss": "much"}, "behaviour.b.loss: Expected `float`, got `str`"),
        ({"los": 0.5}, "behaviour.b: Object contains unknown field `los`"),
        ({"reply_ttl": 0}, "behaviour.b.reply_ttl: Expected `int` >= 1"),
        ({"delay": {"distribution": "pareto"}}, "behaviour.b.delay.distribution: Invalid value"),
        ({"delay": {"ms": 1}}, "behaviour.b.delay: Object missing required field `distribution`"),
        (
            {"delay": {"distribution": "constant", "ms": 60_001}},
            "behaviour.b.delay.ms: Expected `float` <= 60000.0",
        ),
        (
            {"jitter": {"distribution": "uniform", "min_ms": 2, "max_ms": 1}},
            "behaviour.b.jitter.min_ms: more than max_ms",
        ),
        ({"reorder": {"share": 0.1}}, "behaviour.b.reorder: Object missing required field `delay_"),
        ({"duplicate": {"share": 1, "copies": 9}}, "behaviour.b.duplicate.copies: Expected `int`"),
        (
            {"elsewhere": {"share": 1, "from4": "fd00::1"}},
            "behaviour.b.elsewhere.from4: fd00::1 is not an IPv4 address",
        ),
        ({"error": {"from6": "here"}}, "behaviour.b.error.from6: 'here' does not appear to be"),
        ({"error": {"quoted": 7}}, "behaviour.b.error.quoted: Expected `int` >= 8"),
        ({"error": {"quoted": "most"}}, "behaviour.b.error.quoted: Invalid enum value 'most'"),
        (
            {"rate_limit": {"per": "city", "per_second": 1, "burst": 1}},
            "behaviour.b.rate_limit.per: Invalid enum value 'city'",
        ),
        ({"forged": {"share": 1, "payload": []}}, "behaviour.b.forged.payload: nothing to choose"),
        (
            {"noise": {"share": 1, "kind": ["loud"]}},
            "behaviour.b.noise.kind[0]: Invalid enum value 'loud'",
        ),
        (
            {"foreign_error": {"share": 1, "error": {"type4": 256}}},
            "behaviour.b.foreign_error.error.type4: Expected `int` <= 255",
        ),
    ],
)
def test_a_wrong_field_is_named(behaviour: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        make_scenario(table(**behaviour))
    assert str(raised.value).startswith(complaint)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"seed": -1}, "seed: Expected `int` >= 0"),
        ({"sed": 1}, "scenario: Object contains unknown field `sed`"),
        ({"record": "all"}, "record: Invalid enum value 'all'"),
        ({"limits": {"hosts": 0}}, "limits.hosts: Expected `int` >= 1"),
        ({"hosts": []}, "hosts: Expected `array` of length >= 1"),
        ({"behaviour": {}}, "behaviour: not a table of at least one"),
        (
            {"hosts": [{"prefixes": ["10.0.0.0/8"], "behaviour": "c"}]},
            "hosts[0].behaviour: c is not described",
        ),
        (
            {"hosts": [{"prefixes": ["10.0.0.1/8"], "behaviour": "b"}]},
            "hosts[0].prefixes[0]: 10.0.0.1/8 has host bits set",
        ),
        (
            {"hosts": [*HOSTS, {"prefixes": ["fd01::/32", "10.0.0.0/8"], "behaviour": "b"}]},
            "hosts[1].prefixes[1]: 10.0.0.0/8 comes twice",
        ),
        (
            {"hosts": [{"prefixes": ["192.0.2.128/25"], "behaviour": "b"}]},
            "hosts[0].prefixes[0]: 192.0.2.128/25 overlaps 192.0.2.0/24",
        ),
        (
            {"hosts": [{"prefixes": ["::/0"], "behaviour": "b"}]},
            "hosts[0].prefixes[0]: ::/0 overlaps 2001:2::/64",
        ),
    ],
)
def test_a_wrong_table_is_named(more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        make_scenario({**table(), **more})
    assert str(raised.value).startswith(complaint)


def test_a_scenario_that_is_not_toml_is_refused() -> None:
    with pytest.raises(ScenarioError, match="scenario: Invalid value"):
        parse_scenario("seed = ")


def test_the_program_is_told_in_its_units() -> None:
    lines = scenario_text(
        make_scenario(
            {
                "seed": 5,
                "record": "probes",
                **table(
                    delay={"distribution": "lognormal", "median_ms": 1.5, "sigma": 0.5},
                    jitter={"distribution": "normal", "mean_ms": 2, "deviation_ms": 0.25},
                    error={"share": 0.5, "from4": "10.9.9.9", "quoted": 8},
                    rate_limit={"per": "prefix", "per_second": 2, "burst": 1, "beyond": "error"},
                    forged={"share": 0.25, "payload": ["altered", "random"], "delay_ms": 1},
                    noise={"share": 1},
                ),
            }
        )
    ).splitlines()
    assert lines[:6] == [
        "netsim 1", "seed 5", "hosts_max 1048576", "in_flight_max 4194304", "ring_frames 32768",
        "record_probes 1",
    ]  # fmt: skip
    assert {
        "host_delay.kind 3", "host_delay.location_ns 1500000", "host_delay.spread 0.5",
        "jitter.kind 2", "jitter.location_ns 2000000", "jitter.spread 250000",
        "jitter.max_ns 60000000000", "error.share 0.5", "error.from4 10.9.9.9",
        "error.quoted_bytes 8", "rate_limit.scope 2", "rate_limit.says_error 1",
        "forged.share 0.25", "forged.kinds 5", "forged.delay_ns 1000000", "noise.kinds 31",
        "noise.delay_ns -1", "prefix 10.0.0.0/8 0", "prefix fd00::/16 0",
    } <= set(lines)  # fmt: skip
    assert not any(line.startswith("corrupted") for line in lines)
