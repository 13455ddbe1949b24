"""What really happened on a simulated network: counts for each target, and every probe if asked."""

import mmap
import socket
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from support.netsim.fates import VARIANTS, End, Fate, Kind, Reply
from support.netsim.graph import graph_of
from support.netsim.records import (
    ANSWER,
    LINK,
    REQUEST,
    ROUTER,
    TARGET,
    Answer,
    LinkCounts,
    Probe,
    RouterCounts,
    Target,
    Totals,
)
from support.netsim.scenario import Scenario

Buffer = bytes | mmap.mmap
LinkName = tuple[str, str, str]  # route, and the two hops


class TruthHoleError(Exception):
    """The simulator lost something, so that its truth is none: the message says what and why."""


class Truth:
    """What a simulator wrote to its directory (truth.h); the files may go once this is made.

    TruthHoleError when frames or probes were lost. undelivered: packets that the host's interface
    dropped, so that they never came here; a careful sender was told (ENOBUFS). `requests_file` and
    `answers_file` hold the raw records for whoever has millions of them; `probes` makes an object
    of each.
    """

    def __init__(self, directory: Path, undelivered: int, scenario: Scenario) -> None:
        self.undelivered = undelivered
        self.totals = _read_totals(directory / "totals")
        _refuse_holes(self.totals)
        self._scenario = scenario
        self._targets_file = _read(directory / "targets")
        self._routers_file = _read(directory / "routers")
        self._links_file = _read(directory / "links")
        self.requests_file = _read(directory / "requests")
        self.answers_file = _read(directory / "answers")

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Counts by address, in the order the targets were first asked."""
        return {
            _address(packed, family): Target(*counts)
            for packed, family, *counts in TARGET.iter_unpack(self._targets_file)
        }

    @cached_property
    def routers(self) -> dict[str, RouterCounts]:
        """Counts by the router's name."""
        counts = map(RouterCounts._make, ROUTER.iter_unpack(self._routers_file))
        return dict(zip(self._scenario.router, counts, strict=True))

    @cached_property
    def links(self) -> dict[LinkName, LinkCounts]:
        """Counts by route and the hops a link joins, in the direction of the destination."""
        counts = map(LinkCounts._make, LINK.iter_unpack(self._links_file))
        names = (
            (name, edge.tail, edge.head)
            for name, route in self._scenario.route.items()
            for edge in graph_of(route).edges
        )
        return dict(zip(names, counts, strict=True))

    @cached_property
    def probes(self) -> list[Probe]:
        """Every request in the order of arrival; the scenario says record = "probes"."""
        names = dict(enumerate(self._scenario.router))
        found = [_probe(record, names) for record in REQUEST.iter_unpack(self.requests_file)]
        for position, answer in self._answers():
            found[position].answers.append(answer)
        return found

    def _answers(self) -> Iterator[tuple[int, Answer]]:
        for due_ns, sent_ns, position, kind, variant, within_us in ANSWER.iter_unpack(
            self.answers_file
        ):
            name = VARIANTS[Kind(kind)][variant]
            yield position, Answer(due_ns, sent_ns, Kind(kind), name, within_us)


def _probe(record: tuple[Any, ...], routers: Mapping[int, str]) -> Probe:
    (
        arrival_ns, source, destination, head, payload, n, ip_word, router, payload_bytes, family,
        flags, genuine, planned, ttl, tos, protocol, end, reply, hops,
    ) = record  # fmt: skip
    return Probe(
        arrival_ns, _address(source, family), _address(destination, family), head,
        payload[:payload_bytes], n, ip_word, routers.get(router), payload_bytes, family,
        Fate(flags), genuine, planned, ttl, tos, protocol, End(end), Reply(reply), hops, [],
    )  # fmt: skip


def _refuse_holes(totals: Totals) -> None:
    if totals.ring_drops or totals.overflow:
        raise TruthHoleError(
            f"ring_drops {totals.ring_drops}, overflow {totals.overflow}:"
            " raise limits.ring_frames, limits.hosts or limits.in_flight, or send less"
        )
    if totals.clock_step_ns:
        raise TruthHoleError(f"clock_step_ns {totals.clock_step_ns}: the wall clock was set")


def _read_totals(path: Path) -> Totals:
    pairs = (line.split() for line in path.read_text().splitlines())
    return Totals(**{name: int(value) for name, value in pairs})


def _read(path: Path) -> Buffer:
    """Map a file, which may be deleted after; an empty or missing one is no bytes."""
    if not path.exists() or path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _address(packed: bytes, family: int) -> str:
    if family == 4:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    return socket.inet_ntop(socket.AF_INET6, packed)
