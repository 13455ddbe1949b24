"""What a host allows of a signed configuration."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.ceiling import Ceiling, Clamped, clamp, read_ceiling
from netsonde.errors import ConfigError
from netsonde.model import TaskKind
from netsonde.remote_config import CadenceValues, KindValues, RemoteConfig, inspect
from support.configs import EVERYTHING, envelope


def test_what_is_above_the_ceiling_is_lowered_and_told() -> None:
    ceiling = Ceiling(
        kinds={TaskKind.PING: KindValues(concurrency=5, starts_per_s=10, timeout_ms=500)},
        target_starts_per_s=1,
        cadence_min=CadenceValues(claim_ms=1000, heartbeat_ms=2000),
        resolvers=("192.0.2.53",),
        log_level="info",
        features=("claim_streams",),
    )
    config = inspect(envelope(3, EVERYTHING)).config
    applied, clamped = clamp(config, ceiling)

    assert applied.kinds[TaskKind.PING] == ceiling.kinds[TaskKind.PING]
    assert applied.target_starts_per_s == 1
    assert (applied.cadence.claim_ms, applied.cadence.heartbeat_ms) == (1000, 5000)
    assert applied.resolvers == ("192.0.2.53",)
    assert applied.log_level == "info"
    assert applied.features == {"claim_streams": False}
    assert applied.deny == config.deny
    assert {one.path for one in clamped} == {
        "kinds.ping.concurrency", "kinds.ping.starts_per_s", "kinds.ping.timeout_ms",
        "target_starts_per_s", "cadence.claim_ms", "resolvers", "log_level", "features",
    }  # fmt: skip
    assert Clamped(path="kinds.ping.concurrency", asked="10", applied="5") in clamped


def test_what_is_below_the_ceiling_is_left_alone() -> None:
    config = inspect(envelope(3, EVERYTHING)).config

    assert clamp(config, Ceiling()) == (config, ())
    assert clamp(RemoteConfig(), read_ceiling({"target_starts_per_s": 1})) == (RemoteConfig(), ())


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_nothing_is_ever_above_the_ceiling(asked: int, most: int) -> None:
    config = RemoteConfig(kinds={TaskKind.DNS: KindValues(concurrency=asked)})
    ceiling = Ceiling(kinds={TaskKind.DNS: KindValues(concurrency=most)})
    applied, clamped = clamp(config, ceiling)

    assert applied.kinds[TaskKind.DNS].concurrency == min(asked, most)
    assert bool(clamped) is (asked > most)


def test_the_file_is_above_the_settings_where_it_says_something() -> None:
    own = Ceiling(
        kinds={TaskKind.PING: KindValues(concurrency=4), TaskKind.DNS: KindValues(concurrency=5)},
        target_starts_per_s=100,
    )
    file = read_ceiling({"kinds": {"ping": {"concurrency": 512}}, "log_level": "info"})
    both = file.over(own)

    assert both.kinds[TaskKind.PING].concurrency == 512
    assert both.kinds[TaskKind.DNS].concurrency == 5
    assert both.target_starts_per_s == 100
    assert both.log_level == "info"


@pytest.mark.parametrize(
    "table",
    [
        {"kind": {}},
        {"kinds": {"ping": {"concurency": 1}}},
        {"resolvers": ["x"]},
        {"log_level": "loud"},
        {"cadence_min": {"claim_ms": "1s"}},
    ],
)
def test_a_wrong_ceiling_is_told(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        read_ceiling(table)
