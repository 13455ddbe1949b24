"""A page for Prometheus on an address of the agent's own, where its settings name one."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiohttp import web

from netsonde.errors import ConfigError
from netsonde.exposition import CONTENT_TYPE, exposition
from netsonde.metrics import Reading

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
        if request.path != "/metrics":
            return web.Response(status=404, text="there is only /metrics\n")
        if request.method != "GET":
            return web.Response(status=405, headers={"Allow": "GET"}, text="GET it\n")
        return web.Response(body=exposition(read), headers={"Content-Type": CONTENT_TYPE})

    # Whoever asks for a page sends no body: none is waited for, least of all at the end.
    server = web.Server(answer, access_log=None, lingering_time=0)
    runner = web.ServerRunner(server)
    await runner.setup()
    try:
        host, port = listen
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"cannot listen on {host}:{port}: {reason}; choose another address for"
                " metrics_listen"
            ) from error
        bound = runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        url = f"http://{shown}:{bound[1]}/metrics"
        _log.info("metrics are at %s", url, extra={"action": "metrics_served", "url": url})
        yield url
    finally:
        await runner.cleanup()
