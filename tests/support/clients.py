"""A client of the agent API over a transport in memory, and what answers it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest

from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.control_plane.client import ControlPlaneClient
from netsonde.control_plane.memory import (
    MemoryControlPlaneTransport,
)
from netsonde.model import (
    Measurement,
    Outcome,
    RegisterRequest,
    ReportResult,
)
from netsonde.wire import encode_report_item
from support.control_planes import (
    GoControlPlane,
    RustControlPlane,
    ScriptedControlPlane,
)
from support.driving import finish


@dataclass
class Rig:
    clock: ManualClock
    server: ScriptedControlPlane
    transport: MemoryControlPlaneTransport
    client: ControlPlaneClient

    async def registered(self) -> "Rig":
        await finish(self.clock, self.client.register(RegisterRequest(hostname="h")))
        return self

    async def claim(self, **options: Any) -> Any:
        capacities = options.pop("capacities", {"ping": 4})
        work = self.client.claim(capacities, claim_id="c-1", **options)
        return await finish(self.clock, work)

    async def report(
        self, completed: Sequence[bytes] = (), cancelled: Sequence[bytes] = ()
    ) -> tuple[ReportResult, ...]:
        work = self.client.report(completed, cancelled)
        return (await finish(self.clock, work)).results


def rig(kind: type[ScriptedControlPlane] = ScriptedControlPlane) -> Rig:
    clock = ManualClock()
    server = kind(clock)
    transport = MemoryControlPlaneTransport(server, clock)
    return Rig(clock, server, transport, ControlPlaneClient(transport, clock, Random(1)))


def item(lease_id: int) -> bytes:
    measured = Measurement(
        outcome=Outcome.OK, started_at_ns=0, duration_ns=NS_PER_MS, observations=()
    )
    return encode_report_item(lease_id, measured)


ALL = pytest.mark.parametrize("kind", [ScriptedControlPlane, RustControlPlane, GoControlPlane])
LEGACY = pytest.mark.parametrize("kind", [RustControlPlane, GoControlPlane])
