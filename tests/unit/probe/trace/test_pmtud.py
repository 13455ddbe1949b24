"""Path MTU discovery over paths whose links are known, with routers of all kinds."""

import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsonde.probe.trace.answers import Answer, Kind
from netsonde.probe.trace.pmtud import (
    DESTINATION_TTL,
    MTU_MIN,
    PROBES_MAX,
    Pmtu,
    PmtuSearch,
    SizeProbe,
)

BUDGET = 120  # probes, on any path


@dataclass(frozen=True)
class Router:
    """A hop and the link after it. says: the MTU in its messages, None: it sends none."""

    mtu: int
    says: int | None
    is_silent: bool = False  # where a TTL runs out


@dataclass
class Path:
    """Routers from TTL 1 on, and the destination beyond the last."""

    routers: list[Router]
    version: int = 4
    loses: Callable[[SizeProbe], bool] = lambda _: False
    sent: list[SizeProbe] = field(default_factory=list)

    def answer(self, probe: SizeProbe) -> Answer | None:
        """Return what a probe gets after all its attempts."""
        self.sent.append(probe)
        if self.loses(probe):
            return None
        for ttl, router in enumerate(self.routers, 1):
            if probe.ttl == ttl:
                return None if router.is_silent else self._error(probe, ttl, (11, 0), (3, 0))
            if probe.size > router.mtu:
                if router.says is None:
                    return None
                return self._error(probe, ttl, (3, 4), (2, 0), router.says)
        return self._answer(probe, len(self.routers) + 1, Kind.ECHO, (0, 0))

    def _error(
        self, probe: SizeProbe, hop: int, v4: tuple[int, int], v6: tuple[int, int], mtu: int = 0
    ) -> Answer:
        return self._answer(probe, hop, Kind.ERROR, v4 if self.version == 4 else v6, mtu)

    def _answer(
        self, probe: SizeProbe, hop: int, kind: Kind, said: tuple[int, int], mtu: int = 0
    ) -> Answer:
        return Answer(
            probe.ttl, 0, kind, self.address(hop), *said, 0, 1, 64, 1, 0, 0, mtu, b""
        )  # fmt: skip

    def address(self, hop: int) -> bytes:
        """Return the address of the router at a TTL."""
        return bytes((10, 0, hop, 1)) if self.version == 4 else bytes((0xFD, *(0,) * 14, hop))

    def truth(self, first_mtu: int) -> tuple[int, int | None]:
        """Return the path's MTU and the TTL of the first router that clamps to it."""
        mtu = min(first_mtu, *(router.mtu for router in self.routers))
        clamps = (ttl for ttl, each in enumerate(self.routers, 1) if each.mtu == mtu < first_mtu)
        return mtu, next(clamps, None)


def honest(mtu: int) -> Router:
    return Router(mtu, mtu)


def search(path: Path, first_mtu: int = 1500, together: int = 4, **more: object) -> Pmtu | None:
    """Search a path, some answers at a time, never more than the budget."""
    found = PmtuSearch(
        method="icmp",
        version=path.version,
        first_mtu=first_mtu,
        end_ttl=len(path.routers) + 1,
        **more,  # type: ignore[arg-type]
    )
    waiting: deque[SizeProbe] = deque()
    while True:
        waiting.extend(found.due())
        if not waiting:
            assert len(set(path.sent)) == len(path.sent)
            return found.result
        for _ in range(min(len(waiting), together)):
            probe = waiting.popleft()
            found.take(probe, path.answer(probe))


def once(seed: int, share: float) -> Callable[[SizeProbe], bool]:
    """Return a loss of a share of the probes, but of none twice."""
    rng = random.Random(seed)
    lost: Counter[tuple[int, int]] = Counter()

    def loses(probe: SizeProbe) -> bool:
        at = (probe.size, probe.ttl)
        if lost[at] or rng.random() >= share:
            return False
        lost[at] += 1
        return True

    return loses


def test_a_clear_path_takes_two_probes() -> None:
    path = Path([honest(1500)] * 5)
    assert search(path) == Pmtu(1500)
    assert path.sent == [SizeProbe(1200, DESTINATION_TTL), SizeProbe(1500, DESTINATION_TTL)]


