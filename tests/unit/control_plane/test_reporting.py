"""Reports: batches, splits, and what each item is told."""

import json
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netsonde.clock import ManualClock
from netsonde.control_plane.client import ControlPlaneClient
from netsonde.control_plane.memory import Answered, MemoryControlPlaneTransport
from netsonde.control_plane.reporting import REQUESTS_MAX
from netsonde.errors import ControlPlaneError, TransportError
from netsonde.model import RegisterRequest, ReportResponse
from netsonde.wire import ITEM_MAX_BYTES, REPORT_ITEMS_MAX, REPORT_MAX_BYTES
from support.control_planes import GoControlPlane, RustControlPlane, ScriptedControlPlane
from support.driving import finish


def item(lease_id: int, padding: int = 0) -> bytes:
    return json.dumps({"lease_id": lease_id, "observations": [], "p": "x" * padding}).encode()


class Picky(ScriptedControlPlane):
    """Refuses a whole report for the sake of one item, as the original servers do."""

    poison: frozenset[int] = frozenset()
    most: int = 10**9
    status: int = 400

    async def report(self, body: Any) -> tuple[int, Any]:
        items = body["completed"] + body["cancelled"]
        if len(items) > self.most:
            return 413, b"length limit exceeded"
        if any(found["lease_id"] in self.poison for found in items):
            return self.status, b"Failed to deserialize the JSON body"
        return await super().report(body)


class Rig:
    def __init__(self, server: ScriptedControlPlane, clock: ManualClock) -> None:
        self.server = server
        self.clock = clock
        self.transport = MemoryControlPlaneTransport(server, clock)
        self.client = ControlPlaneClient(self.transport, clock, Random(1))

    async def report(
        self, completed: list[bytes], cancelled: list[bytes] | None = None
    ) -> ReportResponse:
        if self.client.identity is None:
            await finish(self.clock, self.client.register(RegisterRequest(hostname="h")))
        return await finish(self.clock, self.client.report(completed, cancelled or []))


def rig(kind: type[ScriptedControlPlane] = Picky, **settings_: Any) -> Rig:
    clock = ManualClock()
    server = kind(clock)
    for name, value in settings_.items():
        setattr(server, name, value)
    return Rig(server, clock)


def statuses(response: ReportResponse) -> dict[int, str]:
    return {result.lease_id: result.status for result in response.results}


async def test_each_item_is_told_its_status_in_order() -> None:
    it = rig()
    it.server.answers["report"] = [
        (
            200,
            {
                "acknowledged": 2,
                "results": [
                    {"lease_id": 3, "status": "fenced", "error": "ERR_LEASE_FENCED"},
                    {"lease_id": 1, "status": "duplicate"},
                    {"lease_id": 1, "status": "novel"},
                    {"lease_id": 77, "status": "accepted"},
                ],
            },
        )
    ]

    response = await it.report([item(1), item(2), item(1)], [item(3)])

    assert [(found.lease_id, found.status) for found in response.results] == [
        (1, "duplicate"),
        (2, "retry"),  # nothing says that it was taken
        (1, "novel"),
        (3, "fenced"),
    ]
    assert [found["lease_id"] for found in it.server.bodies["report"][0]["cancelled"]] == [3]


@pytest.mark.parametrize("kind", [RustControlPlane, GoControlPlane])
@pytest.mark.parametrize("acknowledged", [0, 1, 2])
async def test_an_original_servers_200_is_final_whatever_the_count(
    kind: type[ScriptedControlPlane], acknowledged: int
) -> None:
    it = rig(kind)
    it.server.answers["report"] = [(200, {"acknowledged": acknowledged})]

    response = await it.report([item(1)], [item(2)])

    assert response.acknowledged == acknowledged
    assert statuses(response) == {1: "accepted", 2: "accepted"}


async def test_an_empty_report_is_not_sent() -> None:
    it = rig()

    assert (await it.report([])).results == ()
    assert it.server.calls("report") == 0


async def test_a_long_report_goes_in_batches_within_the_limits() -> None:
    it = rig()
    many = [item(number) for number in range(1, 1202)]
    large = [item(number, ITEM_MAX_BYTES - 100) for number in range(2000, 2020)]

    response = await it.report(many + large)

    assert set(statuses(response).values()) == {"accepted"}
    assert len(response.results) == response.acknowledged == 1221
    for request in list(it.transport.requests)[1:]:
        assert len(request.body) <= REPORT_MAX_BYTES
    for body in it.server.bodies["report"]:
        assert len(body["completed"]) <= REPORT_ITEMS_MAX


