"""Ping against a simulated network whose truth is known: every target, every count, every RTT."""

import select
import statistics
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Literal, NamedTuple

import msgspec
import pytest

from netsonde._native.icmp import ERROR, EchoEngine, PacketBudget, pack_requests
from netsonde._native.ledger import EchoLedger
from netsonde.clock import NS_PER_MS, NS_PER_S
from netsonde.probe.ping.run import COMPLETION, Completion, Counts
from support.netsim import SCENARIOS, SimulatedNetwork, Truth, load_scenario, simulated

pytestmark = [pytest.mark.raw, pytest.mark.netns]

TARGETS = 10_000
RATE_PPS = 50_000
FIRST = {4: ip_address("10.10.0.0"), 6: ip_address("fd10::")}
# The simulator's stamps and ours lie a link apart; a processor may be taken away in between, and
# an average of a hundred round trips then holds a hundredth of that.
AVERAGE_SLACK_NS = NS_PER_MS
MEDIAN_SLACK_NS = NS_PER_MS // 20


class Case(NamedTuple):
    """How the targets are pinged."""

    family: Literal[4, 6]
    backend: Literal["header", "raw", "packet"]
    packets: int  # to each target


class Sweep:
    """Every target's run over one engine on its own thread, and what the ledger says of them."""

    def __init__(self, network: SimulatedNetwork, case: Case) -> None:
        self.case = case
        self.destinations = [
            (FIRST[case.family] + n).packed.ljust(16, b"\0") for n in range(TARGETS)
        ]
        self.ledger = EchoLedger()
        self.engine = network.host.call(
            EchoEngine, case.family, backend=case.backend, budgets=(PacketBudget(RATE_PPS),)
        )
        self._numbers = [self.ledger.open(each, case.packets) for each in self.destinations]
        width = 4 if case.family == 4 else 16
        self._requests = pack_requests(
            case.family, b"".join(each[:width] for each in self.destinations),
            token=self._numbers[0] << 32, token_shift=32, timeout_ns=NS_PER_S, count=case.packets,
            interval_ns=TARGETS * NS_PER_S // RATE_PPS, path=self._path(network),
        )  # fmt: skip

    def run(self) -> None:
        """Send everything, wait for the end of every run, and for the duplicates after it."""
        self.engine.start()
        record = len(self._requests) // TARGETS
        taken = finished = 0
        while finished < TARGETS:
            if taken < TARGETS:
                taken += self.engine.submit(self._requests[taken * record :])
            assert self._has_news(10), "the engine has had nothing to say for 10 s"
            finished += len(self.ledger.fold(self.engine.poll())[0])
        while self._has_news(0.2):
            self.ledger.fold(self.engine.poll())

    def each(self) -> Iterator[tuple[str, Counts, list[int]]]:
        """Yield every target with its counts and round-trip times."""
        for number, packed in zip(self._numbers, self.destinations, strict=True):
            rtts = memoryview(self.ledger.rtts_ns(number)).cast("q")
            counts = Counts(*self.ledger.counts(number))
            yield self._address(packed), counts, [rtt for rtt in rtts if rtt >= 0]

    def believed(self) -> Iterator[Completion]:
        """Yield what came from elsewhere than its target, and errors: here both are forgeries."""
        for number, packed in zip(self._numbers, self.destinations, strict=True):
            for each in map(Completion._make, COMPLETION.iter_unpack(
                    self.ledger.exceptions(number))):  # fmt: skip
                if each.kind == ERROR or each.responder != packed:
                    yield each

    def _has_news(self, within_s: float) -> bool:
        return bool(select.select([self.engine.fileno()], [], [], within_s)[0])

    def _address(self, packed: bytes) -> str:
        return str(ip_address(packed[:4] if self.case.family == 4 else packed))

    def _path(self, network: SimulatedNetwork) -> int:
        if self.case.backend != "packet":
            return 0
        return self.engine.add_path(
            source=ip_address(network.address(self.case.family)).packed,
            interface=network.interface_index,
            link_address=bytes.fromhex(network.simulator_mac.replace(":", "")),
        )


Told = tuple[Sweep, Truth]


@pytest.fixture(
    params=[
        Case(4, "header", 100),
        Case(6, "raw", 10),
        Case(4, "packet", 10),
        Case(6, "packet", 10),
    ],
    ids=lambda case: f"{case.family}-{case.backend}",
    scope="module",
)
def told(request: pytest.FixtureRequest) -> Iterator[Told]:
    scenario = load_scenario(SCENARIOS / "lossy_hostile.toml")
    with simulated(msgspec.structs.replace(scenario, record="targets")) as network:
        sweep = Sweep(network, request.param)
        try:
            sweep.run()
            yield sweep, network.stop()
        finally:
            sweep.engine.close()


def test_the_network_is_as_hostile_as_its_scenario(told: Told) -> None:
    sweep, truth = told
    requests = TARGETS * sweep.case.packets
    assert truth.totals.requests == requests
    for share, count in [
        (0.05, truth.totals.dropped),
        (0.02 * 2, truth.totals.duplicates),
        (0.05, truth.totals.reordered),
        (0.05, truth.totals.forged),
        (0.02, truth.totals.corrupted),
        (0.05, truth.totals.foreign_errors),
        (0.02, truth.totals.noise),
    ]:
        assert count / requests == pytest.approx(share, rel=0.1)


def test_loss_and_duplicates_are_the_truth_for_every_target(told: Told) -> None:
    sweep, truth = told
    for address, counts, _ in sweep.each():
        true = truth.targets[address]
        assert (counts.submitted, counts.tx_errors, counts.rx_drops) == (sweep.case.packets, 0, 0)
        assert (counts.received, counts.lost) == (true.replied, true.dropped)
        assert (counts.duplicates, counts.late) == (true.duplicates, 0)


def test_round_trip_times_are_the_truth_for_every_target(told: Told) -> None:
    sweep, truth = told
    errors_ns = []
    for address, _, rtts_ns in sweep.each():
        true = truth.targets[address]
        if not true.replied:
            continue
        error_ns = statistics.fmean(rtts_ns) - true.turnaround_sum_ns / true.replied
        assert abs(error_ns) < AVERAGE_SLACK_NS * 100 / len(rtts_ns)
        errors_ns.append(error_ns)
    assert 0 < statistics.median(errors_ns) < MEDIAN_SLACK_NS


def test_nothing_is_misattributed_and_no_forgery_is_believed(told: Told) -> None:
    sweep, _ = told
    assert list(sweep.believed()) == []
    assert sweep.ledger.strays == 0
    counters = sweep.engine.counters
    assert counters["late_errors"] == 0
    assert min(counters["forged"], counters["foreign"], counters["malformed"]) > 0
