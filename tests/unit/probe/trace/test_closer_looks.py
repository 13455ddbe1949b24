"""What a trace finds beside and beyond its path: other paths, and the largest packet."""

from typing import Any

import pytest

from netsonde._native import icmp
from netsonde.errors import RequestError
from netsonde.model import Outcome, TraceSpec
from netsonde.probe.base import Recorder
from netsonde.probe.ping.ways import Wanted, Ways
from netsonde.probe.trace import prober
from netsonde.probe.trace.mda import MdaSearch
from support.trace_bench import ROUTER, TARGET, TraceBench, addresses, path, seen
from support.trace_endings import Ending, answer, echo
from support.trace_twin import TraceRequest

LINK_MTU, PATH_MTU, HEADERS = 1500, 1400, 28


def narrow_path(request: TraceRequest) -> Ending:
    """The same, and the link between them carries less than the first one."""
    is_too_big = request.flags & icmp.TRACE_FORBID_FRAGMENTS and request.size > PATH_MTU - HEADERS
    if request.first_ttl == 1 or not is_too_big:
        return path(request)
    message = answer(request.first_ttl, ROUTER, icmp_type=3, icmp_code=4, mtu=PATH_MTU)
    return Ending(answers=[message], stop=icmp.STOPPED_UNREACHABLE, end_ttl=request.first_ttl)


async def test_every_path_is_found_when_asked_for(bench: TraceBench) -> None:
    measurement, value = await bench.trace(multipath="mda", confidence=99)
    found = value["multipath"]
    assert measurement.outcome is Outcome.OK
    assert found["confidence"] == 99
    assert found["nodes"] == [
        {"ttl": 1, "address": ROUTER},
        {"ttl": 2, "address": TARGET, "reached_destination": True},
    ]
    assert [(each["from"], each["to"]) for each in found["links"]] == [(ROUTER, TARGET)]
    assert found["sent"] == len(bench.traces) - 1
    assert {each.flow for each in bench.traces[1:]} == set(range(1, found["flows"] + 1))
    assert all(each.first_ttl == each.last_ttl for each in bench.traces[1:])


@pytest.mark.parametrize(
    ("ending", "end_ttl", "last_ttl"),
    [
        (Ending(answers=[echo(3)], end_ttl=3, attempts=b"\1\1"), 3, 9),
        (Ending(stop=icmp.STOPPED_GAP_LIMIT, attempts=b"\1\1\1"), 4, 9),
        (
            Ending(
                answers=[answer(2), answer(3, icmp_type=3, icmp_code=13)],
                stop=icmp.STOPPED_UNREACHABLE,
                end_ttl=3,
            ),
            3,
            3,
        ),
    ],
)
async def test_other_paths_are_looked_for_as_far_as_the_path_goes(
    bench: TraceBench,
    monkeypatch: pytest.MonkeyPatch,
    ending: Ending,
    end_ttl: int,
    last_ttl: int,
) -> None:
    wanted: list[dict[str, Any]] = []

    def search(**fields: Any) -> MdaSearch:
        wanted.append(fields)
        return MdaSearch(**fields)

    monkeypatch.setattr(prober, "MdaSearch", search)
    bench.plans[4] = lambda request: ending if request.flow == 0 else path(request)
    await bench.trace(
        method="udp", first_hop=2, max_hops=9, gap_limit=3, multipath="mda", confidence=80
    )
    assert wanted == [
        {
            "method": "udp",
            "first_ttl": 2,
            "end_ttl": end_ttl,
            "last_ttl": last_ttl,
            "gap_limit": 3,
            "confidence": 80,
        }
    ]


async def test_two_ways_of_flows_are_both_found(bench: TraceBench) -> None:
    def fork(request: TraceRequest) -> Ending:
        if request.first_ttl != request.last_ttl or request.first_ttl > 1:
            return path(request)
        return Ending(answers=[answer(1, f"192.0.2.{1 + request.flow % 2}")])

    bench.plans[4] = fork
    _, value = await bench.trace(multipath="mda")
    links = {(each["from"], each["to"]) for each in value["multipath"]["links"]}
    assert links == {("192.0.2.1", TARGET), ("192.0.2.2", TARGET)}


async def test_a_search_that_is_cancelled_tells_what_it_found(bench: TraceBench) -> None:
    def first_only(request: TraceRequest) -> Ending | None:
        return path(request) if request.last_ttl != 2 else None

    bench.plans[4] = first_only
    record = Recorder(bench.clock)
    task = bench.start(record, multipath="mda")
    await bench.clock.settle()
    task.cancel()
    await bench.clock.settle()
    assert task.cancelled()
    value = seen(record)
    assert value["status"] == "cancelled"
    assert addresses(value) == [ROUTER, TARGET]
    assert value["multipath"]["nodes"][0] == {"ttl": 1, "address": ROUTER}


async def test_the_largest_packet_is_found_when_asked_for(
    bench: TraceBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mtu(_ways: Ways, address: str, wanted: Wanted) -> int:
        assert (address, wanted) == (TARGET, Wanted(None, None, None))
        return LINK_MTU

    monkeypatch.setattr(Ways, "mtu", mtu)
    bench.plans[4] = narrow_path
    measurement, value = await bench.trace(pmtud=True)
    assert measurement.outcome is Outcome.OK
    assert value["pmtu"] == {"mtu": PATH_MTU, "black_hole": False, "ttl": 1, "address": ROUTER}
    probes = bench.traces[1:]
    assert all(each.flags == icmp.TRACE_FORBID_FRAGMENTS for each in probes)
    assert max(each.size for each in probes) == LINK_MTU - HEADERS


async def test_no_mtu_is_looked_for_where_the_path_has_no_end(
    bench: TraceBench,
) -> None:
    bench.plans[4] = lambda _: Ending(
        answers=[answer(1, ROUTER)], stop=icmp.STOPPED_GAP_LIMIT, attempts=b"\1\1\1"
    )
    _, value = await bench.trace(pmtud=True)
    assert "pmtu" not in value
    assert len(bench.traces) == 1


async def test_a_search_that_the_engine_refuses_is_rejected_by_its_own_error(
    bench: TraceBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_then(request: TraceRequest) -> Ending:
        bench.twins[4].wrong = 198
        return path(request)

    bench.plans[4] = wrong_then
    record = Recorder(bench.clock)
    with pytest.raises(RequestError, match="cannot send this"):
        await bench.tracer.run(TraceSpec(host=TARGET, multipath="mda"), record)
    assert addresses(seen(record)) == [ROUTER, TARGET]
