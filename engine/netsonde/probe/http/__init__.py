"""HTTP checks."""

from netsonde.probe.http.prober import HttpProber

__all__ = ["HttpProber"]
