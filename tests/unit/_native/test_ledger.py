"""The echo ledger against a fold in plain Python, and its numbers against `netsonde.stats`."""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde._native import icmp
from netsonde._native.ledger import COUNT_MAX, EchoLedger
from netsonde.probe.ping.run import COMPLETION, Completion, Counts
from netsonde.stats import Histogram, RttSummary, summarise

TARGET, ELSEWHERE = bytes([192, 0, 2, 1]).ljust(16, b"\0"), bytes([192, 0, 2, 9]).ljust(16, b"\0")
FINAL = (icmp.REPLY, icmp.TIMEOUT, icmp.ERROR, icmp.TX_ERROR, icmp.RX_DROP)
EXCEPTIONS_SPARE = 64  # kept beyond two per attempt, at the most


def completion(token: int, kind: int = icmp.REPLY, rtt_ns: int = 1000, **fields: Any) -> Completion:
    made = Completion(token, rtt_ns, 5, TARGET, kind, 0, 0, 64, 56, icmp.RX_KERNEL, 0)
    return made._replace(**fields)


def packed(completions: Iterable[Completion]) -> bytes:
    return b"".join(COMPLETION.pack(*each) for each in completions)


@dataclass
class Model:
    """What a run should be, folded the obvious way."""

    count: int
    submitted: int
    final: dict[int, Completion] = field(default_factory=dict)
    exceptions: list[Completion] = field(default_factory=list)
    duplicates: int = 0
    late: int = 0

    @property
    def is_finished(self) -> bool:
        return len(self.final) >= self.submitted

    def take(self, each: Completion) -> None:
        if each.kind == icmp.STOPPED:
            if each.rtt_ns >= 0:
                self.submitted = min(each.rtt_ns, self.count)
        elif each.attempt >= self.count:
            pass
        elif each.kind == icmp.DUPLICATE:
            self.duplicates += 1
            self.exceptions.append(each)
        elif each.kind == icmp.LATE:
            self.late += 1
            self.exceptions.append(each)
        elif each.attempt not in self.final:
            self.final[each.attempt] = each
            elsewhere = each.kind == icmp.REPLY and each.responder != TARGET
            if each.kind == icmp.ERROR or elsewhere:
                self.exceptions.append(each)

    def of(self, kind: int) -> list[Completion]:
        return [each for each in self.final.values() if each.kind == kind]

    def counts(self) -> Counts:
        replies = self.of(icmp.REPLY)
        sent = [each.sent_ns for each in self.final.values() if each.kind != icmp.TX_ERROR]
        return Counts(
            submitted=self.submitted,
            settled=len(self.final),
            received=len(replies),
            tx_errors=len(self.of(icmp.TX_ERROR)),
            rx_drops=len(self.of(icmp.RX_DROP)),
            duplicates=self.duplicates,
            late=self.late,
            user_rx=sum(not each.clocks & icmp.RX_KERNEL for each in replies),
            user_tx=sum(not each.clocks & icmp.TX_KERNEL for each in replies),
            first_sent_ns=min(sent, default=0),
            last_sent_ns=max(sent, default=0),
        )

    def column(self, of: Callable[[Completion], int], empty: int = 0) -> list[int]:
        values = (self.final.get(attempt) for attempt in range(self.count))
        return [empty if each is None else of(each) for each in values]

    def rtts_ns(self) -> list[int]:
        """Round-trip times of the replies in time, in order."""
        return [self.final[at].rtt_ns for at in sorted(self.final)
                if self.final[at].kind == icmp.REPLY]  # fmt: skip


def assert_equal(ledger: EchoLedger, number: int, model: Model) -> None:
    assert Counts(*ledger.counts(number)) == model.counts()
    assert list(memoryview(ledger.rtts_ns(number)).cast("q")) == model.column(
        lambda each: each.rtt_ns if each.kind == icmp.REPLY else -1, -1
    )
    assert list(memoryview(ledger.sizes(number)).cast("H")) == model.column(lambda each: each.size)
    for column, of in (
        (ledger.kinds, lambda each: each.kind),
        (ledger.ttls, lambda each: each.ttl),
        (ledger.icmp_types, lambda each: each.icmp_type),
        (ledger.codes, lambda each: each.errno or each.code),
    ):
        assert list(column(number)) == model.column(of)
    kept = [Completion(*each) for each in COMPLETION.iter_unpack(ledger.exceptions(number))]
    assert kept == model.exceptions[: len(kept)]
    assert len(kept) == len(model.exceptions) or len(kept) >= 2 * model.count


