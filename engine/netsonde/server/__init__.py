"""The control plane: leases work to agents, takes their results, answers operators."""

from netsonde.server.app import Server, open_plane, serve
from netsonde.server.config import ServerConfig

__all__ = ["Server", "ServerConfig", "open_plane", "serve"]
