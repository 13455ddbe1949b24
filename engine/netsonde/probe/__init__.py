"""Measuring: one prober per kind of task, and what they share."""

from typing import Any

from netsonde.clock import Clock
from netsonde.model import TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Prober, Recorder, measure
from netsonde.probe.dns import DnsProber
from netsonde.probe.http import HttpProber
from netsonde.probe.ping import PingProber
from netsonde.probe.targets import TargetResolver
from netsonde.probe.tcp import TcpProber
from netsonde.probe.trace import TraceProber

__all__ = ["Prober", "Recorder", "make_probers", "measure"]


def make_probers(clock: Clock, policy: TargetPolicy) -> dict[TaskKind, Prober[Any]]:
    """Return a prober of every kind; no socket is opened before the first run."""
    resolver = TargetResolver(policy)
    probers: tuple[Prober[Any], ...] = (
        DnsProber(clock, policy),
        HttpProber(clock, resolver),
        TcpProber(clock, resolver),
        PingProber(clock, resolver),
        TraceProber(clock, resolver),
    )
    return {prober.kind: prober for prober in probers}
