"""Ping: any number of targets at once over the native echo engine."""

from netsonde.probe.ping.engines import EngineOptions
from netsonde.probe.ping.many import PingReply, ping_many
from netsonde.probe.ping.prober import PingProber

__all__ = ["EngineOptions", "PingProber", "PingReply", "ping_many"]
