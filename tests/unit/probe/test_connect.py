import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsonde.model import FailureSource, Outcome, Reason
from netsonde.probe.connect import (
    Attempt,
    IcmpError,
    decisive_failure,
    explain,
    explain_oserror,
    first_connected,
    interleave,
    parse_icmp_error,
)


@pytest.mark.parametrize(
    ("code", "local", "reason", "source"),
    [
        (errno.ECONNREFUSED, False, Reason.REFUSED, FailureSource.TARGET),
        (
            errno.ECONNREFUSED,
            True,
            Reason.REFUSED,
            FailureSource.TARGET,
        ),  # loopback answers at once
        (errno.ECONNRESET, False, Reason.RESET, FailureSource.TARGET),
        (errno.ETIMEDOUT, False, Reason.TIMEOUT, FailureSource.TARGET),
        (errno.ENETUNREACH, False, Reason.UNREACHABLE_NET, FailureSource.PATH),
        (errno.ENETUNREACH, True, Reason.NO_ROUTE, FailureSource.SELF),
        (errno.EHOSTUNREACH, False, Reason.UNREACHABLE_HOST, FailureSource.TARGET),
        (errno.EHOSTUNREACH, True, Reason.NO_ROUTE, FailureSource.SELF),
        (errno.EACCES, False, Reason.FILTERED, FailureSource.PATH),
        (errno.EPERM, True, Reason.FILTERED, FailureSource.SELF),
        (errno.EMFILE, True, Reason.TX_ERROR, FailureSource.SELF),
    ],
)
def test_an_errno_has_a_reason_and_an_owner(
    code: int, local: bool, reason: Reason, source: FailureSource
) -> None:
    failure = explain(code, local=local)

    assert (failure.reason, failure.source, failure.errno) == (reason, source, code)
    own = source is FailureSource.SELF
    assert failure.outcome is (Outcome.AGENT_ERROR if own else Outcome.TARGET_ERROR)


def test_what_a_person_can_lift_says_how() -> None:
    words = explain(errno.EMFILE, local=True).text

    assert words.startswith("Too many open files (on this host): raise this process's limit")


@pytest.mark.parametrize(
    ("error", "reason", "source"),
    [
        (IcmpError(4, 3, 0, None), Reason.UNREACHABLE_NET, FailureSource.PATH),
        (IcmpError(4, 3, 1, None), Reason.UNREACHABLE_HOST, FailureSource.TARGET),
        (IcmpError(4, 3, 3, None), Reason.UNREACHABLE_PORT, FailureSource.TARGET),
        (IcmpError(4, 3, 13, "192.0.2.1"), Reason.FILTERED, FailureSource.PATH),
        (IcmpError(4, 3, 99, None), Reason.UNREACHABLE_NET, FailureSource.PATH),
        (IcmpError(4, 11, 0, None), Reason.TTL_EXCEEDED, FailureSource.PATH),
        (IcmpError(6, 1, 1, None), Reason.FILTERED, FailureSource.PATH),
        (IcmpError(6, 1, 4, None), Reason.UNREACHABLE_PORT, FailureSource.TARGET),
        (IcmpError(6, 3, 0, None), Reason.TTL_EXCEEDED, FailureSource.PATH),
    ],
)
def test_an_icmp_error_says_more_than_the_errno(
    error: IcmpError, reason: Reason, source: FailureSource
) -> None:
    failure = explain(errno.EHOSTUNREACH, local=False, icmp=error)

    assert (failure.reason, failure.source) == (reason, source)
    assert f"ICMP type {error.type} code {error.code}" in failure.text
    assert (error.offender or "ICMP") in failure.text


@pytest.mark.parametrize("error", [IcmpError(4, 5, 0, None), IcmpError(4, 3, 4, None)])
def test_an_icmp_error_that_is_no_failure_leaves_the_errno_its_say(error: IcmpError) -> None:
    failure = explain(errno.ECONNREFUSED, local=False, icmp=error)

    assert failure.reason is Reason.REFUSED


def extended_error(origin: int, kind: int, code: int, offender: bytes) -> bytes:
    return struct.pack("=IBBBBII", errno.EHOSTUNREACH, origin, kind, code, 0, 0, 0) + offender


def test_extended_errors_are_read_with_their_offender() -> None:
    v4 = struct.pack("=HH4s8x", socket.AF_INET, 0, bytes([192, 0, 2, 1]))
    v6 = struct.pack(
        "=HHI16sI", socket.AF_INET6, 0, 0, b"\x20\x01\x0d\xb8" + b"\0" * 11 + b"\x01", 0
    )

    assert parse_icmp_error(extended_error(2, 3, 13, v4)) == IcmpError(4, 3, 13, "192.0.2.1")
    assert parse_icmp_error(extended_error(3, 1, 4, v6)) == IcmpError(6, 1, 4, "2001:db8::1")
    assert parse_icmp_error(extended_error(2, 3, 1, b"")) == IcmpError(4, 3, 1, None)
    assert parse_icmp_error(extended_error(1, 3, 1, v4)) is None  # the host's own, no ICMP


@given(st.binary(max_size=64))
def test_any_bytes_are_an_error_or_none(data: bytes) -> None:
    found = parse_icmp_error(data)

    assert found is None or found.version in (4, 6)


def test_an_oserror_without_errno_is_ours() -> None:
    assert explain_oserror(OSError("strange")).source is FailureSource.SELF
    assert explain_oserror(ConnectionResetError(errno.ECONNRESET, "x")).reason is Reason.RESET


def test_families_alternate_beginning_with_the_first() -> None:
    assert interleave(["::1", "::2", "1.1.1.1", "::3"]) == ("::1", "1.1.1.1", "::2", "::3")
    assert interleave(["1.1.1.1", "1.1.1.2", "::1"]) == ("1.1.1.1", "::1", "1.1.1.2")
    assert interleave([]) == ()


@given(st.lists(st.ip_addresses().map(str), unique=True))
def test_interleaving_loses_nothing(addresses: list[str]) -> None:
    ordered = interleave(addresses)

    assert sorted(ordered) == sorted(addresses)
    for marker in (True, False):
        kept = [each for each in addresses if (":" in each) is marker]
        assert [each for each in ordered if (":" in each) is marker] == kept


def test_the_first_connected_attempt_wins_and_the_targets_failure_tells() -> None:
    attempts = [Attempt(number, "192.0.2.1", 1) for number in (1, 2, 3)]
    attempts[0].failure = explain(errno.ENETUNREACH, local=True)
    attempts[1].failure = explain(errno.ECONNREFUSED, local=False)

    assert first_connected(attempts) is None
    assert decisive_failure(attempts) is attempts[1].failure
    assert decisive_failure(attempts[2:]) is None


def test_the_loops_lag_does_not_enter_an_rtt_the_kernel_timed() -> None:
    attempt = Attempt(1, "192.0.2.1", 80, started_ns=0, ended_ns=6_000_000)

    assert (attempt.rtt_ns, attempt.rtt_clock) == (6_000_000, "user")

    attempt.syn_rtt_ns = 30_000

    assert (attempt.rtt_ns, attempt.rtt_clock) == (30_000, "kernel")
