"""What an operator sets and does, by the commands alone, on a control plane that is a process."""

from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from netsonde.cli.exits import Exit
from support.commands import json_lines, netsonde, running

SETTINGS = """
listen = "127.0.0.1:0"
operator_listen = "127.0.0.1:0"
memory = true
heartbeat_interval = "2s"
claim_wait = "3s"
[term]
ping = "2m"
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Run a control plane from a file, a variable and an option; yield where it is reached."""
    path = tmp_path / "server.toml"
    path.write_text(SETTINGS)
    environ = {"NETSONDE_SERVER_HEARTBEAT_INTERVAL": "4s", "NETSONDE_SERVER_CONFIG": str(path)}
    with running("server", "run", "--claim-wait", "5s", env=environ) as process:
        agents = process.line("stderr", "agents reach").split(" at ")[1].split()[0]
        operators = process.line("stderr", "operators reach").split(" at ")[1].split()[0]
        yield agents, operators


async def test_agents_are_told_what_was_set(place: tuple[str, str]) -> None:
    async with (
        aiohttp.ClientSession(headers={"Netsonde-Protocol": "1"}) as http,
        http.post(f"{place[0]}/v1/agents/register", json={"agent_key": "a" * 32}) as answer,
    ):
        told = await answer.json()
    assert told["heartbeat_interval_ms"] == 4_000, "the variable goes before the file"
    assert told["claim_wait_ms"] == 5_000, "the option goes before both"


def test_a_check_is_run_changed_paused_and_resumed(place: tuple[str, str]) -> None:
    at = ("--server", place[1], "--json")

    def check(*words: str) -> dict[str, object]:
        done = netsonde("check", *words, *at)
        assert done.returncode == Exit.OK, done.stderr
        (answer,) = json_lines(done.stdout)
        return dict(answer)

    made = check("add", "ping 127.0.0.1", "--every", "1h", "--expect", "loss_pct_max=1")
    assert (made["spec"], made["enabled"]) == ({"expect": {"loss_pct_max": 1.0}}, True)
    assert check("run", "1")["check_id"] == 1
    changed = check("change", "1", "-o", "count=3", "--expect", "avg_ms_max=5", "--every", "2h")
    assert changed["spec"] == {"count": 3, "expect": {"loss_pct_max": 1.0, "avg_ms_max": 5.0}}
    assert changed["every_ms"] == 7_200_000
    assert check("pause", "1")["enabled"] is False
    assert check("show", "1")["enabled"] is False
    assert check("resume", "1")["enabled"] is True
    assert check("change", "1", "--once", "--anybody").get("every_ms") is None
    assert check("cancel", "1")["check_id"] == 1
    refused = netsonde("check", "change", "1", "-o", "count=0", *at)
    assert (refused.returncode, refused.stdout) == (Exit.USAGE, "")
    gone = netsonde("check", "run", "99", *at)
    assert (gone.returncode, "there is no check 99" in gone.stderr) == (Exit.USAGE, True)