def close_to(number: float) -> Any:
    return pytest.approx(number, rel=1e-9, abs=1e-3)


def assert_summarised(ledger: EchoLedger, number: int, rtts_ns: list[int]) -> None:
    """Hold the native numbers against those of `netsonde.stats`."""
    expected, found = summarise(rtts_ns), ledger.summary(number)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        summary = RttSummary.of(*found)
        for name in ("count", "min_ns", "max_ns", "p50_ns", "p90_ns", "p95_ns", "p99_ns"):
            assert getattr(summary, name) == getattr(expected, name), name
        for name in ("avg_ns", "stddev_ns", "jitter_ns"):
            assert getattr(summary, name) == close_to(getattr(expected, name)), name
    assert Histogram.of(ledger.histogram(number)) == Histogram(rtts_ns)
    buckets = [index for index, _ in ledger.histogram(number)]
    assert buckets == sorted(set(buckets))


# ── any completions ──────────────────────────────────────────────────────────────────────────────

RUNS = 3
CLOCKS = st.sampled_from([0, icmp.RX_KERNEL, icmp.TX_KERNEL, icmp.RX_KERNEL | icmp.TX_KERNEL])


@st.composite
def any_completions(draw: st.DrawFn) -> list[Completion]:
    """Draw completions of runs 1 to 3, of others, of single probes, out of any order."""

    def one() -> Completion:
        kind = draw(st.sampled_from([*FINAL, icmp.LATE, icmp.DUPLICATE]))
        silent = kind in (icmp.TIMEOUT, icmp.TX_ERROR, icmp.RX_DROP)
        return Completion(
            token=draw(st.integers(0, RUNS + 1)) << 32 | draw(st.integers(0, 9)),
            rtt_ns=-1 if silent else draw(st.integers(0, 60_000_000_000)),
            sent_ns=draw(st.integers(1, 2**62)),
            responder=draw(st.sampled_from([TARGET, ELSEWHERE])),
            kind=kind,
            icmp_type=draw(st.integers(0, 255)),
            code=draw(st.integers(0, 255)),
            ttl=draw(st.integers(0, 255)),
            size=draw(st.integers(0, 65_535)),
            clocks=draw(CLOCKS),
            errno=draw(st.integers(1, 255)) if kind == icmp.TX_ERROR else 0,
        )

    found = [one() for _ in range(draw(st.integers(0, 40)))]
    for number in draw(st.sets(st.integers(1, RUNS))):
        stop = completion(number << 32, icmp.STOPPED, draw(st.integers(-1, 8)))
        found.insert(draw(st.integers(0, len(found))), stop)
    return found


@given(
    any_completions(),
    st.lists(st.integers(1, 8), min_size=RUNS, max_size=RUNS),
    st.sets(st.integers(1, RUNS)),
    st.integers(1, 7),
)
def test_a_fold_is_what_plain_python_makes_of_it(
    completions: list[Completion], counts: list[int], watched: set[int], batch: int
) -> None:
    ledger = EchoLedger()
    models = {number: Model(count, count) for number, count in enumerate(counts, 1)}
    for number, count in enumerate(counts, 1):
        assert ledger.open(TARGET, count, watched=number in watched) == number
    strays = 0
    for start in range(0, len(completions), batch):
        part = completions[start : start + batch]
        finished, stopped, records = ledger.fold(packed(part))
        expected: list[int] = []
        for each in part:
            number = each.token >> 32
            if number == 0:
                continue
            if number not in models:
                strays += 1
                continue
            was_finished = models[number].is_finished
            models[number].take(each)
            if models[number].is_finished and not was_finished:
                expected.append(number)
        assert finished == expected
        assert stopped == [each.token >> 32 for each in part if each.kind == icmp.STOPPED]
        assert [Completion(*each) for each in COMPLETION.iter_unpack(records)] == [
            each for each in part if each.token >> 32 in watched | {0}
        ]
    assert ledger.strays == strays
    for number, model in models.items():
        assert_equal(ledger, number, model)
        assert_summarised(ledger, number, model.rtts_ns())


