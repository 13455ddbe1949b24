"""Which back end an engine is opened by."""

import errno
from typing import Any

import pytest

from netsonde._native import icmp
from netsonde.errors import PrivilegeError, SendError
from netsonde.probe.ping import engines
from netsonde.probe.ping.engines import EngineOptions, able, budgets, open_engine


class FakeEngine:
    """Takes what an engine takes; `permitted` are the back ends that may be used."""

    permitted: tuple[str, ...] = ()
    cannot_start = False
    made: list["FakeEngine"]

    def __init__(self, family: int, **options: Any) -> None:
        self.family = family
        self.options = options
        self.backend = options["backend"]
        self.is_started = False
        self.is_closed = False
        if self.backend not in self.permitted:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        if family == 6 and "raw" not in self.permitted:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        self.made.append(self)

    def start(self) -> None:
        if self.cannot_start:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        self.is_started = True

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    class Fresh(FakeEngine):
        made: list[FakeEngine] = []  # noqa: RUF012

    monkeypatch.setattr(icmp, "EchoEngine", Fresh)
    return Fresh


@pytest.mark.parametrize(
    ("permitted", "backends", "opened"),
    [
        (("header", "raw", "datagram"), ("header", "raw", "datagram"), "header"),
        (("datagram",), ("header", "raw", "datagram"), "datagram"),
        (("header", "raw", "packet"), ("packet", "raw"), "packet"),
        (("header", "raw"), ("raw", "header"), "raw"),
    ],
)
def test_the_first_that_is_permitted_is_opened(
    fake: type[FakeEngine], permitted: tuple[str, ...], backends: Any, opened: str
) -> None:
    fake.permitted = permitted
    assert open_engine(4, EngineOptions(backends=backends)).backend == opened


def test_only_what_is_declared_is_opened(fake: type[FakeEngine]) -> None:
    fake.permitted = ("header", "raw", "datagram")
    with pytest.raises(PrivilegeError, match=r"may not send ICMPv4 \(back end packet\)") as caught:
        open_engine(4, EngineOptions(backends=("packet",)))
    assert "AmbientCapabilities" in str(caught.value)
    assert fake.made == []


def test_ipv6_has_no_headers_of_ours() -> None:
    assert list(able(6, ("header", "packet"))) == ["raw", "packet"]
    assert list(able(6, ("header", "raw", "datagram"))) == ["raw", "datagram"]
    assert list(able(4, ("header", "raw"))) == ["header", "raw"]


def test_a_host_that_cannot_says_why(fake: type[FakeEngine]) -> None:
    fake.permitted = ("datagram",)
    with pytest.raises(SendError, match="open ICMPv6 socket: Address family not supported"):
        open_engine(6)


@pytest.mark.parametrize(
    ("threaded", "processors", "is_started"),
    [(None, 1, False), (None, 2, True), (True, 1, True), (False, 8, False)],
)
def test_it_has_a_thread_where_there_is_a_processor_for_it(
    fake: type[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    threaded: bool | None,
    processors: int,
    is_started: bool,
) -> None:
    fake.permitted = ("raw",)
    monkeypatch.setattr(engines, "processors", lambda: processors)
    open_engine(4, EngineOptions(backends=("raw",), threaded=threaded))
    assert fake.made[0].is_started is is_started


def test_an_engine_that_does_not_start_is_closed(fake: type[FakeEngine]) -> None:
    fake.permitted, fake.cannot_start = ("raw",), True
    with pytest.raises(SendError, match="temporarily unavailable"):
        open_engine(4, EngineOptions(backends=("raw",), threaded=True))
    assert fake.made[0].is_closed


def test_options_reach_the_engine(fake: type[FakeEngine]) -> None:
    fake.permitted = ("raw",)
    shared = budgets(1000, 0, 500)
    assert [budget.rate_pps for budget in shared] == [1000, 500]
    options = EngineOptions(
        backends=("raw",),
        exact=True,
        budgets=shared,
        prefix_pps=5,
        target_pps=2,
        threaded=False,
        largest_size=320,
        capacity=4096,
    )
    for family in (4, 6):
        open_engine(family, options)
    assert [(each.family, each.options) for each in fake.made] == [
        (
            family,
            {
                "backend": "raw", "exact": True, "budgets": shared, "prefix_pps": 5,
                "target_pps": 2, "largest_size": 320, "capacity": 4096,
            },
        )
        for family in (4, 6)
    ]  # fmt: skip
