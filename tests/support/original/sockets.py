"""Original peers over HTTP on loopback."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from netsonde.control_plane import TransportRequest, TransportResponse
from netsonde.errors import TransportError
from support.original.client import Carry
from support.original.link import Handler

SHUTDOWN_S = 0.1  # claims that are held do not end by themselves


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve an original control plane for the duration of the block; yield its address."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        response = await handler(
            TransportRequest(
                method=request.method,
                path=request.path_qs,
                headers=dict(request.headers),
                body=await request.read(),
                timeout_s=math.inf,
            )
        )
        return web.Response(
            status=response.status, body=response.body, headers=dict(response.headers)
        )

    runner = web.ServerRunner(
        web.Server(answer, handler_cancellation=True), shutdown_timeout=SHUTDOWN_S
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def carrying(address: str) -> AsyncIterator[Carry]:
    """Yield what carries an original agent's requests to an address, without any timeout."""
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None), skip_auto_headers=("User-Agent",)
    ) as session:

        async def carry(request: TransportRequest) -> TransportResponse:
            try:
                async with session.request(
                    request.method,
                    f"{address}{request.path}",
                    data=request.body,
                    headers=dict(request.headers),
                    allow_redirects=False,
                ) as response:
                    return TransportResponse(
                        response.status, response.headers, await response.read()
                    )
            except aiohttp.ClientError as error:
                raise TransportError(request.operation, str(error)) from error

        yield carry
