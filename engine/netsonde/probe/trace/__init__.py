"""Traces: the routers on the way to a host, all TTLs in flight at once."""

from netsonde.probe.trace.prober import TraceProber

__all__ = ["TraceProber"]