@pytest.mark.parametrize("version", [4, 6])
def test_a_message_names_mtu_and_router(version: int) -> None:
    path = Path([honest(1500), honest(1500), honest(1420), honest(1500)], version)
    address = "10.0.3.1" if version == 4 else "fd00::3"
    assert search(path) == Pmtu(1420, 3, address)
    assert len(path.sent) <= 8


def test_each_narrower_link_says_so_in_turn() -> None:
    path = Path([honest(9000), honest(4000), honest(1500), honest(1400), honest(1400)])
    assert search(path, 9000) == Pmtu(1400, 4, "10.0.4.1")
    assert len(path.sent) <= 14


def test_an_old_router_says_nothing_but_that() -> None:
    plateau = Path([honest(1500), Router(1492, 0), honest(1500)])
    assert search(plateau) == Pmtu(1492, 2, "10.0.2.1")
    assert len(plateau.sent) <= 8
    other = Path([honest(1500), Router(1100, 0), honest(1500)])
    assert search(other) == Pmtu(1100, 2, "10.0.2.1")
    assert 1006 in {probe.size for probe in other.sent}  # the plateau below 1200


def test_a_black_hole_is_found_and_placed() -> None:
    path = Path([honest(1500), honest(1500), Router(1412, None), *[honest(1500)] * 4])
    assert search(path) == Pmtu(1412, 3, "10.0.3.1", black_hole=True)


def test_a_black_hole_beyond_a_narrow_link() -> None:
    path = Path([honest(1480), honest(1500), Router(1300, None), honest(1500)])
    assert search(path) == Pmtu(1300, 3, "10.0.3.1", black_hole=True)


def test_a_silent_router_in_front_of_a_black_hole_gives_the_last_that_is_known() -> None:
    path = Path([honest(1500), honest(1500), Router(1400, None, is_silent=True), honest(1500)])
    assert search(path, answering={1, 2, 4}) == Pmtu(1400, 2, "10.0.2.1", black_hole=True)


def test_a_router_that_sends_messages_only_is_placed_by_them() -> None:
    path = Path([honest(1500), honest(1500), Router(1400, 1400, is_silent=True), honest(1500)])
    assert search(path, answering={1, 2, 4}) == Pmtu(1400, 3, "10.0.3.1")


@pytest.mark.parametrize(("version", "says"), [(4, 67), (4, 1500), (4, 9000), (6, 1279), (6, 0)])
def test_what_cannot_be_is_not_believed(version: int, says: int) -> None:
    path = Path([honest(1500), Router(1300, says), honest(1500)], version)
    found = search(path)
    assert found is not None
    assert (found.mtu, found.ttl, found.black_hole) == (1300, 2, True)


def test_a_false_mtu_that_could_be_is_found_out() -> None:
    path = Path([honest(1500), Router(1400, 600), honest(1500)])
    assert search(path) == Pmtu(1400, 2, "10.0.2.1")


def test_a_link_below_the_base_size() -> None:
    assert search(Path([honest(1500), honest(296)])) == Pmtu(296, 2, "10.0.2.1")
    dark = Path([honest(1500), Router(300, None)])
    assert search(dark) == Pmtu(300, 2, "10.0.2.1", black_hole=True)


@pytest.mark.parametrize(("version", "base"), [(4, 1200), (6, 1280)])
def test_a_destination_that_never_answers_gives_nothing(version: int, base: int) -> None:
    path = Path([honest(1500)] * 3, version, loses=lambda probe: probe.ttl == DESTINATION_TTL)
    assert search(path) is None
    assert {probe.size for probe in path.sent} == {base, 1500, MTU_MIN[version]}
    assert len(path.sent) <= 6


def test_size_that_was_lost_by_chance_is_taken_back() -> None:
    lost: Counter[int] = Counter()

    def loses(probe: SizeProbe) -> bool:
        lost[probe.size] += probe.ttl == DESTINATION_TTL
        return probe.size == 1500 and probe.ttl == DESTINATION_TTL and lost[1500] <= 2

    path = Path([honest(1500)] * 4, loses=loses)
    assert search(path) == Pmtu(1500)
    assert {5, DESTINATION_TTL} <= {probe.ttl for probe in path.sent if probe.size == 1500}


