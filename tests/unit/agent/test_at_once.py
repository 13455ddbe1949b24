"""A batch measured at once: every lease gets a result, whatever its prober does."""

from collections.abc import Sequence
from typing import Any

import pytest

from netsonde.agent.at_once import AtOnce, parted
from netsonde.agent.bounds import Bounds, target_pacer
from netsonde.clock import NS_PER_MS, ManualClock
from netsonde.model import Outcome, TaskKind
from netsonde.probe.base import Moment
from netsonde.wire import ResultColumns
from support.leases import make_lease
from support.probers import GatedProber, InstantProber

PING, TCP, DNS = TaskKind.PING, TaskKind.TCP, TaskKind.DNS


class ForgetfulProber(InstantProber):
    """Answers for one lease fewer than it was asked for."""

    def measure_many(
        self, specs: Sequence[Any], began: Moment, env: dict[str, Any]
    ) -> ResultColumns:
        columns = super().measure_many(specs, began, env)
        return columns._replace(outcomes=columns.outcomes[1:])


def at_once(clock: ManualClock, *probers: GatedProber) -> AtOnce:
    by_kind = {prober.kind: prober for prober in probers}
    return AtOnce(clock, by_kind, Bounds(target_pacer(100)))


def test_only_probers_that_answer_at_once_take_part(clock: ManualClock) -> None:
    made = at_once(clock, InstantProber(PING), InstantProber(TCP), GatedProber(DNS))

    assert made.kinds == {PING, TCP}


def test_each_kind_is_asked_once_and_the_results_are_in_order(clock: ManualClock) -> None:
    ping, tcp = InstantProber(PING), InstantProber(TCP)
    tcp.outcome = Outcome.TARGET_ERROR
    batches = {TCP: [make_lease(1, TCP)], PING: [make_lease(2), make_lease(3)]}
    columns = at_once(clock, ping, tcp).measure(batches, Moment.now(clock), {"site": "a"})

    assert columns.outcomes == [Outcome.TARGET_ERROR, Outcome.OK, Outcome.OK]
    assert [len(specs) for specs in ping.asked] == [2]
    assert columns.env["site"] == "a"
    assert columns.env["clock"] == clock.quality().as_env()


@pytest.mark.parametrize("is_forgetful", [False, True])
async def test_a_probers_bug_costs_its_own_kind_only(
    clock: ManualClock, is_forgetful: bool
) -> None:
    began = Moment.now(clock)
    await clock.advance(5 * NS_PER_MS)
    ping = ForgetfulProber(PING) if is_forgetful else InstantProber(PING)
    ping.columns_raise = None if is_forgetful else RuntimeError("boom")
    batches = {PING: [make_lease(1), make_lease(2)], TCP: [make_lease(3, TCP)]}
    columns = at_once(clock, ping, InstantProber(TCP)).measure(batches, began, {})

    assert columns.outcomes == [Outcome.AGENT_ERROR, Outcome.AGENT_ERROR, Outcome.OK]
    assert columns.durations_ns[:2] == [5 * NS_PER_MS] * 2
    assert [error is None for error in columns.errors or ()] == [False, False, True]


def test_leases_are_parted_in_their_order() -> None:
    first, second, third = leases = [make_lease(number) for number in (1, 2, 3)]

    assert parted(leases, [True, False, True]) == ([first, third], [second])
    assert parted(leases, [True] * 3) == (leases, ())
