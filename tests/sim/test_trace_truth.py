"""Traces of random topologies whose truth is known: hops, labels, translation, ends, every path.

NETSONDE_TRACE_TOPOLOGIES says how many topologies; 500 take some minutes.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import pytest

from netsonde.clock import SystemClock
from netsonde.model import Measurement, Outcome, TraceSpec
from netsonde.policy import TargetPolicy
from netsonde.probe.base import Recorder, measure
from netsonde.probe.ping.lanes import Lanes
from netsonde.probe.targets import TargetResolver
from netsonde.probe.trace import TraceProber
from support.netsim import Scenario, simulated
from support.netsim.paths import Hop, Paths, paths_to
from support.netsim.topologies import Shape, random_destination, random_topology

pytestmark = [pytest.mark.raw, pytest.mark.netns]

Method = Literal["icmp", "udp", "tcp"]
METHODS: tuple[Method, ...] = get_args(Method)

TOPOLOGIES = int(os.environ.get("NETSONDE_TRACE_TOPOLOGIES", "48"))
TOGETHER = 16  # topologies of one network
FIRST_SEED = 20_261_127
LOSS = 0.05
# Of a hop every packet may be lost: with 8 attempts hardly one in the whole set.
ATTEMPTS = 8
TIMEOUT_MS = 400
CONFIDENCE = 95
# A router that quotes 8 bytes over IPv6 is not believed: no cookie, and RFC 4443 wants more.
SHAPES = {4: Shape(loss=LOSS, quoted=(8, 28, "full")), 6: Shape(loss=LOSS, quoted=(28, "full"))}


@dataclass(frozen=True)
class Case:
    """One topology, traced: its truth, a plain trace, and every path."""

    seed: int
    method: Method
    destination: str
    scenario: Scenario
    paths: Paths
    plain: Measurement
    multipath: Measurement

    @property
    def name(self) -> str:
        """What to look for when it fails."""
        return f"seed {self.seed}, {self.method} to {self.destination}"

    @property
    def trace(self) -> dict[str, Any]:
        """What the plain trace saw."""
        return _trace(self.plain)

    @property
    def graph(self) -> dict[str, Any]:
        """What multipath detection found."""
        found: dict[str, Any] = _trace(self.multipath)["multipath"]
        return found

    def answered(self) -> Iterator[tuple[int, str, Hop]]:
        """Yield each hop that answered the plain trace, and who that is."""
        for hop in self.trace["hops"]:
            if "address" in hop:
                ttl, address = hop["ttl"], hop["address"]
                yield ttl, address, self.at(ttl, address)

    def shows_translation(self, hop: Hop) -> bool:
        """Whether what a hop quotes tells: 8 bytes of a TCP header do not reach to its checksum."""
        router = self.scenario.router.get(hop.node)
        quoted = "full" if router is None else router.quoted
        is_short = self.method == "tcp" and quoted == 8
        return hop.translated == "source" or (hop.translated == "checksum" and not is_short)

    def at(self, ttl: int, address: str) -> Hop:
        """Return who has an address at a TTL."""
        found = [hop for hop in self.paths.at(ttl) if hop.address == address]
        assert len(found) == 1, f"{self.name}: {address} is not at TTL {ttl}"
        return found[0]


def _trace(measurement: Measurement) -> dict[str, Any]:
    value: dict[str, Any] = measurement.observations[-1].value
    return value


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Every topology of the set, by IPv4 and IPv6, ICMP, UDP and TCP in turn."""
    starts = range(-(-TOPOLOGIES // TOGETHER))
    found = [case for start in starts for case in _cases_of(FIRST_SEED + start, (4, 6)[start % 2])]
    return found[:TOPOLOGIES]


def _cases_of(seed: int, family: int) -> list[Case]:
    """Trace to all destinations of one network."""
    scenario = random_topology(seed, destinations=TOGETHER, shape=SHAPES[family])
    targets = [
        (METHODS[(seed + number) % len(METHODS)], random_destination(family, number))
        for number in range(TOGETHER)
    ]
    with simulated(scenario) as network:
        plain, multipath = network.host.call(lambda: asyncio.run(_trace_all(targets)))
    return [
        Case(seed, method, host, scenario, paths_to(scenario, host, method=method), one, all_paths)
        for (method, host), one, all_paths in zip(targets, plain, multipath, strict=True)
    ]


async def _trace_all(
    targets: list[tuple[Method, str]],
) -> tuple[list[Measurement], list[Measurement]]:
    """Trace to all targets at once: plainly, and then every path."""
    clock = SystemClock()
    resolver = TargetResolver(TargetPolicy.person())
    prober = TraceProber(clock, resolver, Lanes(clock))

    async def trace(method: Method, host: str, **options: Any) -> Measurement:
        record = Recorder(clock)
        spec = TraceSpec(host=host, method=method, timeout_ms=TIMEOUT_MS, **options)
        await measure(prober, spec, record)
        return record.measurement()

    try:
        plain = await asyncio.gather(
            *(trace(*target, probes_per_hop=ATTEMPTS) for target in targets)
        )
        multipath = await asyncio.gather(
            *(trace(*target, multipath="mda", confidence=CONFIDENCE) for target in targets)
        )
        return plain, multipath
    finally:
        await prober.close()


def test_every_hop_is_one_that_is_there_and_none_is_missed(cases: list[Case]) -> None:
    for case in cases:
        assert case.plain.outcome == Outcome.OK, case.name
        seen = {ttl for ttl, _, _ in case.answered()}
        assert [hop["ttl"] for hop in case.trace["hops"]] == [*range(1, max(seen) + 1)], case.name
        for ttl in set(range(1, max(seen))) - seen:
            hops = case.paths.at(ttl)
            assert any(hop.address is None or hop.is_limited for hop in hops), (case.name, ttl)


def test_one_flow_takes_one_path(cases: list[Case]) -> None:
    for case in cases:
        for (before, tail, _), (ttl, head, _) in pairwise(case.answered()):
            if ttl == before + 1:
                assert (ttl, tail, head) in case.paths.address_links, case.name


def test_labels_are_the_routers(cases: list[Case]) -> None:
    labelled = 0
    for case in cases:
        for hop in case.trace["hops"]:
            for probe in (each for each in hop["probes"] if "address" in each):
                truth = case.at(hop["ttl"], probe["address"])
                labels = [
                    (each["label"], each["tc"], each["ttl"]) for each in probe.get("mpls", ())
                ]
                true = [(each.label, each.tc, each.ttl) for each in truth.labels]
                assert labels == true, (case.name, hop["ttl"])
                labelled += bool(labels)
    assert labelled > len(cases)


def test_translation_begins_where_it_does(cases: list[Case]) -> None:
    translated = 0
    for case in cases:
        ttls = [ttl for ttl, _, hop in case.answered() if case.shows_translation(hop)]
        assert case.trace.get("nat_ttl") == min(ttls, default=None), case.name
        assert case.trace["nat_detected"] is bool(ttls), case.name
        translated += bool(ttls)
    assert translated > len(cases) / 20


def test_each_trace_stops_for_the_true_reason(cases: list[Case]) -> None:
    for case in cases:
        assert case.trace["stop_reason"] == case.paths.stop_reason(), case.name
        assert case.trace["hops"][-1]["reached_destination"], case.name
        assert case.trace["hops"][-1]["address"] == case.destination, case.name


def test_no_more_links_are_missed_than_the_confidence_allows(cases: list[Case]) -> None:
    missed = total = 0
    for case in cases:
        truth = case.paths.address_links
        missed += len(truth - _links(case))
        total += len(truth)
    assert total > 20 * len(cases)
    assert missed / total <= 1 - CONFIDENCE / 100


def test_no_link_is_found_that_is_not_there(cases: list[Case]) -> None:
    for case in cases:
        assert _links(case) <= case.paths.address_links, case.name
        for node in case.graph["nodes"]:
            if node["address"] is not None:
                case.at(node["ttl"], node["address"])
            assert "per_packet" not in node, case.name


def test_silence_is_linked_to_what_is_silent(cases: list[Case]) -> None:
    """A rate limit is not taken for silence, nor one router's silence for another's."""
    made_up = total = 0
    for case in cases:
        found = _answering_links(case) - _links(case)
        made_up += len(found - case.paths.answering_links)
        total += len(found)
    assert total > len(cases)
    assert made_up / total <= 1 - CONFIDENCE / 100


def _links(case: Case) -> set[tuple[int, str, str]]:
    """Return the links found between nodes that answer, as the truth has them."""
    return {
        (ttl, tail, head)
        for ttl, tail, head in _answering_links(case)
        if tail is not None and head is not None
    }


def _answering_links(case: Case) -> set[tuple[int, str | None, str | None]]:
    """Return all links found, as the truth has them."""
    return {(link["ttl"] + 1, link["from"], link["to"]) for link in case.graph["links"]}
