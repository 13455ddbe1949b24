"""Whether a trace is ok, and what is said when it is not, for every way it can end."""

import errno
from typing import Any

import pytest

from netsonde._native import icmp
from netsonde.clock import ManualClock
from netsonde.model import FailureSource, Measurement, Outcome, Reason, TraceSpec
from netsonde.probe.base import Recorder
from netsonde.probe.trace import verdicts
from netsonde.probe.trace.answers import Answer, Flag
from support.trace_endings import Ending, answer, echo

SPEC = TraceSpec(host="h.example", max_hops=3)


def judged(
    ending: Ending, spec: TraceSpec = SPEC, address: str = "198.51.100.7"
) -> tuple[Measurement, dict[str, Any]]:
    record = Recorder(ManualClock())
    traced = ending.traced(6 if ":" in address else 4, spec.first_hop)
    value = verdicts.judge(spec, traced, address, record)
    return record.measurement(), value


def test_a_trace_that_came_to_its_destination_is_ok() -> None:
    measurement, value = judged(Ending(answers=[answer(1), echo(2)], end_ttl=2))
    assert (measurement.outcome, measurement.error, value) == (Outcome.OK, None, {})


@pytest.mark.parametrize(
    ("stop", "ttls", "reason", "message"),
    [
        (icmp.STOPPED_GAP_LIMIT, [1, 2], "timeout", "no answer in time; TTL 2 answered last"),
        (icmp.STOPPED_GAP_LIMIT, [], "timeout", "no answer in time; no hop answered"),
        (icmp.STOPPED_MAX_HOPS, [1, 3], "ttl_exceeded", "not reached within 3 hops"),
        (icmp.STOPPED_MAX_HOPS, [1, 2], "timeout", "no answer in time; TTL 2 answered last"),
        (icmp.STOPPED_LOOP, [1, 3], "ttl_exceeded", "the path goes in circles; TTL 3 answered"),
        (icmp.STOPPED_CANCELLED, [1], "timeout", "no answer in time; TTL 1 answered last"),
    ],
)
def test_a_destination_that_was_not_reached_is_the_paths_failure(
    stop: int, ttls: list[int], reason: str, message: str
) -> None:
    answers = [answer(ttl) for ttl in ttls]
    measurement, value = judged(Ending(answers=answers, stop=stop, attempts=b"\1\1\1"))
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == (reason, "path")
    assert measurement.error.message.startswith(f"h.example: {message}")
    assert value == {}


def test_a_late_answer_is_not_the_last_one() -> None:
    answers = [answer(1), answer(2, flags=Flag.LATE)]
    measurement, _ = judged(Ending(answers=answers, stop=icmp.STOPPED_GAP_LIMIT))
    assert measurement.error is not None
    assert measurement.error.message == "h.example: no answer in time; TTL 1 answered last"


@pytest.mark.parametrize(
    ("refusal", "address", "reason", "source", "text"),
    [
        (
            answer(3, "192.0.2.3", icmp_type=3, icmp_code=13), "198.51.100.7", Reason.FILTERED,
            FailureSource.PATH, "communication administratively prohibited",
        ),
        (
            answer(3, "192.0.2.3", icmp_type=3, icmp_code=1), "198.51.100.7",
            Reason.UNREACHABLE_HOST, FailureSource.TARGET, "host unreachable",
        ),
        (
            answer(3, "2001:db8::3", icmp_type=1, icmp_code=0), "2001:db8::7",
            Reason.UNREACHABLE_NET, FailureSource.PATH, "no route to destination",
        ),
    ],
)  # fmt: skip
def test_a_refusal_says_who_and_why(
    refusal: Answer, address: str, reason: Reason, source: FailureSource, text: str
) -> None:
    stop = icmp.STOPPED_UNREACHABLE
    measurement, value = judged(
        Ending(answers=[refusal], stop=stop, end_ttl=3, attempts=b"\1\4"),
        TraceSpec(host="h.example", first_hop=2),
        address,
    )
    assert measurement.outcome is Outcome.TARGET_ERROR
    assert measurement.error is not None
    assert (measurement.error.reason, measurement.error.failure_source) == (reason, source)
    says = f"h.example: {refusal.address} at TTL 3 says {text}"
    assert measurement.error.message == says
    assert value == {
        "unreachable": {
            "ttl": 3,
            "address": refusal.address,
            "icmp_type": refusal.icmp_type,
            "icmp_code": refusal.icmp_code,
            "reason": str(reason),
            "message": text,
        }
    }


def test_only_what_ended_the_trace_is_its_refusal() -> None:
    refusal = answer(2, icmp_type=3, icmp_code=1)
    ended = Ending(answers=[answer(1), refusal], stop=icmp.STOPPED_UNREACHABLE, end_ttl=2)
    passed = Ending(answers=[answer(1), refusal], stop=icmp.STOPPED_GAP_LIMIT)
    assert verdicts.refusal_of(ended.traced()) == refusal
    assert verdicts.refusal_of(passed.traced()) is None


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        (errno.ENOBUFS, Reason.TX_ERROR, "the kernel did not send it: No buffer space available"),
        (errno.ENETUNREACH, Reason.NO_ROUTE, "this host has no route there: Network is unreachab"),
    ],
)
def test_what_the_kernel_refuses_is_our_own_failure(
    code: int, reason: Reason, message: str
) -> None:
    measurement, value = judged(Ending(stop=icmp.STOPPED_TX_ERROR, errno=code, attempts=b"\3"))
    assert measurement.outcome is Outcome.AGENT_ERROR
    assert measurement.error is not None
    assert measurement.error.reason == reason
    assert measurement.error.failure_source == FailureSource.SELF
    assert measurement.error.message.startswith(f"h.example: {message}")
    assert value == {"status": "error"}
