"""The peers that were there first, rebuilt from how they behave: an agent and two control planes.

    agent = OriginalAgent(base_url, carry, handlers)   # await agent.run()
    answer = await RustServer(clock)(request)          # await GoServer(clock)(request)

They run on any loop and over any transport: `link` is one with outages for virtual time, `sockets`
is HTTP. Each does what its original does, faults included, and nothing that would be kinder.
"""

from support.original.agent import HandlerError, OriginalAgent
from support.original.go_server import GoServer
from support.original.link import Link
from support.original.rust_server import RustServer

__all__ = ["GoServer", "HandlerError", "Link", "OriginalAgent", "RustServer"]
