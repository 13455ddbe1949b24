"""The measuring agent: it claims work, measures, and reports every result."""

from netsonde.agent.agent import Agent
from netsonde.agent.config import AgentConfig

__all__ = ["Agent", "AgentConfig"]