@pytest.mark.parametrize("status", [400, 422])
async def test_one_poisonous_item_is_found_and_told_apart(status: int) -> None:
    it = rig(poison=frozenset({77}), status=status)

    response = await it.report([item(number) for number in range(1, 501)])

    told = statuses(response)
    assert [number for number, word in told.items() if word == "invalid"] == [77]
    assert list(told) == list(range(1, 501))
    assert response.acknowledged == 499
    assert it.client.counters["report_invalid"] == 1
    assert it.server.calls("report") <= 19


@given(st.sets(st.integers(1, 60), max_size=6), st.integers(1, 40), st.integers(1, 60))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
async def test_every_item_gets_one_status_whatever_is_wrong(
    poison: set[int], most: int, count: int
) -> None:
    it = rig(poison=frozenset(poison), most=most)
    numbers = list(range(1, count + 1))
    told: dict[int, str] = {}

    while missing := [number for number in numbers if told.get(number, "retry") == "retry"]:
        response = await it.report([item(number) for number in missing])
        assert [found.lease_id for found in response.results] == missing
        told |= statuses(response)

    assert {number for number, word in told.items() if word == "invalid"} == poison & set(numbers)


async def test_too_large_a_batch_is_halved_and_one_too_large_item_is_invalid() -> None:
    it = rig(most=3)
    response = await it.report([item(number) for number in range(1, 8)])
    assert set(statuses(response).values()) == {"accepted"}
    assert it.client.counters["report_splits"] == 2

    it = rig(most=0)
    response = await it.report([item(1)])
    assert statuses(response) == {1: "invalid"}
    assert "413" in (response.results[0].error or "")


async def test_a_report_that_is_all_poison_ends_and_goes_on_next_time() -> None:
    it = rig(poison=frozenset(range(1, 501)))

    response = await it.report([item(number) for number in range(1, 501)])

    told = list(statuses(response).values())
    assert it.server.calls("report") == REQUESTS_MAX
    assert told.count("invalid") + told.count("retry") == 500
    assert told.count("invalid") > 20


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_proxys_refusal_condemns_no_result(status: int) -> None:
    it = rig()
    page = Answered(status, b"<html>The plain HTTP request was sent to HTTPS port</html>")
    it.transport.inject(page, path_end="/report", times=100)

    response = await it.report([item(1), item(2)], [item(3)])

    assert statuses(response) == {1: "retry", 2: "retry", 3: "retry"}
    assert it.client.counters["report_retry"] == 3


async def test_an_original_servers_envelope_is_its_own_word() -> None:
    it = rig(RustControlPlane)
    no = {"error": "ERR_VALIDATION", "message": "no", "retryable": False}
    it.server.answers["report"] = [(400, no)]

    assert statuses(await it.report([item(1)])) == {1: "invalid"}


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>Welcome</html>"])
async def test_a_proxys_200_takes_nothing(body: bytes) -> None:
    it = rig(GoControlPlane)
    it.transport.inject(Answered(200, body), path_end="/report", times=100)

    with pytest.raises(TransportError):
        await it.report([item(1)])


async def test_a_proxy_that_drops_our_header_does_not_drop_what_was_said() -> None:
    it = rig(RustControlPlane)
    said = {"acknowledged": 0, "results": [{"lease_id": 1, "status": "retry"}]}
    it.server.answers["report"] = [(200, said)]

    assert statuses(await it.report([item(1)])) == {1: "retry"}


async def test_a_split_does_not_slow_the_next_report_down() -> None:
    it = rig(poison=frozenset({2}))
    await it.report([item(1), item(2)])
    before_ns = it.clock.boottime_ns()

    await it.report([item(3)])

    assert it.clock.boottime_ns() == before_ns


@pytest.mark.parametrize("fault", [None, Answered(403, b"disabled")])
async def test_what_was_taken_before_a_failure_stays_taken(
    fault: Answered | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = rig(most=2)
    served = it.server.report

    async def then_fail(body: Any) -> tuple[int, Any]:
        if len(body["completed"]) == 2:  # the first half: everything after it fails
            if fault is None:
                it.transport.is_partitioned = True
            else:
                it.transport.inject(fault, path_end="/report")
        return await served(body)

    monkeypatch.setattr(it.server, "report", then_fail)

    told = statuses(await it.report([item(number) for number in range(1, 5)]))

    assert told == {1: "accepted", 2: "accepted", 3: "retry", 4: "retry"}


async def test_nothing_handed_in_is_raised() -> None:
    it = rig()
    await it.report([item(9)])
    it.transport.is_partitioned = True
    with pytest.raises(TransportError):
        await it.report([item(1)])

    it.transport.is_partitioned = False
    it.server.answers["report"] = [(403, b"disabled")]
    with pytest.raises(ControlPlaneError) as caught:
        await it.report([item(1)])
    assert caught.value.status == 403