@given(st.lists(st.one_of(st.none(), st.integers(0, 2**40)), min_size=1, max_size=200))
def test_round_trip_times_are_summed_up_as_stats_does(rtts: list[int | None]) -> None:
    ledger = EchoLedger()
    number = ledger.open(TARGET, len(rtts))
    ledger.fold(packed(
        completion(number << 32 | at, icmp.TIMEOUT if rtt_ns is None else icmp.REPLY,
                   -1 if rtt_ns is None else rtt_ns)
        for at, rtt_ns in enumerate(rtts)
    ))  # fmt: skip
    assert_summarised(ledger, number, [rtt_ns for rtt_ns in rtts if rtt_ns is not None])
    assert json.loads(ledger.rtt_us_json(number)) == [
        None if rtt_ns is None else (rtt_ns + 50) // 100 / 10 for rtt_ns in rtts
    ]


@pytest.mark.parametrize("rtt_ns", [0, 49, 50, 99, 100, 3200, 2**31, 2**62, 2**63 - 1])
def test_any_duration_has_a_bucket_and_a_text(rtt_ns: int) -> None:
    ledger = EchoLedger()
    number = ledger.open(TARGET, 1)
    ledger.fold(packed([completion(number << 32, rtt_ns=rtt_ns)]))
    assert Histogram.of(ledger.histogram(number)) == Histogram([rtt_ns])
    assert json.loads(ledger.rtt_us_json(number)) == [pytest.approx(rtt_ns / 1000, abs=0.051)]


def test_the_text_ends_where_the_run_was_stopped() -> None:
    ledger = EchoLedger()
    number = ledger.open(TARGET, 9)
    ledger.fold(packed([
        completion(number << 32, rtt_ns=123_456),
        completion(number << 32, icmp.STOPPED, 2),
    ]))  # fmt: skip
    assert ledger.rtt_us_json(number) == b"[123.5,null]"
    ledger.fold(packed([completion(number << 32, icmp.STOPPED, 0)]))
    assert ledger.rtt_us_json(number) == b"[]"


# ── edges ────────────────────────────────────────────────────────────────────────────────────────


def test_the_largest_run_there_is() -> None:
    ledger = EchoLedger()
    number = ledger.open(TARGET, COUNT_MAX)
    assert COUNT_MAX == 1 << 20
    last = COUNT_MAX - 1
    ledger.fold(packed([completion(number << 32 | last), completion(number << 32 | COUNT_MAX)]))
    counts = Counts(*ledger.counts(number))
    assert (counts.submitted, counts.settled, counts.received) == (COUNT_MAX, 1, 1)
    assert ledger.kinds(number)[-1] == icmp.REPLY
    assert len(ledger.rtts_ns(number)) == 8 * COUNT_MAX


def test_a_run_ends_with_its_last_packet_or_where_it_was_stopped() -> None:
    ledger = EchoLedger()
    first, second = ledger.open(TARGET, 2), ledger.open(TARGET, 2)
    assert ledger.fold(packed([completion(first << 32)]))[0] == []
    assert ledger.fold(packed([completion(first << 32 | 1)]))[0] == [first]
    assert ledger.fold(packed([completion(first << 32 | 1, icmp.DUPLICATE)]))[0] == []
    ledger.fold(packed([completion(second << 32)]))
    finished, stopped, _ = ledger.fold(packed([completion(second << 32, icmp.STOPPED, 1)]))
    assert (finished, stopped) == ([second], [second])
    assert ledger.fold(packed([completion(second << 32, icmp.STOPPED, -1)]))[0] == []


def test_a_flood_of_duplicates_is_counted_and_not_kept() -> None:
    ledger = EchoLedger()
    number = ledger.open(TARGET, 3)
    ledger.fold(packed([completion(number << 32, icmp.DUPLICATE)] * 100_000))
    assert Counts(*ledger.counts(number)).duplicates == 100_000
    kept = len(ledger.exceptions(number)) // COMPLETION.size
    assert 2 * 3 <= kept <= 2 * 3 + EXCEPTIONS_SPARE


