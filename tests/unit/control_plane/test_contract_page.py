"""The written contract says what the code does."""

import re
from pathlib import Path

import pytest

from netsonde import wire
from netsonde.backoff import POLICIES
from netsonde.control_plane import cadence, calls, client, exchange
from netsonde.errors import CODES, ErrorCode

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "control-plane-api.md").read_text()
AGENT_API = PAGE.partition("## Operator API")[0]


def rows(heading: str) -> dict[str, list[str]]:
    """The rows of the first table under a heading, by each name in their first cell."""
    section = AGENT_API.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    found = {}
    for line in section.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            for name in re.findall(r"`([^`]+)`", cells[0]):
                found[name] = cells
    return found


def test_every_code_is_described() -> None:
    assert set(rows("Errors")) == {code.value for code in ErrorCode}


@pytest.mark.parametrize("code", list(CODES))
def test_every_code_has_its_status(code: ErrorCode) -> None:
    _, statuses, again, _ = rows("Errors")[code.value]

    assert str(CODES[code].status) in statuses.split(", ")
    assert (again == "yes") is CODES[code].retryable


def test_the_retry_table_is_the_codes() -> None:
    def delay(ms: int) -> str:
        return f"{ms} ms" if ms < 1000 else f"{ms // 1000} s"

    table = rows("Retries")

    assert set(table) == {verb.value for verb in POLICIES}
    for verb, policy in POLICIES.items():
        assert table[verb.value][1:3] == [delay(policy.base_ms), delay(policy.cap_ms)]
    assert table["report"][3] == f"{calls.REPORT_TIMEOUT_S:g} s"
    assert table["extend"][3] == f"{calls.CALL_TIMEOUT_S:g} s"


@pytest.mark.parametrize(
    "text",
    [
        f"{wire.BODY_MAX_BYTES >> 20} MiB; {wire.REPORT_MAX_BYTES >> 20} MiB",
        f"{wire.ITEM_MAX_BYTES >> 10} KiB; {wire.OBSERVATIONS_MAX}",
        f"| JSON depth | {wire.JSON_DEPTH_MAX} |",
        f"| items of a report committed together | {wire.REPORT_ITEMS_MAX} |",
        f"per `extend` or `release` | {wire.LEASES_PER_CLAIM_MAX} |",
        f"answers of at most {exchange.ANSWER_MAX_BYTES >> 20} MiB",
        f"a heartbeat at most every {cadence.LEGACY_CADENCE.heartbeat_ms // 1000} s",
        f"a report at most every {cadence.LEGACY_CADENCE.report_ms // 1000} s",
    ],
)
def test_limits_are_the_codes(text: str) -> None:
    assert text in " ".join(AGENT_API.split())


@pytest.mark.parametrize("prefix", client.PREFIXES)
def test_every_prefix_is_named(prefix: str) -> None:
    assert f"`{prefix}/<call>`" in AGENT_API
