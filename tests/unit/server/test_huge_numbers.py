"""Numbers beyond 64 bits, which our JSON has no form for: refused or left out, never a failure."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.stores import STORES, Caller, callers

HUGE = 2**70


@pytest.fixture(params=STORES)
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    yield from callers(request.param, tmp_path)


async def test_an_account_that_has_one_is_left_out(caller: Caller) -> None:
    agent = await caller.register(inventory={"mem_bytes": HUGE}, capacities={"ping": 1})

    status, answer, _ = await caller.operator("GET", f"/v1/agents/{agent.agent_id}")

    assert status == 200
    assert "inventory" not in answer


@pytest.mark.parametrize("lease_id", [HUGE, 2**64, -1])
async def test_lease_ids_out_of_range_are_refused(caller: Caller, lease_id: int) -> None:
    agent = await caller.register()
    for path, body in (
        ("/extend", {"lease_ids": [lease_id], "extend_by_ms": 1}),
        ("/release", {"lease_ids": [lease_id]}),
        ("/release", {"keep_lease_ids": [lease_id]}),
        ("/heartbeat", {"active_leases": {"count": 1, "ids": [lease_id]}}),
    ):
        status, answer, _ = await agent.call(path, body)

        assert (status, answer["error"]) == (400, "ERR_VALIDATION"), path


@pytest.mark.parametrize("patch", [{"every_ms": HUGE}, {"spec": {"count": HUGE}}])
async def test_a_checks_patch_is_refused(caller: Caller, patch: dict[str, object]) -> None:
    await caller.operator("POST", "/v1/checks", {"kind": "ping", "targets": ["192.0.2.1"]})

    status, answer, _ = await caller.operator("PATCH", "/v1/checks/1", patch)

    assert (status, answer["error"]) == (400, "ERR_VALIDATION")


async def test_a_result_keeps_them(caller: Caller) -> None:
    agent = await caller.register()
    await caller.tasks()
    (lease,) = await agent.claim()
    item = {
        "lease_id": lease["lease_id"],
        "outcome": "ok",
        "observations": [{"name": "later", "value": HUGE}],
        "env": {"later": HUGE},
    }

    _, reported, _ = await agent.call("/report", {"completed": [item], "cancelled": []})

    assert [one["status"] for one in reported["results"]] == ["accepted"]
    _, answer, _ = await caller.operator("GET", "/v1/results")
    (result,) = answer["results"]
    assert result["observations"] == item["observations"]
    assert result["env"] == {"later": HUGE, "timed_by": "control_plane"}
