"""The manual names every metric, and what it says of them is the code's."""

import re
from pathlib import Path

import pytest

from netsonde.agent.metrics import FAMILIES as AGENT_FAMILIES
from netsonde.metrics import Family, MetricType
from netsonde.server.metrics import FAMILIES as SERVER_FAMILIES
from netsonde.server.rollups import LEVELS
from netsonde.server.store.metrics import Level

PAGE = (Path(__file__).resolve().parents[2] / "docs/operations.md").read_text()
BOUNDED = {
    "call", "class", "error", "event", "kind", "limit", "listener", "outcome", "state", "status",
    "version",
}  # fmt: skip
HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize(
    ("heading", "families"),
    [
        ("### What an agent counts", AGENT_FAMILIES),
        ("### What a control plane counts", SERVER_FAMILIES),
    ],
)
def test_the_manual_has_every_family(heading: str, families: tuple[Family, ...]) -> None:
    section = PAGE.partition(heading)[2].partition("\n#")[0]
    told = re.findall(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]+) \| (.+) \|$", section, re.MULTILINE)
    assert told == [
        (family.name, family.type.value, ", ".join(family.labels) or "none", family.help)
        for family in families
    ]


@pytest.mark.parametrize("family", [*AGENT_FAMILIES, *SERVER_FAMILIES], ids=lambda one: one.name)
def test_names_and_labels_are_as_prometheus_wants_them(family: Family) -> None:
    assert family.name.startswith("netsonde_")
    assert family.name.endswith("_total") == (family.type is MetricType.COUNTER)
    assert (family.unit or "") in family.name
    assert family.unit in (None, "seconds", "bytes")
    assert set(family.labels) <= BOUNDED, "a label without a short list of values"


def test_the_manual_says_how_long_metrics_are_kept() -> None:
    raw, minute, hour = (LEVELS[level].kept_ns // HOUR_NS for level in Level)
    assert f"Samples are kept for {raw} h" in PAGE
    assert (minute, hour) == (24, 90 * 24)
    assert "by the minute for a day and by the hour for 90 days" in " ".join(PAGE.split())
