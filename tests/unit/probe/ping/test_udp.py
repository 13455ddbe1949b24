"""An attempt by udp: what counts as alive, and what does not."""

import errno
from collections.abc import Callable

import pytest

from netsonde._native import icmp
from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.model import FailureSource, Reason
from netsonde.probe.connect import IcmpError, SocketFailure, explain
from netsonde.probe.datagram import Answer, DatagramSocket, Refusal
from netsonde.probe.ping.run import Completion, PingRun
from netsonde.probe.ping.sockets import SocketDriver
from netsonde.probe.ping.udp import UdpAttempt, payload

CLOCK = ManualClock()


class FakeSocket:
    """Gives the answer it was made with."""

    def __init__(self, answer: Answer | Refusal | None) -> None:
        self.answer = answer
        self.questions: list[bytes] = []
        self.is_closed = False

    async def exchange(
        self, question: bytes, accept: Callable[[bytes], bool]
    ) -> Answer | Refusal | None:
        self.questions.append(question)
        assert accept(b"anything")
        return self.answer

    def close(self) -> None:
        self.is_closed = True


async def made(
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer | Refusal | SocketFailure | None,
    address: str = "192.0.2.1",
) -> Completion:
    opened = answer if isinstance(answer, SocketFailure) else FakeSocket(answer)
    ping = UdpAttempt(CLOCK)
    run = PingRun(
        carrier=SocketDriver(CLOCK, ping, "datagram"), address=address, count=1, interval_ns=0,
        timeout_ns=NS_PER_MS, method="udp", port=53, size=40, prepare=lambda _sock: None,
    )  # fmt: skip

    def fake_open(*arguments: object) -> object:
        assert arguments == (CLOCK, address, 53, run.prepare)
        return opened

    monkeypatch.setattr(DatagramSocket, "open", fake_open)
    completion = await ping(run, 7)
    if isinstance(opened, FakeSocket):
        assert opened.is_closed
        assert [len(question) for question in opened.questions] == [40]
    return completion


def closed(offender: str | None, *, version: int = 4, kind: int = 3, code: int = 3) -> Refusal:
    error = IcmpError(version, kind, code, offender)
    told = explain(errno.ECONNREFUSED, local=False, icmp=error)
    return Refusal(told, 2 * NS_PER_MS, "kernel", error)


async def test_any_datagram_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await made(monkeypatch, Answer(b"x" * 12, 3 * NS_PER_MS, "kernel"))
    assert (found.kind, found.rtt_ns, found.size) == (icmp.REPLY, 3 * NS_PER_MS, 12)
    assert (found.clocks, found.icmp_type) == (icmp.RX_KERNEL, 0)
    late = await made(monkeypatch, Answer(b"", 3 * NS_PER_MS, "user"))
    assert (late.clocks, late.size) == (0, 0)


@pytest.mark.parametrize(
    ("address", "refusal"),
    [
        ("192.0.2.1", closed("192.0.2.1")),
        ("192.0.2.1", closed("192.0.2.1", code=2)),  # it does not speak UDP at all
        ("2001:db8::1", closed("2001:db8::1", version=6, kind=1, code=4)),
    ],
)
async def test_the_targets_word_that_the_port_is_closed_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, address: str, refusal: Refusal
) -> None:
    found = await made(monkeypatch, refusal, address)
    assert (found.kind, found.rtt_ns, found.clocks) == (
        icmp.REPLY, 2 * NS_PER_MS, icmp.RX_KERNEL,
    )  # fmt: skip
    assert found.icmp_type == (3 if address == "192.0.2.1" else 1)


@pytest.mark.parametrize(
    "refusal",
    [
        closed("192.0.2.254"),  # a router in front of it
        closed(None),
        closed("192.0.2.1", code=1),
        closed("192.0.2.254", code=13),
    ],
)
async def test_a_routers_word_is_none(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> None:
    found = await made(monkeypatch, refusal)
    assert (found.kind, found.icmp_type, found.rtt_ns) == (icmp.ERROR, 3, -1)


async def test_silence_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await made(monkeypatch, None)).kind == icmp.TIMEOUT


async def test_what_this_host_does_not_send_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = SocketFailure(Reason.NO_ROUTE, FailureSource.SELF, "no route", errno.ENETUNREACH)
    for answer in (refused, Refusal(refused, 0, "user", None)):
        found = await made(monkeypatch, answer)
        assert (found.kind, found.errno) == (icmp.TX_ERROR, errno.ENETUNREACH)


def test_nobody_can_guess_a_payload() -> None:
    assert len(payload(16)) == 16
    assert payload(100)[:16] != payload(100)[:16]
