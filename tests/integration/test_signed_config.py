"""A signed configuration by the commands alone, from the key through a crash of the agent."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from netsonde.cli.exits import Exit
from netsonde.clock import SystemClock
from netsonde.control_plane import ControlPlaneClient, HttpControlPlaneTransport, RegisterRequest
from netsonde.control_plane.calls import ConfigAnswer
from netsonde.server import ServerConfig, serve
from support.commands import Running, json_lines, netsonde, running
from support.configs import document, envelope

STATUS_WITHIN_S = 40.0


@contextmanager
def control_plane(folder: Path) -> Iterator[tuple[str, str]]:
    """Run a control plane; yield where agents and operators reach it."""
    args = ("--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--state-dir", folder)
    with running("server", "run", *map(str, args)) as process:
        told = process.line("stderr", "reach this control plane at ")
        agents = told.partition("reach this control plane at ")[2].split()[0]
        told = process.line("stderr", "operators reach it at ")
        yield agents, told.partition("operators reach it at ")[2].split()[0]


@contextmanager
def agent(url: str, folder: Path, key: str) -> Iterator[Running]:
    settings = {"NETSONDE_TRUSTED_KEYS": key, "NETSONDE_CONTROL_PLANE": url}
    args = ("agent", "run", "--state-dir", str(folder), "--hostname", "ams-1", "--log-json")
    with running(*args, env=settings) as process:
        process.line("stderr", "registered")
        yield process


def run(*args: object) -> str:
    done = netsonde("config", *map(str, args))
    assert done.returncode == Exit.OK, done.stderr
    return done.stdout


def publish(folder: Path, operators: str, revision: int, text: str, key: Path) -> None:
    values, sealed = folder / "values.toml", folder / "envelope.json"
    values.write_text(text)
    sealed.write_text(run("sign", values, "--key", key, "--revision", revision))
    run("publish", sealed, "--server", operators)


def state_of(operators: str, revision: int, status: str) -> dict[str, Any]:
    """Ask until the agent has said what is expected."""
    deadline = time.monotonic() + STATUS_WITHIN_S
    found: dict[str, Any] = {}
    while time.monotonic() < deadline:
        (one,) = json_lines(run("show", revision, "--server", operators, "--json"))
        (found,) = one["status"]["agents"]
        if found["status"] == status:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not {status}: {found}")


async def test_a_tag_saves_the_body_on_a_real_connection() -> None:
    settings = ServerConfig(listen="127.0.0.1:0", operator_listen="127.0.0.1:0")
    async with serve(settings) as server, aiohttp.ClientSession() as http:
        url = f"{server.operator_url}/v1/configs"
        async with http.post(url, json=document(envelope(1))) as answer:
            assert answer.status == 201
        transport = HttpControlPlaneTransport(server.agent_url)
        client = ControlPlaneClient(transport, SystemClock(), Random(1))
        registration = await client.register(RegisterRequest(hostname="h", agent_key="k" * 32))
        assert registration.config_revision == "1"
        first = await client.config(None)
        assert first is not None
        assert first.body is not None
        for _ in range(3):
            again = await client.config(first.etag)
            assert again == ConfigAnswer(None, first.etag)
        assert (await client.config('"other"')) == first
        await client.close()


def test_from_the_key_to_the_acknowledgement_and_through_a_crash(tmp_path: Path) -> None:
    key, other = tmp_path / "key.pem", tmp_path / "other.pem"
    (made,) = json_lines(run("keygen", key, "--json"))
    run("keygen", other)
    with control_plane(tmp_path / "server") as (agents, operators):
        with agent(agents, tmp_path / "agent", made["public_key"]) as process:
            publish(tmp_path, operators, 1, "[kinds.dns]\nconcurrency = 5000\n", key)
            line = json.loads(process.line("stderr", "config_applied"))
            assert (line["action"], line["revision"]) == ("config_applied", 1)
            state = state_of(operators, 1, "ack")
            assert state["clamped"] == [
                {"path": "kinds.dns.concurrency", "asked": "5000", "applied": "200"}
            ]
            publish(tmp_path, operators, 2, "log_level = 'error'\n", other)
            state = state_of(operators, 2, "nack")
            assert (state["reason"], state["applied"]) == ("unknown_key", 1)
            process.stop(signal.SIGKILL)
        with agent(agents, tmp_path / "agent", made["public_key"]) as process:
            line = json.loads(process.line("stderr", "config_applied"))
            assert line["revision"] == 1, "in force before the control plane says a word"
            publish(tmp_path, operators, 3, "[features]\nclaim_streams = false\n", key)
            assert state_of(operators, 3, "ack")["applied"] == 3
            code, _, _ = process.stop(signal.SIGTERM)
            assert code == Exit.OK
