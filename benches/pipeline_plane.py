"""A control plane that costs next to nothing: fresh leases from a template, every result accepted.

usage: python -m benches.pipeline_plane

Prints its address and serves until its input ends. It notes the ids that were reported, so that a
contestant which did not do its work is found out: GET /tally says how many there were.
"""

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable

from aiohttp import web

from benches.lease_codec import claim_body

BATCH = 1000
FIRST_ID = 10**15  # ids of 16 digits: the first 13 are the claim's, the others the lease's
HELD_S = 0.05
BODY_MAX = 8 << 20
HEADERS = {"Content-Type": "application/json", "Netsonde-Protocol": "1"}
_PREFIX = b"%d" % (FIRST_ID // BATCH)
_ID = re.compile(rb'\{"lease_id":(\d+)')
_STATUS = b',"status":"accepted"}'


@web.middleware
async def without_streams(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse NDJSON, so that a thousand leases are a request."""
    told = request.headers.get("Accept", "") + request.headers.get("Content-Type", "")
    if "ndjson" in told:
        return web.Response(status=406, headers=HEADERS)
    return await handler(request)


class Plane:
    """Grants and takes as fast as bytes can be copied."""

    def __init__(self) -> None:
        self.limit = self.granted = self.taken = 0
        self.reported: set[bytes] = set()
        self._template = claim_body(FIRST_ID, BATCH).replace(
            b'"lease_id":' + _PREFIX, b'"lease_id":@@'
        )

    async def limit_to(self, request: web.Request) -> web.Response:
        """Begin anew, to grant so many claims."""
        self.limit = int(request.query["claims"])
        self.granted = self.taken = 0
        self.reported.clear()
        return web.Response()

    async def claim(self, request: web.Request) -> web.Response:
        """Grant a thousand leases, none where fewer are wanted or the limit is reached."""
        wanted = json.loads(await request.read()).get("max_leases", BATCH)
        if self.granted == self.limit or wanted < BATCH:
            await asyncio.sleep(HELD_S)
            return web.Response(body=b'{"leases":[]}', headers=HEADERS)
        self.granted += 1
        prefix = b"%d" % (FIRST_ID // BATCH + self.granted)
        return web.Response(body=self._template.replace(b"@@", prefix), headers=HEADERS)

    async def report(self, request: web.Request) -> web.Response:
        """Accept every item."""
        ids = _ID.findall(await request.read())
        self.taken += len(ids)
        self.reported.update(ids)
        results = b'{"lease_id":' + (_STATUS + b',{"lease_id":').join(ids) + _STATUS if ids else b""
        body = b'{"acknowledged":%d,"results":[' % len(ids) + results + b"]}"
        return web.Response(body=body, headers=HEADERS)

    async def tally(self, _: web.Request) -> web.Response:
        """Say how many items came, and of how many leases."""
        return web.json_response({"items": self.taken, "leases": len(self.reported)})


async def main() -> None:
    """Serve on a free port until the input ends."""
    plane = Plane()
    app = web.Application(client_max_size=BODY_MAX, middlewares=[without_streams])
    app.router.add_post("/v1/agents/claim", plane.claim)
    app.router.add_post("/v1/agents/report", plane.report)
    app.router.add_post("/limit", plane.limit_to)
    app.router.add_get("/tally", plane.tally)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(json.dumps(f"http://{host}:{port}"), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
