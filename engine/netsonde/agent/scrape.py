"""A page for Prometheus on an address of the agent's own, where its settings name one."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import cast

from aiohttp import web

from netsonde.errors import ConfigError
from netsonde.exposition import CONTENT_TYPE, exposition
from netsonde.listening.connections import Connections
from netsonde.listening.door import Door, open_door
from netsonde.listening.protocol import TimedProtocol, TimedServer
from netsonde.metrics import Reading

CONNECTIONS_MAX = 16  # a scraper or two, and who looks by hand
KEEPALIVE_S = 75.0
HEADERS_MAX = 64

_log = logging.getLogger("netsonde.agent")


@asynccontextmanager
async def metrics_page(
    listen: tuple[str, int] | None, read: Callable[[], Sequence[Reading]]
) -> AsyncIterator[str | None]:
    """Serve GET /metrics for the duration of the block; yield its address, None without one.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    if listen is None:
        yield None
        return

    async def answer(request: web.BaseRequest) -> web.Response:
        cast("TimedProtocol", request.protocol).visitor.work()
        if request.path != "/metrics":
            return web.Response(status=404, text="there is only /metrics\n")
        if request.method != "GET":
            return web.Response(status=405, headers={"Allow": "GET"}, text="GET it\n")
        return web.Response(body=exposition(read), headers={"Content-Type": CONTENT_TYPE})

    # Whoever asks for a page sends no body: none is waited for, least of all at the end.
    server = TimedServer(
        answer,
        access_log=None,
        lingering_time=0,
        keepalive_timeout=KEEPALIVE_S,
        max_headers=HEADERS_MAX,
    )
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        async with open_door(Connections(CONNECTIONS_MAX), server.protocol, None) as door:
            await _listen(door, *listen)
            host, port = door.address
            shown = f"[{host}]" if ":" in host else host
            url = f"http://{shown}:{port}/metrics"
            _log.info("metrics are at %s", url, extra={"action": "metrics_served", "url": url})
            yield url
    finally:
        await runner.cleanup()


async def _listen(door: Door, host: str, port: int) -> None:
    try:
        await door.listen(host, port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; choose another address for metrics_listen"
        ) from error
