"""DNS checks."""

from netsonde.probe.dns.prober import DnsProber

__all__ = ["DnsProber"]
