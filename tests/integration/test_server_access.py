"""Who may do what, over real sockets, files and processes."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from netsonde.cli.exits import Exit
from netsonde.model import TaskKind
from netsonde.server import Server, ServerConfig, serve
from support.commands import netsonde, running

FILE_TOKEN = "correct-horse-battery"
OWNER = {"Authorization": f"Bearer {FILE_TOKEN}"}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    (tmp_path / "operator").write_text(FILE_TOKEN)
    config = ServerConfig(
        listen="127.0.0.1:0",
        operator_listen="127.0.0.1:0",
        operator_token_file=tmp_path / "operator",
        enrolment_token="not-to-be-guessed",
        database=tmp_path / "server.db",
        terms_ms=dict.fromkeys(TaskKind, 20_000),
        shutdown_timeout_s=2.0,
    )
    async with serve(config) as running_server:
        yield running_server


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def raw(url: str, request: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes; return status and envelope of what comes back."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    answer: dict[str, Any] = json.loads(body)
    return int(head.split()[1]), answer


def get(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


async def posted(
    http: aiohttp.ClientSession, url: str, body: Any, headers: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    async with http.post(url, json=body, headers=headers) as response:
        return response.status, await response.json()


async def test_from_token_to_agent_to_log(server: Server, http: aiohttp.ClientSession) -> None:
    url = server.operator_url
    wanted = {"name": "provisioning", "scopes": ["enrol:write"]}
    status, made = await posted(http, f"{url}/v1/tokens", wanted, OWNER)
    assert status == 201
    bearer = {"Authorization": f"Bearer {made['token']}"}
    status, enrolment = await posted(
        http, f"{url}/v1/enrolment-tokens", {"labels": {"site": "ams"}}, bearer
    )
    assert status == 201
    register, identity = f"{server.agent_url}/v1/agents/register", {"agent_key": "a" * 32}
    protocol = {"Netsonde-Protocol": "1"}
    status, answer = await posted(http, register, identity, protocol)
    assert (status, answer["error"]) == (401, "ERR_ENROLMENT_REQUIRED")
    with_token = identity | {"enrolment_token": enrolment["token"]}
    status, agent = await posted(http, register, with_token, protocol)
    assert status == 200
    async with http.get(f"{url}/v1/agents/{agent['agent_id']}", headers=OWNER) as response:
        assert (await response.json())["labels"] == {"site": "ams"}
    async with http.get(f"{url}/v1/audit", headers=bearer) as response:
        assert response.status == 403
        assert "scope read" in (await response.json())["message"]
    async with http.get(f"{url}/v1/audit", headers=OWNER) as response:
        calls = (await response.json())["calls"]
    assert [(one["token"], one["call"], one["remote"]) for one in calls] == [
        ("provisioning", "POST /v1/enrolment-tokens", "127.0.0.1"),
        ("operator-token-file", "POST /v1/tokens", "127.0.0.1"),
    ]


async def test_one_of_many_at_once_gets_a_single_use(
    server: Server, http: aiohttp.ClientSession
) -> None:
    url = f"{server.operator_url}/v1/enrolment-tokens"
    _, made = await posted(http, url, {}, OWNER)
    register = f"{server.agent_url}/v1/agents/register"
    async with asyncio.TaskGroup() as group:
        tries = [
            group.create_task(
                posted(
                    http,
                    register,
                    {"agent_key": f"{number:032x}", "enrolment_token": made["token"]},
                    {"Netsonde-Protocol": "1"},
                )
            )
            for number in range(20)
        ]
    assert sorted(task.result()[0] for task in tries) == [200] + [401] * 19
    async with http.get(url, headers=OWNER) as response:
        assert [one["used"] for one in (await response.json())["enrolment_tokens"]] == [1]


@pytest.mark.parametrize(
    "path",
    [
        "//v1/queues", "/v1//queues", "/v1/../v1/queues", "/v1/%71ueues", "/v1%2Fqueues",
        "/%2e/v1/queues", "/livez/..%2fv1/queues", "/livez/../v1/queues", "/v1/queues%00",
        "/v1/queues;x", "/V1/queues", "/v1/agents/%2e%2e/queues",
    ],
)  # fmt: skip
async def test_only_the_path_itself_is_the_path(server: Server, path: str) -> None:
    bearer = f"Authorization: Bearer {FILE_TOKEN}"
    assert (await raw(server.operator_url, get("/v1/queues", bearer)))[0] == 200
    status, answer = await raw(server.operator_url, get(path, bearer))
    assert (status, answer["error"]) == (404, "ERR_NOT_FOUND")


async def test_a_body_of_who_may_not_call_is_not_waited_for(server: Server) -> None:
    for url, path in ((server.operator_url, "/v1/tasks"), (server.agent_url, "/report")):
        for length in ("Content-Length: 1000000", "Transfer-Encoding: chunked"):
            head = (
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"{length}\r\n\r\n"
            )
            status, answer = await raw(url, head.encode())
            assert (status, answer["error"]) == (401, "ERR_UNAUTHORIZED")


async def test_an_attack_is_nobody_elses_trouble(
    server: Server, http: aiohttp.ClientSession
) -> None:
    register = f"{server.agent_url}/v1/agents/register"
    identity = {"agent_key": "a" * 32, "enrolment_token": "not-to-be-guessed"}
    _, agent = await posted(http, register, identity, {"Netsonde-Protocol": "1"})
    mine = {
        "Netsonde-Protocol": "1",
        "X-Agent-Id": str(agent["agent_id"]),
        "X-Agent-Token": agent["auth_token"],
    }
    flood = "\r\n".join(f"X-{number}: {'y' * 100}" for number in range(500))
    deep = b"[" * 200_000
    attacks = [
        get("/v1/queues", flood),
        get("/v1/queues", "X: " + "y" * 100_000),
        get("/v1/queues", "Authorization: Bearer " + "z" * 8000),
        b"POST /register HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
        % (len(deep), deep),
        b"POST /register HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 3\r\n\r\n\x1f\x8b\x08",
        b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"\x00" * 1000 + b"\r\n\r\n",
    ]

    async def attack(request: bytes) -> None:
        for url in (server.agent_url, server.operator_url):
            status, answer = await raw(url, request)
            assert 400 <= status < 500, (request[:60], answer)
            assert answer["error"].startswith("ERR_")

    async def work() -> None:
        for number in range(20):
            body = {"agent_id": agent["agent_id"], "seq": number}
            status, answer = await posted(http, f"{server.agent_url}/heartbeat", body, mine)
            assert status == 200 or answer["error"] == "ERR_RATE_LIMITED", answer
            async with http.get(f"{server.operator_url}/v1/queues", headers=OWNER) as response:
                assert response.status == 200

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(work())
        for request in attacks * 3:
            group.create_task(attack(request))


def test_the_command_line_end_to_end(tmp_path: Path) -> None:
    """An operator's file, a token made with it, and an agent that enrols by a file made so."""
    operator, enrolment = tmp_path / "operator", tmp_path / "enrolment"
    operator.write_text(FILE_TOKEN)
    (tmp_path / "anyone").write_text("not-to-be-guessed")
    listen = ("--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--memory")
    files = ("--operator-token-file", str(operator))
    closed = ("--enrolment-token-file", str(tmp_path / "anyone"))
    with running("server", "run", *listen, *files, *closed) as process:
        agents = process.line("stderr", "agents reach this").split()[-1]
        url = process.line("stderr", "operators reach it at ").partition("at ")[2].split()[0]
        env = {"NETSONDE_OPERATOR_URL": url}
        refused = netsonde("agents", env=env)
        assert (refused.returncode, refused.stdout) == (Exit.CANNOT, "")
        assert "NETSONDE_OPERATOR_TOKEN_FILE" in refused.stderr
        env |= {"NETSONDE_OPERATOR_TOKEN_FILE": str(operator)}
        with running(
            "agent", "run", "--control-plane", agents, "--state-dir", str(tmp_path / "agent"),
            "--enrolment-token-file", str(enrolment), "--hostname", "probe-1",
        ) as agent:  # fmt: skip
            said = agent.line("stderr", "refuses register")
            assert "netsonde token create --enrol" in said
        made = netsonde("token", "create", "--enrol", "--label", "site=ams", env=env)
        assert made.returncode == Exit.OK, made.stderr
        enrolment.write_text(made.stdout)
        with running(
            "agent", "run", "--control-plane", agents, "--state-dir", str(tmp_path / "agent"),
            "--enrolment-token-file", str(enrolment), "--hostname", "probe-1",
        ) as agent:  # fmt: skip
            agent.line("stderr", "registered with")
        listed = netsonde("agents", env=env)
        assert "probe-1" in listed.stdout
        assert "site=ams" in listed.stdout
        assert " 1/1 " in netsonde("token", "list", "--enrol", env=env).stdout
        assert "POST /v1/enrolment-tokens" in netsonde("audit", env=env).stdout