def test_thousands_of_runs_are_kept_apart() -> None:
    ledger = EchoLedger()
    numbers = [ledger.open(TARGET, 1) for _ in range(20_000)]
    assert len(set(numbers)) == len(ledger) == 20_000
    for number in numbers[::2]:
        ledger.close(number)
    more = [ledger.open(TARGET, 1) for _ in range(15_000)]
    assert not set(more) & set(numbers)
    left = numbers[1::2] + more
    ledger.fold(packed(completion(number << 32, rtt_ns=number) for number in left))
    for number in left:
        assert memoryview(ledger.rtts_ns(number)).cast("q")[0] == number
    for number in left:
        ledger.close(number)
    assert (len(ledger), ledger.strays) == (0, 0)


def test_a_number_is_not_used_again_soon() -> None:
    ledger = EchoLedger()
    stays = ledger.open(TARGET, 1)
    seen = {stays}
    for _ in range(5000):
        number = ledger.open(TARGET, 1)
        assert number not in seen
        seen.add(number)
        ledger.close(number)
        ledger.fold(packed([completion(number << 32)]))
    assert ledger.strays == 5000
    assert Counts(*ledger.counts(stays)).settled == 0


def resident_pages() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1])


def test_memory_of_what_was_closed_is_free_again() -> None:
    ledger = EchoLedger()

    def turn() -> None:
        number = ledger.open(TARGET, 100_000)
        ledger.fold(packed([completion(number << 32, icmp.DUPLICATE)] * 1000))
        ledger.close(number)

    for _ in range(20):
        turn()
    before = resident_pages()
    for _ in range(300):
        turn()  # 1.4 MB each
    assert resident_pages() - before < 10_000


def test_a_ledger_that_is_dropped_takes_its_runs_with_it() -> None:
    before = 0
    for turn in range(60):
        ledger = EchoLedger()
        for _ in range(20):
            ledger.open(TARGET, 100_000)
        if turn == 10:
            before = resident_pages()
    assert resident_pages() - before < 20_000


# ── bad arguments ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [0, COUNT_MAX + 1])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"count must be 1 to {COUNT_MAX}, not {count}"):
        EchoLedger().open(TARGET, count)


@pytest.mark.parametrize("count", [-1, 2**32])
def test_a_count_that_is_no_uint32_is_refused(count: int) -> None:
    with pytest.raises(OverflowError):
        EchoLedger().open(TARGET, count)


@pytest.mark.parametrize("destination", [b"", bytes(4), bytes(17)])
def test_a_destination_of_another_length_is_refused(destination: bytes) -> None:
    with pytest.raises(ValueError, match="destination must be 16 bytes"):
        EchoLedger().open(destination, 1)


@pytest.mark.parametrize("records", [b"x", bytes(COMPLETION.size + 1), bytes(COMPLETION.size - 1)])
def test_half_a_record_is_refused(records: bytes) -> None:
    ledger = EchoLedger()
    with pytest.raises(ValueError, match=f"whole records of {COMPLETION.size} bytes"):
        ledger.fold(records)
    assert ledger.fold(b"") == ([], [], b"")


@pytest.mark.parametrize("name", [
    "close", "counts", "rtts_ns", "kinds", "ttls", "sizes", "icmp_types", "codes", "exceptions",
    "summary", "histogram", "rtt_us_json",
])  # fmt: skip
def test_a_run_that_is_not_open_is_no_run(name: str) -> None:
    ledger = EchoLedger()
    number = ledger.open(TARGET, 1)
    ledger.close(number)
    for other in (number, number + 1024, 0):
        with pytest.raises(KeyError, match=f"run {other} is not open"):
            getattr(ledger, name)(other)


def test_types_are_checked() -> None:
    ledger: Any = EchoLedger()
    for destination in (None, "192.0.2.1"):
        with pytest.raises(TypeError):
            ledger.open(destination, 1)
    for completions in (None, bytearray(COMPLETION.size)):
        with pytest.raises(TypeError):
            ledger.fold(completions)


def test_records_are_of_the_size_that_the_format_says() -> None:
    assert struct.calcsize(icmp.COMPLETION_FORMAT) == COMPLETION.size == 48
