"""Measuring: one prober per kind of task, and what they share."""

from functools import partial
from typing import Any

from netsonde.clock import Clock
from netsonde.model import TaskKind
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Prober, Recorder, measure
from netsonde.probe.dns import DnsProber
from netsonde.probe.http import HttpProber
from netsonde.probe.ping import EngineOptions, PingProber, PingReply, ping_many
from netsonde.probe.ping.engines import open_engine
from netsonde.probe.ping.sockets import pacer_of
from netsonde.probe.targets import TargetResolver
from netsonde.probe.tcp import TcpProber
from netsonde.probe.trace import TraceProber

__all__ = [
    "EngineOptions",
    "PingReply",
    "Prober",
    "Recorder",
    "make_probers",
    "measure",
    "ping_many",
]


def make_probers(
    clock: Clock, policy: TargetPolicy, ping: EngineOptions | None = None
) -> dict[TaskKind, Prober[Any]]:
    """Return a prober of every kind; no socket is opened before the first run.

    ping: how pings leave, and how often.
    """
    resolver = TargetResolver(policy)
    options = ping or EngineOptions()
    pings = PingProber(
        clock, resolver, engine=partial(open_engine, options=options), pacer=pacer_of(options)
    )
    probers: tuple[Prober[Any], ...] = (
        DnsProber(clock, policy),
        HttpProber(clock, resolver),
        TcpProber(clock, resolver),
        pings,
        TraceProber(clock, resolver, pings.lanes),
    )
    return {prober.kind: prober for prober in probers}
