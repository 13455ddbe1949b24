"""Giving leases back: by release, and as original control planes understand it."""

import pytest

from netsonde.errors import ControlPlaneError
from support.clients import LEGACY, rig
from support.control_planes import (
    RustControlPlane,
    ScriptedControlPlane,
    lease,
)
from support.driving import finish


async def test_a_bad_lease_costs_itself_and_is_released() -> None:
    it = await rig().registered()
    it.server.leases = [lease(1), lease(2, kind="sonar"), lease(3), {"kind": "ping"}]

    grant = await it.claim()
    handed_back = await finish(it.clock, it.client.hand_back(grant.rejected))

    assert [found.lease_id for found in grant.leases] == [1, 3]
    assert len(grant.rejected) == 2
    assert handed_back == 1
    assert it.server.bodies["release"] == [{"agent_id": 7, "lease_ids": [2]}]


@LEGACY
async def test_a_bad_lease_of_an_original_server_is_reported_as_cancelled(
    kind: type[ScriptedControlPlane],
) -> None:
    it = await rig(kind).registered()
    it.server.leases = [lease(1), lease(2, kind="sonar")]

    grant = await it.claim()
    await finish(it.clock, it.client.hand_back(grant.rejected))

    (body,) = it.server.bodies["report"]
    assert body["completed"] == []
    (handed_back,) = body["cancelled"]
    assert handed_back["lease_id"] == 2
    assert handed_back["observations"][0]["name"] == "agent_rejected"
    assert it.server.calls("release") == 0


async def test_a_server_without_release_is_told_of_cancelled_leases() -> None:
    it = await rig(RustControlPlane).registered()
    assert it.client.registration is not None
    it.client.adopt(it.client.registration, is_legacy=None)  # restarted, nothing heard yet

    assert await finish(it.clock, it.client.release([4, 5])) == 2

    assert [found["lease_id"] for found in it.server.bodies["report"][0]["cancelled"]] == [4, 5]


async def test_releasing_nothing_asks_nothing() -> None:
    it = await rig().registered()

    assert await finish(it.clock, it.client.release([])) == 0
    assert await finish(it.clock, it.client.hand_back(())) == 0
    assert it.server.calls("release") == 0

    await finish(it.clock, it.client.release([], ["c-1"]))
    assert it.server.bodies["release"] == [{"agent_id": 7, "claim_ids": ["c-1"]}]


async def test_a_release_that_is_refused_is_raised() -> None:
    it = await rig().registered()
    it.server.answers["release"] = [(403, b"disabled")]

    with pytest.raises(ControlPlaneError):
        await finish(it.clock, it.client.release([1]))
