"""Every task ends with exactly one accepted result, whoever is killed in between."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from support.dns_server import dns_server, zone
from support.processes import Program, answers, call, free_port, running, wait_until

TASKS = 200
AGENT_KILLS = 3
SERVER_KILLS = 2
# Kills are spread over the run by how many results have been accepted when they strike.
KILLS = ((25, "agent"), (55, "server"), (85, "agent"), (115, "server"), (145, "agent"))

SETTINGS = """
control_plane = "{url}"
state_dir = "{state_dir}"
targets = ["127.0.0.0/8", "::1/128"]

[capacities]
dns = 2
http = 2
tcp = 2
ping = 2
trace = 2
"""


@asynccontextmanager
async def web_server() -> AsyncIterator[int]:
    """Serve one small page; yields the port."""

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():  # a tcp check connects and says nothing
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(page, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def tasks(dns: str, web_port: int) -> list[dict[str, Any]]:
    """Forty tasks of each kind; a ping takes long enough to be killed in its middle."""
    of_one_round: list[dict[str, Any]] = [
        {"kind": "dns", "query": "example.test", "qtype": "A", "server": dns},
        {"kind": "http", "url": f"http://127.0.0.1:{web_port}/"},
        {"kind": "tcp", "host": "127.0.0.1", "port": web_port},
        {"kind": "ping", "host": "127.0.0.1", "count": 5, "interval_ms": 80},
        {"kind": "trace", "host": "127.0.0.1"},
    ]
    return [
        {"kind": spec["kind"], "spec": spec, "max_attempts": 10}
        for _ in range(TASKS // len(of_one_round))
        for spec in of_one_round
    ]


def all_results(operator: str) -> list[dict[str, Any]]:
    """Read every result by following the cursor, in pages smaller than the whole."""
    found: list[dict[str, Any]] = []
    cursor = ""
    for _ in range(TASKS):
        page = call(f"{operator}/v1/results?limit=64{cursor}")
        if not page["results"]:
            return found
        found += page["results"]
        cursor = f"&cursor={page['cursor']}"
    raise AssertionError("the results have no end")


async def until(what: str, is_true: Callable[[], bool], timeout_s: float = 90) -> None:
    """Poll a blocking question in a thread: the test's own servers run on this loop."""
    await asyncio.to_thread(wait_until, what, is_true, timeout_s=timeout_s)


@pytest.mark.raw
async def test_every_task_has_exactly_one_result_through_kills(tmp_path: Path) -> None:
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

    async with (
        dns_server(zone("example.test 60 A 192.0.2.1")) as dns,
        web_server() as web_port,
    ):
        with running(server, agent):
            server.start()
            await until("the server answers", lambda: answers(f"{operator}/readyz"))
            made = await asyncio.to_thread(call, f"{operator}/v1/tasks", tasks(dns.spec, web_port))
            agent.start()
            struck: Counter[str] = Counter()
            for accepted, victim in KILLS:
                await until(
                    f"{accepted} results are accepted",
                    lambda wanted=accepted: len(all_results(operator)) >= wanted,  # type: ignore[misc]
                )
                program = agent if victim == "agent" else server
                program.kill()
                program.start()
                struck[victim] += 1
                if victim == "server":
                    await until("the server is back", lambda: answers(f"{operator}/readyz"))
            await until(
                "every task has a result",
                lambda: len({result["task_id"] for result in all_results(operator)}) == TASKS,
            )
            results = await asyncio.to_thread(all_results, operator)
            assert agent.end() == 0
            assert server.end() == 0

    assert struck == {"agent": AGENT_KILLS, "server": SERVER_KILLS}
    ids = [answer["task_id"] for answer in made["tasks"]]
    assert Counter(result["task_id"] for result in results) == Counter(ids)
    assert Counter((result["kind"], result["outcome"]) for result in results) == {
        (kind, "ok"): TASKS // 5 for kind in ("dns", "http", "tcp", "ping", "trace")
    }
    assert "Traceback" not in agent.log_text() + server.log_text()
