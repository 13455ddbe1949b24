"""The two pages that Prometheus scrapes, over real sockets."""

import asyncio
import logging
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from netsonde.agent import Agent, AgentConfig
from netsonde.agent.scrape import CONNECTIONS_MAX, metrics_page
from netsonde.errors import ConfigError
from netsonde.server import ServerConfig, serve
from support.probers import gated

TOKEN = "t" * 24


async def fetch(url: str, token: str | None = None) -> tuple[int, str, str]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status, answer.headers.get("Content-Type", ""), await answer.text()


def names(page: str) -> set[str]:
    return {family.name for family in text_string_to_metric_families(page)}


async def test_agent_and_control_plane_can_be_scraped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "netsonde")
    served: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def hear(record: logging.LogRecord) -> bool:
        if getattr(record, "action", "") == "metrics_served":
            served.set_result(record.url)  # type: ignore[attr-defined]
        return True

    caplog.handler.addFilter(hear)
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    config = ServerConfig(
        listen="127.0.0.1:0", operator_listen="127.0.0.1:0", operator_token_file=token_file
    )
    async with serve(config) as server, asyncio.TaskGroup() as group:
        agent = Agent(
            AgentConfig(
                control_plane=server.agent_url, state_dir=tmp_path / "agent", metrics_listen=":0"
            ),
            probers=gated(),
        )
        running = group.create_task(agent.run())
        async with asyncio.timeout(10):
            page_url = await served
        status, media_type, page = await fetch(page_url)
        assert (status, media_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert {"netsonde_agent_spool_results", "netsonde_agent_requests"} <= names(page)
        assert (await fetch(page_url.replace("/metrics", "/")))[0] == 404

        url = f"{server.operator_url}/metrics"
        assert (await fetch(url))[0] == 401
        status, media_type, page = await fetch(url, TOKEN)
        assert (status, media_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert {"netsonde_server_tasks", "netsonde_server_agents"} <= names(page)
        assert 'requests_total{call="register",class="2xx",listener="agent"} 1.0' in page
        caplog.handler.removeFilter(hear)
        agent.drain()
        async with asyncio.timeout(20):
            await running


async def test_an_address_that_is_taken_is_explained() -> None:
    async with metrics_page(("127.0.0.1", 0), list) as url:
        assert url is not None
        port = int(url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(ConfigError, match="metrics_listen"):
            async with metrics_page(("127.0.0.1", port), list):
                pass


async def test_no_address_is_no_page() -> None:
    async with metrics_page(None, list) as url:
        assert url is None


async def test_a_body_that_never_comes_does_not_hold_up_the_agents_end() -> None:
    async with asyncio.timeout(5), metrics_page(("127.0.0.1", 0), list) as url:
        assert url is not None
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_who_is_slow_or_too_many_holds_up_no_scraper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netsonde.listening.protocol.HEAD_TIMEOUT_S", 0.3)
    async with asyncio.timeout(20), metrics_page(("127.0.0.1", 0), list) as url:
        assert url is not None
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 "), "its head does not end"
        writer.close()
        idle = [
            await asyncio.open_connection(address.hostname, address.port)
            for _ in range(CONNECTIONS_MAX + 1)
        ]
        assert await idle[0][0].read() == b"", "the longest idle gives way"
        assert (await fetch(url))[0] == 200
        for _, each in idle:
            each.close()
