"""A real server is gone for a while: real agents miss no tick, and everything arrives once.

NETSONDE_OUTAGE_S says for how long (6 s; docs/reliability.md has the figures of 120 s). It prints
how late runs began, by this host's clock.
"""

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS, instant_ns
from support.processes import Program, answers, call, free_port, running, wait_until

OUTAGE_S = float(os.environ.get("NETSONDE_OUTAGE_S", "6"))
BEFORE_S = 3.0
TARGETS = 40
EVERY_MS = 1000
JITTER_MS = 500

SETTINGS = """
control_plane = "{url}"
state_dir = "{state_dir}"
targets = ["127.0.0.0/8"]
"""


@asynccontextmanager
async def listener() -> AsyncIterator[int]:
    """Take connections on every address of loopback and close them; yields the port."""

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "0.0.0.0", 0) as server:
        yield server.sockets[0].getsockname()[1]


def all_results(operator: str) -> list[dict[str, Any]]:
    """Read every result by following the cursor."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = call(f"{operator}/v1/results?limit=1000{cursor}")
        if not page["results"]:
            return found
        found += page["results"]
        cursor = f"&cursor={page['cursor']}"


async def until(what: str, is_true: Callable[[], bool], timeout_s: float = 60) -> None:
    """Poll a blocking question in a thread: the listener runs on this loop."""
    await asyncio.to_thread(wait_until, what, is_true, timeout_s=timeout_s)


async def test_no_tick_is_missed_while_the_server_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent_port, operator_port = free_port(), free_port()
    operator = f"http://127.0.0.1:{operator_port}"
    settings = tmp_path / "agent.toml"
    settings.write_text(
        SETTINGS.format(url=f"http://127.0.0.1:{agent_port}/", state_dir=tmp_path / "agent")
    )
    server = Program(
        "server", "run", "--state-dir", str(tmp_path / "server"),
        "--listen", f"127.0.0.1:{agent_port}", "--operator-listen", f"127.0.0.1:{operator_port}",
        log=tmp_path / "server.log",
    )  # fmt: skip
    agent = Program("agent", "run", "--config", str(settings), log=tmp_path / "agent.log")
    async with listener() as port:
        with running(server, agent):
            server.start()
            await until("the server answers", lambda: answers(f"{operator}/readyz"))
            agent.start()
            await until("it registers", lambda: bool(call(f"{operator}/v1/agents")["agents"]))
            check = await asyncio.to_thread(make_check, operator, port)
            await asyncio.sleep(BEFORE_S)

            server.kill()
            await asyncio.sleep(OUTAGE_S)
            server.start()
            await until("the server is back", lambda: answers(f"{operator}/readyz"))
            whole = int((BEFORE_S + OUTAGE_S) * 1000 / EVERY_MS) - 1
            await until("the spool arrives", lambda: newest(operator) >= whole)
            assert await asyncio.to_thread(agent.end) == 0, agent.log_text()

            results = await asyncio.to_thread(all_results, operator)
            shown = await asyncio.to_thread(call, f"{operator}/v1/checks/{check['check_id']}")
            server.end()
    tell(capsys, look_at(results, shown, whole))


def make_check(operator: str, port: int) -> dict[str, Any]:
    made: dict[str, Any] = call(
        f"{operator}/v1/checks",
        {
            "kind": "tcp",
            "targets": [f"127.0.0.{number}:{port}" for number in range(1, TARGETS + 1)],
            "every_ms": EVERY_MS,
            "jitter_ms": JITTER_MS,
            "select": {"labels": {}, "all": True},
        },
    )
    assert made["tasks"] == TARGETS
    return made


def newest(operator: str) -> int:
    page = call(f"{operator}/v1/results?limit=1&order=desc")["results"]
    return int(page[0]["tick"]) if page else -1


def look_at(results: list[dict[str, Any]], check: dict[str, Any], whole: int) -> str:
    """Insist that no tick is missing or there twice; say how late they began."""
    ticks: defaultdict[int, list[int]] = defaultdict(list)
    for result in results:
        ticks[result["task_id"]].append(result["tick"])
    assert len(ticks) == TARGETS
    for task_id, numbers in ticks.items():
        assert sorted(numbers) == list(range(len(numbers))), f"task {task_id}"
        assert len(numbers) > whole
    assert check["missed"] == 0
    assert {result["outcome"] for result in results} <= {"ok"}
    late_ns = sorted(
        instant_ns(result["started_at"]) - instant_ns(result["scheduled_at"])
        for result in results
        if result["tick"] > 0  # the first is due when the check is made
    )
    p50, p99 = (late_ns[-(-share * len(late_ns) // 100) - 1] / NS_PER_MS for share in (50, 99))
    return (
        f"{len(results)} ticks of {TARGETS} standing leases, the server gone for {OUTAGE_S:.0f} s:"
        f" 0 missed, 0 twice; schedule lateness p50 {p50:.2f} ms, p99 {p99:.2f} ms,"
        f" worst {late_ns[-1] / NS_PER_MS:.2f} ms"
    )


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")