def test_a_black_hole_behind_a_liar_is_not_the_liars() -> None:
    """It named, too small, what the next one passes without a word."""
    path = Path([honest(1500), Router(1400, 1280), Router(1280, None), honest(1500)])
    assert search(path) == Pmtu(1280, 3, "10.0.3.1", black_hole=True)


def test_a_search_that_is_cut_short_names_no_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    routers = [honest(1500)] * 9 + [honest(1400)] + [honest(1500)] * 9
    monkeypatch.setattr("netsonde.probe.trace.pmtud.PROBES_MAX", 5)
    assert search(Path(routers)) == Pmtu(1400, None, "10.0.10.1")
    monkeypatch.setattr("netsonde.probe.trace.pmtud.PROBES_MAX", 3)
    assert search(Path(routers)) is None


def test_the_number_of_probes_is_limited() -> None:
    rng = random.Random(1)
    path = Path([honest(65535)] * 200, loses=lambda _: rng.random() < 0.6)
    search(path, 65535)
    assert len(path.sent) <= PROBES_MAX


def routers(version: int) -> st.SearchStrategy[Router]:
    """Return a strategy for routers: honest, old, silent about sizes, or liars."""
    mtus = st.one_of(
        st.sampled_from([1280, 1400, 1420, 1472, 1480, 1492, 1500, 4352, 9000]),
        st.integers(MTU_MIN[version], 9200),
    )
    says = st.one_of(st.just("itself"), st.just(None), st.just(0), st.integers(0, 65535))
    return st.builds(lambda mtu, said: Router(mtu, mtu if said == "itself" else said), mtus, says)


@settings(max_examples=300, deadline=None)
@given(
    st.data(),
    st.sampled_from([4, 6]),
    st.sampled_from([1280, 1500, 1504, 9000, 65535]),
    st.integers(1, 16),
)
def test_any_path_gives_its_mtu_and_the_hop(
    data: st.DataObject, version: int, first_mtu: int, together: int
) -> None:
    hops = data.draw(st.lists(routers(version), min_size=1, max_size=20))
    loses = once(data.draw(st.integers(0, 99)), data.draw(st.sampled_from([0, 0.008, 0.2])))
    path = Path(hops, version, loses)
    found = search(path, first_mtu, together)
    assert found is not None
    mtu, ttl = path.truth(first_mtu)
    assert (found.mtu, found.ttl) == (mtu, ttl)
    assert len(path.sent) <= BUDGET
    if ttl is None:
        assert found == Pmtu(first_mtu)
    else:
        address = path.address(ttl)
        assert found.address == str(ip_address(address))
        says = hops[ttl - 1].says
        if says == mtu or says is None:
            assert found.black_hole is (says is None)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(routers(4), st.booleans()), min_size=1, max_size=16))
def test_silent_hops_blur_black_holes_only(hops: list[tuple[Router, bool]]) -> None:
    path = Path([replace(router, is_silent=is_silent) for router, is_silent in hops])
    answering = {ttl for ttl, (_, is_silent) in enumerate(hops, 1) if not is_silent}
    found = search(path, answering=answering)
    assert found is not None
    mtu, clamp = path.truth(1500)
    assert found.mtu == mtu
    if clamp is not None and hops[clamp - 1][0].says == mtu:
        assert (found.ttl, found.address) == (clamp, f"10.0.{clamp}.1")
    elif clamp is not None and hops[clamp - 1][0].says is None:
        assert found.ttl == max((ttl for ttl in answering if ttl <= clamp), default=None)


def test_a_fifth_of_all_packets_lost_hardly_matters() -> None:
    rng = random.Random(20261127)
    right = probes = 0
    for _ in range(400):
        hops = [honest(1500)] * 14
        mtu = rng.randint(1000, 1499)
        clamp = rng.randrange(14)
        hops[clamp] = Router(mtu, rng.choice([mtu, None, 0]))
        path = Path(hops, loses=lambda _: all(rng.random() < 0.2 for _ in range(3)))
        found = search(path)
        probes += len(path.sent)
        right += found is not None and (found.mtu, found.ttl) == (mtu, clamp + 1)
    assert right >= 396
    assert probes / 400 <= 40
